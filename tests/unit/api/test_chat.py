"""The simple door asks for a plain chat completion and answers flat."""

import json

import pytest

from gateway.api.chat import ChatShape, parse_chat
from gateway.domain.errors import InvalidRequest, MalformedJson
from gateway.domain.routing import Route, Track

ROUTE = Route("acme", "base", "base", Track.BASE)


def test_a_prompt_becomes_one_user_message() -> None:
    body = parse_chat(b'{"adapter_name":"support","prompt":"hi \\u00e9","max_tokens":5,"temperature":0.5}')
    fields = {name: json.loads(bytes(raw)) for name, raw in body.fields.items()}
    assert fields == {"model": "support", "messages": [{"role": "user", "content": "hi \u00e9"}], "stream": False,
                      "max_tokens": 5, "temperature": 0.5}


def test_messages_are_passed_on_as_they_are() -> None:
    body = parse_chat(b'{"adapter_name":"a","messages":[{"role":"user","content":"x"}],"stream":true}')
    assert bytes(body.fields["messages"]) == b'[{"role":"user","content":"x"}]'
    assert body.stream
    assert json.loads(bytes(body.fields["stream_options"])) == {"include_usage": True}


@pytest.mark.parametrize("data", [
    b'{"adapter_name":"a"}', b'{"adapter_name":"a","prompt":"x","messages":[]}', b'{"prompt":"x"}',
    b'{"adapter_name":"","prompt":"x"}', b'{"adapter_name":"a","prompt":"x","max_tokens":"many"}',
    b'{"adapter_name":"a","prompt":"x","chat_template":"y"}', b"[]",
])
def test_what_the_door_does_not_take_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidRequest):
        parse_chat(data)


def test_broken_json_is_called_malformed() -> None:
    with pytest.raises(MalformedJson):
        parse_chat(b'{"adapter_name":')


def test_an_answer_is_flat() -> None:
    answer = b'{"choices":[{"message":{"content":"hello"}}],"usage":{"prompt_tokens":1}}'
    flat = json.loads(ChatShape().whole(answer, ROUTE, 0.25))
    assert flat == {
        "text": "hello", "adapter": "base", "version": None, "latency_ms": 250.0, "usage": {"prompt_tokens": 1}}


def test_an_answer_without_content_has_empty_text() -> None:
    assert json.loads(ChatShape().whole(b'{"choices":[{"message":{"content":null}}]}', ROUTE, 0.0))["text"] == ""


def test_a_stream_is_flat_ends_with_who_answered_and_keeps_errors() -> None:
    events = (b'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}\n\n'
              b'data: {"choices":[{"delta":{"content":"he"}}]}\n\n'
              b'data: {"choices":[],"usage":{"completion_tokens":1}}\n\n'
              b'data: {"error":{"message":"x"}}\n\ndata: [DONE]\n\n')
    out = ChatShape().events(events, ROUTE, 0.001).split(b"\n\n")
    assert json.loads(out[0][6:]) == {"text": "he"}
    assert json.loads(out[1][6:])["usage"] == {"completion_tokens": 1}
    assert out[2:] == [b'data: {"error":{"message":"x"}}', b"data: [DONE]", b""]
