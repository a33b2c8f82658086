"""What an answer said is read alike from a whole answer and from a stream."""

import json
from typing import Any

import pytest

from gateway.dataplane.answers import KEPT_BYTES, Kept, Said


def whole(**message: Any) -> bytes:
    return json.dumps({"choices": [{"message": message, "finish_reason": "stop"}],
                       "usage": {"completion_tokens": 3}}).encode()


def stream(*contents: str) -> list[bytes]:
    events = [json.dumps({"choices": [{"delta": {"content": text}, "finish_reason": None}]}) for text in contents]
    last = json.dumps({"choices": [{"delta": {}, "finish_reason": "stop"}]})
    usage = json.dumps({"choices": [], "usage": {"completion_tokens": 3}})
    return [f"data: {event}\n\n".encode() for event in (*events, last, usage, "[DONE]")]


def test_a_stream_says_what_the_whole_answer_says() -> None:
    one, other = Kept(), Kept()
    one.add(whole(content="the night train"), is_stream=False)
    for event in stream("the ", "night ", "train"):
        other.add(event, is_stream=True)
    left, right = one.said(1.0), other.said(1.0)
    assert left and right
    assert (left.text, left.finish_reason, left.tokens) == (right.text, right.finish_reason, right.tokens) == (
        "the night train", "stop", 3)


@pytest.mark.parametrize(("payload", "empty"), [
    (whole(content="x"), False), (whole(content=""), True), (whole(content=" \n"), True), (whole(content=None), True),
    (whole(content=None, tool_calls=[{"id": "1"}]), False), (whole(content=None, tool_calls=[]), True),
    (whole(content="", reasoning="because"), False), (b'{"object":"list","data":[]}', False), (b"not json", False),
])
def test_only_a_completion_that_says_nothing_is_empty(payload: bytes, empty: bool) -> None:
    said = Said()
    said.take(payload)
    assert said.is_empty is empty


@pytest.mark.parametrize(("text", "valid"), [
    ('{"a": 1}', True), ("[]", True), ('"x"', True), ('{"a": 1', False), ("Sure! {}", False), ("", False)])
def test_text_is_json_or_not(text: str, valid: bool) -> None:
    assert Said(text=text).is_json is valid


def test_an_answer_too_large_to_keep_says_nothing() -> None:
    kept = Kept()
    kept.add(b"x" * (KEPT_BYTES + 1), is_stream=False)
    assert kept.said(1.0) is None
