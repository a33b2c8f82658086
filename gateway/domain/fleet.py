"""What is known of the replicas at one moment, as values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ReplicaView:
    """One replica as last seen. `loaded`: served name → path it was loaded from; `slots`: GPU slots for adapters."""

    name: str
    url: str
    healthy: bool
    base_model: str | None
    root: str | None
    loaded: Mapping[str, str]
    busy_adapters: frozenset[str]
    slots: int | None
    in_flight: int
    exposed: tuple[str, ...]
    started_at: float | None
    engine_version: str | None
    last_error: str | None


@dataclass(frozen=True, slots=True)
class Effect:
    """What a probe measured, in nats: the largest change of a logprob that the adapter made against the base model, and
    what two runs of the base model differed by."""

    effect: float
    noise: float

    @classmethod
    def between(
        cls, base: Sequence[Sequence[float]], again: Sequence[Sequence[float]], adapter: Sequence[Sequence[float]]
    ) -> "Effect":
        """Compare logprobs, a list per prompt; all three have the same shape."""
        return cls(_largest_change(base, adapter), _largest_change(base, again))


def _largest_change(one: Sequence[Sequence[float]], other: Sequence[Sequence[float]]) -> float:
    return max((abs(a - b) for left, right in zip(one, other, strict=True)
                for a, b in zip(left, right, strict=True)), default=0.0)
