"""Rows held back for evaluation, as golden items; and the prompts of a golden set that came from elsewhere."""

import json
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from adapters.data.rows import DataError, Row
from adapters.data.shapes import text_of
from adapters.evaluation import golden
from adapters.evaluation.golden import GoldenSet, Item

NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?")


def item_of(row: Row, name: str) -> Item:
    """The row as a golden item: its prompt, its answer as what is expected, and the scorer that suits the answer.

    A class is scored as a label, a JSON object by its fields, a number by its value, any other text by ROUGE-L.
    """
    scorer, expected = _expected(row)
    named: dict[str, Any] = {"slice": row.slice} if row.slice else {}
    return Item(id=name, messages=row.messages[:-1], tools=row.tools or (), expected=expected, scorer=scorer, **named)


def _expected(row: Row) -> tuple[str, Any]:
    answer = row.answered.strip()
    if answer == row.label:
        return "label", answer
    if answer.startswith("{"):
        try:
            document = json.loads(answer)
        except ValueError:
            document = None
        if isinstance(document, dict) and document:
            return "json_fields", document
    if NUMBER.fullmatch(answer) and math.isfinite(number := float(answer.replace(",", ""))):
        return "numeric", number
    return "rouge_l", answer


class GoldenWriter:
    """Writes rows as items into a golden set's file; each gets an id of its own."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", encoding="utf-8")
        self._names: set[str] = set()

    def write(self, row: Row) -> None:
        """Append the row; of a second row with one id the name is longer."""
        name, again = row.id, 2
        while name in self._names:
            name, again = f"{row.id}-{again}", again + 1
        self._names.add(name)
        self._file.write(golden.to_json(item_of(row, name)) + "\n")

    def close(self) -> None:
        """The file is whole now."""
        self._file.close()


def read_golden(path: Path) -> GoldenSet:
    """The golden set; DataError when it cannot be used."""
    try:
        return golden.read(path)
    except golden.GoldenError as error:
        raise DataError(str(error)) from error


def prompts_of(items: Iterable[Item]) -> Iterable[tuple[str, str]]:
    """Each item's id and the words of its prompt, as those of a row."""
    for item in items:
        messages = tuple({**message, "content": text_of(message.get("content"))} for message in item.messages)
        yield item.id, Row(0, (*messages, {"role": "assistant", "content": ""})).asked
