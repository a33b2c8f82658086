"""A record in any of the known shapes → a chat or a plain text, checked to the last field."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from adapters.data.readers import Record
from adapters.data.rows import ROLES, Message, Reject, Row, canonical_json
from adapters.data.settings import DataSettings

ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:")
ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
    "response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:")
"""The prompts of Stanford Alpaca (Taori et al., 2023), word for word."""

SPEAKERS: Mapping[str, str] = {
    "human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant",
    "assistant": "assistant", "model": "assistant", "function_call": "assistant", "system": "system",
    "developer": "developer", "tool": "tool", "function": "tool", "function_response": "tool", "observation": "tool",
}
"""Who speaks in from/value conversations → the role. What `function_call` says is a call, as JSON."""

EMPTY = "must be text that is not empty"

Content: TypeAlias = tuple[Message, ...] | str
"""A chat, or a plain text."""


class Fault(ValueError):
    """A row's fault: the field, and what is wrong with it."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(reason)
        self.field = field
        self.reason = reason


def to_row(record: Record, settings: DataSettings) -> Row | Reject:
    """The record as a good row, or the first thing that is wrong with it."""
    try:
        return _row(record, settings)
    except Fault as fault:
        return Reject(record.line, fault.field, fault.reason, record.file)
    except ValidationError as error:
        return Reject(record.line, *_first(error), record.file)


def content_digest(row: Row) -> bytes:
    """The SHA-256 of what is learned from: the chat and its tools, or the text."""
    return hashlib.sha256(canonical_json(_content(row)).encode()).digest()


def _content(row: Row) -> Any:
    return row.text if row.text is not None else {"messages": row.messages, "tools": row.tools}


def shape_of(document: Mapping[str, Any]) -> str:
    """The first shape whose fields the document has; half a pair will do, so that what is missing can be told."""
    for wanted in (all, any):
        for shape, keys in _KEYS.items():
            if wanted(document.get(key) is not None for key in keys):
                return shape
    raise Fault("row", "has the fields of no known shape: messages; conversations; prompt and completion; instruction "
                       "and output; text")


_KEYS: Mapping[str, tuple[str, ...]] = {
    "messages": ("messages",), "conversations": ("conversations",), "prompt": ("prompt", "completion"),
    "instruction": ("instruction", "output"), "text": ("text",),
}
"""The fields that tell a shape, in the order in which they are looked for."""


def _not_empty(text: str) -> str:
    if not text.strip():
        raise ValueError(EMPTY)
    return text


def _from_json(value: Any) -> Any:
    """What tables and OpenAI's wire hold as a text of JSON."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is not JSON: {error}") from error


def text_of(content: Any) -> Any:
    """A content in parts as one text; only parts of text can be learned from."""
    if not isinstance(content, list):
        return content
    texts = [part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in content]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("has parts that are not text")
    return "".join(text for text in texts if text)


Text = Annotated[str, AfterValidator(_not_empty)]


class _Model(BaseModel):
    """Fields of the given types, nothing converted. Others pass: a chat template may read them."""

    model_config = ConfigDict(strict=True, extra="ignore")


class _Function(_Model):
    name: Text
    arguments: Annotated[dict[str, Any], BeforeValidator(_from_json)]


class _ToolCall(_Model):
    function: _Function


class _Message(_Model):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[str | None, BeforeValidator(text_of)] = None
    tool_calls: list[_ToolCall] | None = None
    weight: Literal[0, 1] | None = None

    @property
    def is_empty(self) -> bool:
        """An answer that only calls tools has no text, and a tool may have nothing to say."""
        if self.role == "tool":
            return self.content is None
        return not (self.content or "").strip() and not (self.role == "assistant" and self.tool_calls)


class _Chat(_Model):
    messages: Annotated[list[_Message], Field(min_length=1)]


class _Turn(_Model):
    speaker: Annotated[str, Field(alias="from")]
    value: str


class _Pair(_Model):
    prompt: Text
    completion: Text


class _Instruction(_Model):
    instruction: Text
    input: str | None = None
    input_data: str | None = None
    output: Text


class _PlainText(_Model):
    text: Text


class _Rest(_Model):
    """What a row may have beside its content."""

    system: str | None = None
    tools: Annotated[list[dict[str, Any]] | None, BeforeValidator(_from_json)] = None


def _row(record: Record, settings: DataSettings) -> Row:
    document = record.value
    shape = shape_of(document) if settings.shape == "auto" else settings.shape
    content = _SHAPES[shape](document)
    rest = _Rest.model_validate({key: document.get(key) or None for key in ("system", "tools")})
    if isinstance(content, tuple) and rest.system and content[0]["role"] != "system":
        content = ({"role": "system", "content": rest.system}, *content)
    row = Row(
        record.line,
        content if isinstance(content, tuple) else (),
        tuple(rest.tools) if rest.tools else None,
        content if isinstance(content, str) else None,
        id=_name(document, "id") or "", label=_label(document, settings.label), slice=_name(document, "slice"),
        quality=_quality(document) if settings.min_quality > 0 else None, provenance=document.get("provenance"),
        file=record.file)
    return _finished(row, settings.max_chars)


def _finished(row: Row, max_chars: int) -> Row:
    """The row with a digest for an id where the source has none; Fault when it is too long or cannot be written."""
    try:
        content = canonical_json(_content(row))
        digest = hashlib.sha256(content.encode()).hexdigest()
        canonical_json([row.id, row.label, row.slice, row.provenance]).encode()
    except (ValueError, TypeError, RecursionError) as error:  # half a surrogate pair, a date of Arrow's, a deep nest
        raise Fault("row", f"cannot be written as JSON in UTF-8: {error}") from error
    if len(content) > max_chars:
        raise Fault("row", f"has {len(content):,} characters, more than max_chars = {max_chars:,}")
    return row if row.id else dataclasses.replace(row, id=digest[:16])


def _from_messages(document: Mapping[str, Any]) -> Content:
    return _chat(document.get("messages"), "messages")


def _from_conversations(document: Mapping[str, Any]) -> Content:
    """Turns in OpenAI's words (role, content) or ShareGPT's (from, value)."""
    turns = document.get("conversations")
    if not isinstance(turns, list) or not turns:
        raise Fault("conversations", "must be a list with at least one message")
    return _chat([_spoken(turn, f"conversations[{at}]") for at, turn in enumerate(turns)], "conversations")


def _spoken(turn: Any, where: str) -> Any:
    if not isinstance(turn, dict) or "from" not in turn:
        return turn
    try:
        said = _Turn.model_validate(turn)
    except ValidationError as error:
        field, reason = _first(error)
        raise Fault(f"{where}.{field}", reason) from error
    if said.speaker not in SPEAKERS:
        raise Fault(f"{where}.from", f"must be one of {', '.join(SPEAKERS)}, not {said.speaker!r:.40}")
    others = {key: value for key, value in turn.items() if key not in ("from", "value")}
    if said.speaker != "function_call":
        return {"role": SPEAKERS[said.speaker], "content": said.value, **others}
    try:
        called = _from_json(said.value)
    except ValueError as error:
        raise Fault(f"{where}.value", str(error)) from error
    calls = called if isinstance(called, list) else [called]
    return {"role": "assistant", "content": None,
            "tool_calls": [{"type": "function", "function": call} for call in calls], **others}


def _from_pair(document: Mapping[str, Any]) -> Content:
    """Texts, or both as lists of messages."""
    prompt, completion = document.get("prompt"), document.get("completion")
    if isinstance(prompt, list) and isinstance(completion, list):
        return _chat([*prompt, *completion], "prompt + completion")
    pair = _Pair.model_validate(document)
    return _turn(pair.prompt, pair.completion)


def _from_instruction(document: Mapping[str, Any]) -> Content:
    """The input follows the instruction after an empty line; it may be absent or empty."""
    row = _Instruction.model_validate(document)
    given = row.input or row.input_data or ""
    return _turn(f"{row.instruction}\n\n{given}" if given.strip() else row.instruction, row.output)


def _from_alpaca(document: Mapping[str, Any]) -> Content:
    """The same fields, asked in the words of Alpaca's prompts."""
    row = _Instruction.model_validate(document)
    given = row.input or row.input_data or ""
    words = ALPACA_WITH_INPUT if given.strip() else ALPACA
    return _turn(words.format(instruction=row.instruction, input=given), row.output)


def _from_text(document: Mapping[str, Any]) -> Content:
    return _PlainText.model_validate(document).text


_SHAPES: Mapping[str, Callable[[Mapping[str, Any]], Content]] = {
    "messages": _from_messages, "conversations": _from_conversations, "prompt": _from_pair,
    "instruction": _from_instruction, "alpaca": _from_alpaca, "text": _from_text,
}


def _turn(prompt: str, answer: str) -> Content:
    return {"role": "user", "content": prompt}, {"role": "assistant", "content": answer}


def _chat(messages: Any, field: str) -> Content:
    """The messages, checked; `field` is what the source calls them."""
    try:
        chat = _Chat.model_validate({"messages": messages})
    except ValidationError as error:
        where, reason = _first(error)
        raise Fault(where.replace("messages", field, 1), reason) from error
    for index, message in enumerate(chat.messages):
        if message.is_empty:
            raise Fault(f"{field}[{index}].content", EMPTY)
    if chat.messages[-1].role != "assistant":
        raise Fault(f"{field}[{len(messages) - 1}].role", "the last message must be the assistant's")
    return tuple(_clean(raw, message) for raw, message in zip(messages, chat.messages, strict=True))


def _clean(raw: Mapping[str, Any], message: _Message) -> Message:
    """The message as it stands, without nulls, its content one text, and the arguments of calls as objects.

    Engines hand arguments to the chat template as objects, though OpenAI's wire has them as a text of JSON.
    """
    kept = {**{key: value for key, value in raw.items() if value is not None}, "content": message.content}
    if message.tool_calls:
        kept["tool_calls"] = [
            {"type": "function", **call, "function": {**call["function"], "arguments": checked.function.arguments}}
            for call, checked in zip(raw["tool_calls"], message.tool_calls, strict=True)]
    return kept


def _name(document: Mapping[str, Any], field: str) -> str | None:
    """A text or a whole number as text; anything else is no name."""
    value = document.get(field)
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) and str(value).strip() else None


def _label(document: Mapping[str, Any], field: str | None) -> str | None:
    """What the named field holds; where none is named, a `label` if the row has one, as prepared rows do."""
    if field is None:
        return _name(document, "label")
    value = document.get(field)
    if not isinstance(value, str | int | float) or not str(value).strip():
        raise Fault(field, f"must be the row's class, a text or a number, not {value!r:.40}")
    return str(value).strip()


def _quality(document: Mapping[str, Any]) -> float | None:
    """A number, or a text of one as CSV has it. A row without is taken as it is: real rows are seldom scored."""
    value = document.get("quality")
    if value is None:
        return None
    try:
        score = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        score = math.nan
    if math.isnan(score):
        raise Fault("quality", f"must be a number, not {value!r:.40}")
    return score


def _first(error: ValidationError) -> tuple[str, str]:
    """The field and the reason of the first fault, in our words."""
    fault = error.errors(include_url=False)[0]
    return _path(fault["loc"]), _reason(fault["type"], fault.get("input"), fault)


def _path(location: Sequence[str | int]) -> str:
    """("messages", 0, "role") as messages[0].role."""
    path = ""
    for step in location:
        path += f"[{step}]" if isinstance(step, int) else f".{step}" if path else step
    return path


_REASONS: Mapping[str, str] = {
    "string_type": EMPTY, "missing": "is missing", "list_type": "must be a list", "dict_type": "must be an object",
    "model_type": "must be an object", "too_short": "must be a list with at least one message",
}


def _reason(kind: str, given: Any, fault: Mapping[str, Any]) -> str:
    if kind == "value_error":
        return str(fault["ctx"]["error"])
    if kind == "literal_error":
        choices = ", ".join(ROLES) if fault["loc"][-1] == "role" else fault["ctx"]["expected"]
        return f"must be one of {choices}, not {given!r:.40}"
    return _REASONS.get(kind, str(fault["msg"]))
