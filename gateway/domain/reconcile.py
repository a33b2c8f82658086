"""What replicas lack, what they hold too much, and which retiring versions nothing holds any more.

The rules, in the order in which they matter:

1. A wanted version is never unloaded, and one that some replica lists, or has requests of, is never removable: vLLM's
   engine dies when it needs the files of an adapter that it lists and they are gone.
2. A `ready` version is loaded on as many healthy replicas of its pool as its adapter asks for. A `preparing` one is its
   preparer's to load.
3. A `retiring` version is unloaded after a grace time, in which the calls already routed to it arrive.
4. A served name of ours that the registry does not know (a stranger) is unloaded once it has been seen for a grace
   time, so that a version younger than our snapshot is left alone.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from gateway.domain import names
from gateway.domain.fleet import ReplicaView
from gateway.domain.model import Snapshot, Version, VersionPhase

Choose: TypeAlias = Callable[[str, Sequence[str], int], Sequence[str]]
"""(served name, replica names, count) → the replicas that should hold it."""
Listing: TypeAlias = tuple[str, str]
"""(replica, served name)"""

_PATIENCE_DOUBLINGS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """`retire_grace` and `stranger_grace` in seconds; `artifacts_path`: the artifact store as we see it."""

    artifacts_path: str
    retire_grace: float = 10.0
    stranger_grace: float = 60.0


@dataclass(frozen=True, slots=True)
class Load:
    """Load this version on this replica."""

    replica: str
    version: Version


@dataclass(frozen=True, slots=True)
class Unload:
    """Make this replica forget this served name."""

    replica: str
    served_name: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do now; `strangers` is what the next decision needs to know: since when each has been seen."""

    loads: tuple[Load, ...]
    unloads: tuple[Unload, ...]
    removable: tuple[Version, ...]
    strangers: Mapping[Listing, float]


def decide(
    snapshot: Snapshot, views: Sequence[ReplicaView], strangers: Mapping[Listing, float], *,
    choose: Choose, policy: Policy, now: float,
) -> Plan:
    """What to load, unload and remove, from what the registry wants and what the replicas list."""
    healthy = [view for view in views if view.healthy]
    seen = {
        (view.name, served_name): strangers.get((view.name, served_name), now)
        for view in healthy for served_name, root in view.loaded.items()
        if _is_stranger(snapshot, policy, view.name, served_name, root)
    }
    overdue = [listing for listing, since in seen.items() if now >= since + policy.stranger_grace]
    return Plan(
        loads=tuple(_loads(snapshot, healthy, choose)),
        unloads=(*_unloads(snapshot, healthy, policy, now), *(Unload(*listing) for listing in overdue)),
        removable=tuple(v for v in snapshot.versions.values() if may_remove(v, snapshot, views, policy, now)),
        strangers=seen,
    )


def pool_of(base_model: str, views: Iterable[ReplicaView]) -> list[ReplicaView]:
    """The healthy replicas of a base model."""
    return [view for view in views if view.healthy and view.base_model == base_model]


def is_listed(version: Version, view: ReplicaView) -> bool:
    """Does the replica list the version, loaded from a path that contains its digest?"""
    return version.digest in view.loaded.get(version.served_name, "")


def leaves_at(version: Version, policy: Policy) -> float:
    """When a retiring version is unloaded; one that never was ready never took a call, so it need not wait."""
    return version.phase_at + (policy.retire_grace if was_ready(version) else 0.0)


def was_ready(version: Version) -> bool:
    """Was the version ever proven, so that it could take traffic?"""
    return version.effect is not None


def uses_files(snapshot: Snapshot, version: Version) -> bool:
    """Does another version need the files of this one?"""
    return any(
        other.digest == version.digest and other.path != version.path and other.phase is not VersionPhase.RETIRED
        for other in snapshot.versions.values()
    )


def may_remove(
    version: Version, snapshot: Snapshot, views: Sequence[ReplicaView], policy: Policy, now: float,
) -> bool:
    """Is the version retiring, its grace over, every registered replica answering, and none holding it?"""
    if version.phase is not VersionPhase.RETIRING or now < leaves_at(version, policy):
        return False
    if not snapshot.replicas.keys() <= {view.name for view in views}:
        return False
    shared = uses_files(snapshot, version)
    return all(_answers(view) and not _holds(view, version, shared) for view in views)


def patience(failures: int) -> float:
    """Seconds to wait after so many failures in a row: 1, 2, 4 … at most 64."""
    return float(2 ** min(max(failures, 1) - 1, _PATIENCE_DOUBLINGS))


def _answers(view: ReplicaView) -> bool:
    """Did the last look at it succeed? A replica stays healthy for some failures, but its listing is old by then."""
    return view.healthy and view.last_error is None


def _holds(view: ReplicaView, version: Version, shared: bool) -> bool:
    name = version.served_name
    if name in view.loaded or name in view.busy_adapters:
        return True
    return not shared and any(version.digest in root for root in view.loaded.values())


def _loads(snapshot: Snapshot, healthy: Sequence[ReplicaView], choose: Choose) -> Iterator[Load]:
    for version in _ready_versions(snapshot):
        pool = {view.name: view for view in pool_of(version.base_model, healthy)}
        if all(is_listed(version, view) for view in pool.values()):
            continue
        adapter = snapshot.adapters.get((version.tenant, version.adapter))
        count = len(pool) if adapter is None or adapter.replicas is None else adapter.replicas
        for name in choose(version.served_name, list(pool), count):
            if version.served_name not in pool[name].loaded:
                yield Load(name, version)


def _ready_versions(snapshot: Snapshot) -> list[Version]:
    """Those that take traffic first: after a restart they are missed most."""
    def waits(version: Version) -> bool:
        release = snapshot.releases.get((version.tenant, version.adapter))
        return release is None or version.number not in release.numbers

    return sorted((v for v in snapshot.versions.values() if v.phase is VersionPhase.READY), key=waits)


def _unloads(
    snapshot: Snapshot, healthy: Sequence[ReplicaView], policy: Policy, now: float,
) -> Iterator[Unload]:
    for view in healthy:
        for served_name in view.loaded:
            version = _version_of(snapshot, served_name)
            if version is not None and _must_go(version, view, policy, now):
                yield Unload(view.name, served_name)


def _must_go(version: Version, view: ReplicaView, policy: Policy, now: float) -> bool:
    if version.is_wanted:
        return not is_listed(version, view)  # its name, but not its bytes
    return version.phase is VersionPhase.RETIRED or now >= leaves_at(version, policy)


def _is_stranger(snapshot: Snapshot, policy: Policy, replica: str, served_name: str, root: str) -> bool:
    if names.parse_served_name(served_name) is None or _version_of(snapshot, served_name) is not None:
        return False
    registered = snapshot.replicas.get(replica)
    store = (registered and registered.artifacts_path) or policy.artifacts_path
    return root.startswith(store.rstrip("/") + "/")


def _version_of(snapshot: Snapshot, served_name: str) -> Version | None:
    parsed = names.parse_served_name(served_name)
    version = snapshot.versions.get((parsed.tenant, parsed.adapter, parsed.number)) if parsed else None
    return version if version is not None and version.served_name == served_name else None
