"""In which window a call is counted: its epoch, so that canary and stable are compared over the same time."""

from collections.abc import Mapping
from typing import NamedTuple, TypeAlias

from gateway.domain.rollout import Rollout

Fields: TypeAlias = Mapping[str, int]
"""Counts on their way, as `TrackCounts.to_fields` has them: what was not counted has no place there."""


class TallyKey(NamedTuple):
    """What counts are kept by: one version on one track of an adapter, in one epoch of its rollout."""

    tenant: str
    adapter: str
    version: int
    track: str
    epoch: str


def epoch_of(rollout: Rollout) -> str:
    """The time in which one rollout had one weight. A call is of the epoch in which it was routed, however late it
    ends, so that both tracks' calls are of the same time."""
    return f"{rollout.salt}-{rollout.step_since:.6f}"
