"""Something that became of a release and that others want to hear of: webhooks, metrics, the log."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeAlias

from gateway.domain.model import Release
from gateway.domain.rollout import Move


class Kind(StrEnum):
    """What happened: a move of the rollout (`step`: a shift), a promote's approval, a verdict, or the quality of a
    version's answers, which fell below its floor or came back."""

    START = "start"
    STEP = "step"
    WAIT = "wait"
    PAUSE = "pause"
    RESUME = "resume"
    APPROVE = "approve"
    PROMOTE = "promote"
    ABORT = "abort"
    VERDICT = "verdict"
    QUALITY = "quality"

    @classmethod
    def of(cls, move: Move) -> "Kind":
        """What a move is told as."""
        return cls.STEP if move is Move.SHIFT else cls(move.value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Happening:
    """What happened to a release, when (Unix seconds), by whom and why.

    `release` is as it was written, at its revision. `analysis`: the verdict's numbers, JSON-ready, where one led to it;
    of a quality, the quality's.
    """

    kind: Kind
    tenant: str
    adapter: str
    release: Release
    reason: str
    at: float
    actor: str = ""
    analysis: Mapping[str, Any] | None = None


Notify: TypeAlias = Callable[[Happening], None]
"""Takes note of a happening and returns at once; it neither blocks nor raises."""
