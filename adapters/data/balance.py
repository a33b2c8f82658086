"""How many rows each class has; of rows without a class, whether their answers are classes."""

from collections import Counter
from collections.abc import Iterable, Mapping

from adapters.data.rows import Row

MAX_CLASSES = 200
"""More answers than this are no classes; more labels than this are counted as OTHERS."""
MAX_LETTERS = 80
"""A longer answer is no class."""
ROWS_A_CLASS = 5
"""Answers are classes when each has as many rows as this, on average."""
OTHERS = "(others)"
RARE = 0.1
"""A class with less than this share of the largest one's rows is named as rare."""


class Answers:
    """Counts answers until they are too many or too long to be classes; its memory is bounded."""

    def __init__(self) -> None:
        self._counts: Counter[str] | None = Counter()
        self._rows = 0

    def add(self, row: Row) -> None:
        """Count the row's answer."""
        if self._counts is None:
            return
        self._rows += 1
        answer = row.answered.strip()
        self._counts[answer] += 1
        is_class = row.text is None and len(answer) <= MAX_LETTERS and not row.messages[-1].get("tool_calls")
        if not is_class or len(self._counts) > MAX_CLASSES:
            self._counts = None

    @property
    def are_classes(self) -> bool:
        """Are there at least two answers, and few for the number of rows?"""
        return self._counts is not None and 2 <= len(self._counts) <= self._rows / ROWS_A_CLASS


def count(rows: Iterable[Row]) -> dict[str, int]:
    """Rows by class, the largest first; rows without one are not counted."""
    counts: Counter[str] = Counter()
    for row in rows:
        if row.label is not None:
            counts[row.label if row.label in counts or len(counts) < MAX_CLASSES else OTHERS] += 1
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def describe(labels: Mapping[str, int]) -> list[str]:
    """The classes in lines for people, the rare ones named."""
    if not labels:
        return []
    total, largest = sum(labels.values()), max(labels.values())
    width = max(map(len, labels))
    lines = [f"{label:{width}}  {rows:>9,}  {rows / total:>6.1%}{'  rare' if rows < RARE * largest else ''}"
             for label, rows in labels.items()]
    return [f"classes: {len(labels)}, {largest / min(labels.values()):.1f} rows in the largest for one in the smallest",
            *(f"  {line}" for line in lines)]
