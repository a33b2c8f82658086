"""Packs of rows as tensors: every token sees the tokens of its own row alone, and counts its position from there."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from adapters.data import IGNORED
from adapters.data.tokens import Example, TokenFile
from adapters.training import fast
from adapters.training.errors import TrainingError
from adapters.training.ladder import Shape
from adapters.training.packing import Longs, Order, Packs, best_fit, one_each

Pack = Sequence[Example]


class Course(Dataset[Pack]):  # type: ignore[misc]
    """All packs that a run takes, in their order: item `i` is the pack at position `i`, over all epochs.

    One long course instead of epochs keeps every step full and makes the place of a resumed run a product: steps ×
    packs a step.
    """

    def __init__(self, tokens: TokenFile, shape: Shape, seed: int, epochs: float, max_steps: int | None) -> None:
        self._tokens = tokens
        self._max_length = shape.max_length
        self._packs_per_step = shape.packs_per_step
        self.packs = _packs(tokens, shape, seed)
        self._order = Order(self.packs, seed)
        self.steps = max_steps or -(-round(epochs * len(self.packs)) // shape.packs_per_step)

    def __len__(self) -> int:
        return self.steps * self._packs_per_step

    def __getitem__(self, position: int) -> Pack:
        return [self.row(row) for row in self.packs[self._order.pack(position)]]

    def row(self, row: int) -> Example:
        """A row, cut to the length."""
        example = self._tokens[int(row)]
        return Example(example.input_ids[:self._max_length], example.labels[:self._max_length])

    def tokens_after(self, step: int) -> int:
        """How many tokens so many steps have."""
        return self._order.tokens_before(step * self._packs_per_step)

    def rows_between(self, first: int, last: int) -> Iterator[int]:
        """The rows of the steps after step `first` up to step `last`."""
        for pack in self._order.between(first * self._packs_per_step, last * self._packs_per_step):
            yield from (int(row) for row in self.packs[pack])

    @property
    def epochs(self) -> float:
        """How often the run sees each row."""
        return len(self) / len(self.packs)


class Rehearsal(Dataset[Pack]):  # type: ignore[misc]
    """Every row once, in order, for validation."""

    def __init__(self, tokens: TokenFile, shape: Shape) -> None:
        self._tokens = tokens
        self._max_length = shape.max_length
        self._packs = _packs(tokens, shape, seed=0)

    def __len__(self) -> int:
        return len(self._packs)

    def __getitem__(self, pack: int) -> Pack:
        examples = (self._tokens[int(row)] for row in self._packs[pack])
        return [Example(one.input_ids[:self._max_length], one.labels[:self._max_length]) for one in examples]


def _packs(tokens: TokenFile, shape: Shape, seed: int) -> Packs:
    lengths = np.minimum(tokens.lengths, shape.max_length)
    rows: Longs = np.arange(len(tokens))
    if shape.max_length < tokens.stats.max_length:  # the ladder's last rung may have cut off all of an answer
        rows = np.array([row for row in rows if (tokens[row].labels[1:shape.max_length] != IGNORED).any()], np.int64)
    if not len(rows):
        raise TrainingError(f"No row has anything to learn within {shape.max_length} tokens; shorten the prompts.")
    if shape.pack_length is None:
        return one_each(rows, lengths)
    return best_fit(rows, lengths, shape.pack_length, seed)


def joined(packs: Sequence[Pack]) -> dict[str, Any]:
    """All rows end to end, (1, tokens), with where each begins, for attention that takes row boundaries."""
    rows = [row for pack in packs for row in pack]
    flat = _line(rows)
    bounds: Mapping[str, Any] = fast.row_bounds([len(row.input_ids) for row in rows])
    return {**{name: values.unsqueeze(0) for name, values in flat.items()}, **bounds}


def padded(packs: Sequence[Pack], pad_token: int) -> dict[str, Tensor]:
    """A pack a line, (packs, longest pack), filled up on the right; int64.

    The fill counts positions from 0 like a row of its own, so that no row sees it. Attention tells rows apart by
    positions that begin again, which it looks for where there is no mask; lone rows have the usual mask instead.
    """
    lines = [_line(pack) for pack in packs]
    width = max(len(line["input_ids"]) for line in lines)
    fills = {"input_ids": pad_token, "labels": IGNORED}
    batch = {name: torch.stack([_filled(line[name], width, fill) for line in lines]) for name, fill in fills.items()}
    if all(len(pack) == 1 for pack in packs):
        lengths = torch.tensor([len(line["input_ids"]) for line in lines])
        return {**batch, "attention_mask": (torch.arange(width) < lengths.unsqueeze(1)).long()}
    positions = [torch.cat([line["position_ids"], torch.arange(width - len(line["position_ids"]))]) for line in lines]
    return {**batch, "position_ids": torch.stack(positions)}


def _line(rows: Pack) -> dict[str, Tensor]:
    """Rows end to end; the first label of each is ignored, for the token before it is of another row."""
    labels = np.concatenate([row.labels for row in rows]).astype(np.int64)
    labels[np.cumsum([0, *(len(row.labels) for row in rows[:-1])])] = IGNORED
    return {
        "input_ids": torch.from_numpy(np.concatenate([row.input_ids for row in rows]).astype(np.int64)),
        "labels": torch.from_numpy(labels),
        "position_ids": torch.from_numpy(np.concatenate([np.arange(len(row.labels)) for row in rows])),
    }


def _filled(values: Tensor, width: int, fill: int) -> Tensor:
    return torch.nn.functional.pad(values, (0, width - len(values)), value=fill)
