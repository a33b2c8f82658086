"""Base model and adapter side by side: prompts read strictly, both asked through a gateway, differences shown."""

import io
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from rich.console import Console

from adapters.compare import (
    Chat,
    CompareError,
    Comparison,
    Side,
    base_of,
    chats_of,
    page,
    read_chats,
    table,
    through_gateway,
)
from adapters.data.rows import Row

HELLO = Chat(({"role": "user", "content": "Hello!"},))


@pytest.mark.parametrize(("row", "expected"), [
    ({"prompt": "Hello!"}, None),
    ({"prompt": "Hello!", "completion": "Good day."}, "Good day."),
    ({"messages": [{"role": "user", "content": "Hello!"}], "expected": {"a": 1}}, '{"a": 1}'),
    ({"messages": [{"role": "user", "content": "Hello!"}, {"role": "assistant", "content": "Hi."}]}, "Hi."),
])
def test_every_shape_of_a_prompt_is_read_without_its_answer(tmp_path: Path, row: Any, expected: str | None) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps(row) + "\n\n")
    assert read_chats(path) == [Chat(HELLO.messages, None, expected)]


@pytest.mark.parametrize(("text", "words"), [
    ("", r"has no prompts"),
    ('{"prompt": "a"}\n{"prompt": ', r"line 2: is not JSON"),
    ("[1]", r"line 1: needs 'messages'"),
    ('{"messages": ["a"]}', r"line 1: needs 'messages'"),
    ('{"messages": [{"role": "assistant", "content": "a"}]}', r"line 1: has nothing before the answer"),
])
def test_a_bad_prompt_is_named_with_its_line(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(text)
    with pytest.raises(CompareError, match=words):
        read_chats(path)


def test_prepared_rows_are_asked_without_their_answers_and_plain_texts_not_at_all() -> None:
    messages = ({"role": "user", "content": "Hello!"}, {"role": "assistant", "content": "Hi."})
    rows = [Row(1, messages), Row(2, text="a text")]
    assert list(chats_of(rows)) == [Chat(HELLO.messages, None, "Hi.")]


def test_both_are_asked_greedily_through_the_gateway_with_the_callers_key() -> None:
    asked = []

    def answer(request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        asked.append((body["model"], body["temperature"], request.headers["authorization"], request.url.path))
        tokens = [{"logprob": -0.5}, {"logprob": -1.5}] if body["model"] == "tiny" else None
        return httpx.Response(200, json={"choices": [{
            "message": {"content": f"I am {body['model']}."}, "logprobs": {"content": tokens}}]})

    (row,) = _through(answer)
    path = "/v1/chat/completions"
    assert asked == [("tiny", 0, "Bearer key", path), ("desk", 0, "Bearer key", path)]
    assert (row.base, row.adapter) == (Side("I am tiny.", -1.0), Side("I am desk.", None))
    assert (row.differs, row.lift, row.difference) == (True, None, None)


@pytest.mark.parametrize(("response", "words"), [
    (httpx.Response(404, json={"error": {"message": "no such adapter"}}), r"refused 'tiny' \(404\): no such adapter"),
    (httpx.Response(200, json={"choices": []}), r"answered 200 with what is no chat completion"),
    (httpx.Response(502, text="bad gateway"), r"answered 502 with what is no chat completion"),
])
def test_what_a_gateway_refuses_or_garbles_is_told(response: httpx.Response, words: str) -> None:
    with pytest.raises(CompareError, match=words):
        _through(lambda request: response)


def test_a_gateway_that_does_not_answer_is_told() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    with pytest.raises(CompareError, match=r"No gateway answers at http://gateway"):
        _through(refuse)
    with pytest.raises(CompareError, match=r"is no address"):
        list(through_gateway([HELLO], url="http://gateway:port", key="key", base="tiny", adapter="desk"))


def test_the_table_and_the_page_show_both_answers_and_what_was_wanted() -> None:
    rows = [Comparison(messages=HELLO.messages, expected="Welcome.", base=Side("[b]No.", -0.5),
                       adapter=Side("Yes <b>.", -0.25), lift=1.5)]
    screen = io.StringIO()
    Console(file=screen, width=120).print(table(rows))
    for shown in ("Hello!", "[b]No.", "Yes <b>.", "Welcome.", "-0.50 → -0.25", "+1.50"):
        assert shown in screen.getvalue()
    text = page(rows, "desk")
    assert "1 of 1 answers differ" in text
    assert "Yes &lt;b&gt;." in text and "Yes <b>" not in text


def test_a_comparison_is_json_with_the_difference_of_the_log_probabilities() -> None:
    row = Comparison(messages=HELLO.messages, expected=None, base=Side("a", -2.0), adapter=Side("a", -0.5), lift=0.0)
    document = json.loads(json.dumps(row.to_document()))
    assert document["difference"] == 1.5
    assert document["base"] == {"text": "a", "logprob": -2.0}
    assert not row.differs


def test_an_artifact_names_its_base_model_and_the_commit(tmp_path: Path) -> None:
    with pytest.raises(CompareError, match="does not say which base model"):
        base_of(tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "from-peft"}')
    assert (base_of(tmp_path).name, base_of(tmp_path).revision) == ("from-peft", None)
    (tmp_path / "manifest.json").write_text('{"base_model": "from-manifest", "base_revision": "abc"}')
    assert (base_of(tmp_path).name, base_of(tmp_path).revision) == ("from-manifest", "abc")
    (tmp_path / "manifest.json").write_text("[]")
    with pytest.raises(CompareError, match=r"manifest\.json cannot be understood"):
        base_of(tmp_path)


def _through(answer: Any) -> list[Comparison]:
    return list(through_gateway([HELLO], url="http://gateway/", key="key", base="tiny", adapter="desk",
                                transport=httpx.MockTransport(answer)))
