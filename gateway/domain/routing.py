"""Which version, on which track, serves a model name for a key."""

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum

from gateway.domain.errors import ModelNotFound
from gateway.domain.model import Adapter, ApiKey, Snapshot, Version, VersionPhase


class Track(StrEnum):
    """Which line of an adapter answers: its stable version, or the base model itself."""

    STABLE = "stable"
    BASE = "base"


@dataclass(frozen=True, slots=True)
class Route:
    """Who serves a call: `served_name` in the pool of `base_model`; `version` is None on the base track."""

    tenant: str
    served_name: str
    base_model: str
    track: Track
    version: Version | None = None
    replicas: int | None = None

    @property
    def adapter(self) -> str:
        """The adapter's name; empty on the base track."""
        return self.version.adapter if self.version else ""

    @property
    def number(self) -> str:
        """The version's number as text; empty on the base track."""
        return str(self.version.number) if self.version else ""


def route(snapshot: Snapshot, key: ApiKey, model: str, base_models: Collection[str]) -> Route:
    """Resolve `model` (an adapter's name, `tenant/adapter`, or a pool's base model) for `key`.

    An adapter of another tenant, or one that the key may not use, is refused in the very words used for one that does
    not exist (ModelNotFound).
    """
    tenant = key.tenant
    name = model.removeprefix(f"{tenant}/")
    adapter = snapshot.adapters.get((tenant, name))
    if adapter is not None and key.may_use(name):
        version = _stable(snapshot, adapter)
        return Route(tenant, version.served_name, version.base_model, Track.STABLE, version, adapter.replicas)
    if model in base_models and may_use_base(snapshot, key):
        return Route(tenant, model, model, Track.BASE)
    raise ModelNotFound(
        f"The model {model[:200]!r} does not exist, or this key may not use it. GET /v1/models lists what it may use.",
        param="model",
    )


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


def _stable(snapshot: Snapshot, adapter: Adapter) -> Version:
    version = _stable_or_none(snapshot, adapter)
    if version is None:
        raise ModelNotFound(
            f"The adapter {adapter.name!r} has no version that takes traffic yet. Register one, or set its release.",
            param="model",
        )
    return version


def _stable_or_none(snapshot: Snapshot, adapter: Adapter) -> Version | None:
    release = snapshot.releases.get((adapter.tenant, adapter.name))
    if release is None or release.stable is None:
        return None
    version = snapshot.versions.get((adapter.tenant, adapter.name, release.stable))
    return version if version is not None and version.phase is VersionPhase.READY else None
