"""Bodies of the admin API: what may be sent, and what is answered. No answer has a secret but a new key's own text.

Those about replicas and the gateway's standing are in `schemas_replicas.py`, those about releases, evaluations, aliases
and freeze windows in `schemas_releases.py`.
"""

import re
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Annotated, Any, Generic, Self, TypeVar

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    WithJsonSchema,
)

from gateway.domain import names
from gateway.domain.errors import InvalidRequest
from gateway.domain.model import Adapter, ApiKey, Change, EvaluationPolicy, Tenant, Version, VersionPhase
from gateway.domain.parity import Fault, Verdict

T = TypeVar("T")


def named(kind: str, pattern: re.Pattern[str]) -> tuple[AfterValidator, WithJsonSchema]:
    """What makes a text a name of that kind, for `Annotated`."""
    def check(text: str) -> str:
        try:
            return names.check_name(kind, pattern, text)
        except InvalidRequest as error:
            raise ValueError(error.message) from error

    schema = {"type": "string", "pattern": f"^{pattern.pattern}$"}
    return AfterValidator(check), WithJsonSchema(schema)


def _only_text(value: object) -> object:
    if not isinstance(value, str):
        raise ValueError("write it as text, such as 2030-01-31T12:00:00Z")
    return value


_TENANT, _ADAPTER, _REPLICA = (
    named("tenant", names.TENANT), named("adapter", names.ADAPTER), named("replica", names.REPLICA))
TenantName = Annotated[str, *_TENANT]
AdapterName = Annotated[str, *_ADAPTER]
ReplicaName = Annotated[str, *_REPLICA]
Label = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$")]
Time = Annotated[AwareDatetime, BeforeValidator(_only_text), Strict(False)]


class In(BaseModel):
    """What is sent: unknown fields and wrong types are refused."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Out(BaseModel):
    """What is answered. `revision`: the registry revision at which it last changed, also its ETag."""

    model_config = ConfigDict(extra="forbid")


class Page(BaseModel, Generic[T]):
    """A list; `has_more`: there is more of it, further on."""

    data: list[T]
    has_more: bool = False


def example(**fields: Any) -> ConfigDict:
    """A model's configuration with one example."""
    return ConfigDict(json_schema_extra={"examples": [fields]})


def when(seconds: float | None) -> datetime | None:
    """Unix seconds as a time in UTC."""
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def at(seconds: float) -> datetime:
    """Unix seconds as a time in UTC."""
    return datetime.fromtimestamp(seconds, UTC)


# --- tenants and keys ------------------------------------------------------------------------------------------------


class TenantIn(In):
    """A new tenant."""

    model_config = example(name="acme", base_access=True)
    name: TenantName
    base_access: bool = Field(True, description="May its keys ask for the base model by its own name?")


class TenantPatch(In):
    """Fields of a tenant to change."""

    model_config = example(base_access=False)
    base_access: bool | None = None


class TenantOut(Out):
    """A tenant."""

    model_config = example(name="acme", base_access=True, created_at="2026-01-31T12:00:00Z", revision=3)
    name: str
    base_access: bool
    created_at: datetime
    revision: int

    @classmethod
    def of(cls, tenant: Tenant) -> Self:
        return cls(name=tenant.name, base_access=tenant.base_access, created_at=at(tenant.created_at),
                   revision=tenant.revision)


class KeyIn(In):
    """A new API key."""

    model_config = example(name="web shop", adapters=["support"], expires_at="2030-01-31T12:00:00Z")
    name: Label
    adapters: list[AdapterName] | None = Field(
        None, max_length=1000, description="The only adapters it may use; null: all of the tenant's.")
    expires_at: Time | None = Field(None, description="From then on it is refused; null: never.")
    may_pin: bool = Field(False, description="May it name a version, as in `support@3`?")


class KeyOut(Out):
    """An API key, without the key."""

    model_config = example(
        id="1f2e3d4c", tenant="acme", name="web shop", prefix="sy-1f2e3d4c", adapters=["support"],
        may_pin=False, created_at="2026-01-31T12:00:00Z", expires_at=None, revoked_at=None, revision=4)
    id: str
    tenant: str
    name: str
    prefix: str
    adapters: list[str] | None
    may_pin: bool
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    revision: int

    @classmethod
    def fields_of(cls, key: ApiKey) -> dict[str, Any]:
        return {
            "id": key.id, "tenant": key.tenant, "name": key.name, "prefix": key.prefix,
            "adapters": None if key.adapters is None else list(key.adapters), "may_pin": key.may_pin,
            "created_at": at(key.created_at),
            "expires_at": when(key.expires_at), "revoked_at": when(key.revoked_at), "revision": key.revision,
        }

    @classmethod
    def of(cls, key: ApiKey) -> Self:
        return cls(**cls.fields_of(key))


class NewKeyOut(KeyOut):
    """An API key just created; `key` is shown here and never again."""

    model_config = example(
        key="sy-1f2e3d4c-0123456789abcdefghijklmnopqrstuvwxyzABCDEFG", id="1f2e3d4c", tenant="acme", name="web shop",
        prefix="sy-1f2e3d4c", adapters=None, may_pin=False, created_at="2026-01-31T12:00:00Z", expires_at=None,
        revoked_at=None, revision=4)
    key: str


# --- adapters and versions -------------------------------------------------------------------------------------------


class AdapterIn(In):
    """What an adapter asks for."""

    model_config = example(replicas=2, evaluation="required")
    replicas: int | None = Field(
        None, ge=1, le=10_000, description="How many replicas hold its versions; null: all of the pool.")
    evaluation: Annotated[EvaluationPolicy, Strict(False)] | None = Field(None, description=(
        "Must a version pass its evaluation before it takes canary or stable traffic? null: as it is (first: warn)."))


class AdapterOut(Out):
    """An adapter. `last_number`: the highest version number given so far."""

    model_config = example(
        tenant="acme", name="support", replicas=None, evaluation="warn", last_number=3,
        created_at="2026-01-31T12:00:00Z", revision=5)
    tenant: str
    name: str
    replicas: int | None
    evaluation: EvaluationPolicy
    last_number: int
    created_at: datetime
    revision: int

    @classmethod
    def of(cls, adapter: Adapter) -> Self:
        return cls(tenant=adapter.tenant, name=adapter.name, replicas=adapter.replicas, evaluation=adapter.evaluation,
                   last_number=adapter.last_number, created_at=at(adapter.created_at), revision=adapter.revision)


class VersionIn(In):
    """Where an artifact lies."""

    model_config = example(source="/srv/adapters/support", base_model=None)
    source: Annotated[str, Field(min_length=1, max_length=4096, pattern=r"^[^\x00-\x1f\x7f]+$")] = Field(
        description="A folder that the gateway sees, hf://owner/name[@revision][/folder] or s3://bucket/prefix.")
    base_model: Label | None = Field(
        None, description="Which base model it belongs to, if its own files do not say so or name it otherwise.")


class FindingOut(Out):
    """What is wrong between trainer and engine, by name, and in a sentence with its numbers."""

    fault: Fault
    text: str


class DistancesOut(Out):
    """How far apart trainer and engine are in nats: medians over the prompts and their likeliest next tokens.

    `base_…`: the engine's base model from the trainer's as trained on, and as served in bfloat16; and these two from
    each other. `effect_…`: the adapter from the base. `other_tokens`: the prompts of which the engine makes other ones.
    """

    prompts: int
    other_tokens: int
    base_trained: float
    base_served: float | None
    base_quantised: float | None
    adapter: float
    effect_trained: float
    effect_served: float


class ParityOut(Out):
    """Whether the engine computes what the trainer did; `tolerance` in nats."""

    verdict: Verdict
    findings: list[FindingOut]
    numbers: DistancesOut | None
    tolerance: float


class VersionOut(Out):
    """A version. `effect`: the change of log probabilities that the probe saw; `noise`: the base model's own.

    `parity`: the engine compared with the trainer's own numbers; null: that was not done.
    """

    model_config = example(
        tenant="acme", adapter="support", number=3,
        digest="9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        served_name="acme/support@3-9f86d081884c", phase="ready", base_model="llama-3.1-8b", rank=16, alpha=32.0,
        targets=["q_proj", "v_proj"], size_bytes=83886080, source="hf://acme/support-lora@main", warnings=[],
        ignored_files=[], effect=0.8, noise=0.0,
        chat_template_sha256="4a44dc15364204a80fe80e9039455cc1608281820fe2b24f1e5233ade6af1dd5",
        parity={"verdict": "pass", "findings": [], "tolerance": 0.5, "numbers": {
            "prompts": 8, "other_tokens": 0, "base_trained": 0.21, "base_served": 0.02, "base_quantised": 0.2,
            "adapter": 0.03, "effect_trained": 1.4, "effect_served": 1.4}},
        created_at="2026-01-31T12:00:00Z", phase_at="2026-01-31T12:00:02Z", revision=7)
    tenant: str
    adapter: str
    number: int
    digest: str
    served_name: str
    phase: VersionPhase
    base_model: str
    rank: int
    alpha: float
    targets: list[str]
    size_bytes: int
    source: str
    warnings: list[str]
    ignored_files: list[str]
    effect: float | None
    noise: float | None
    chat_template_sha256: str | None
    parity: ParityOut | None
    created_at: datetime
    phase_at: datetime
    revision: int

    @classmethod
    def of(cls, version: Version) -> Self:
        fields = {**version.to_document(), "served_name": version.served_name, "revision": version.revision,
                  "created_at": at(version.created_at), "phase_at": at(version.phase_at)}
        return cls.model_validate(fields)


# --- audit and errors ---------------------------------------------------------------------------------------------


class ChangeOut(Out):
    """One audited write. `hash` is over all of it and `previous`, the hash of the one before; null when unchained."""

    model_config = example(
        revision=9, actor="operator", action="release.set", target="release/acme/support",
        at="2026-01-31T12:00:00Z", detail={"stable": 3, "before": 2}, writes_digest="0f" * 32, previous="1e" * 32,
        hash="2d" * 32)
    revision: int
    actor: str
    action: str
    target: str
    at: datetime
    detail: dict[str, Any]
    writes_digest: str = Field(description="SHA-256 of what was written, made from it just now.")
    previous: str | None
    hash: str | None

    @classmethod
    def of(cls, change: Change) -> Self:
        return cls(revision=change.revision, actor=change.actor, action=change.action, target=change.target,
                   at=at(change.at), detail=dict(change.detail), writes_digest=change.writes_digest,
                   previous=change.previous or None, hash=change.hash or None)


class ErrorDetail(BaseModel):
    """What went wrong; `code` is stable. An artifact's refusal also has `reasons`, a lost race `current_revision`, a
    role that does not reach `required_role`."""

    message: str
    type: str
    param: str | None
    code: str | None
    reasons: list[str] | None = None
    current_revision: int | None = None
    required_role: str | None = None


class ErrorBody(BaseModel):
    """Every error, through every door."""

    model_config = example(error={
        "message": "There is no tenant 'acme'. POST /admin/v1/tenants creates one.", "type": "invalid_request_error",
        "param": "tenant", "code": "not_found"})
    error: ErrorDetail


def page(items: Iterable[T], *, has_more: bool = False) -> dict[str, Any]:
    """A list as it is answered."""
    return {"data": list(items), "has_more": has_more}
