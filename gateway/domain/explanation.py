"""Which version, track and replicas a subject would get, and why."""

from collections.abc import Sequence
from dataclasses import dataclass

from gateway.domain import placement
from gateway.domain.fleet import ReplicaView
from gateway.domain.model import MAX_IN_FLIGHT, Adapter, Release, Snapshot
from gateway.domain.reconcile import is_listed, pool_of
from gateway.domain.routing import Route, Track, route_subject
from gateway.domain.split import BUCKETS, bucket


@dataclass(frozen=True, slots=True)
class Explanation:
    """A subject's way. `replicas`: names, in the order in which a call would try them now. `bucket`: the subject's
    place in the live rollout, 0 to 9,999, and `weight` the canary's share in percent (None and 0 without a rollout)."""

    version: int
    served_name: str
    track: Track
    replicas: tuple[str, ...]
    bucket: int | None
    weight: float
    why: str


def explain(snapshot: Snapshot, views: Sequence[ReplicaView], adapter: Adapter, subject: str) -> Explanation:
    """What becomes of the subject's next call of the adapter; ModelNotFound when no version takes traffic."""
    route = route_subject(snapshot, adapter, subject)
    assert route.version is not None, "a subject is routed to a version"
    release = snapshot.releases[adapter.tenant, adapter.name]
    rollout = release.live
    place = bucket(rollout.salt, subject) if rollout else None
    return Explanation(
        version=route.version.number, served_name=route.served_name, track=route.track,
        replicas=tuple(_replicas(snapshot, views, route)), bucket=place, weight=rollout.weight if rollout else 0.0,
        why=_why(release, route, place))


def _replicas(snapshot: Snapshot, views: Sequence[ReplicaView], route: Route) -> list[str]:
    assert route.version is not None
    pool = {view.name: view for view in pool_of(route.base_model, views)}
    candidates = []
    for name in placement.rank(route.served_name, pool):
        replica = snapshot.replicas.get(name)
        candidates.append(placement.Candidate(
            name, is_listed(route.version, pool[name]), pool[name].in_flight,
            replica.max_in_flight if replica else MAX_IN_FLIGHT))
    return placement.order(candidates, route.replicas)


def _why(release: Release, route: Route, place: int | None) -> str:
    rollout = release.live
    if rollout is None or place is None:
        return f"No rollout is live: every caller gets version {route.number}, the stable one."
    share = round(rollout.weight * (BUCKETS // 100))
    where = (f"The subject's bucket is {place} of {BUCKETS}, and at {rollout.weight:g}% version {rollout.canary}, the "
             f"canary, has the buckets below {share}")
    if route.track is Track.CANARY:
        return f"{where}: the subject gets it."
    if place < share:
        return f"{where}; but it is not ready, so the subject gets version {route.number}, the stable one."
    return f"{where}: the subject gets version {route.number}, the stable one."
