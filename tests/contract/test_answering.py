"""Inference: the bytes of every form of answer, and what an adapter does to them."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.clients.vllm import LIKELIEST, VllmClient
from gateway.domain.errors import EngineRefused
from tests.contract import shapes
from tests.contract.shapes import same

SALT = "a salt of the tests"
MESSAGES = [{"role": "user", "content": "hi"}]
CHAT, COMPLETIONS, ANTHROPIC, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses"
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"messages": MESSAGES, "max_tokens": 4}, COMPLETIONS: {"prompt": "abc", "max_tokens": 4},
    ANTHROPIC: {"messages": MESSAGES, "max_tokens": 4}, RESPONSES: {"input": "hi", "max_output_tokens": 4},
}
EVENT_STREAM = "text/event-stream; charset=utf-8"


def body(path: str, model: str = "base", **more: Any) -> dict[str, Any]:
    """A small deterministic request."""
    return {"model": model, "temperature": 0, **BODIES[path], **more}


async def ask(wire: httpx.AsyncClient, path: str, model: str = "base", **more: Any) -> dict[str, Any]:
    """The answer to a small request."""
    answer = await wire.post(path, json=body(path, model, **more))
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/json"
    found: dict[str, Any] = answer.json()
    return found


def openai_events(answer: httpx.Response) -> list[dict[str, Any]]:
    """The events of a stream that ends with [DONE]."""
    assert answer.headers["content-type"] == EVENT_STREAM
    *lines, done, rest = answer.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def named_events(answer: httpx.Response) -> list[tuple[str, dict[str, Any]]]:
    """The events of a stream of `event:` and `data:` lines."""
    assert answer.headers["content-type"] == EVENT_STREAM
    *blocks, rest = answer.text.split("\n\n")
    assert rest == ""
    found = []
    for block in blocks:
        event, data = block.split("\n")
        found.append((event.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    assert all(kind == document["type"] for kind, document in found)
    return found


def without_repeats(kinds: list[str]) -> list[str]:
    """The kinds of events in order, each run of the same kind once."""
    return [kind for i, kind in enumerate(kinds) if i == 0 or kinds[i - 1] != kind]


# Whole answers


async def test_a_chat_completion_has_its_shape(wire: httpx.AsyncClient, good: str) -> None:
    answer = await ask(wire, CHAT, good)

    assert same(answer, shapes.CHAT)
    assert answer["id"].startswith("chatcmpl-")
    assert (answer["object"], answer["model"]) == ("chat.completion", good)
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"] == {"prompt_tokens": 5, "total_tokens": 9, "completion_tokens": 4,
                               "prompt_tokens_details": None, "completion_tokens_details": None}


async def test_a_completion_has_its_shape(wire: httpx.AsyncClient, good: str) -> None:
    answer = await ask(wire, COMPLETIONS, good)

    assert same(answer, shapes.COMPLETION)
    assert answer["id"].startswith("cmpl-")
    assert (answer["object"], answer["model"]) == ("text_completion", good)
    assert (answer["usage"]["prompt_tokens"], answer["usage"]["completion_tokens"]) == (3, 4)


async def test_a_message_has_its_shape(wire: httpx.AsyncClient, good: str) -> None:
    answer = await ask(wire, ANTHROPIC, good)

    assert same(answer, shapes.MESSAGE)
    assert (answer["type"], answer["model"], answer["stop_reason"]) == ("message", good, "max_tokens")
    assert answer["usage"] == {"input_tokens": 5, "output_tokens": 4}


async def test_a_response_has_its_shape(wire: httpx.AsyncClient, good: str) -> None:
    answer = await ask(wire, RESPONSES, good)

    assert same(answer, shapes.RESPONSE)
    assert answer["id"].startswith("resp_")
    assert (answer["object"], answer["model"], answer["status"]) == ("response", good, "incomplete")
    assert answer["incomplete_details"] == {"reason": "max_output_tokens"}


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_the_callers_request_id_becomes_the_answers(wire: httpx.AsyncClient, path: str) -> None:
    answer = await wire.post(path, json=body(path), headers={"x-request-id": "req-7"})

    assert answer.json()["id"] in ("chatcmpl-req-7", "cmpl-req-7")


async def test_several_prompts_get_a_choice_each(wire: httpx.AsyncClient) -> None:
    answer = await ask(wire, COMPLETIONS, prompt=["abc", "xy"])

    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    assert answer["usage"]["prompt_tokens"] == 5


async def test_prompts_are_tokenized_as_the_chat_template_renders_them(wire: httpx.AsyncClient, good: str) -> None:
    answer = (await wire.post("/tokenize", json={"model": good, "messages": MESSAGES})).json()
    plain = (await wire.post("/tokenize", json={"model": "base", "prompt": "hi"})).json()

    assert same(answer, shapes.TOKENS)
    assert (answer["count"], len(answer["tokens"])) == (5, 5)
    assert answer["tokens"][1:3] == plain["tokens"]


async def test_a_model_that_cannot_embed_has_no_such_route(wire: httpx.AsyncClient) -> None:
    answer = await wire.post("/v1/embeddings", json={"model": "base", "input": "abc"})

    assert (answer.status_code, answer.json()) == (404, {"detail": "Not Found"})


# Streams


async def test_a_chat_completion_streams_in_its_shape(wire: httpx.AsyncClient, good: str) -> None:
    answer = await wire.post(CHAT, json=body(CHAT, good, stream=True))
    first, *middle, last = openai_events(answer)

    assert same(first, shapes.CHAT_FIRST)
    assert all(same(event, shapes.CHAT_NEXT) for event in middle)
    assert same(last, {**shapes.CHAT_END, **shapes.FINGERPRINT})
    assert {event["model"] for event in (first, *middle, last)} == {good}
    assert len({event["id"] for event in (first, *middle, last)}) == 1
    text = "".join(event["choices"][0]["delta"]["content"] for event in (*middle, last))
    assert text == (await ask(wire, CHAT, good))["choices"][0]["message"]["content"]


async def test_a_stream_ends_with_its_usage_when_asked(wire: httpx.AsyncClient) -> None:
    answer = await wire.post(CHAT, json=body(CHAT, stream=True, stream_options={"include_usage": True}))
    *_, last, usage = openai_events(answer)

    assert same(last, shapes.CHAT_END)
    assert same(usage, shapes.USAGE_EVENT)
    assert usage["usage"] == {"prompt_tokens": 5, "total_tokens": 9, "completion_tokens": 4}


async def test_a_completion_streams_in_its_shape(wire: httpx.AsyncClient) -> None:
    answer = await wire.post(COMPLETIONS, json=body(COMPLETIONS, stream=True, stream_options={"include_usage": True}))
    *events, usage = openai_events(answer)

    assert all(same(event, shapes.COMPLETION_NEXT) for event in events[:-1])
    assert events[-1]["choices"][0]["finish_reason"] == "length"
    assert same(usage, shapes.USAGE_EVENT)
    text = "".join(event["choices"][0]["text"] for event in events)
    assert text == (await ask(wire, COMPLETIONS))["choices"][0]["text"]


async def test_a_message_streams_in_its_shape(wire: httpx.AsyncClient, good: str) -> None:
    events = named_events(await wire.post(ANTHROPIC, json=body(ANTHROPIC, good, stream=True)))

    assert without_repeats([kind for kind, _ in events]) == list(shapes.MESSAGE_EVENTS)
    assert all(same(document, shapes.MESSAGE_EVENTS[kind]) for kind, document in events)
    assert events[0][1]["message"]["model"] == good
    text = "".join(document["delta"]["text"] for kind, document in events if kind == "content_block_delta")
    assert text == (await ask(wire, ANTHROPIC, good))["content"][0]["text"]


async def test_a_response_streams_in_its_shape(wire: httpx.AsyncClient, good: str) -> None:
    events = named_events(await wire.post(RESPONSES, json=body(RESPONSES, good, stream=True)))

    assert without_repeats([kind for kind, _ in events]) == list(shapes.RESPONSE_EVENTS)
    assert all(same(document, shapes.RESPONSE_EVENTS[kind]) for kind, document in events)
    assert [document["sequence_number"] for _, document in events] == list(range(len(events)))
    assert {document["response"]["model"] for _, document in events if "response" in document} == {good}


# Refusals


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, RESPONSES])
@pytest.mark.parametrize("stream", [False, True])
async def test_an_unknown_model_is_not_found(wire: httpx.AsyncClient, path: str, stream: bool) -> None:
    answer = await wire.post(path, json=body(path, "nobody", stream=stream))

    assert answer.status_code == 404
    assert same(answer.json(), shapes.PARAM_ERROR)
    assert answer.json()["error"] == {
        "message": "The model `nobody` does not exist. Valid aliases: base.", "type": "NotFoundError",
        "param": "model", "code": 404}


async def test_messages_have_anthropics_error_envelope(wire: httpx.AsyncClient) -> None:
    answer = await wire.post(ANTHROPIC, json=body(ANTHROPIC, "nobody"))

    assert answer.status_code == 404
    assert same(answer.json(), shapes.MESSAGES_ERROR)
    assert answer.json()["error"]["type"] == "NotFoundError"


@pytest.mark.parametrize(("path", "param"), [
    (CHAT, "body.messages"), (ANTHROPIC, "body.messages"), (RESPONSES, "body.input"), (COMPLETIONS, "prompt"),
])
async def test_a_missing_field_is_a_bad_request(wire: httpx.AsyncClient, path: str, param: str) -> None:
    answer = await wire.post(path, json={"model": "base"})

    assert answer.status_code == 400
    assert same(answer.json(), shapes.PARAM_ERROR)
    assert answer.json()["error"]["param"] == param


@pytest.mark.parametrize(("content", "kind", "param"), [
    (b'{"model": }', "Bad Request", "body.10"), (b"[1]", "Bad Request", "body"),
])
async def test_a_body_that_is_no_object_is_a_bad_request(
    wire: httpx.AsyncClient, content: bytes, kind: str, param: str
) -> None:
    answer = await wire.post(CHAT, content=content, headers={"content-type": "application/json"})

    assert answer.status_code == 400
    assert (answer.json()["error"]["type"], answer.json()["error"]["param"]) == (kind, param)


async def test_a_body_must_say_that_it_is_json(wire: httpx.AsyncClient) -> None:
    answer = await wire.post(CHAT, content=json.dumps(body(CHAT)), headers={"content-type": "text/plain"})

    assert answer.status_code == 400
    assert "Unsupported Media Type" in answer.json()["error"]["message"]


@pytest.mark.parametrize(("more", "param"), [
    ({"max_tokens": 99_999}, "max_tokens"), ({"cache_salt": ""}, "cache_salt"), ({"cache_salt": "a/b"}, "cache_salt"),
    ({"messages": [{"role": "user", "content": "x" * 5000}]}, "input_tokens"),
])
async def test_a_wish_that_cannot_be_met_is_a_bad_request(
    wire: httpx.AsyncClient, more: dict[str, Any], param: str
) -> None:
    answer = await wire.post(CHAT, json=body(CHAT, **more))

    assert answer.status_code == 400
    assert same(answer.json(), shapes.PARAM_ERROR)
    assert (answer.json()["error"]["type"], answer.json()["error"]["param"]) == ("BadRequestError", param)


# What an adapter changes


async def test_an_adapter_that_changes_nothing_gives_the_bases_logprobs_to_the_last_bit(
    client: VllmClient, adapters: Path, name: str
) -> None:
    await client.load(name, str(adapters / "no_op"))
    try:
        base = await client.next_token_logprobs("base", ["abc", "The quick brown fox"], SALT)
        assert await client.next_token_logprobs(name, ["abc", "The quick brown fox"], SALT) == base
    finally:
        await client.unload(name)


async def test_a_good_adapter_changes_logprobs_and_text(
    client: VllmClient, wire: httpx.AsyncClient, good: str
) -> None:
    base = await client.next_token_logprobs("base", ["abc", "The quick brown fox"], SALT)
    changed = await client.next_token_logprobs(good, ["abc", "The quick brown fox"], SALT)

    for before, after in zip(base, changed, strict=True):
        assert max(abs(a - b) for a, b in zip(before.values(), after.values(), strict=True)) > 0.01
    texts = [(await ask(wire, COMPLETIONS, model, max_tokens=12))["choices"][0]["text"] for model in ("base", good)]
    assert texts[0] != texts[1]


async def test_logprobs_are_negative_ordered_and_the_same_twice(client: VllmClient) -> None:
    first = await client.next_token_logprobs("base", ["abc", "xy"], SALT)

    assert first == await client.next_token_logprobs("base", ["abc", "xy"], SALT)
    assert [len(logprobs) for logprobs in first] == [LIKELIEST, LIKELIEST]
    for logprobs in (list(found.values()) for found in first):
        assert logprobs == sorted(logprobs, reverse=True) and logprobs[0] < 0


async def test_logprobs_of_an_unknown_model_are_refused(client: VllmClient) -> None:
    with pytest.raises(EngineRefused, match="does not exist"):
        await client.next_token_logprobs("nobody", ["abc"], SALT)


async def test_a_single_prompts_own_logprobs_come_by_token(wire: httpx.AsyncClient) -> None:
    answer = await ask(wire, COMPLETIONS, prompt_logprobs=0, max_tokens=1)

    first, *others = answer["choices"][0]["prompt_logprobs"]
    assert first is None
    assert [next(iter(entry.values()))["decoded_token"] for entry in others] == ["b", "c"]


async def test_echoed_prompts_come_with_their_logprobs(wire: httpx.AsyncClient) -> None:
    answer = await ask(wire, COMPLETIONS, echo=True, logprobs=1, max_tokens=1)

    logprobs = answer["choices"][0]["logprobs"]
    assert answer["choices"][0]["text"].startswith("abc")
    assert logprobs["text_offset"] == [0, 1, 2, 3]
    assert logprobs["tokens"][:3] == ["a", "b", "c"]
    assert logprobs["token_logprobs"][0] is None
