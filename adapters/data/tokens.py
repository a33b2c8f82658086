"""A prepared data set as tokens on disk, memory-mapped: training reads the rows it needs, however many there are."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adapters.data.rows import DataError, Reject, read_prepared, to_line
from adapters.data.template import IGNORED, Tokenizer, Tokens, tokenize

Ints = NDArray[np.int32]

SCHEMA = "switchyard.tokens/1"
BARS = 16
SHOWN = 10


@dataclass(frozen=True, slots=True)
class Example:
    """One row to train on: int32 arrays of one length; `labels` has IGNORED where nothing is learned."""

    input_ids: Ints
    labels: Ints


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenStats:
    """`rows` and `tokens` to train on, `learned_tokens` of them; `truncated` rows were cut to `max_length` tokens.

    `masked` rows were left out because the cut left nothing to learn, `refused` ones because the chat template did not
    take them; both are in `rejects.jsonl`. In `partly_learned` rows the template shows an earlier answer differently
    once the chat goes on: only the other answers are learned. `histogram` counts rows by their length before the cut:
    the upper edge in tokens, inclusive → rows.
    """

    rows: int
    tokens: int
    learned_tokens: int
    truncated: int
    masked: int
    refused: int
    longest: int
    max_length: int
    histogram: Mapping[int, int]
    partly_learned: int = 0

    def to_document(self) -> dict[str, Any]:
        """JSON-ready data; the histogram's edges are texts there."""
        return {**asdict(self), "histogram": {str(edge): rows for edge, rows in self.histogram.items()}}

    def describe(self) -> list[str]:
        """The figures and the histogram in lines for people."""
        width, most = len(f"{max(self.histogram, default=0):,}"), max(self.histogram.values(), default=1)
        return [
            f"tokens: {self.rows:,} rows, {self.tokens:,} tokens, {self.learned_tokens:,} of them learned; "
            f"{self.truncated:,} rows cut to {self.max_length:,} tokens, the longest has {self.longest:,}",
            *([f"tokens: left out: {self.masked:,} rows with nothing to learn before the cut, {self.refused:,} that "
               "the chat template refused"] if self.masked or self.refused else []),
            *([f"tokens: in {self.partly_learned:,} rows the template shows earlier answers differently once the chat "
               "goes on; these answers are not learned"] if self.partly_learned else []),
            *(f"  up to {edge:>{width},}  {rows:>9,}  {'#' * -(-40 * rows // most)}"
              f"{'  cut' if edge > self.max_length else ''}" for edge, rows in self.histogram.items()),
        ]

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> "TokenStats":
        """What `to_document` wrote."""
        histogram = {int(edge): rows for edge, rows in document["histogram"].items()}
        return cls(**{**document, "histogram": histogram})


class TokenFile:
    """The rows of a tokenised data set. `lengths` (int32, one a row) is in memory, tokens are mapped from the disk."""

    def __init__(self, folder: Path, offsets: NDArray[np.int64], stats: TokenStats) -> None:
        self.folder = folder
        self.stats = stats
        self.lengths: Ints = np.diff(offsets).astype(np.int32)
        self._offsets = offsets
        self._input_ids: Ints = np.memmap(folder / "input_ids.i32", np.int32, "r")
        self._labels: Ints = np.memmap(folder / "labels.i32", np.int32, "r")

    @classmethod
    def open(cls, folder: Path) -> "TokenFile":
        """The data set that `tokenise` wrote into `folder`; DataError when there is none."""
        try:
            document = json.loads((folder / "stats.json").read_text(encoding="utf-8"))
            offsets = np.fromfile(folder / "offsets.i64", np.int64)
        except (OSError, ValueError) as error:
            raise DataError(f"{folder} holds no tokenised data ({error}); tokenise the rows again.") from error
        if document.pop("schema", None) != SCHEMA:
            raise DataError(f"{folder} was tokenised by another release; tokenise the rows again.")
        return cls(folder, offsets, TokenStats.from_document(document))

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(f"there are {len(self)} rows, and no row {index}")
        start, end = self._offsets[index], self._offsets[index + 1]
        return Example(np.array(self._input_ids[start:end]), np.array(self._labels[start:end]))


def tokenise(
    rows: Path, tokenizer: Tokenizer, max_length: int, folder: Path, *, max_rejected_share: float = 0.02,
) -> TokenFile:
    """Tokenise the prepared rows into `folder`, which must not exist; it appears whole or not at all.

    Rows are cut to `max_length` tokens. DataError when there are no rows, when the template refuses or the cut leaves
    nothing of the answer in more than `max_rejected_share` of them, or when every label is masked.
    """
    if folder.exists():
        raise DataError(f"{folder} exists; remove it, or name another folder for the tokens.")
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        with _Writer(partial, max_length) as writer:
            for row in read_prepared(rows):
                writer.add(tokenize(row, tokenizer))
        stats = writer.stats()
        _check(rows, stats, writer.shown, max_rejected_share)
        (partial / "stats.json").write_text(json.dumps({"schema": SCHEMA, **stats.to_document()}), encoding="utf-8")
        partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return TokenFile.open(folder)


class _Writer:
    """Appends rows to the files and counts."""

    def __init__(self, folder: Path, max_length: int) -> None:
        self._max_length = max_length
        self._ids = (folder / "input_ids.i32").open("wb")
        self._labels = (folder / "labels.i32").open("wb")
        self._offsets = (folder / "offsets.i64").open("wb")
        self._rejects = (folder / "rejects.jsonl").open("w", encoding="utf-8")
        self._end = self._rows = self._learned = self._truncated = self._masked = self._refused = 0
        self._longest = self._partly = 0
        self._lengths: dict[int, int] = {}
        self.shown: list[Reject] = []
        np.array([0], np.int64).tofile(self._offsets)

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None,
    ) -> None:
        for file in (self._ids, self._labels, self._offsets, self._rejects):
            file.close()

    def add(self, row: Tokens | Reject) -> None:
        """Write the row, cut to the length; or, when there is nothing to learn in it, say so."""
        if isinstance(row, Reject):
            self._refused += 1
            self._reject(row)
            return
        length = len(row.input_ids)
        edge = histogram_edge(length, self._max_length)
        self._lengths[edge] = self._lengths.get(edge, 0) + 1
        self._longest = max(self._longest, length)
        self._truncated += length > self._max_length
        cut = row.cut(self._max_length)
        if not cut.is_learned:
            self._masked += 1
            self._reject(Reject(row.line, "row", f"nothing of the answer is within max_length = {self._max_length} "
                                "tokens, so all labels are masked"))
            return
        np.array(cut.input_ids, np.int32).tofile(self._ids)
        np.array(cut.labels, np.int32).tofile(self._labels)
        self._rows += 1
        self._partly += row.passed_over > 0
        self._end += len(cut.input_ids)
        self._learned += sum(label != IGNORED for label in cut.labels[1:])
        np.array([self._end], np.int64).tofile(self._offsets)

    def stats(self) -> TokenStats:
        """What has been written."""
        return TokenStats(
            rows=self._rows, tokens=self._end, learned_tokens=self._learned, truncated=self._truncated,
            masked=self._masked, refused=self._refused, longest=self._longest, max_length=self._max_length,
            histogram=dict(sorted(self._lengths.items())), partly_learned=self._partly)

    def _reject(self, reject: Reject) -> None:
        self._rejects.write(to_line(reject.to_document()))
        if len(self.shown) < SHOWN:
            self.shown.append(reject)


def histogram_edge(length: int, max_length: int) -> int:
    """The upper edge of the bar that a length is in: BARS bars up to `max_length`, wider ones beyond, each double."""
    width = -(-max_length // BARS)
    if length <= max_length:
        return min(max_length, -(-max(length, 1) // width) * width)
    edge = 2 * max_length
    while length > edge:
        edge *= 2
    return edge


def _check(rows: Path, stats: TokenStats, shown: list[Reject], limit: float) -> None:
    bad = stats.masked + stats.refused
    total = stats.rows + bad
    if not total:
        raise DataError(f"The data {rows} has no rows.")
    if stats.masked and not stats.rows:
        raise DataError(f"All labels in {rows} are masked: no answer begins within max_length = {stats.max_length} "
                        "tokens. Raise it, or shorten the prompts.")
    if bad > limit * total:
        listed = "\n".join(f"  {reject}" for reject in shown)
        more = f"\n  and {bad - len(shown)} more" if bad > len(shown) else ""
        raise DataError(f"{bad} of {total} rows in {rows} cannot be learned from, more than {limit:.0%}; mend them or "
                        f"change max_length:\n{listed}{more}")
