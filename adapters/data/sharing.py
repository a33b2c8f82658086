"""Where each good row goes: train, validation or golden, never near-duplicates to different ones; or it is left out."""

import sqlite3
from dataclasses import dataclass
from typing import Any

from adapters.data import duplicates
from adapters.data.duplicates import MAX_COMPARED, NearIndex, Sketcher, normalise, pieces
from adapters.data.rows import Row
from adapters.data.settings import DataSettings
from adapters.data.split import Share, share_of
from adapters.data.spool import Spool


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A good row that goes nowhere: why (a key of the report's counts), and by reason of what."""

    row: Row
    why: str
    detail: str

    def __str__(self) -> str:
        return f"{name_of(self.row)}: {self.detail}"

    def to_document(self) -> dict[str, Any]:
        """A line of left_out.jsonl."""
        named = {"file": self.row.file} if self.row.file else {}
        return {**named, "line": self.row.line, "id": self.row.id, "why": self.why, "detail": self.detail}


def name_of(row: Row) -> str:
    """The row in a message."""
    return f"{row.id} ({row.file}{', ' if row.file else ''}line {row.line})"


def make_sketcher(spool: Spool, threshold: float) -> Sketcher:
    """For comparing prompts of these rows: what many of them share does not count."""
    return Sketcher(threshold, duplicates.shared_pieces(
        normalise(row.asked) for row in spool.sample(duplicates.SAMPLE)))


class Sharing:
    """Places rows one after another. A row goes where the rows that it is near went, else where its prompt says.

    A row that is near rows of different shares is left out, so that rows added later never move the earlier ones.
    Of rows with near prompts and near answers the first is kept.
    """

    def __init__(
        self, spool: Spool, settings: DataSettings, database: sqlite3.Connection, sketcher: Sketcher | None,
    ) -> None:
        self._spool = spool
        self._settings = settings
        self._sketcher = sketcher
        self._index = NearIndex(database, "near_rows", sketcher, lambda number: spool.row(number).asked) \
            if sketcher else None

    def place(self, number: int, row: Row) -> Share | LeftOut:
        """Where the row of this number goes; the spool must be told before the next one is placed."""
        if self._index is None or self._sketcher is None:
            return self._alone(row)
        sketch = self._sketcher.sketch(row.asked)
        near = self._index.near(sketch, MAX_COMPARED)
        if self._settings.duplicates == "near":
            for earlier in map(self._spool.row, near):
                if self._is_same_answer(row, earlier):
                    return LeftOut(row, "near_duplicates", f"nearly the same as {name_of(earlier)}")
        shares = {self._spool.share(each): each for each in near}
        share: Share = self._alone(row) if not shares else next(iter(shares))
        if len(shares) > 1 or not _may_go(row, share):
            named = " and ".join(f"{name_of(self._spool.row(each))} in {share}" for share, each in shares.items())
            return LeftOut(row, "straddling", f"near {named}")
        if len(near) < MAX_COMPARED:
            self._index.add(number, sketch)
        return share

    def _alone(self, row: Row) -> Share:
        share = share_of(row.asked, self._settings.validation_share, self._settings.golden_share)
        return share if _may_go(row, share) else "train"

    def _is_same_answer(self, row: Row, earlier: Row) -> bool:
        mine, other = normalise(row.answered), normalise(earlier.answered)
        return mine == other or \
            duplicates.similarity(pieces(mine), pieces(other)) >= self._settings.near_threshold


def _may_go(row: Row, share: Share) -> bool:
    """May the row go there? Only real rows are evaluated with, and only if their answer in words can be asked for."""
    if share == "train":
        return True
    if row.is_made or not (row.text or row.messages[-1].get("content")):
        return False
    return share == "validation" or (len(row.messages) > 1 and row.messages[-2]["role"] != "assistant")
