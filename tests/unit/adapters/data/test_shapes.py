"""Rows are read in every shape, and what is wrong with a bad one is told by field and reason."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.data import DataSettings, Reject, Row
from adapters.data.readers import Record
from adapters.data.settings import Shape
from adapters.data.shapes import ALPACA, ALPACA_WITH_INPUT, content_digest, to_row

CALL = {"id": "1", "type": "function", "function": {"name": "find", "arguments": {"what": None}}}


def _read(document: dict[str, Any], **settings: Any) -> Row | Reject:
    return to_row(Record(7, document), DataSettings(source=Path("rows.jsonl"), **settings))


def _row(document: dict[str, Any], **settings: Any) -> Row:
    row = _read(document, **settings)
    assert isinstance(row, Row), row
    return row


def _reject(document: dict[str, Any], **settings: Any) -> tuple[str, str]:
    reject = _read(document, **settings)
    assert isinstance(reject, Reject), reject
    assert reject.line == 7
    return reject.field, reject.reason


def _chat(*texts: str) -> dict[str, Any]:
    return {"messages": [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(texts)]}


@pytest.mark.parametrize(("row", "prompt"), [
    (_chat("hi", "yes"), "hi"),
    ({"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yes"}]}, "hi"),
    ({"conversations": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]}, "hi"),
    ({"prompt": "hi", "completion": "yes"}, "hi"),
    ({"prompt": [{"role": "user", "content": "hi"}], "completion": [{"role": "assistant", "content": "yes"}]}, "hi"),
    ({"instruction": "hi", "output": "yes"}, "hi"),
    ({"instruction": "hi", "input": "", "output": "yes"}, "hi"),
    ({"instruction": "hi", "input": "you", "output": "yes"}, "hi\n\nyou"),
    ({"instruction": "hi", "input_data": "you", "output": "yes"}, "hi\n\nyou"),
    ({"instruction": "hi", "input": None, "output": "yes", "text": "### Instruction: hi"}, "hi"),
    ({"messages": [{"role": "user", "content": [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]},
                   {"role": "assistant", "content": "yes"}]}, "hi"),
])
def test_every_shape_becomes_a_chat(row: dict[str, Any], prompt: str) -> None:
    assert _row(row).messages == ({"role": "user", "content": prompt}, {"role": "assistant", "content": "yes"})


def test_a_plain_text_stays_one() -> None:
    row = _row({"text": "Once upon a time."})
    assert (row.text, row.messages) == ("Once upon a time.", ())


@pytest.mark.parametrize(("given_input", "prompt"), [
    ("", ALPACA.format(instruction="hi")), ("you", ALPACA_WITH_INPUT.format(instruction="hi", input="you")),
])
def test_the_alpaca_shape_asks_in_the_words_of_alpaca(given_input: str, prompt: str) -> None:
    row = _row({"instruction": "hi", "input": given_input, "output": "yes"}, shape="alpaca")
    assert row.messages[0]["content"] == prompt


@pytest.mark.parametrize(("shape", "document"), [
    ("text", {"text": "all of it", **_chat("hi", "yes")}),
    ("prompt", {"prompt": "a", "completion": "b", **_chat("hi", "yes")}),
    ("messages", {"instruction": "a", "output": "b", **_chat("hi", "yes")}),
])
def test_a_named_shape_is_taken_whatever_else_the_row_has(shape: Shape, document: dict[str, Any]) -> None:
    row = _row(document, shape=shape)
    assert row.asked == {"text": "all of it", "prompt": "a", "messages": "hi"}[shape]


def test_a_row_of_another_shape_than_the_named_one_is_bad() -> None:
    assert _reject(_chat("hi", "yes"), shape="instruction") == ("instruction", "is missing")
    assert _reject({"text": "x"}, shape="messages") == ("messages", "must be a list")


def test_system_messages_and_tools_are_kept() -> None:
    tools = [{"type": "function", "function": {"name": "find", "parameters": {"x": None}}}]
    document = {"tools": tools, "messages": [
        {"role": "system", "content": "be brief"}, {"role": "user", "content": "hi", "name": "Eve"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "1", "content": ""}, {"role": "assistant", "content": "yes"}]}
    row = _row(document)
    assert row.tools == tuple(tools)
    assert list(row.messages) == document["messages"]


def test_arguments_of_calls_become_objects_as_engines_render_them() -> None:
    call = {"function": {"name": "find", "arguments": '{"what": "a"}'}}
    row = _row({"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "tool_calls": [call]}]})
    assert row.messages[1] == {"role": "assistant", "content": None, "tool_calls": [
        {"type": "function", "function": {"name": "find", "arguments": {"what": "a"}}}]}


def test_nulls_are_dropped_but_not_those_of_a_calls_arguments() -> None:
    messages = [{"role": "user", "content": "hi", "name": None, "tool_calls": None},
                {"role": "assistant", "content": None, "tool_calls": [CALL], "weight": None}]
    assert _row({"messages": messages, "tools": None}).messages == (
        {"role": "user", "content": "hi"}, {"role": "assistant", "content": None, "tool_calls": [CALL]})


def test_what_sharegpt_says_as_function_call_is_a_call() -> None:
    row = _row({"system": "be brief", "tools": '[{"name": "find"}]', "conversations": [
        {"from": "human", "value": "hi"}, {"from": "function_call", "value": '{"name": "find", "arguments": {}}'},
        {"from": "observation", "value": "found"}, {"from": "gpt", "value": "yes"}]})
    assert [message["role"] for message in row.messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert row.messages[2]["tool_calls"][0]["function"] == {"name": "find", "arguments": {}}
    assert row.tools == ({"name": "find"},)


@pytest.mark.parametrize(("row", "field", "reason"), [
    ({"question": "x"}, "row", "has the fields of no known shape"),
    ({"messages": []}, "messages", "at least one message"),
    ({"messages": "hi"}, "messages", "must be a list"),
    ({"messages": ["x"]}, "messages[0]", "must be an object"),
    ({"messages": [{"content": "x"}]}, "messages[0].role", "is missing"),
    ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role", "not 'king'"),
    ({"messages": [{"role": "user", "content": "x"}]}, "messages[0].role", "the last message must be the assistant's"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "must be text"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content", "are not text"),
    ({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "x", "weight": 2}]},
     "messages[1].weight", "must be one of 0 or 1, not 2"),
    ({"messages": [{"role": "user", "tool_calls": [CALL]}, {"role": "assistant", "content": "x"}]},
     "messages[0].content", "not empty"),
    ({"messages": [{"role": "tool", "tool_call_id": "1"}, {"role": "assistant", "content": "x"}]},
     "messages[0].content", "not empty"),
    ({"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]},
     "messages[0].tool_calls[0].function.arguments", "is not JSON"),
    ({"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[]"}}]}]},
     "messages[0].tool_calls[0].function.arguments", "must be an object"),
    ({"messages": [{"role": "assistant", "tool_calls": [{"function": {"arguments": {}}}]}]},
     "messages[0].tool_calls[0].function.name", "is missing"),
    (_chat("hi", "  "), "messages[1].content", "must be text that is not empty"),
    (_chat("hi", "yes") | {"tools": "none"}, "tools", "is not JSON"),
    (_chat("hi", "yes") | {"tools": {"a": 1}}, "tools", "must be a list"),
    ({"conversations": []}, "conversations", "at least one message"),
    ({"conversations": [{"from": "king", "value": "x"}]}, "conversations[0].from", "not 'king'"),
    ({"conversations": [{"from": "human", "value": None}]}, "conversations[0].value", "must be text"),
    ({"conversations": [{"from": "human", "value": "x"}]}, "conversations[0].role", "the last message"),
    ({"conversations": [{"from": "function_call", "value": "find()"}]}, "conversations[0].value", "is not JSON"),
    ({"prompt": "hi"}, "completion", "is missing"),
    ({"prompt": 1, "completion": "yes"}, "prompt", "must be text that is not empty"),
    ({"instruction": "hi", "input": 3, "output": "yes"}, "input", "must be text"),
    ({"instruction": "hi", "output": ""}, "output", "must be text that is not empty"),
    ({"text": " "}, "text", "must be text that is not empty"),
    ({"text": "half a \ud800 pair"}, "row", "cannot be written as JSON in UTF-8"),
])
def test_a_bad_row_is_reported_with_line_field_and_reason(row: dict[str, Any], field: str, reason: str) -> None:
    found, why = _reject(row)
    assert found == field
    assert reason in why


def test_a_row_longer_than_it_may_be_is_bad() -> None:
    assert isinstance(_read({"text": "x" * 98}, max_chars=100), Row)  # and two quotation marks
    assert _reject({"text": "x" * 99}, max_chars=100) == ("row", "has 101 characters, more than max_chars = 100")


@pytest.mark.parametrize(("value", "label"), [("a ", "a"), (3, "3"), (True, "True"), (0.5, "0.5")])
def test_the_named_field_is_the_class(value: Any, label: str) -> None:
    assert _row({"text": "x", "intent": value}, label="intent").label == label


@pytest.mark.parametrize("value", [None, "", ["a"]])
def test_a_row_without_its_class_is_bad(value: Any) -> None:
    assert _reject({"text": "x", "intent": value}, label="intent")[0] == "intent"


def test_quality_is_read_only_where_it_is_asked_for() -> None:
    assert _row({"text": "x", "quality": "fine"}).quality is None
    assert _row({"text": "x", "quality": "0.5"}, min_quality=0.1).quality == 0.5
    assert _row({"text": "x"}, min_quality=0.1).quality is None
    assert _reject({"text": "x", "quality": "fine"}, min_quality=0.1) == ("quality", "must be a number, not 'fine'")


def test_a_row_keeps_its_id_or_gets_one_from_its_content() -> None:
    assert _row({"text": "x", "id": 12}).id == "12"
    named = _row({"text": "x"})
    assert named.id == _row({"text": "x", "slice": "other"}).id == content_digest(named).hex()[:16]
    assert named.id != _row({"text": "y"}).id


_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["role", "content", "from", "value", "tool_calls", "function", "name", "arguments", "weight"]),
        inner, max_size=4),
    max_leaves=12)


@given(st.dictionaries(st.sampled_from([
    "messages", "conversations", "prompt", "completion", "instruction", "input", "output", "text", "tools", "system",
    "id", "label", "provenance"]), _values))
def test_any_json_is_a_row_or_a_reject_that_says_why(document: dict[str, Any]) -> None:
    result = _read(document)
    if isinstance(result, Reject):
        assert result.field and result.reason
    else:
        assert _row(result.to_document()).to_document() == result.to_document()


@given(st.lists(st.tuples(st.sampled_from(["user", "assistant"]), st.text().filter(str.strip)), min_size=1))
def test_a_good_chat_comes_through_unchanged(turns: list[tuple[str, str]]) -> None:
    messages = [{"role": role, "content": text} for role, text in [*turns, ("assistant", "end")]]
    result = _read({"messages": messages})
    assert isinstance(result, Reject) or list(result.messages) == messages
    if isinstance(result, Reject):
        assert "UTF-8" in result.reason
