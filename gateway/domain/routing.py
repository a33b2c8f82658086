"""Which version, on which track, serves a model name for a key."""

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum

from gateway.domain import names
from gateway.domain.errors import ModelNotFound
from gateway.domain.model import Adapter, ApiKey, Release, Snapshot, Version, VersionPhase
from gateway.domain.split import is_canary, is_sampled
from gateway.domain.windows import epoch_of


class Track(StrEnum):
    """Which line of an adapter answers: its release's, the version that the caller named, or the base model itself.

    A pinned call is on a track of its own, whatever its version is to the release: who names a version is no sample of
    the callers, and would spoil the comparison of canary with stable.
    """

    STABLE = "stable"
    CANARY = "canary"
    SHADOW = "shadow"
    PINNED = "pinned"
    BASE = "base"


@dataclass(frozen=True, slots=True)
class Route:
    """Who serves a call: `served_name` in the pool of `base_model`; `version` is None on the base track.

    `epoch`: the time of a live rollout that split the call (see `windows.py`); empty without one.
    """

    tenant: str
    served_name: str
    base_model: str
    track: Track
    version: Version | None = None
    replicas: int | None = None
    epoch: str = ""

    @property
    def adapter(self) -> str:
        """The adapter's name; empty on the base track."""
        return self.version.adapter if self.version else ""

    @property
    def number(self) -> str:
        """The version's number as text; empty on the base track."""
        return str(self.version.number) if self.version else ""


def route(snapshot: Snapshot, key: ApiKey, model: str, base_models: Collection[str], subject: str = "") -> Route:
    """Resolve `model` for `key`: an adapter's name, an alias, either with the tenant before it, or a pool's base model.

    `subject` is who stays on one track of a rollout (empty: the key). `support@3` and `support@latest` are for keys
    that may pin. An adapter of another tenant, or one that the key may not use, is refused in the very words used for
    one that does not exist (ModelNotFound).
    """
    tenant = key.tenant
    name = model.removeprefix(f"{tenant}/")
    alias = None if (tenant, name) in snapshot.adapters else snapshot.aliases.get((tenant, name))
    meant = names.parse_model(alias.target if alias else name)
    adapter = snapshot.adapters.get((tenant, meant.adapter)) if meant else None
    if meant and adapter is not None and key.may_use(adapter.name):
        if meant.pin is None:
            return route_subject(snapshot, adapter, subject or key.id)
        if alias or key.may_pin:
            return _of(adapter, _pinned(snapshot, adapter, meant.pin), Track.PINNED)
    if model in base_models and may_use_base(snapshot, key):
        return Route(tenant, model, model, Track.BASE)
    raise ModelNotFound(
        f"The model {model[:200]!r} does not exist, or this key may not use it. GET /v1/models lists what it may use.",
        param="model",
    )


def route_subject(snapshot: Snapshot, adapter: Adapter, subject: str) -> Route:
    """The subject's track; stable when the canary is not ready. ModelNotFound when no version takes traffic."""
    stable = _stable(snapshot, adapter)
    release = _release(snapshot, adapter)
    rollout = release.live if release else None
    if rollout is None:
        return _of(adapter, stable, Track.STABLE)
    epoch = epoch_of(rollout)
    if is_canary(rollout.salt, subject, rollout.weight):
        canary = _ready(snapshot, adapter, rollout.canary)
        if canary is not None:
            return _of(adapter, canary, Track.CANARY, epoch)
    return _of(adapter, stable, Track.STABLE, epoch)


def shadow_of(snapshot: Snapshot, live: Route, request_id: str) -> Route | None:
    """Where a copy of a call that went to `live` goes, if its adapter has a shadow that samples it."""
    if live.version is None or live.track is Track.PINNED:
        return None
    adapter = snapshot.adapters.get((live.tenant, live.adapter))
    release = snapshot.releases.get((live.tenant, live.adapter))
    if adapter is None or release is None or release.shadow is None:
        return None
    shadow = release.shadow
    version = _ready(snapshot, adapter, shadow.number)
    if version is None or version == live.version or not is_sampled(shadow.salt, request_id, shadow.share):
        return None
    return _of(adapter, version, Track.SHADOW)


def may_use_base(snapshot: Snapshot, key: ApiKey) -> bool:
    """May this key ask for a base model by its own name?"""
    owner = snapshot.tenants.get(key.tenant)
    return key.adapters is None and owner is not None and owner.base_access


def usable_adapters(snapshot: Snapshot, key: ApiKey) -> list[Adapter]:
    """The key's adapters that have a version taking traffic, by name."""
    return sorted(
        (a for (tenant, name), a in snapshot.adapters.items()
         if tenant == key.tenant and key.may_use(name) and _stable_or_none(snapshot, a)),
        key=lambda a: a.name,
    )


def _of(adapter: Adapter, version: Version, track: Track, epoch: str = "") -> Route:
    return Route(adapter.tenant, version.served_name, version.base_model, track, version, adapter.replicas, epoch)


def _pinned(snapshot: Snapshot, adapter: Adapter, pin: str) -> Version:
    if pin == "latest":
        ready = [v for v in snapshot.versions_of(adapter.tenant, adapter.name) if v.phase is VersionPhase.READY]
        version = ready[-1] if ready else None
    else:
        version = _ready(snapshot, adapter, int(pin))
    if version is None:
        raise ModelNotFound(f"The adapter {adapter.name!r} has no ready version {pin}. Name another, or no version.",
                            param="model")
    return version


def _stable(snapshot: Snapshot, adapter: Adapter) -> Version:
    version = _stable_or_none(snapshot, adapter)
    if version is None:
        raise ModelNotFound(
            f"The adapter {adapter.name!r} has no version that takes traffic yet. Register one, or set its release.",
            param="model",
        )
    return version


def _stable_or_none(snapshot: Snapshot, adapter: Adapter) -> Version | None:
    release = _release(snapshot, adapter)
    return _ready(snapshot, adapter, release.stable) if release and release.stable is not None else None


def _release(snapshot: Snapshot, adapter: Adapter) -> Release | None:
    return snapshot.releases.get((adapter.tenant, adapter.name))


def _ready(snapshot: Snapshot, adapter: Adapter, number: int) -> Version | None:
    version = snapshot.versions.get((adapter.tenant, adapter.name, number))
    return version if version is not None and version.phase is VersionPhase.READY else None
