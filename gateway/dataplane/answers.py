"""What an answer said: kept of the few calls whose answers are compared or judged, and read only then."""

from dataclasses import dataclass

import msgspec

KEPT_BYTES = 1 << 20
NULL = msgspec.Raw(b"null")


class _Text(msgspec.Struct):
    content: str | None = None
    tool_calls: msgspec.Raw = NULL
    function_call: msgspec.Raw = NULL
    reasoning: str | None = None
    refusal: str | None = None

    @property
    def is_more_than_text(self) -> bool:
        """Is there output besides the content?"""
        calls = any(bytes(raw).strip() not in (b"null", b"[]") for raw in (self.tool_calls, self.function_call))
        return calls or bool(self.reasoning) or bool(self.refusal)


class _Choice(msgspec.Struct):
    message: _Text | None = None
    delta: _Text | None = None
    text: str | None = None
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    completion_tokens: int = 0


class _Answer(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None


_read = msgspec.json.Decoder(_Answer).decode


@dataclass(slots=True)
class Said:
    """What a chat or text completion said in its first choice; `seconds` is how long the whole took.

    `pieces`: how many of it were read, 0 when it was no completion; `other`: was there output besides text?
    """

    text: str = ""
    finish_reason: str = ""
    tokens: int = 0
    seconds: float = 0.0
    pieces: int = 0
    other: bool = False

    @property
    def is_empty(self) -> bool:
        """Was it a completion that said nothing at all?"""
        return self.pieces > 0 and not self.text.strip() and not self.other

    @property
    def is_json(self) -> bool:
        """Is the text one JSON value?"""
        try:
            msgspec.json.decode(self.text)
        except (msgspec.DecodeError, UnicodeEncodeError):
            return False
        return True

    def take(self, payload: bytes) -> None:
        """Add a whole answer, or one event of a stream; what is neither adds nothing."""
        try:
            answer = _read(payload)
        except (msgspec.ValidationError, msgspec.DecodeError):
            return
        if answer.usage is not None:
            self.tokens = answer.usage.completion_tokens
        for choice in answer.choices[:1]:
            said = choice.message or choice.delta
            self.pieces += 1
            self.text += (said.content if said else choice.text) or ""
            self.other = self.other or (said is not None and said.is_more_than_text)
            self.finish_reason = choice.finish_reason or self.finish_reason


class Kept:
    """The bytes of an answer as they went to the caller, up to KEPT_BYTES."""

    __slots__ = ("_is_stream", "_parts", "_size")

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0
        self._is_stream = False

    def add(self, data: bytes, *, is_stream: bool) -> None:
        """Take bytes that go to the caller."""
        self._is_stream = is_stream
        self._size += len(data)
        if self._size <= KEPT_BYTES:
            self._parts.append(data)

    def said(self, seconds: float) -> Said | None:
        """What was answered; None when it was too much to keep."""
        if self._size > KEPT_BYTES:
            return None
        said, data = Said(seconds=seconds), b"".join(self._parts)
        for payload in data.split(b"\n\n") if self._is_stream else [data]:
            said.take(payload.removeprefix(b"data:") if self._is_stream else payload)
        return said
