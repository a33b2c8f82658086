"""Which replicas should hold a version, and in which order a call tries them.

Rendezvous (highest random weight) hashing, Thaler and Ravishankar 1998: every gateway ranks the replicas of a pool
alike with no shared state, and a replica that comes or goes moves only the names it held.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b


@dataclass(frozen=True, slots=True)
class Candidate:
    """A healthy replica of the pool as one call sees it; `limit`: requests in flight at which it counts as busy."""

    name: str
    loaded: bool
    in_flight: int
    limit: int


def rank(served_name: str, replicas: Iterable[str]) -> list[str]:
    """The replicas, best first, for a served name; the order depends on nothing else."""
    def weight(replica: str) -> bytes:
        return blake2b(f"{served_name}\0{replica}".encode(), digest_size=8).digest()

    return sorted(replicas, key=weight, reverse=True)


def choose(served_name: str, replicas: Iterable[str], count: int | None) -> list[str]:
    """The replicas that should hold the version: the first `count` (None: all) of its ranking."""
    return rank(served_name, replicas)[:count]


def order(ranked: Sequence[Candidate], holders: int | None = None) -> list[str]:
    """The order in which a call tries replicas that are already ranked for its served name.

    First those that have the version loaded and are not busy, by rank; then the busy ones, emptiest first (relative to
    their limit); then those that would have to load it, its first `holders` before the others, not busy before busy.
    """
    def position(item: tuple[int, Candidate]) -> tuple[int, float, int]:
        index, candidate = item
        busy = candidate.in_flight >= candidate.limit
        load = candidate.in_flight / max(candidate.limit, 1)
        if candidate.loaded:
            return (1, load, index) if busy else (0, 0.0, index)
        outside = holders is not None and index >= holders
        return (3 if outside else 2, load if busy else 0.0, index)

    return [candidate.name for _, candidate in sorted(enumerate(ranked), key=position)]
