"""What is known of the replicas at one moment, as values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median, median_low
from typing import TypeAlias


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


Run: TypeAlias = Sequence[Sequence[float]]
"""One look at a model: for each prompt, the logprobs of its likeliest next tokens, largest first."""


@dataclass(frozen=True, slots=True)
class Effect:
    """What a probe measured, in nats: how far the adapter's logprobs are from the base model's, and how far the base
    model's are from one another."""

    effect: float
    noise: float

    @classmethod
    def between(cls, base: Sequence[Run], adapter: Sequence[Run]) -> "Effect":
        """Compare runs of the base model (two at least) with runs of the adapter, on the same prompts.

        An engine's noise is no spread around a value: what shares a step with a prompt picks one of a few bit patterns,
        which lie up to 0.3 nats apart (seen on an H200, vLLM 0.26), and an adapter that does nothing gives the base's.
        So the distance of a prompt is the least between any two runs, and the median prompt counts. The noise is each
        base run's distance to its nearest other, for an engine whose runs never agree.
        """
        prompts = range(len(base[0]))
        effects = [min(_distance(a[p], b[p]) for a in adapter for b in base) for p in prompts]
        noises = [
            median_low([min(_distance(base[i][p], base[j][p]) for j in range(len(base)) if j != i)
                        for i in range(len(base))]) for p in prompts]
        return cls(median(effects), median(noises))


def _distance(one: Sequence[float], other: Sequence[float]) -> float:
    return max((abs(a - b) for a, b in zip(one, other, strict=True)), default=0.0)
