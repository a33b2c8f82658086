"""Good rows on their way, on disk: in order, found again by number, and each content once where that is wanted."""

import dataclasses
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from adapters.data.rows import Row, to_line
from adapters.data.shapes import content_digest
from adapters.data.split import Share

CACHE_KIB = 64 * 1024


def open_database(path: Path) -> sqlite3.Connection:
    """A database for one run: nothing of it has to survive, and its memory is bounded."""
    database = sqlite3.connect(path, isolation_level=None)
    for pragma in ("journal_mode = OFF", "synchronous = OFF", "locking_mode = EXCLUSIVE", "temp_store = FILE",
                   f"cache_size = -{CACHE_KIB}"):
        database.execute(f"PRAGMA {pragma}")
    database.execute("BEGIN")
    return database


class Spool:
    """Rows in a file, and where each one is in a table. Rows are numbered from 0."""

    def __init__(self, path: Path, database: sqlite3.Connection, *, unique: bool) -> None:
        database.execute(
            "CREATE TABLE rows (number INTEGER PRIMARY KEY, digest BLOB UNIQUE, start INTEGER, share TEXT)")
        self._database = database
        self._unique = unique
        self._file = path.open("w+b")
        self._end = 0
        self.count = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def add(self, row: Row) -> Row | None:
        """Keep the row, unless there is one of equal content already: that one is the answer then."""
        digest = content_digest(row) + (b"" if self._unique else self.count.to_bytes(8, "big"))
        kept = self._database.execute(
            "INSERT OR IGNORE INTO rows (number, digest, start) VALUES (?, ?, ?)", (self.count, digest, self._end))
        if not kept.rowcount:
            [(number,)] = self._database.execute("SELECT number FROM rows WHERE digest = ?", (digest,))
            return self.row(number)
        document = {**row.to_document(), "line": row.line, "file": row.file}
        self._file.seek(0, 2)
        self._end += self._file.write(to_line(document).encode())
        self.count += 1
        return None

    def row(self, number: int) -> Row:
        """The row with this number."""
        [(start,)] = self._database.execute("SELECT start FROM rows WHERE number = ?", (number,))
        self._file.seek(start)
        return _row(self._file.readline())

    def __iter__(self) -> Iterator[tuple[int, Row]]:
        """Every row with its number, in order."""
        self._file.flush()
        with open(self._file.name, "rb") as file:
            for number, line in enumerate(file):
                yield number, _row(line)

    def sample(self, size: int) -> Iterator[Row]:
        """Rows chosen by their content, whatever their order."""
        for (number,) in self._database.execute("SELECT number FROM rows ORDER BY digest LIMIT ?", (size,)).fetchall():
            yield self.row(number)

    def set_share(self, number: int, share: Share) -> None:
        """Note where the row goes."""
        self._database.execute("UPDATE rows SET share = ? WHERE number = ?", (share, number))

    def share(self, number: int) -> Share:
        """Where the row went."""
        [(share,)] = self._database.execute("SELECT share FROM rows WHERE number = ?", (number,))
        found: Share = share
        return found

    def numbers(self, share: Share) -> Iterator[int]:
        """The numbers of the rows that went there, in order."""
        for (number,) in self._database.execute("SELECT number FROM rows WHERE share = ? ORDER BY number", (share,)):
            yield number


def _row(line: bytes) -> Row:
    document = json.loads(line)
    return dataclasses.replace(Row.from_document(document["line"], document), file=document["file"])
