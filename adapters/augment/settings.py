"""How many rows to make, of which kinds, and how to ask for them."""

from dataclasses import dataclass
from pathlib import Path

PROMPTS = Path(__file__).with_name("prompts")


@dataclass(frozen=True, slots=True, kw_only=True)
class AugmentSettings:
    """What to make; ValueError names the key that has a bad value.

    Every class is brought up to `balance` times the rows of the largest one; of the rows that this takes, the share
    `hard_negatives` looks like another class, the rest are paraphrases. Of every class, the share `edge_cases` of its
    rows is made as edge cases more, and the share `paraphrases` as paraphrases (rows without classes have only these
    two). One row of the source gives at most `max_per_source` rows of a kind. `per_call` texts are asked for at once.
    With `verify`, the teacher sorts hard negatives and edge cases again: those that it sorts elsewhere are rejected.
    `prompts` is a folder whose files replace those of the same name here. `structured` asks the server to keep to the
    JSON schema of the reply (switch it off where the server refuses `response_format`).
    """

    balance: float = 1.0
    hard_negatives: float = 0.5
    edge_cases: float = 0.05
    paraphrases: float = 0.0
    max_per_source: int = 8
    per_call: int = 4
    verify: bool = True
    prompts: Path | None = None
    structured: bool = True
    temperature: float = 0.9
    max_tokens: int = 1024
    seed: int = 0

    def __post_init__(self) -> None:
        for key in ("balance", "hard_negatives"):
            _require(0 <= getattr(self, key) <= 1, key, getattr(self, key), "from 0 to 1")
        for key in ("edge_cases", "paraphrases", "temperature"):
            _require(getattr(self, key) >= 0, key, getattr(self, key), "0 or more")
        for key in ("max_per_source", "per_call", "max_tokens"):
            _require(getattr(self, key) >= 1, key, getattr(self, key), "1 or more")

    @property
    def at_once(self) -> int:
        """The most texts that one request asks for."""
        return min(self.per_call, self.max_per_source)


def _require(good: bool, key: str, value: object, wanted: str) -> None:
    if not good:
        raise ValueError(f"{key!r} is {value!r}; make it {wanted}.")
