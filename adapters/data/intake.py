"""The source's rows, read and judged one by one: a good one goes on, any other is written down with the reason."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import TypeAlias

from adapters.data.balance import Answers
from adapters.data.pii import Finder, make_finder, mask_row
from adapters.data.readers import Record, read_records
from adapters.data.rows import Reject, Row
from adapters.data.settings import DataSettings
from adapters.data.shapes import to_row
from adapters.data.sharing import LeftOut, name_of
from adapters.data.spool import Spool

REPORTED = 100_000
"""How often a long reading says how far it is."""

Outcome: TypeAlias = Reject | LeftOut


def judged_rows(settings: DataSettings) -> Iterator[Row | Reject]:
    """The source's rows as they would be trained on, each judged for itself."""
    find = make_finder(settings.pii_finder)[1] if settings.pii != "off" else None
    for record in read_records(settings.source, settings.subset):
        row = record if isinstance(record, Reject) else to_row(record, settings)
        yield mask_row(row, find)[0] if find and isinstance(row, Row) else row


class Intake:
    """Reads the whole source once. `write` is given every row that does not go on, `find` finds personal data."""

    def __init__(
        self, settings: DataSettings, spool: Spool, write: Callable[[Outcome], None], find: Finder | None,
    ) -> None:
        self._settings = settings
        self._spool = spool
        self._write = write
        self._find = find
        self.answers = Answers()
        self.read = 0
        self._personal: Counter[str] = Counter()

    @property
    def personal(self) -> Mapping[str, int]:
        """How often each kind of personal data was found."""
        return dict(sorted(self._personal.items()))

    def run(self, report: Callable[[str], None]) -> None:
        """Take in every row. DataError when the source cannot be read."""
        for record in read_records(self._settings.source, self._settings.subset):
            self.read += 1
            if self.read % REPORTED == 0:
                report(f"data: {self.read:,} rows read")
            outcome = self._judge(record)
            if isinstance(outcome, Row):
                self.answers.add(outcome)
            else:
                self._write(outcome)

    def _judge(self, record: Record | Reject) -> Row | Outcome:
        row = record if isinstance(record, Reject) else to_row(record, self._settings)
        if isinstance(row, Reject):
            return row
        if row.quality is not None and row.quality < self._settings.min_quality:
            return LeftOut(row, "low_quality", f"quality {row.quality:g} is below {self._settings.min_quality:g}")
        if self._find:
            row, found = mask_row(row, self._find)
            self._personal.update(found)
            if found and self._settings.pii == "drop":
                return LeftOut(row, "personal_data", ", ".join(sorted(found)))
        earlier = self._spool.add(row)
        return LeftOut(row, "duplicates", f"the same as {name_of(earlier)}") if earlier else row
