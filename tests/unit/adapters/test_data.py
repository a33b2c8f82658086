"""Rows are read in every shape, every bad one is reported, and only the assistant's words are learned."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from adapters import data
from adapters.data import IGNORED, DataError, Example, Message, Reject, Row, TemplateRefused


class WordTokenizer:
    """A token for each word or mark, numbered by its place; the template is `[role]text[end]`."""

    def apply_chat_template(
        self, conversation: Sequence[Message], *, tools: Sequence[Any] | None, tokenize: bool,
        add_generation_prompt: bool,
    ) -> str:
        if any(message["content"] == "refuse me" for message in conversation):
            raise TemplateRefused("roles must alternate")
        head = f"[tools]{len(tools)}" if tools else ""
        body = "".join(f"[{message['role']}]{message['content']}[end]" for message in conversation)
        return head + body + ("[assistant]" if add_generation_prompt else "")

    def __call__(self, text: str, *, add_special_tokens: bool, return_offsets_mapping: bool) -> Mapping[str, Any]:
        spans = [found.span() for found in re.finditer(r"\[\w+\]|\w+|[^\w\s]", text)]
        return {"input_ids": list(range(len(spans))), "offset_mapping": spans}


class ForgetfulTokenizer(WordTokenizer):
    """Leaves all answers but the last out, as the templates of some thinking models do with thoughts."""

    def apply_chat_template(self, conversation: Sequence[Message], **options: Any) -> str:
        last = len(conversation) - 1
        kept = [message for at, message in enumerate(conversation) if message["role"] != "assistant" or at == last]
        return super().apply_chat_template(kept, **options)


def _write(path: Path, *rows: Any) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def _chat(*texts: str) -> dict[str, Any]:
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[at % 2], "content": text} for at, text in enumerate(texts)]}


def _learned(row: Row) -> list[int]:
    example = data.tokenize(row, WordTokenizer())
    assert isinstance(example, Example)
    return [label for label in example.labels if label != IGNORED]


@pytest.mark.parametrize(("row", "prompt"), [
    (_chat("hi", "yes"), "hi"),
    ({"prompt": "hi", "completion": "yes"}, "hi"),
    ({"instruction": "hi", "output": "yes"}, "hi"),
    ({"instruction": "hi", "input": "", "output": "yes"}, "hi"),
    ({"instruction": "hi", "input": "you", "output": "yes"}, "hi\n\nyou"),
])
def test_every_shape_becomes_a_chat(tmp_path: Path, row: dict[str, Any], prompt: str) -> None:
    [read] = data.read_rows(_write(tmp_path / "rows.jsonl", row))
    assert isinstance(read, Row)
    assert read.messages == ({"role": "user", "content": prompt}, {"role": "assistant", "content": "yes"})


def test_empty_lines_are_passed_over_and_still_counted(tmp_path: Path) -> None:
    rows = list(data.read_rows(_write(tmp_path / "rows.jsonl", "", _chat("a", "b"), "  ", _chat("c", "d"))))
    assert [row.line for row in rows] == [2, 4]


@pytest.mark.parametrize(("row", "field", "reason"), [
    ("{", "row", "is not JSON"),
    ([1], "row", "must be a JSON object, not list"),
    ({"text": "x"}, "row", "has neither 'messages' nor"),
    ({"messages": []}, "messages", "at least one message"),
    ({"messages": ["x"]}, "messages[0]", "must be an object"),
    ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role", "not 'king'"),
    ({"messages": [{"role": "user", "content": "x"}]}, "messages[0].role", "the last message must be the assistant's"),
    (_chat("hi", "  "), "messages[1].content", "must be text that is not empty"),
    (_chat("hi", "yes") | {"tools": "none"}, "tools", "must be a list"),
    ({"prompt": "hi"}, "completion", "must be text that is not empty"),
    ({"prompt": 1, "completion": "yes"}, "prompt", "must be text that is not empty"),
    ({"instruction": "hi", "input": 3, "output": "yes"}, "input", "must be text"),
    ({"instruction": "hi"}, "output", "must be text that is not empty"),
])
def test_a_bad_row_is_reported_with_line_field_and_reason(tmp_path: Path, row: Any, field: str, reason: str) -> None:
    path = _write(tmp_path / "rows.jsonl", _chat("hi", "yes"), row)
    reject = list(data.read_rows(path))[1]
    assert isinstance(reject, Reject)
    assert (reject.line, reject.field) == (2, field)
    assert reason in reject.reason


def test_bytes_that_are_not_utf8_are_a_bad_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"prompt": "\xff", "completion": "x"}\n')
    assert isinstance(next(data.read_rows(path)), Reject)


def test_an_answer_that_only_calls_tools_is_kept_with_its_tools(tmp_path: Path) -> None:
    row = {"tools": [{"type": "function"}], "messages": [
        {"role": "user", "content": "hi"}, {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}]}
    [read] = data.read_rows(_write(tmp_path / "rows.jsonl", row))
    assert isinstance(read, Row)
    assert read.tools == ({"type": "function"},)
    assert read.messages[1]["tool_calls"] == [{"id": "1"}]


def test_only_the_answer_and_its_end_are_learned() -> None:
    # [user] hi you [end] [assistant] yes sir [end]
    row = Row(1, ({"role": "user", "content": "hi you"}, {"role": "assistant", "content": "yes sir"}))
    assert _learned(row) == [5, 6, 7]


def test_every_answer_of_a_long_chat_is_learned() -> None:
    # [system] be brief [end] [user] a [end] [assistant] b [end] [user] c [end] [assistant] d [end]
    turns = [("system", "be brief"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    row = Row(1, tuple({"role": role, "content": text} for role, text in turns))
    assert _learned(row) == [8, 9, 14, 15]


def test_a_row_that_the_template_refuses_is_reported() -> None:
    row = Row(7, ({"role": "user", "content": "refuse me"}, {"role": "assistant", "content": "no"}))
    reject = data.tokenize(row, WordTokenizer())
    assert reject == Reject(7, "messages", "the base model's chat template refused them: roles must alternate")


def test_a_row_whose_answers_the_template_changes_is_reported() -> None:
    turns = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    row = Row(3, tuple({"role": role, "content": text} for role, text in turns))
    reject = data.tokenize(row, ForgetfulTokenizer())
    assert isinstance(reject, Reject)
    assert "messages[1] differently in the whole chat" in reject.reason


def test_two_rejects_in_a_hundred_pass_and_are_kept(tmp_path: Path) -> None:
    path = _write(tmp_path / "rows.jsonl", *[_chat("hi", "yes")] * 98, "{", "{")
    prepared = data.prepare(path, WordTokenizer(), max_length=64)
    assert len(prepared.examples) == 98
    assert [reject.line for reject in prepared.rejects] == [99, 100]
    assert prepared.sha256 == data.file_sha256(path)


def test_three_rejects_in_a_hundred_stop_with_their_lines(tmp_path: Path) -> None:
    path = _write(tmp_path / "rows.jsonl", *[_chat("hi", "yes")] * 97, "{", "{", _chat("hi", ""))
    with pytest.raises(DataError, match=r"(?s)3 of 100 rows .* more than 2%.*line 98: row.*line 100: messages\[1\]"):
        data.prepare(path, WordTokenizer(), max_length=64)


def test_a_long_row_is_cut_and_counted(tmp_path: Path) -> None:
    path = _write(tmp_path / "rows.jsonl", _chat("hi", "one two three four"), _chat("hi", "yes"))
    prepared = data.prepare(path, WordTokenizer(), max_length=6)
    assert [len(example.input_ids) for example in prepared.examples] == [6, 6]
    assert prepared.truncated == 1


def test_a_row_whose_answer_is_cut_off_is_reported_and_not_dropped_in_silence(tmp_path: Path) -> None:
    path = _write(tmp_path / "rows.jsonl", _chat("one two three four five", "yes"), _chat("hi", "yes"))
    prepared = data.prepare(path, WordTokenizer(), max_length=6, max_rejected_share=0.5)
    assert len(prepared.examples) == 1
    assert [(reject.line, "all labels are masked" in reject.reason) for reject in prepared.rejects] == [(1, True)]


def test_data_with_all_labels_masked_is_refused(tmp_path: Path) -> None:
    path = _write(tmp_path / "rows.jsonl", _chat("one two three four five", "yes"))
    with pytest.raises(DataError, match=r"All labels in .* are masked: no answer begins within max_length = 6"):
        data.prepare(path, WordTokenizer(), max_length=6)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no rows"):
        data.prepare(_write(tmp_path / "rows.jsonl"), WordTokenizer(), max_length=8)


def test_a_file_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.jsonl cannot be read: No such file"):
        data.prepare(tmp_path / "none.jsonl", WordTokenizer(), max_length=8)


def test_rejects_are_written_one_a_line(tmp_path: Path) -> None:
    data.write_rejects([Reject(3, "output", "must be text")], tmp_path / "rejects.jsonl")
    [line] = (tmp_path / "rejects.jsonl").read_text().splitlines()
    assert json.loads(line) == {"line": 3, "field": "output", "reason": "must be text"}
