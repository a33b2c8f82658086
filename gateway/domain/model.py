"""The registry's entities, and the snapshot that holds all of them at one revision.

Entities are frozen. Each knows its `path` (its place in the registry, `kind/…`) and its `revision`: the registry
revision at which it last changed (0: not written yet). Times are Unix seconds. Documents are plain JSON objects; a
field that this release does not know is ignored, so that old and new gateways can read one registry.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from enum import StrEnum
from types import MappingProxyType
from typing import Any, ClassVar, Self, TypeAlias, TypeVar

from gateway.domain import names
from gateway.domain.errors import Conflict
from gateway.domain.parity import Parity
from gateway.domain.rollout import Phase, Rollout, Shadow

Document: TypeAlias = dict[str, Any]
E = TypeVar("E", bound="Entity")
K = TypeVar("K")

MAX_IN_FLIGHT = 256
"""How many requests at once a replica takes before others are preferred, where nothing else is said."""


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
    tenant may, the base model). `may_pin`: may it name a version, as in `support@3`?
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
    may_pin: bool = False

    @property
    def path(self) -> str:
        return f"key/{self.id}"

    def is_valid_at(self, now: float) -> bool:
        """Neither revoked nor expired at `now`."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)

    def may_use(self, adapter: str) -> bool:
        """May this key use that adapter of its tenant?"""
        return self.adapters is None or adapter in self.adapters


class EvaluationPolicy(StrEnum):
    """What a version needs to take canary or stable traffic: nothing, a passing evaluation or else a warning is kept,
    or a passing evaluation."""

    OFF = "off"
    WARN = "warn"
    REQUIRED = "required"


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter(Entity):
    """A named LoRA line of a tenant.

    `replicas`: how many replicas hold its versions (None: all of the pool). `last_number`: the highest version number
    ever given, so that no number is used twice. `evaluation`: what its versions must prove before they take traffic.
    """

    kind: ClassVar[str] = "adapter"
    tenant: str
    name: str
    created_at: float
    replicas: int | None = None
    last_number: int = 0
    evaluation: EvaluationPolicy = EvaluationPolicy.WARN

    @property
    def path(self) -> str:
        return f"adapter/{self.tenant}/{self.name}"

    @classmethod
    def from_document(cls, document: Mapping[str, Any], revision: int) -> Self:
        values = {**document, "evaluation": EvaluationPolicy(document.get("evaluation", EvaluationPolicy.WARN))}
        return super(Adapter, cls).from_document(values, revision)


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
    differed from itself by. `warnings` are what the checks could not settle. `chat_template_sha256`: of the template
    that the manifest names; `parity`: whether the engine computes what the trainer did (None: nobody has compared).
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
    chat_template_sha256: str | None = None
    parity: Parity | None = None

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
        parity = document.get("parity")
        values = {**document, "phase": VersionPhase(document["phase"]),
                  "parity": Parity.from_document(parity) if parity else None}
        return super(Version, cls).from_document(values, revision)


@dataclass(frozen=True, slots=True, kw_only=True)
class Release(Entity):
    """Which versions of an adapter take traffic, and how much.

    `stable`: the version that takes what no canary takes (None: no traffic yet). `rollout`: the canary's course, kept
    when it is over until another begins. `shadow`: the version that gets copies of requests. `analysis`: the numbers of
    the rollout's latest noted verdict, JSON-ready. `fence`: the highest fencing token of an analyst that wrote here.
    """

    kind: ClassVar[str] = "release"
    tenant: str
    adapter: str
    stable: int | None = None
    rollout: Rollout | None = None
    shadow: Shadow | None = None
    analysis: Mapping[str, Any] | None = None
    fence: int = 0

    @property
    def path(self) -> str:
        return f"release/{self.tenant}/{self.adapter}"

    @property
    def live(self) -> Rollout | None:
        """The rollout whose canary takes traffic now."""
        return self.rollout if self.rollout is not None and self.rollout.is_live else None

    @property
    def numbers(self) -> frozenset[int]:
        """The versions that must stay hot: stable, canary and shadow."""
        named = {self.stable, self.live.canary if self.live else None, self.shadow.number if self.shadow else None}
        return frozenset(number for number in named if number is not None)

    def with_rollout(self, rollout: Rollout) -> Self:
        """The release after a move of its rollout; a promoted canary is stable, and nobody's shadow any more."""
        stable = rollout.canary if rollout.phase is Phase.PROMOTED else self.stable
        shadow = None if self.shadow is not None and self.shadow.number == stable else self.shadow
        return replace(self, rollout=rollout, stable=stable, shadow=shadow)

    @classmethod
    def from_document(cls, document: Mapping[str, Any], revision: int) -> Self:
        rollout, shadow = document.get("rollout"), document.get("shadow")
        values = {**document, "rollout": Rollout.from_document(rollout) if rollout else None,
                  "shadow": Shadow.from_document(shadow) if shadow else None}
        return super(Release, cls).from_document(values, revision)


@dataclass(frozen=True, slots=True, kw_only=True)
class Alias(Entity):
    """Another name for an adapter of the tenant, or for one version of it.

    `target`: `support` (whatever its release says), `support@3`, or `support@latest` (its newest ready version).
    """

    kind: ClassVar[str] = "alias"
    tenant: str
    name: str
    target: str

    @property
    def path(self) -> str:
        return f"alias/{self.tenant}/{self.name}"


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
    max_in_flight: int = MAX_IN_FLIGHT

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
    """One audited write: who did what to which entity, when. `detail` is JSON-ready and never holds a secret.

    `hash`, `previous` (the hash of the change before it) and `writes_digest` are the chain's; see `domain.audit`.
    """

    actor: str
    action: str
    target: str
    at: float
    detail: Mapping[str, Any]
    revision: int = 0
    writes_digest: str = ""
    previous: str = ""
    hash: str = ""


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
    aliases: Mapping[tuple[str, str], Alias]
    replicas: Mapping[str, Replica]

    @classmethod
    def of(cls, revision: int, entities: Mapping[str, Entity]) -> Self:
        """Index `entities` (by path) at `revision`."""
        found = entities.values()
        return cls(
            revision, entities,
            tenants=_indexed(found, Tenant, lambda e: e.name),
            keys_by_sha256=_indexed(found, ApiKey, lambda e: e.sha256),
            adapters=_indexed(found, Adapter, lambda e: (e.tenant, e.name)),
            versions=_indexed(found, Version, lambda e: (e.tenant, e.adapter, e.number)),
            releases=_indexed(found, Release, lambda e: (e.tenant, e.adapter)),
            aliases=_indexed(found, Alias, lambda e: (e.tenant, e.name)),
            replicas=_indexed(found, Replica, lambda e: e.name),
        )

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


def _indexed(entities: Iterable[Entity], kind: type[E], key: Callable[[E], K]) -> dict[K, E]:
    return {key(entity): entity for entity in entities if isinstance(entity, kind)}
