"""Which of train, validation and golden a row belongs to: told by its prompt alone, so that adding rows moves none."""

import hashlib
from typing import Literal, TypeAlias

from adapters.data.duplicates import normalise

Share: TypeAlias = Literal["train", "validation", "golden"]
SHARES: tuple[Share, ...] = ("train", "validation", "golden")


def position(prompt: str) -> float:
    """A number from 0 up to 1 that equal prompts have in common, and that says nothing else about them."""
    digest = hashlib.sha256(b"switchyard.split/1\0" + normalise(prompt).encode()).digest()
    return int.from_bytes(digest[:7], "big") / 2**56


def share_of(prompt: str, validation_share: float, golden_share: float) -> Share:
    """The golden share is cut off at the low end, the validation share at the high end: neither moves the other."""
    at = position(prompt)
    if at < golden_share:
        return "golden"
    return "validation" if at >= 1 - validation_share and validation_share else "train"
