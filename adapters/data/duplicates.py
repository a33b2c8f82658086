"""Texts that are nearly the same: MinHash and locality-sensitive hashing find candidates, a true comparison decides.

The method is Broder's (On the resemblance and containment of documents, 1997) with the bands of Leskovec, Rajaraman
and Ullman (Mining of Massive Datasets, chapter 3). Texts are compared by their pieces of 5 letters, without what
most rows share, such as the same instruction before every question: it would make all of them near-duplicates.
"""

import hashlib
import sqlite3
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Pieces = NDArray[np.uint32]
"""The hashes of a text's pieces, sorted, each once."""

LETTERS = 5
PERMUTATIONS = 64
MISSED = 0.001
"""The chance, at most, that a pair just at the threshold shares no band and so is not compared."""
SHARED_FROM = 0.2
"""A piece that more than this share of the sampled rows have says nothing about a row."""
SAMPLE = 1000
SAMPLED_LETTERS = 4000
MIN_SAMPLE = 50
"""In fewer rows nothing is common enough to leave out."""
MAX_COMPARED = 16
"""Earlier rows that a row is truly compared with; a row near so many is not itself kept for later ones."""


def normalise(text: str) -> str:
    """The text as it is compared: compatible letters made equal (NFKC), no capitals, single spaces."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def pieces(text: str) -> Pieces:
    """Of a normalised text; shorter than a piece, it is one piece itself."""
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32).astype(np.uint64)
    width = min(LETTERS, len(codes))
    count = len(codes) - width + 1 if width else 0
    hashes = np.zeros(count, np.uint64)
    for offset in range(width):  # a polynomial over the letters, modulo 2^64
        hashes = hashes * _BASE + codes[offset:offset + count]
    found = np.sort(((hashes * _MIX) >> np.uint64(32)).astype(np.uint32))
    unique: Pieces = found[np.diff(found, prepend=~found[:1]) != 0]  # as np.unique does, in a fifth of its time
    return unique


_BASE = np.uint64(0x9E3779B97F4A7C15)
_MIX = np.uint64(0xBF58476D1CE4E5B9)


def similarity(one: Pieces, other: Pieces) -> float:
    """Jaccard's index: the common pieces' share of all, from 0 to 1; nothing is like nothing."""
    if not len(one) or not len(other):
        return float(len(one) == len(other))
    common = len(np.intersect1d(one, other, assume_unique=True))
    return common / (len(one) + len(other) - common)


def shared_pieces(texts: Iterable[str]) -> Pieces:
    """The pieces that more than SHARED_FROM of the texts have; none where there are fewer than MIN_SAMPLE texts."""
    found = [pieces(text[:SAMPLED_LETTERS]) for text in texts]
    if len(found) < MIN_SAMPLE:
        return np.zeros(0, np.uint32)
    values, counts = np.unique(np.concatenate(found), return_counts=True)
    return values[counts > SHARED_FROM * len(found)]


def bands(threshold: float) -> tuple[int, int]:
    """(bands, rows a band): the most rows a band with which a pair at the threshold is missed at most by MISSED."""
    return next((PERMUTATIONS // rows, rows) for rows in range(PERMUTATIONS, 0, -1)
                if (1 - threshold ** rows) ** (PERMUTATIONS // rows) <= MISSED)


@dataclass(frozen=True, slots=True)
class Sketch:
    """A text for comparing: its own pieces, and the keys of its bands."""

    pieces: Pieces
    keys: tuple[int, ...]


class Sketcher:
    """Makes sketches that can be compared with each other. `shared` are the pieces to leave out."""

    def __init__(self, threshold: float, shared: Pieces) -> None:
        from datasketch import MinHash

        self.threshold = threshold
        self.shared_count = len(shared)
        self._shared = shared
        self._bands, self._rows = bands(threshold)
        # The pieces are hashes already, and are handed over all at once. The permutations are made once.
        self._empty: Any = MinHash(PERMUTATIONS, seed=1, hashfunc=lambda hashes: hashes, scheme="affine32")

    def own_pieces(self, text: str) -> Pieces:
        """The text's pieces but the shared ones; where nothing is left, the whole text is one piece."""
        plain = normalise(text)
        found = np.setdiff1d(pieces(plain), self._shared, assume_unique=True)
        if len(found):
            return found
        return np.frombuffer(hashlib.blake2b(plain.encode(), digest_size=4).digest(), np.uint32)

    def sketch(self, text: str) -> Sketch:
        """Of any text."""
        own = self.own_pieces(text)
        minhash = self._empty.copy()
        minhash.update_batch([own])
        return Sketch(own, self.keys_of(minhash))

    def keys_of(self, minhash: Any) -> tuple[int, ...]:
        """A signed 64-bit key for each band of a datasketch MinHash."""
        raw, width = minhash.hashvalues.tobytes(), 4 * self._rows
        return tuple(
            int.from_bytes(hashlib.blake2b(raw[at:at + width], digest_size=8, salt=b"%d" % at).digest(), "big",
                           signed=True)
            for at in range(0, width * self._bands, width))


class NearIndex:
    """Finds the texts that a text is near, in a table on disk. `text_of` gives a text again by its number."""

    def __init__(
        self, database: sqlite3.Connection, table: str, sketcher: Sketcher, text_of: Callable[[int], str],
    ) -> None:
        database.execute(f"CREATE TABLE {table} (key INTEGER, number INTEGER, PRIMARY KEY (key, number)) WITHOUT ROWID")
        self._database = database
        self._table = table
        self._sketcher = sketcher
        self._text_of = text_of

    def add(self, number: int, sketch: Sketch) -> None:
        """Keep the text with this number as one that others may be near."""
        self._database.executemany(
            f"INSERT OR IGNORE INTO {self._table} VALUES (?, ?)", [(key, number) for key in sketch.keys])

    def near(self, sketch: Sketch, most: int = -1) -> list[int]:
        """The numbers of the texts that are as similar as the threshold, the earliest first.

        `most`: how many are compared; -1 for all that share a band.
        """
        marks = ",".join("?" * len(sketch.keys))
        found = self._database.execute(
            f"SELECT DISTINCT number FROM {self._table} WHERE key IN ({marks}) ORDER BY number LIMIT ?",
            (*sketch.keys, most)).fetchall()
        return [number for (number,) in found if self._is_near(sketch, number)]

    def _is_near(self, sketch: Sketch, number: int) -> bool:
        other = self._sketcher.own_pieces(self._text_of(number))
        return similarity(sketch.pieces, other) >= self._sketcher.threshold
