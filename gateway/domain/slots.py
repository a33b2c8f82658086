"""Would a canary have a GPU slot on every replica that is to hold it, beside what must stay hot there?

A replica with more adapters in use than slots swaps weights all the time: 15 adapters on 4 slots were measured at less
than a quarter of the tokens per second and 20 s to the first one. Every tenant of the pool would feel it.
"""

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass

from gateway.domain import placement

FLAG = "--max-loras"
"""The vLLM flag that sets a replica's slots."""


@dataclass(frozen=True, slots=True)
class ReplicaSlots:
    """A replica that is to hold the candidate: its slots (None: not known) and the served names that stay hot there."""

    name: str
    slots: int | None
    hot: Set[str]


@dataclass(frozen=True, slots=True)
class Shortage:
    """A replica with fewer slots than versions to keep hot, the candidate among them."""

    replica: str
    slots: int
    needed: int

    @property
    def missing(self) -> int:
        """How many slots too few."""
        return self.needed - self.slots


@dataclass(frozen=True, slots=True)
class SlotCheck:
    """What a candidate would do to the pool: `shortages`, worst first; `unknown`: replicas that did not tell."""

    candidate: str
    shortages: tuple[Shortage, ...]
    unknown: tuple[str, ...]

    @property
    def fits(self) -> bool:
        """Does no replica that told its slots lack one?"""
        return not self.shortages

    @property
    def sentence(self) -> str:
        """What was found and what to do about it, for an operator."""
        unsure = f" Not known, and so not checked: the slots of {', '.join(self.unknown)}." if self.unknown else ""
        if self.fits:
            return f"{self.candidate} has a slot on every replica that is to hold it.{unsure}"
        short = ", ".join(
            f"{s.replica} has {_slots(s.slots)} for {s.needed} versions ({s.missing} too few)" for s in self.shortages)
        return (f"{self.candidate} does not fit beside the versions that must stay hot: {short}. Restart the replicas "
                f"with vLLM's {FLAG} {max(s.needed for s in self.shortages)}, take other versions off them, or "
                f"force the start.{unsure}")


def check_slots(candidate: str, replicas: Iterable[ReplicaSlots]) -> SlotCheck:
    """Count the versions, by served name, that each replica would keep hot with `candidate`, against its slots."""
    shortages, unknown = [], []
    for replica in replicas:
        needed = len(replica.hot | {candidate})
        if replica.slots is None:
            unknown.append(replica.name)
        elif needed > replica.slots:
            shortages.append(Shortage(replica.name, replica.slots, needed))
    shortages.sort(key=lambda shortage: (-shortage.missing, shortage.replica))
    return SlotCheck(candidate, tuple(shortages), tuple(sorted(unknown)))


def holders_of(candidate: str, count: int | None, hot: Mapping[str, int | None], slots: Mapping[str, int | None]
               ) -> list[ReplicaSlots]:
    """The replicas of a pool that are to hold `candidate`, each with what stays hot there.

    `count`: how many hold it (None: all); `hot`: the same for every version, by served name, that takes traffic in the
    pool; `slots`: of every replica of the pool, by name.
    """
    pool: Sequence[str] = list(slots)
    holding = {name: set(placement.choose(name, pool, holders)) for name, holders in hot.items()}
    return [
        ReplicaSlots(replica, slots[replica], frozenset(name for name, on in holding.items() if replica in on))
        for replica in placement.choose(candidate, pool, count)
    ]


def _slots(count: int) -> str:
    return f"{count} slot" if count == 1 else f"{count} slots"
