"""No row that is evaluated with is trained on, nor one near it: prepared files are searched for them and cleared."""

import sqlite3
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from adapters.data.duplicates import NearIndex, Sketcher
from adapters.data.rows import DataError, Row, read_prepared, to_line


class Leaks:
    """Knows the prompts that must not be trained on. `clean` is what becomes of a text of a row before it is compared,
    such as masking, done to the prompts too.
    """

    def __init__(self, database: sqlite3.Connection, sketcher: Sketcher, clean: Callable[[str], str]) -> None:
        self._sketcher = sketcher
        self._clean = clean
        database.execute("CREATE TABLE held (number INTEGER PRIMARY KEY, name TEXT, text TEXT)")
        self._database = database
        self._index = NearIndex(database, "near_held", sketcher, self._text)

    def hold(self, name: str, text: str) -> None:
        """Let no row near this prompt pass."""
        plain = self._clean(text)
        cursor = self._database.execute("INSERT INTO held (name, text) VALUES (?, ?)", (name, plain))
        number = cursor.lastrowid
        if number is not None:
            self._index.add(number, self._sketcher.sketch(plain))

    def leak_of(self, row: Row) -> str | None:
        """The name of a held prompt that one of the row's prompts is near, None where there is none.

        A chat has a prompt for each of its answers, and all of them are learned.
        """
        for text in _prompts(row):
            for number in self._index.near(self._sketcher.sketch(text)):
                [(name,)] = self._database.execute("SELECT name FROM held WHERE number = ?", (number,))
                return str(name)
        return None

    def clear(self, path: Path, numbers: Iterable[int]) -> Iterator[tuple[int, str]]:
        """The numbers of the file's rows that leak, and what they leak, while it is written anew without them.

        `numbers` has one for each row of the file, in order.
        """
        cleared = path.with_suffix(".cleared")
        with cleared.open("w", encoding="utf-8") as file:
            for row, number in zip(read_prepared(path), numbers, strict=True):
                leak = self.leak_of(row)
                if leak is None:
                    file.write(to_line(row.to_document()))
                else:
                    yield number, leak
        cleared.replace(path)

    def _text(self, number: int) -> str:
        [(text,)] = self._database.execute("SELECT text FROM held WHERE number = ?", (number,))
        return str(text)


def _prompts(row: Row) -> Iterator[str]:
    """The words before each answer, the whole prompt first."""
    yield row.asked
    for end, message in enumerate(row.messages[:-1]):
        if message["role"] == "assistant" and end:
            yield Row(row.line, row.messages[:end + 1]).asked


def check_none(leaks: Leaks, path: Path) -> None:
    """DataError when a row of the file still leaks."""
    for row in read_prepared(path):
        if (leak := leaks.leak_of(row)) is not None:
            raise DataError(f"{row.id} in {path.name} is {leak} and could not be removed.")
