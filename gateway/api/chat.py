"""The simple door, `POST /v1/chat`: one flat question, one flat answer."""

from typing import Annotated

import msgspec

from gateway.dataplane.body import Body, Fields
from gateway.domain.errors import InvalidRequest, MalformedJson
from gateway.domain.routing import Route

NULL = msgspec.Raw(b"null")

_encode = msgspec.json.Encoder().encode


class ChatRequest(msgspec.Struct, forbid_unknown_fields=True):
    """What `/v1/chat` takes; exactly one of `prompt` and `messages`."""

    adapter_name: Annotated[str, msgspec.Meta(min_length=1)]
    prompt: str | None = None
    messages: msgspec.Raw = NULL
    max_tokens: int | None = None
    temperature: float | None = None
    stream: bool = False


class _Text(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    message: _Text | None = None
    delta: _Text | None = None


class _Completion(msgspec.Struct):
    choices: list[_Choice] = []
    usage: msgspec.Raw = NULL


_request = msgspec.json.Decoder(ChatRequest).decode
_completion = msgspec.json.Decoder(_Completion).decode


def parse_chat(data: bytes) -> Body:
    """The chat completion that a `/v1/chat` body asks for. Raises MalformedJson or InvalidRequest."""
    try:
        data.decode()
        asked = _request(data)
    except msgspec.ValidationError as error:
        raise InvalidRequest(
            f"{error}. /v1/chat takes adapter_name, prompt or messages, max_tokens, temperature and stream.") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise MalformedJson(f"The body is not valid JSON: {error}.") from None
    if (asked.prompt is None) == _is_null(asked.messages):
        raise InvalidRequest("Give either 'prompt' or 'messages', not both and not neither.", param="prompt")
    messages = asked.messages
    if asked.prompt is not None:
        messages = msgspec.Raw(_encode([{"role": "user", "content": asked.prompt}]))
    fields: Fields = {
        "model": msgspec.Raw(_encode(asked.adapter_name)),
        "messages": messages,
        "stream": msgspec.Raw(_encode(asked.stream)),
    }
    if asked.stream:
        fields["stream_options"] = msgspec.Raw(b'{"include_usage":true}')
    for name, value in (("max_tokens", asked.max_tokens), ("temperature", asked.temperature)):
        if value is not None:
            fields[name] = msgspec.Raw(_encode(value))
    return Body(fields, asked.adapter_name, asked.stream, "")


class ChatShape:
    """Turns chat completions into `{"text", "adapter", "version", "latency_ms", "usage"}`.

    A stream has events `{"text": "<piece>"}`, then one with the rest of these fields, then `[DONE]`.
    """

    def whole(self, answer: bytes, route: Route, seconds: float) -> bytes:
        """A whole chat completion, flat."""
        completion = _completion(answer)
        message = completion.choices[0].message if completion.choices else None
        return _encode({"text": (message and message.content) or "", **_who(route, seconds), "usage": completion.usage})

    def events(self, events: bytes, route: Route, seconds: float) -> bytes:
        """Complete events of a chat completion stream, flat; events of other kinds (errors, the end) stay."""
        return b"".join(self._event(event, route, seconds) for event in events.split(b"\n\n") if event)

    def _event(self, event: bytes, route: Route, seconds: float) -> bytes:
        payload = event.removeprefix(b"data:").strip()
        if not payload.startswith(b"{") or payload.startswith(b'{"error"'):
            return event + b"\n\n"
        completion = _completion(payload)
        if not _is_null(completion.usage):
            return b"data: %b\n\n" % _encode({"text": "", **_who(route, seconds), "usage": completion.usage})
        delta = completion.choices[0].delta if completion.choices else None
        if delta is None or not delta.content:
            return b""
        return b"data: %b\n\n" % _encode({"text": delta.content})


def _is_null(raw: msgspec.Raw) -> bool:
    return bytes(raw).strip() == b"null"


def _who(route: Route, seconds: float) -> dict[str, object]:
    return {
        "adapter": route.adapter or route.base_model,
        "version": int(route.number) if route.number else None,
        "latency_ms": round(seconds * 1e3, 3),
    }
