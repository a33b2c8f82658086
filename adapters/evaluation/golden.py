"""Golden sets: JSONL files of questions with what a good answer is; read, checked, and named by their digest.

Standard library only: what makes golden sets writes them with this module's words.
"""

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROLES = ("system", "developer", "user", "assistant", "tool")
FIELDS = ("id", "messages", "tools", "expected", "scorer", "options", "slice", "weight")
MAX_LINE_BYTES = 4 << 20
MAX_NUMBER = 1e300
DEFAULT_SLICE = "all"


class GoldenError(ValueError):
    """The golden set cannot be used; the message names the file, the line and the field, and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One question: `messages` without the answer, in OpenAI's shape, and what `scorer` compares an answer with.

    `slice` names the part of the set that it belongs to, `weight` (above 0) how much it counts.
    """

    id: str
    messages: tuple[Mapping[str, Any], ...]
    expected: Any
    scorer: str
    tools: tuple[Mapping[str, Any], ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    slice: str = DEFAULT_SLICE
    weight: float = 1.0

    def to_document(self) -> dict[str, Any]:
        """The item as JSON-ready data; what is as by default is left out, so that equal items are equal documents."""
        document: dict[str, Any] = {
            "id": self.id, "messages": list(self.messages), "expected": self.expected, "scorer": self.scorer}
        if self.tools:
            document["tools"] = list(self.tools)
        if self.options:
            document["options"] = dict(self.options)
        if self.slice != DEFAULT_SLICE:
            document["slice"] = self.slice
        if self.weight != 1.0:
            document["weight"] = self.weight
        return document


@dataclass(frozen=True, slots=True)
class GoldenSet:
    """The items in the order of their ids, and the digest that names them."""

    name: str
    items: tuple[Item, ...]
    digest: str


def read(path: Path) -> GoldenSet:
    """The golden set in a JSONL file; its name is the file's, without the ending.

    Every fault of every line is told at once (GoldenError), and so are ids that come twice. Empty lines do not count.
    """
    items: dict[str, Item] = {}
    faults: list[str] = []
    for line, text in _lines(path):
        try:
            item = from_json(text)
            if item.id in items:
                raise _Bad("id", f"{item.id!r} comes twice; ids are unique")
            items[item.id] = item
        except _Bad as bad:
            faults.append(f"  line {line}, {bad.field}: {bad.reason}")
    if faults:
        more = [f"  and {len(faults) - 20} more"] if len(faults) > 20 else []
        raise GoldenError("\n".join([f"The golden set {path} has bad lines; mend them:", *faults[:20], *more]))
    if not items:
        raise GoldenError(f"The golden set {path} has no items; write one JSON object a line.")
    return make(path.stem, items.values())


def make(name: str, items: Iterable[Item]) -> GoldenSet:
    """A golden set of items whose ids differ."""
    found = tuple(sorted(items, key=lambda item: item.id))
    return GoldenSet(name, found, digest(found))


def digest(items: Iterable[Item]) -> str:
    """The SHA-256, in hex, of the items as canonical JSON: sorted keys, no spaces, one a line, ordered by id.

    It is the same in whatever order the file has its lines and keys.
    """
    hashed = hashlib.sha256()
    for item in sorted(items, key=lambda item: item.id):
        hashed.update(to_json(item).encode() + b"\n")
    return hashed.hexdigest()


def to_json(item: Item) -> str:
    """The item as one line of canonical JSON, as `read` reads it and `digest` hashes it."""
    return json.dumps(item.to_document(), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def from_document(document: Any) -> Item:
    """The item that plain data describes; GoldenError names the field that is wrong."""
    try:
        return _item(document)
    except _Bad as bad:
        raise GoldenError(f"{bad.field}: {bad.reason}") from bad


def from_json(text: bytes) -> Item:
    """The item in one line of a file, or _Bad."""
    def refuse(constant: str) -> Any:
        raise _Bad("item", f"holds {constant}, which JSON does not know")

    try:
        document = json.loads(text, parse_constant=refuse)
        json.dumps(document, ensure_ascii=False).encode()
    except ValueError as error:  # not JSON, not UTF-8, or half a surrogate pair
        raise _Bad("item", f"is not JSON in UTF-8: {error}") from error
    except RecursionError as error:
        raise _Bad("item", "is nested too deeply") from error
    return _item(document)


class _Bad(Exception):
    """An item's fault: the field, and what is wrong with it."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(reason)
        self.field = field
        self.reason = reason


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    try:
        with path.open("rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES + 1), b""), 1):
                if len(line) > MAX_LINE_BYTES:
                    raise GoldenError(f"{path}, line {number} is longer than {MAX_LINE_BYTES} bytes; "
                                      "write one JSON object a line.")
                if line.strip():
                    yield number, line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
    except OSError as error:
        raise GoldenError(f"The golden set {path} cannot be read: {error.strerror}.") from error


def _item(document: Any) -> Item:
    if not isinstance(document, dict):
        raise _Bad("item", "must be a JSON object")
    unknown = sorted(set(document) - set(FIELDS))
    if unknown:
        raise _Bad(unknown[0], f"is not known; use {', '.join(FIELDS)}")
    if "expected" not in document:
        raise _Bad("expected", "is missing")
    item = Item(
        id=_text(document, "id"), messages=_messages(document.get("messages")), expected=document["expected"],
        scorer=_text(document, "scorer"), tools=_tools(document.get("tools")),
        options=_options(document.get("options")),
        slice=_text(document, "slice") if document.get("slice") is not None else DEFAULT_SLICE,
        weight=_weight(document.get("weight")))
    check = EXPECTED.get(item.scorer)
    if check is None:
        raise _Bad("scorer", f"{item.scorer!r} is not known; use {', '.join(EXPECTED)}")
    check(item.expected)
    _check_options(item)
    return item


def _text(document: Mapping[str, Any], name: str) -> str:
    value = document.get(name)
    if not isinstance(value, str) or not value.strip():
        raise _Bad(name, "must be text that is not empty")
    return value


def _messages(value: Any) -> tuple[Mapping[str, Any], ...]:
    if not isinstance(value, list) or not value:
        raise _Bad("messages", "must be a list with at least one message")
    for index, message in enumerate(value):
        where = f"messages[{index}]"
        if not isinstance(message, dict):
            raise _Bad(where, "must be an object with 'role' and 'content'")
        if message.get("role") not in ROLES:
            raise _Bad(f"{where}.role", f"must be one of {', '.join(ROLES)}, not {message.get('role')!r:.40}")
        calls_tools = message["role"] == "assistant" and message.get("tool_calls")
        if not calls_tools and not (isinstance(message.get("content"), (str, list)) and message["content"]):
            raise _Bad(f"{where}.content", "must be text, or a list of parts, that is not empty")
    if value[-1]["role"] == "assistant":
        raise _Bad(f"messages[{len(value) - 1}].role",
                   "is 'assistant'; the answer does not belong among the messages, write it as 'expected'")
    return tuple(value)


def _tools(value: Any) -> tuple[Mapping[str, Any], ...]:
    if value is not None and not (isinstance(value, list) and all(isinstance(tool, dict) for tool in value)):
        raise _Bad("tools", "must be a list of objects")
    return tuple(value or ())


def _options(value: Any) -> Mapping[str, Any]:
    if value is not None and not isinstance(value, dict):
        raise _Bad("options", "must be an object")
    return value or {}


def _weight(value: Any) -> float:
    if value is None:
        return 1.0
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise _Bad("weight", f"must be a number above 0, not {value!r:.40}")
    return float(value)


def _texts(expected: Any) -> None:
    given = expected if isinstance(expected, list) else [expected]
    if not given or not all(isinstance(each, str) and each for each in given):
        raise _Bad("expected", "must be text that is not empty, or a list of such texts")


def _label(expected: Any) -> None:
    if not isinstance(expected, str) or not expected.strip():
        raise _Bad("expected", "must be a label: text that is not empty")


def _pattern(expected: Any) -> None:
    try:
        re.compile(expected)
    except (re.error, TypeError, RecursionError, OverflowError) as error:
        raise _Bad("expected", f"must be a regular expression: {error}") from error


def _schema(expected: Any) -> None:
    if not isinstance(expected, (dict, bool)):
        raise _Bad("expected", "must be a JSON schema")


def _fields(expected: Any) -> None:
    if not isinstance(expected, dict) or not expected:
        raise _Bad("expected", "must be an object with at least one field")


def _number(expected: Any) -> None:
    if isinstance(expected, bool) or not isinstance(expected, (int, float)) or not abs(expected) < MAX_NUMBER:
        raise _Bad("expected", "must be a number below 1e300")


def _anything(expected: Any) -> None:
    """A judge may be given a reference, or none (null)."""


EXPECTED: Mapping[str, Callable[[Any], None]] = {
    "exact": _texts, "normalised": _texts, "label": _label, "contains": _texts, "regex": _pattern,
    "json_schema": _schema, "json_fields": _fields, "numeric": _number, "rouge_l": _texts, "judge": _anything,
}
"""What `expected` must be, by scorer."""

OPTIONS: Mapping[str, Mapping[str, type]] = {
    "label": {"labels": list}, "contains": {"any": bool, "ignore_case": bool},
    "regex": {"whole": bool, "ignore_case": bool}, "json_fields": {"all": bool},
    "numeric": {"absolute": float, "relative": float}, "rouge_l": {"stem": bool},
}
"""The options that a scorer knows, and their types; a judge's are its own."""


def _check_options(item: Item) -> None:
    known = OPTIONS.get(item.scorer, {})
    for name, value in item.options.items() if item.scorer != "judge" else ():
        if name not in known:
            words = f"use {', '.join(known)}" if known else f"{item.scorer!r} has no options"
            raise _Bad(f"options.{name}", f"is not known; {words}")
        if known[name] is float:
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
                raise _Bad(f"options.{name}", "must be a number that is 0 or more")
        elif not isinstance(value, known[name]):
            raise _Bad(f"options.{name}", f"must be {'true or false' if known[name] is bool else 'a list'}")
    labels = item.options.get("labels") if item.scorer == "label" else None
    if labels is not None and not (all(isinstance(each, str) for each in labels) and item.expected in labels):
        raise _Bad("options.labels", "must be a list of texts, with the expected label among them")
