"""The values that all of this room speaks of: a good row, a bad one, and the error that stops the work."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

Message: TypeAlias = Mapping[str, Any]

ROLES = ("system", "developer", "user", "assistant", "tool")


class DataError(ValueError):
    """The data cannot be trained on; the message says which rows and why."""


@dataclass(frozen=True, slots=True)
class Row:
    """One good row: a chat that ends with the assistant's answer, or, with no messages, a plain `text`.

    `line` counts from 1 (in Parquet, Arrow and JSON arrays it counts rows). `id` is the source's own, else the digest
    of the content. `slice` names a part of the data for evaluation, `provenance` tells where the row comes from; of a
    row that a model made it is an object. `file` is set where the source is a folder of files.
    """

    line: int
    messages: tuple[Message, ...] = ()
    tools: tuple[Any, ...] | None = None
    text: str | None = None
    id: str = ""
    label: str | None = None
    slice: str | None = None
    quality: float | None = None
    provenance: Any = None
    file: str = ""

    @property
    def asked(self) -> str:
        """The words of the prompt, by which rows are compared and split.

        Instructions for the system say nothing about a row, unless there is nothing else; nor is there a prompt in a
        plain text, or before a first answer: then it is the text, or the answer.
        """
        prompt = [message for message in self.messages[:-1] if message.get("content")]
        turns = [message for message in prompt if message["role"] not in ("system", "developer")]
        return self.text or "\n".join(message["content"] for message in turns or prompt) or self.answered

    @property
    def answered(self) -> str:
        """The words of the last answer, with what it calls; of a plain text none."""
        if not self.messages:
            return ""
        answer = self.messages[-1]
        calls = answer.get("tool_calls")
        return (answer.get("content") or "") + (canonical_json(calls) if calls else "")

    @property
    def is_made(self) -> bool:
        """Was the row made by a model? Its provenance is then an object."""
        return isinstance(self.provenance, Mapping)

    def to_document(self) -> dict[str, Any]:
        """The row as prepared files hold it: what is not set is not there."""
        content = {"text": self.text} if self.text is not None else {"messages": list(self.messages)}
        named = {"tools": list(self.tools) if self.tools else None, "label": self.label, "slice": self.slice,
                 "provenance": self.provenance}
        return {"id": self.id, **content, **{key: value for key, value in named.items() if value is not None}}

    @classmethod
    def from_document(cls, line: int, document: Mapping[str, Any]) -> "Row":
        """The row that `to_document` wrote."""
        tools = document.get("tools")
        return cls(
            line, tuple(document.get("messages", ())), tuple(tools) if tools else None, document.get("text"),
            document.get("id", ""), document.get("label"), document.get("slice"), None, document.get("provenance"))


@dataclass(frozen=True, slots=True)
class Reject:
    """One bad row: where, which field, and why. `file` is set where the source is a folder of files."""

    line: int
    field: str
    reason: str
    file: str = ""

    def __str__(self) -> str:
        return f"{self.file}{', ' if self.file else ''}line {self.line}: {self.field}: {self.reason}"

    def to_document(self) -> dict[str, Any]:
        """The fields that are set."""
        named = {"file": self.file} if self.file else {}
        return {**named, "line": self.line, "field": self.field, "reason": self.reason}


def read_prepared(path: Path) -> Iterator[Row]:
    """The rows of a prepared file, one in memory at a time; DataError when it is no such file."""
    try:
        with path.open("rb") as file:
            for line, text in enumerate(file, start=1):
                yield _prepared_row(path, line, text)
    except OSError as error:
        raise DataError(f"The prepared rows {path} cannot be read: {error.strerror}.") from error


def _prepared_row(path: Path, line: int, text: bytes) -> Row:
    try:
        document = json.loads(text)
    except ValueError:
        document = None
    if not isinstance(document, dict) or not ("messages" in document or "text" in document):
        raise DataError(f"Line {line} of {path} is no prepared row; make the file with `data prepare`.")
    return Row.from_document(line, document)


def to_line(document: Mapping[str, Any]) -> str:
    """A line of JSONL, readable as it stands in any language."""
    return json.dumps(document, ensure_ascii=False) + "\n"


def canonical_json(value: Any) -> str:
    """The one text of a JSON value: sorted keys, no spaces."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def text_sha256(text: str) -> str:
    """The SHA-256 of a text's UTF-8 bytes, in hex."""
    return hashlib.sha256(text.encode()).hexdigest()
