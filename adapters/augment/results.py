"""What becomes of the texts that a teacher writes: rows, or faults with their reasons."""

from collections.abc import Sequence
from dataclasses import dataclass

from adapters.data import Row
from adapters.teacher import Usage


@dataclass(frozen=True, slots=True)
class Fault:
    """A text, or a whole reply, that became no row: what it was to be, from which row, why not, and the text."""

    kind: str
    source: str
    reason: str
    text: str | None = None


@dataclass(frozen=True, slots=True)
class Made:
    """What came of the tasks, in their order. `usage` is of all runs; `stopped` says why the work ended before all
    tasks were answered, None when it did not.
    """

    rows: Sequence[Row]
    faults: Sequence[Fault]
    unanswered: int
    usage: Usage
    stopped: str | None
