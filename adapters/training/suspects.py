"""Which rows may have led the loss astray: those that the base model itself finds strangest."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from adapters.data.tokens import Example

MOST_ROWS = 512
SHOWN = 3
STRANGE = 1.0
"""How far above the median, in nats a token, a row's loss must be to be shown."""


@dataclass(frozen=True, slots=True)
class Suspect:
    """A row, by its number from 0 among the tokenised ones; `loss` in nats a learned token, `text` its beginning."""

    row: int
    loss: float
    text: str


def find(
    model: Any, rows: Sequence[int], read: Callable[[int], Example], decode: Callable[[Sequence[int]], str],
) -> tuple[list[Suspect], float]:
    """The rows that the base, without the adapter, finds strangely hard, the hardest first, and the median of all.

    Of many rows, the last MOST_ROWS are looked at. The adapter is left out because it may hold no numbers any more.
    """
    looked_at = list(dict.fromkeys(rows))[-MOST_ROWS:]
    was_training = model.training
    model.eval()
    with torch.no_grad(), model.disable_adapter():
        losses = {row: _loss(model, read(row)) for row in looked_at}
    model.train(was_training)
    usual = median(losses.values())
    strange = [row for row in looked_at if losses[row] > usual + STRANGE]
    hardest = sorted(strange, key=lambda row: losses[row], reverse=True)[:SHOWN]
    found = [Suspect(row, losses[row], " ".join(decode(read(row).input_ids[:64].tolist()).split())[:100])
             for row in hardest]
    return found, usual


def _loss(model: Any, example: Example) -> float:
    ids = torch.from_numpy(example.input_ids.astype("int64")).unsqueeze(0).to(model.device)
    labels = torch.from_numpy(example.labels.astype("int64")).unsqueeze(0).to(model.device)
    return float(model(input_ids=ids, labels=labels).loss)
