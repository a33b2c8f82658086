"""Which rows go into which pack, and which packs into which step: decided by lengths and the seed alone."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int32]
Longs = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Packs:
    """Rows in packs: pack `i` holds `rows[starts[i]:starts[i + 1]]`; `tokens[i]` is its length."""

    rows: Longs
    starts: Longs
    tokens: Longs

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, pack: int) -> Longs:
        return self.rows[self.starts[pack]:self.starts[pack + 1]]


def one_each(rows: Longs, lengths: Ints) -> Packs:
    """Every row a pack of its own."""
    return Packs(rows, np.arange(len(rows) + 1), lengths[rows].astype(np.int64))


def best_fit(rows: Longs, lengths: Ints, capacity: int, seed: int) -> Packs:
    """Rows in few packs of at most `capacity` tokens: the longest first, each where the least room is left over.

    Best-fit decreasing, as in Ding et al., 2024, "Fewer Truncations Improve Language Modeling"; rows of equal length
    come in an order drawn from the seed. ValueError when a row is longer than a pack.
    """
    if len(rows) and int(lengths[rows].max()) > capacity:
        raise ValueError(f"a row of {int(lengths[rows].max())} tokens does not fit into a pack of {capacity}")
    drawn = rows[np.random.default_rng(seed).permutation(len(rows))]
    ordered = drawn[np.argsort(-lengths[drawn], kind="stable")]
    pack_of, count = _fill(lengths[ordered], capacity)
    starts = np.zeros(count + 1, np.int64)
    np.cumsum(np.bincount(pack_of, minlength=count), out=starts[1:])
    tokens = np.bincount(pack_of, weights=lengths[ordered], minlength=count).astype(np.int64)
    return Packs(ordered[np.argsort(pack_of, kind="stable")], starts, tokens)


def _fill(lengths: Ints, capacity: int) -> tuple[Longs, int]:
    """For each length the number of its pack, and how many packs there are.

    `open_rooms` has a bit for every amount of room that some pack has left, so that the tightest fit is found by
    looking at one number.
    """
    packs_with: list[list[int]] = [[] for _ in range(capacity + 1)]
    open_rooms = count = 0
    pack_of = np.empty(len(lengths), np.int64)
    for at, length in enumerate(lengths.tolist()):
        fitting = open_rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            pack = packs_with[room].pop()
            if not packs_with[room]:
                open_rooms ^= 1 << room
        else:
            room, pack = capacity, count
            count += 1
        pack_of[at] = pack
        left = room - length
        packs_with[left].append(pack)
        open_rooms |= 1 << left
    return pack_of, count


class Order:
    """In which order packs are trained on: all of them once, shuffled, then again in another order, without end.

    It depends on the seed alone, so that a run that goes on where another was killed takes the same packs, and the
    split of a step into batches, accumulation and processes decides nothing.
    """

    def __init__(self, packs: Packs, seed: int) -> None:
        self._packs = packs
        self._seed = seed
        self._epoch = -1
        self._shuffled: Longs = np.empty(0, np.int64)
        self._tokens_before: Longs = np.zeros(1, np.int64)

    def pack(self, position: int) -> int:
        """The number of the pack at a position, from 0."""
        epoch, at = divmod(position, len(self._packs))
        self._turn_to(epoch)
        return int(self._shuffled[at])

    def tokens_before(self, position: int) -> int:
        """How many tokens the packs before a position have."""
        epoch, at = divmod(position, len(self._packs))
        self._turn_to(epoch)
        return epoch * int(self._tokens_before[-1]) + int(self._tokens_before[at])

    def between(self, start: int, end: int) -> Iterator[int]:
        """The numbers of the packs at the positions from `start` up to `end`."""
        return (self.pack(position) for position in range(start, end))

    def _turn_to(self, epoch: int) -> None:
        if epoch != self._epoch:
            self._epoch = epoch
            self._shuffled = np.random.default_rng([self._seed, epoch]).permutation(len(self._packs))
            self._tokens_before = np.concatenate([[0], np.cumsum(self._packs.tokens[self._shuffled])])
