"""What becomes of every row: counted, and, where it goes nowhere, written down with the reason."""

from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Self

from adapters.data.rows import DataError, Reject, to_line
from adapters.data.sharing import LeftOut
from adapters.data.split import SHARES

SHOWN = 10
WHY = {
    "rejected": "bad", "low_quality": "below the quality asked for", "personal_data": "with personal data",
    "duplicates": "there already", "near_duplicates": "nearly there already", "straddling": "near two shares",
    "leaked": "near what is evaluated with",
}
"""The counts of rows that go nowhere, in words."""


class Ledger:
    """Writes rejects.jsonl (bad rows) and left_out.jsonl (good ones that are not wanted) into a folder.

    `counts` has every kind from the start; `fields` tells which fields of bad rows are bad.
    """

    def __init__(self, folder: Path) -> None:
        self.counts: Counter[str] = Counter({key: 0 for key in (*SHARES, *WHY)})
        self.fields: Counter[str] = Counter()
        self._rejects = (folder / "rejects.jsonl").open("w", encoding="utf-8")
        self._left_out = (folder / "left_out.jsonl").open("w", encoding="utf-8")
        self._shown: dict[str, list[str]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None,
    ) -> None:
        self._rejects.close()
        self._left_out.close()

    def write(self, outcome: Reject | LeftOut) -> None:
        """Write the row down, and count it."""
        why = "rejected" if isinstance(outcome, Reject) else outcome.why
        file = self._rejects if isinstance(outcome, Reject) else self._left_out
        file.write(to_line(outcome.to_document()))
        self.counts[why] += 1
        if isinstance(outcome, Reject):
            self.fields[_kind(outcome.field)] += 1
        shown = self._shown.setdefault(why, [])
        if len(shown) < SHOWN:
            shown.append(str(outcome))

    def shown(self, why: str) -> str:
        """The first rows of a kind, a line each, and how many more there are."""
        lines = self._shown.get(why, [])
        more = self.counts[why] - len(lines)
        return "\n".join([*(f"  {line}" for line in lines), *([f"  and {more:,} more"] if more else [])])

    def check(self, source: Path, read: int, max_rejected_share: float) -> None:
        """DataError when there are no rows, or more bad ones than there may be."""
        if not read:
            raise DataError(f"The data {source} has no rows.")
        rejected = self.counts["rejected"]
        if rejected > max_rejected_share * read:
            raise DataError(f"{rejected:,} of {read:,} rows in {source} are bad, more than {max_rejected_share:.0%}; "
                            f"mend them, or allow more:\n{self.shown('rejected')}")


def _kind(field: str) -> str:
    """messages[7].role → messages[].role: there are few kinds, however many rows."""
    head, *rest = field.split("[")
    return "[".join([head, *(part[part.find("]"):] for part in rest)])
