"""The reply on its way back: byte for byte the replica's, but for the model's name.

The token `"model":"<served name>"` cannot stand inside a JSON string (its quotes would be escaped), so replacing it as
bytes is safe. Streams are cut at event ends, so that a token split over two packets is still seen.
"""

import json
import re
from dataclasses import dataclass

import msgspec

EVENT_LIMIT = 16 * 1024 * 1024


class _Usage(msgspec.Struct):
    """Token counts under either family of names."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None


class _Choice(msgspec.Struct):
    finish_reason: str | None = None


class _Inner(msgspec.Struct):
    """A Responses event's `response`, or an Anthropic event's `message` or `delta`."""

    usage: _Usage | None = None
    stop_reason: str | None = None
    status: str | None = None


class _Answer(msgspec.Struct):
    """What we read of an answer, or of one event of a stream."""

    usage: _Usage | None = None
    choices: list[_Choice] = []
    stop_reason: str | None = None
    status: str | None = None
    response: _Inner | None = None
    message: _Inner | None = None
    delta: _Inner | None = None
    error: msgspec.Raw = msgspec.Raw(b"null")


_read = msgspec.json.Decoder(_Answer).decode
_FACTS = (b'"usage":{', b'"finish_reason":"', b'"stop_reason":"', b'"usage": {', b'"error":{')
_NO_CHOICES = b'"choices":[]'
_LAST = b'"finish_reason":"'
_FINGERPRINT = re.compile(rb'"system_fingerprint":("[^"\\]*")')


@dataclass(slots=True)
class Facts:
    """What the answer said of itself; `finish_reason` is in the replica's words, empty when it said none."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    finish_reason: str = ""

    def learn(self, payload: bytes) -> None:
        """Take usage and finish reason from a JSON payload; what is not an answer teaches nothing."""
        try:
            answer = _read(payload)
        except (msgspec.ValidationError, msgspec.DecodeError):
            return
        for part in (answer, answer.response, answer.message, answer.delta):
            if part is None:
                continue
            if part.usage is not None:
                self._count(part.usage)
            self.finish_reason = part.stop_reason or self.finish_reason
        if answer.choices:
            self.finish_reason = answer.choices[0].finish_reason or self.finish_reason
        if bytes(answer.error).strip() != b"null":
            self.finish_reason = "error"
        done = answer.response or answer
        if done.status in ("completed", "incomplete", "failed"):
            self.finish_reason = done.status

    def _count(self, usage: _Usage) -> None:
        self.prompt_tokens = usage.prompt_tokens or usage.input_tokens or self.prompt_tokens
        self.completion_tokens = usage.completion_tokens or usage.output_tokens or self.completion_tokens


class Renamer:
    """Gives the model in an answer the name that the caller asked for."""

    __slots__ = ("_pairs",)

    def __init__(self, served_name: str, asked: str) -> None:
        old, new = (json.dumps(name, ensure_ascii=False).encode() for name in (served_name, asked))
        self._pairs = [] if old == new else [
            (b'"model":' + old, b'"model":' + new), (b'"model": ' + old, b'"model": ' + new)]

    def __call__(self, data: bytes) -> bytes:
        for old, new in self._pairs:
            data = data.replace(old, new)
        return data


class StreamRelay:
    """A server-sent event stream, renamed event by event.

    `hide_usage`: the usage event was asked for by us, not by the caller, so it is counted and taken out. vLLM stamps
    `system_fingerprint` on that event when there is one, else on each choice's last event; there it is put back.
    `fingerprint` is the replica's as JSON, once it is known (b"": it has none); until then the end of a stream is held
    back for the instant that the usage event takes.
    """

    __slots__ = ("_held", "_hide_usage", "_rename", "_rest", "facts", "fingerprint")

    def __init__(
        self, rename: Renamer, facts: Facts, *, hide_usage: bool, fingerprint: bytes | None = None
    ) -> None:
        self.facts = facts
        self.fingerprint = fingerprint
        self._rename = rename
        self._hide_usage = hide_usage
        self._rest = b""
        self._held: list[bytes] = []

    def feed(self, data: bytes) -> bytes:
        """The complete events in what has come so far, ready to send; b"" when none is complete."""
        if self._rest:
            data = self._rest + data
            self._rest = b""
        if not data.endswith(b"\n\n"):
            cut = data.rfind(b"\n\n") + 2
            if cut < 2:
                cut = 0 if len(data) < EVENT_LIMIT else len(data)
            data, self._rest = data[:cut], data[cut:]
        if self._held or any(fact in data for fact in _FACTS):
            data = self._learn(data)
        return self._rename(data)

    def flush(self) -> bytes:
        """What is left when the stream ends before it should."""
        rest = b"".join(event + b"\n\n" for event in self._held) + self._rest
        self._held, self._rest = [], b""
        return self._rename(rest)

    def _learn(self, data: bytes) -> bytes:
        kept: list[bytes] = []
        for event in data.split(b"\n\n"):
            payload = event[event.find(b"data:") + 5:] if b"data:" in event else b""
            if payload:
                self.facts.learn(payload)
            kept += self._as_if_unasked(event, payload) if self._hide_usage else [event]
        return b"\n\n".join(kept)

    def _as_if_unasked(self, event: bytes, payload: bytes) -> list[bytes]:
        """The event, or those held before it, as they are when no usage was asked for."""
        if _NO_CHOICES in payload and b'"usage":{' in payload:
            found = _FINGERPRINT.search(payload)
            self.fingerprint = found[1] if found else b""
            held, self._held = self._held, []
            return [self._stamped(one) for one in held]
        if event and (self._held or (self.fingerprint is None and _LAST in payload)):
            self._held.append(event)
            return []
        return [self._stamped(event)]

    def _stamped(self, event: bytes) -> bytes:
        if not self.fingerprint or _LAST not in event or not event.endswith(b"}"):
            return event
        return b'%b,"system_fingerprint":%b}' % (event[:-1], self.fingerprint)
