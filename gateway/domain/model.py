"""The registry's entities, and the snapshot that holds all of them at one revision.

Entities are frozen. Each knows its `path` (its place in the registry, `kind/…`) and its `revision`: the registry
revision at which it last changed (0: not written yet). Times are Unix seconds. Documents are plain JSON objects; a
field that this release does not know is ignored, so that old and new gateways can read one registry.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from enum import StrEnum
from types import MappingProxyType
from typing import Any, ClassVar, Self, TypeAlias

from gateway.domain import names
from gateway.domain.errors import Conflict

Document: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entity:
    """What the registry keeps under one path."""

    kind: ClassVar[str]
    revision: int = 0

    @property
    def path(self) -> str:
        """The entity's place in the registry, such as `version/acme/support/3`."""
        raise NotImplementedError

    def to_document(self) -> Document:
        """The entity as JSON-ready data, without its revision (the registry keeps that beside it)."""
        document = asdict(self)
        del document["revision"]
        return document

    @classmethod
    def from_document(cls, document: Mapping[str, Any], revision: int) -> Self:
        """The entity that `to_document` wrote; lists become tuples, unknown fields are dropped."""
        known = {f.name for f in fields(cls)}
        values: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in document.items() if k in known}
        values["revision"] = revision
        return cls(**values)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant(Entity):
    """Who owns adapters. `base_access`: may its keys ask for the base model by its own name?"""

    kind: ClassVar[str] = "tenant"
    name: str
    created_at: float
    base_access: bool = True

    @property
    def path(self) -> str:
        return f"tenant/{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey(Entity):
    """Proof that a caller is of a tenant; only the secret's SHA-256 (hex) is kept.

    `prefix` is shown for recognition. `adapters`: the only adapters it may use (None: all of the tenant's and, if the
    tenant may, the base model).
    """

    kind: ClassVar[str] = "key"
    id: str
    tenant: str
    name: str
    prefix: str
    sha256: str
    created_at: float
    adapters: tuple[str, ...] | None = None
    expires_at: float | None = None
    revoked_at: float | None = None

    @property
    def path(self) -> str:
        return f"key/{self.id}"

    def is_valid_at(self, now: float) -> bool:
        """Neither revoked nor expired at `now`."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)

    def may_use(self, adapter: str) -> bool:
        """May this key use that adapter of its tenant?"""
        return self.adapters is None or adapter in self.adapters


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter(Entity):
    """A named LoRA line of a tenant.

    `replicas`: how many replicas hold its versions (None: all of the pool). `last_number`: the highest version number
    ever given, so that no number is used twice.
    """

    kind: ClassVar[str] = "adapter"
    tenant: str
    name: str
    created_at: float
    replicas: int | None = None
    last_number: int = 0

    @property
    def path(self) -> str:
        return f"adapter/{self.tenant}/{self.name}"


class VersionPhase(StrEnum):
    """Where a version stands in its life."""

    PREPARING = "preparing"
    READY = "ready"
    RETIRING = "retiring"
    RETIRED = "retired"


VERSION_MOVES: Mapping[VersionPhase, frozenset[VersionPhase]] = MappingProxyType({
    VersionPhase.PREPARING: frozenset({VersionPhase.READY, VersionPhase.RETIRING}),
    VersionPhase.READY: frozenset({VersionPhase.RETIRING}),
    VersionPhase.RETIRING: frozenset({VersionPhase.RETIRED}),
    VersionPhase.RETIRED: frozenset(),
})


@dataclass(frozen=True, slots=True, kw_only=True)
class Version(Entity):
    """One immutable artifact of an adapter, numbered from 1; `digest` (SHA-256, hex) names its bytes.

    `effect` is the change of logprobs (nats) that the probe saw against the base model, `noise` what the base model
    differed from itself by. `warnings` are what the checks could not settle.
    """

    kind: ClassVar[str] = "version"
    tenant: str
    adapter: str
    number: int
    digest: str
    phase: VersionPhase
    base_model: str
    rank: int
    alpha: float
    targets: tuple[str, ...]
    size_bytes: int
    source: str
    created_at: float
    phase_at: float
    warnings: tuple[str, ...] = ()
    ignored_files: tuple[str, ...] = ()
    effect: float | None = None
    noise: float | None = None

    @property
    def path(self) -> str:
        return f"version/{self.tenant}/{self.adapter}/{self.number}"

    @property
    def served_name(self) -> str:
        """What vLLM calls it."""
        return names.served_name(self.tenant, self.adapter, self.number, self.digest)

    @property
    def is_wanted(self) -> bool:
        """Should replicas hold it?"""
        return self.phase in (VersionPhase.PREPARING, VersionPhase.READY)

    def move(self, phase: VersionPhase, now: float) -> Self:
        """The version in its next phase; Conflict when `VERSION_MOVES` has no such move."""
        if phase not in VERSION_MOVES[self.phase]:
            raise Conflict(
                f"Version {self.number} of {self.tenant}/{self.adapter} is {self.phase}; it cannot become {phase}.")
        return replace(self, phase=phase, phase_at=now)

    @classmethod
    def from_document(cls, document: Mapping[str, Any], revision: int) -> Self:
        values = {**document, "phase": VersionPhase(document["phase"])}
        return super(Version, cls).from_document(values, revision)


@dataclass(frozen=True, slots=True, kw_only=True)
class Release(Entity):
    """Which version of an adapter takes traffic (None: none yet)."""

    kind: ClassVar[str] = "release"
    tenant: str
    adapter: str
    stable: int | None = None

    @property
    def path(self) -> str:
        return f"release/{self.tenant}/{self.adapter}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Replica(Entity):
    """One vLLM process: `http://`, `https://` or `unix:/path/to.sock`.

    `api_key` is the replica's own key. `artifacts_path`: where it sees the artifact store, if elsewhere than we do.
    `max_in_flight`: how many requests at once before others are preferred.
    """

    kind: ClassVar[str] = "replica"
    name: str
    url: str
    created_at: float
    api_key: str | None = None
    artifacts_path: str | None = None
    max_in_flight: int = 256

    @property
    def path(self) -> str:
        return f"replica/{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Secret(Entity):
    """A server secret that all gateways of one registry share, such as the one cache salts are made from."""

    kind: ClassVar[str] = "secret"
    name: str
    value: str

    @property
    def path(self) -> str:
        return f"secret/{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One audited write: who did what to which entity, when. `detail` is JSON-ready and never holds a secret."""

    actor: str
    action: str
    target: str
    at: float
    detail: Mapping[str, Any]
    revision: int = 0


KINDS: Mapping[str, type[Entity]] = MappingProxyType({
    kind.kind: kind for kind in (Tenant, ApiKey, Adapter, Version, Release, Replica, Secret)
})


def entity_from(path: str, document: Mapping[str, Any], revision: int) -> Entity | None:
    """The entity kept under `path`, or None when its kind is unknown to this release."""
    kind = KINDS.get(path.split("/", 1)[0])
    return kind.from_document(document, revision) if kind else None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The whole registry at one revision; immutable, so one call sees one truth.

    `entities` by path is the whole; the other mappings are indexes into it.
    """

    revision: int
    entities: Mapping[str, Entity]
    tenants: Mapping[str, Tenant]
    keys_by_sha256: Mapping[str, ApiKey]
    adapters: Mapping[tuple[str, str], Adapter]
    versions: Mapping[tuple[str, str, int], Version]
    releases: Mapping[tuple[str, str], Release]
    replicas: Mapping[str, Replica]

    @classmethod
    def of(cls, revision: int, entities: Mapping[str, Entity]) -> Self:
        """Index `entities` (by path) at `revision`."""
        tenants: dict[str, Tenant] = {}
        keys: dict[str, ApiKey] = {}
        adapters: dict[tuple[str, str], Adapter] = {}
        versions: dict[tuple[str, str, int], Version] = {}
        releases: dict[tuple[str, str], Release] = {}
        replicas: dict[str, Replica] = {}
        for entity in entities.values():
            match entity:
                case Tenant():
                    tenants[entity.name] = entity
                case ApiKey():
                    keys[entity.sha256] = entity
                case Adapter():
                    adapters[entity.tenant, entity.name] = entity
                case Version():
                    versions[entity.tenant, entity.adapter, entity.number] = entity
                case Release():
                    releases[entity.tenant, entity.adapter] = entity
                case Replica():
                    replicas[entity.name] = entity
        return cls(revision, entities, tenants, keys, adapters, versions, releases, replicas)

    @classmethod
    def empty(cls) -> Self:
        return cls.of(0, {})

    def with_writes(self, revision: int, writes: Mapping[str, Entity | None]) -> Self:
        """The snapshot after one change; None removes what was under the path."""
        entities = {**self.entities, **{p: e for p, e in writes.items() if e is not None}}
        for path, entity in writes.items():
            if entity is None:
                entities.pop(path, None)
        return self.of(revision, entities)

    def versions_of(self, tenant: str, adapter: str) -> list[Version]:
        """An adapter's versions, oldest first."""
        found = [v for (t, a, _), v in self.versions.items() if (t, a) == (tenant, adapter)]
        return sorted(found, key=lambda v: v.number)
