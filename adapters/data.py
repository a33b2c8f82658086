"""Rows of text → tokens with labels: read as a stream, checked row by row, and nothing dropped in silence."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

Message: TypeAlias = Mapping[str, Any]

ROLES = ("system", "developer", "user", "assistant", "tool")
IGNORED = -100
"""The label of a token that is not learned from, as torch's cross entropy has it."""
MAX_REJECTED_SHARE = 0.02


class DataError(ValueError):
    """The data cannot be trained on; the message says which rows and why."""


class TemplateRefused(Exception):
    """The base model's chat template does not take these messages; the text says why."""


class Tokenizer(Protocol):
    """What of a base model's tokenizer is used here, in the words of transformers' fast tokenizers."""

    def apply_chat_template(
        self, conversation: Sequence[Message], *, tools: Sequence[Any] | None, tokenize: bool,
        add_generation_prompt: bool,
    ) -> str:
        """The messages as the one text that the base model reads, or TemplateRefused."""

    def __call__(self, text: str, *, add_special_tokens: bool, return_offsets_mapping: bool) -> Mapping[str, Any]:
        """`input_ids`, and for each its (start, end) in the text as `offset_mapping`."""


@dataclass(frozen=True, slots=True)
class Row:
    """One good row, in chat form; `line` counts from 1."""

    line: int
    messages: tuple[Message, ...]
    tools: tuple[Any, ...] | None = None


@dataclass(frozen=True, slots=True)
class Reject:
    """One bad row: where, which field, and why."""

    line: int
    field: str
    reason: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.field}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Example:
    """One row as tokens; `labels` has the token itself where it is learned and IGNORED elsewhere."""

    input_ids: tuple[int, ...]
    labels: tuple[int, ...]
    line: int

    @property
    def is_learned(self) -> bool:
        """Is there a token to learn? The first label teaches nothing: each token is learned from those before it."""
        return any(label != IGNORED for label in self.labels[1:])


@dataclass(frozen=True, slots=True)
class Prepared:
    """A data set ready to train on. `sha256` is of the file's bytes; `truncated` counts rows cut to the
    length."""

    examples: tuple[Example, ...]
    rejects: tuple[Reject, ...]
    truncated: int
    sha256: str


def read_rows(path: Path) -> Iterator[Row | Reject]:
    """The rows of a JSONL file as they come, one line in memory at a time; empty lines are passed over.

    A row is `{"messages": […]}`, `{"prompt", "completion"}` or `{"instruction", "input"?, "output"}`.
    DataError when the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            for line, text in enumerate(file, start=1):
                if text.strip():
                    yield _row(line, text)
    except OSError as error:
        raise DataError(f"The data {path} cannot be read: {error.strerror}.") from error


def prepare(
    path: Path, tokenizer: Tokenizer, max_length: int, *, max_rejected_share: float = MAX_REJECTED_SHARE,
) -> Prepared:
    """Read, check and tokenise a data set; examples are cut to `max_length` tokens.

    DataError when the file has no rows, more than `max_rejected_share` of them are bad, or every label is masked.
    """
    examples: list[Example] = []
    rejects: list[Reject] = []
    truncated = masked = 0
    for row in read_rows(path):
        result = row if isinstance(row, Reject) else tokenize(row, tokenizer)
        if isinstance(result, Reject):
            rejects.append(result)
            continue
        example = Example(result.input_ids[:max_length], result.labels[:max_length], result.line)
        truncated += len(result.input_ids) > max_length
        if example.is_learned:
            examples.append(example)
        else:
            masked += 1
            rejects.append(Reject(result.line, "row", f"nothing of the answer is within max_length = {max_length} "
                                  "tokens, so all labels are masked"))
    if masked and not examples:
        raise DataError(f"All labels in {path} are masked: no answer begins within max_length = {max_length} tokens. "
                        "Raise it, or shorten the prompts.")
    _check_share(path, len(examples), rejects, max_rejected_share)
    return Prepared(tuple(examples), tuple(rejects), truncated, file_sha256(path))


def tokenize(row: Row, tokenizer: Tokenizer) -> Example | Reject:
    """The row in the base model's chat template, labelled so that only what the assistant says is learned.

    What the assistant says is what the template adds between the prompt for it and its end, end-of-turn mark included.
    """
    try:
        text, spans = _render(row, tokenizer)
    except TemplateRefused as refusal:
        return Reject(row.line, "messages", f"the base model's chat template refused them: {refusal}")
    tokens = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, offsets = tokens["input_ids"], tokens["offset_mapping"]
    labels = (
        token if any(start <= at < end for start, end in spans) else IGNORED
        for token, (at, _) in zip(ids, offsets, strict=True)
    )
    return Example(tuple(ids), tuple(labels), row.line)


def _render(row: Row, tokenizer: Tokenizer) -> tuple[str, list[tuple[int, int]]]:
    """The row's text, and the (start, end) of each answer in it, in characters."""
    def render(count: int, prompt: bool) -> str:
        return tokenizer.apply_chat_template(
            row.messages[:count], tools=row.tools, tokenize=False, add_generation_prompt=prompt)

    text = render(len(row.messages), False)
    spans = []
    for index, message in enumerate(row.messages):
        if message["role"] != "assistant":
            continue
        before, after = render(index, True), render(index + 1, False)
        if not (after.startswith(before) and text.startswith(after)):
            raise TemplateRefused(f"it renders messages[{index}] differently in the whole chat than after its prompt, "
                                  "so that it cannot be told which tokens are the answer")
        spans.append((len(before), len(after)))
    return text, spans


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def text_sha256(text: str) -> str:
    """The SHA-256 of a text's UTF-8 bytes, in hex."""
    return hashlib.sha256(text.encode()).hexdigest()


def write_rejects(rejects: Iterable[Reject], path: Path) -> None:
    """One JSON object a line: line, field, reason."""
    with path.open("w", encoding="utf-8") as file:
        for reject in rejects:
            document = {"line": reject.line, "field": reject.field, "reason": reject.reason}
            file.write(json.dumps(document, ensure_ascii=False) + "\n")


def _check_share(path: Path, good: int, rejects: Sequence[Reject], limit: float) -> None:
    total = good + len(rejects)
    if not total:
        raise DataError(f"The data {path} has no rows.")
    if len(rejects) > limit * total:
        shown = "\n".join(f"  {reject}" for reject in rejects[:10])
        more = f"\n  and {len(rejects) - 10} more" if len(rejects) > 10 else ""
        raise DataError(
            f"{len(rejects)} of {total} rows in {path} are bad, more than {limit:.0%}; mend them:\n{shown}{more}")


class _Bad(Exception):
    """A row's fault on its way to becoming a Reject."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(reason)
        self.field = field
        self.reason = reason


def _row(line: int, text: bytes) -> Row | Reject:
    try:
        document = json.loads(text)
        if not isinstance(document, dict):
            raise _Bad("row", f"must be a JSON object, not {type(document).__name__}")
        for key, convert in _SHAPES.items():
            if key in document:
                return Row(line, convert(document), _tools(document))
        raise _Bad("row", "has neither 'messages' nor 'prompt' and 'completion' nor 'instruction' and 'output'")
    except _Bad as bad:
        return Reject(line, bad.field, bad.reason)
    except ValueError as error:  # not JSON, or not UTF-8
        return Reject(line, "row", f"is not JSON: {error}")


def _from_messages(document: Mapping[str, Any]) -> tuple[Message, ...]:
    messages = document["messages"]
    if not isinstance(messages, list) or not messages:
        raise _Bad("messages", "must be a list with at least one message")
    for index, message in enumerate(messages):
        _check_message(message, f"messages[{index}]")
    if messages[-1]["role"] != "assistant":
        raise _Bad(f"messages[{len(messages) - 1}].role", "the last message must be the assistant's")
    return tuple(messages)


def _check_message(message: Any, field: str) -> None:
    if not isinstance(message, dict):
        raise _Bad(field, "must be an object with 'role' and 'content'")
    if message.get("role") not in ROLES:
        raise _Bad(f"{field}.role", f"must be one of {', '.join(ROLES)}, not {message.get('role')!r:.40}")
    if message["role"] == "assistant" and message.get("tool_calls"):
        return  # an answer that only calls tools has no text
    content = message.get("content")
    if not isinstance(content, str) or not content.strip():
        raise _Bad(f"{field}.content", "must be text that is not empty")


def _from_pair(document: Mapping[str, Any]) -> tuple[Message, ...]:
    return _turn(_text(document, "prompt"), _text(document, "completion"))


def _from_instruction(document: Mapping[str, Any]) -> tuple[Message, ...]:
    """The input follows the instruction after an empty line; it may be absent or empty."""
    extra = document.get("input") or ""
    if not isinstance(extra, str):
        raise _Bad("input", "must be text")
    instruction = _text(document, "instruction")
    prompt = f"{instruction}\n\n{extra}" if extra.strip() else instruction
    return _turn(prompt, _text(document, "output"))


def _tools(document: Mapping[str, Any]) -> tuple[Any, ...] | None:
    tools = document.get("tools")
    if tools is not None and not isinstance(tools, list):
        raise _Bad("tools", "must be a list")
    return tuple(tools) if tools else None


def _turn(prompt: str, answer: str) -> tuple[Message, ...]:
    return {"role": "user", "content": prompt}, {"role": "assistant", "content": answer}


def _text(document: Mapping[str, Any], field: str) -> str:
    value = document.get(field)
    if not isinstance(value, str) or not value.strip():
        raise _Bad(field, "must be text that is not empty")
    return value


_SHAPES: Mapping[str, Callable[[Mapping[str, Any]], tuple[Message, ...]]] = {
    "messages": _from_messages,
    "prompt": _from_pair,
    "instruction": _from_instruction,
}
"""By the field that tells the shape."""
