"""What is read and what is asked of it: the `[data]` table of a recipe and the options of the data commands."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

Shape = Literal["auto", "messages", "conversations", "instruction", "alpaca", "prompt", "text"]
Duplicates = Literal["off", "exact", "near"]
Pii = Literal["off", "mask", "drop"]
PiiFinder = Literal["auto", "patterns", "presidio"]
Leaked = Literal["remove", "refuse"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSettings:
    """Where the rows are and what is asked of them; ValueError names the key that has a bad value.

    `source`: a file (.jsonl .json .csv .tsv .parquet; also .gz .bz2 .xz .zst), a folder of such files, or a folder that
    Hugging Face's `save_to_disk` wrote; `subset` is a split of the latter. `shape` names the rows' fields, "auto" looks
    at each row. More bad rows than `max_rejected_share` of all stop the work. A row whose field `quality` is below
    `min_quality`, or whose duplicate came before, is left out and reported. `near_threshold` is the share of common
    5-letter pieces (Jaccard's index) from which two prompts are near-duplicates. `max_chars` is the longest content of
    a row, as JSON. `validation_share` and `golden_share` are cut off by content. No row near an item of the `golden`
    set is trained on: it is removed, or, when `leaked` is "refuse", stops the work. `label` is the field that holds a
    row's class; without it that is `label`, or the answer itself where few answers differ.
    """

    source: Path
    shape: Shape = "auto"
    subset: str | None = None
    max_rejected_share: float = 0.02
    min_quality: float = 0.0
    max_chars: int = 100_000
    duplicates: Duplicates = "near"
    near_threshold: float = 0.85
    pii: Pii = "off"
    pii_finder: PiiFinder = "auto"
    validation_share: float = 0.0
    golden_share: float = 0.0
    golden: Path | None = None
    leaked: Leaked = "remove"
    label: str | None = None

    def __post_init__(self) -> None:
        for key, choices in _CHOICES.items():
            value = getattr(self, key)
            _require(value in choices, key, value, " or ".join(f'"{choice}"' for choice in choices))
        _require(0 <= self.max_rejected_share < 1, "max_rejected_share", self.max_rejected_share,
                 "at least 0 and below 1")
        _require(self.max_chars >= 1, "max_chars", self.max_chars, "1 or more")
        _require(0.5 <= self.near_threshold <= 1, "near_threshold", self.near_threshold, "from 0.5 to 1")
        for key in ("validation_share", "golden_share"):
            _require(0 <= getattr(self, key) < 1, key, getattr(self, key), "at least 0 and below 1")
        _require(self.validation_share + self.golden_share < 1, "validation_share",
                 self.validation_share, "so small that with golden_share it stays below 1")
        _require(not (self.golden and self.golden_share), "golden_share", self.golden_share,
                 "0, or leave out the golden set: one of them is enough")

    def to_document(self) -> dict[str, Any]:
        """The settings as JSON-ready data."""
        return {**asdict(self), "source": str(self.source), "golden": str(self.golden) if self.golden else None}


_CHOICES = {
    "shape": get_args(Shape), "duplicates": get_args(Duplicates), "pii": get_args(Pii),
    "pii_finder": get_args(PiiFinder), "leaked": get_args(Leaked),
}


def _require(good: bool, key: str, value: object, wanted: str) -> None:
    if not good:
        raise ValueError(f"{key!r} is {value!r}; make it {wanted}.")
