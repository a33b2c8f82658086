"""Bodies of the admin API about releases: rollouts, shadows, evaluations, aliases and freeze windows."""

from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any, Self, TypeAlias

from pydantic import AfterValidator, Field

from gateway.api.schemas import AdapterName, In, Label, Out, Time, at, example
from gateway.controlplane.evaluations import Kept
from gateway.domain import names
from gateway.domain.conditions import Conditions
from gateway.domain.explanation import Explanation
from gateway.domain.freeze import Freeze
from gateway.domain.model import Alias, Release
from gateway.domain.plan import AtDeadline, Plan
from gateway.domain.rollout import Phase, Rollout, Shadow
from gateway.domain.routing import Track

MAX_DEPTH = 12
_DIGEST = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"


def _shallow(table: dict[str, Any]) -> dict[str, Any]:
    """The table, unless it is nested so deep that it could not be written again."""
    pending: list[tuple[Any, int]] = [(table, 1)]
    while pending:
        value, depth = pending.pop()
        if depth > MAX_DEPTH:
            raise ValueError(f"is nested more than {MAX_DEPTH} levels deep")
        inner: Sequence[Any] = list(value.values()) if isinstance(value, dict) else value
        pending += [(item, depth + 1) for item in inner if isinstance(item, dict | list)]
    return table


Table: TypeAlias = Annotated[dict[str, Any], AfterValidator(_shallow)]
Number: TypeAlias = Annotated[int, Field(ge=1, le=999_999_999)]
Percent: TypeAlias = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
Finite: TypeAlias = Annotated[float, Field(allow_inf_nan=False)]
Digest: TypeAlias = Annotated[str, Field(pattern=f"^{names.DIGEST.pattern}$")]
Reason: TypeAlias = Annotated[str, Field(max_length=1000, pattern=r"^[^\x00-\x08\x0b-\x1f\x7f]*$")]

WHY = "Kept in the audit."


# --- releases --------------------------------------------------------------------------------------------------------


class ReleaseIn(In):
    """Which version takes traffic."""

    model_config = example(stable=3)
    stable: Number | None = Field(description="A ready version's number; null: the adapter takes no traffic.")


class StartIn(In):
    """A canary, and the plan that it goes by."""

    model_config = example(canary=4, plan="5% for 10m min 200, 25% for 10m min 500, 100%", force=False, approvals=0,
                           reason="a better base of answers")
    canary: Number = Field(description="A ready version's number.")
    plan: Annotated[str, Field(min_length=1, max_length=10_000)] | Table = Field(
        "default", description="A plan's name, its text, or a table with `steps`.")
    force: bool = Field(False, description="Start even if a replica has too few slots; it is written to the audit.")
    approvals: int = Field(0, ge=0, le=10, description="How many other operators must approve before a promote.")
    reason: Reason = Field("", description=WHY)


class ShiftIn(In):
    """How many callers are to get the canary."""

    model_config = example(weight=25, reason="all is well")
    weight: Percent | None = Field(None, description="Percent, above what it is now; null: the plan's next weight.")
    reason: Reason = Field("", description=WHY)


class MoveIn(In):
    """Why the move is made."""

    model_config = example(reason="answers are too short")
    reason: Reason = Field("", description=WHY)


class ShadowIn(In):
    """A version that gets copies of requests."""

    model_config = example(version=5, share=10, force=False)
    version: Number = Field(description="A ready version's number.")
    share: Percent = Field(100.0, description="Percent of the requests.")
    force: bool = Field(False, description="Even if a replica has too few slots; it is written to the audit.")


class StepOut(Out):
    """One step of a plan; times in seconds."""

    weight: float
    min_time: float
    min_requests: int
    gate: bool
    deadline: float | None


class PlanOut(Out):
    """A plan, as text and in parts; times in seconds."""

    text: str
    steps: list[StepOut]
    deadline: float
    at_deadline: AtDeadline

    @classmethod
    def of(cls, plan: Plan) -> Self:
        return cls(text=str(plan), steps=[StepOut(**asdict(step)) for step in plan.steps], deadline=plan.deadline,
                   at_deadline=plan.at_deadline)


class RolloutOut(Out):
    """A canary's course. `step`: the plan's step in force, from 0; `reason`: why the last move was made."""

    canary: int
    baseline: int
    phase: Phase
    weight: float
    step: int
    plan: PlanOut
    started_by: str
    forced: bool
    approvals_needed: int
    approvals_missing: int
    approved_by: list[str]
    started_at: datetime
    step_since: datetime
    moved_at: datetime
    reason: str

    @classmethod
    def of(cls, rollout: Rollout) -> Self:
        return cls(
            canary=rollout.canary, baseline=rollout.baseline, phase=rollout.phase, weight=rollout.weight,
            step=rollout.step, plan=PlanOut.of(rollout.plan), started_by=rollout.started_by, forced=rollout.forced,
            approvals_needed=rollout.approvals_needed, approvals_missing=rollout.approvals_missing,
            approved_by=list(rollout.approved_by), started_at=at(rollout.started_at), step_since=at(rollout.step_since),
            moved_at=at(rollout.moved_at), reason=rollout.reason)


class ShadowOut(Out):
    """The version that gets copies of `share` percent of the requests."""

    version: int
    share: float

    @classmethod
    def of(cls, shadow: Shadow) -> Self:
        return cls(version=shadow.number, share=shadow.share)


class ReleaseOut(Out):
    """An adapter's release. Revision 0: none was ever set.

    `rollout`: the canary's course, also after its end; `analysis`: the numbers of the verdict noted last; `warnings`:
    what the adapter's evaluation policy misses in what takes traffic.
    """

    model_config = example(tenant="acme", adapter="support", stable=3, rollout=None, shadow={"version": 5, "share": 10},
                           analysis=None, warnings=[], revision=9)
    tenant: str
    adapter: str
    stable: int | None
    rollout: RolloutOut | None
    shadow: ShadowOut | None
    analysis: dict[str, Any] | None
    warnings: list[str]
    revision: int

    @classmethod
    def of(cls, release: Release, warnings: Sequence[str]) -> Self:
        return cls(
            tenant=release.tenant, adapter=release.adapter, stable=release.stable,
            rollout=RolloutOut.of(release.rollout) if release.rollout else None,
            shadow=ShadowOut.of(release.shadow) if release.shadow else None,
            analysis=dict(release.analysis) if release.analysis is not None else None, warnings=list(warnings),
            revision=release.revision)


class AnalysisOut(Out):
    """The latest analysis of the adapter's rollout: verdict, findings, thresholds, both tracks; null: none yet."""

    model_config = example(tenant="acme", adapter="support", analysis={"verdict": "pass", "reason": "It holds."})
    tenant: str
    adapter: str
    analysis: dict[str, Any] | None


class ExplainIn(In):
    """Whose call it is: the session, the OpenAI `user`, or the key's id."""

    model_config = example(subject="customer-17")
    subject: Annotated[str, Field(min_length=1, max_length=1000)]


class ExplanationOut(Out):
    """What becomes of a subject's next call. `replicas`: in the order in which they would be tried now."""

    model_config = example(
        version=4, served_name="acme/support@4-9f86d081884c", track="canary", replicas=["gpu-0", "gpu-1"], bucket=417,
        weight=5.0, why="The subject's bucket is 417 of 10000, and at 5% version 4, the canary, has the buckets below "
                        "500: the subject gets it.")
    version: int
    served_name: str
    track: Track
    replicas: list[str]
    bucket: int | None
    weight: float
    why: str

    @classmethod
    def of(cls, explanation: Explanation) -> Self:
        return cls(**{**asdict(explanation), "replicas": list(explanation.replicas)})


# --- evaluations -----------------------------------------------------------------------------------------------------


class EvaluationIn(In):
    """What a golden set made of a version."""

    model_config = example(
        version=4, golden_set=_DIGEST, metric="exact_match", value=0.91, floor=0.85, passed=None, report={"rows": 200},
        base_model="llama-3.1-8b", engine_version="0.32.0", sampling={"temperature": 0, "n": 1}, latency_ms_p99=840.0)
    version: Number | None = Field(None, description="The version's number; or say `digest`.")
    digest: Digest | None = Field(None, description="The SHA-256 of the version's artifact.")
    golden_set: Digest = Field(description="The golden set's SHA-256.")
    metric: Label
    value: Finite = Field(description="What was measured; higher is better.")
    floor: Finite = Field(description="The least value that passes.")
    passed: bool | None = Field(None, description="The evaluator's own word; null: whether value reaches floor.")
    report: Table = Field(default_factory=dict, description="The evaluator's details, at most 16 KiB of JSON.")
    base_model: Label | None = Field(None, description="What it was evaluated on; null: what the version is of.")
    engine_version: Label | None = Field(None, description="vLLM's; null: what the replicas run, if it is but one.")
    chat_template_sha256: Digest | None = Field(None, description="null: what the version's manifest says.")
    sampling: Table | None = Field(None, description="What was asked with, such as temperature; 4 KiB of JSON.")
    latency_ms_p99: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = Field(
        None, description="Of the evaluation's requests, in milliseconds.")

    @property
    def conditions(self) -> Conditions:
        return Conditions(
            base_model=self.base_model, engine_version=self.engine_version, sampling=self.sampling,
            chat_template_sha256=self.chat_template_sha256, latency_ms_p99=self.latency_ms_p99)


class EvaluationOut(Out):
    """An evaluation record. `by`: who recorded it.

    `signature`: HMAC-SHA256 of all of it with the registry's secret; `verified`: it still is that. `ignored`: why it
    does not count for what the version serves now; null when it does.
    """

    model_config = example(
        id="1f2e3d4c5b6a7988", tenant="acme", adapter="support", digest=_DIGEST, golden_set=_DIGEST,
        metric="exact_match", value=0.91, floor=0.85, passed=True, by="operator", at="2026-01-31T12:00:00Z",
        report={"rows": 200}, base_model="llama-3.1-8b", engine_version="0.32.0", chat_template_sha256=_DIGEST,
        sampling={"temperature": 0, "n": 1}, latency_ms_p99=840.0, signature="2d" * 32, verified=True, ignored=None,
        revision=8)
    id: str
    tenant: str
    adapter: str
    digest: str
    golden_set: str
    metric: str
    value: float
    floor: float
    passed: bool
    by: str
    at: datetime
    report: dict[str, Any]
    base_model: str | None
    engine_version: str | None
    chat_template_sha256: str | None
    sampling: dict[str, Any] | None
    latency_ms_p99: float | None
    signature: str | None
    verified: bool
    ignored: str | None
    revision: int

    @classmethod
    def of(cls, kept: Kept) -> Self:
        record = kept.record
        return cls.model_validate({
            **record.to_document(), "at": at(record.at), "revision": record.revision, "verified": kept.verified,
            "ignored": kept.ignored or None})


# --- aliases and freezes ---------------------------------------------------------------------------------------------


class AliasIn(In):
    """What the alias stands for."""

    model_config = example(target="support@3")
    target: Annotated[str, Field(min_length=1, max_length=100)] = Field(
        description="An adapter `support`, its version `support@3`, or its newest ready one `support@latest`.")


class AliasOut(Out):
    """An alias of a tenant."""

    model_config = example(tenant="acme", name="champion", target="support@3", revision=11)
    tenant: str
    name: str
    target: str
    revision: int

    @classmethod
    def of(cls, alias: Alias) -> Self:
        return cls(tenant=alias.tenant, name=alias.name, target=alias.target, revision=alias.revision)


class FreezeIn(In):
    """A window in which no release of its scope moves, but to be aborted."""

    model_config = example(name="holidays", scope="acme", start="2030-12-20T00:00:00Z", end="2031-01-02T00:00:00Z",
                           reason="nobody is here")
    name: AdapterName
    scope: Annotated[str, Field(min_length=1, max_length=130)] = Field(
        description="A tenant, or one adapter of it: `acme` or `acme/support`.")
    start: Time | None = Field(None, description="null: now.")
    end: Time
    reason: Annotated[Reason, Field(min_length=1)]


class FreezeOut(Out):
    """A freeze window; `end` itself is no longer in it."""

    model_config = example(
        name="holidays", scope="acme", start="2030-12-20T00:00:00Z", end="2031-01-02T00:00:00Z",
        reason="nobody is here", created_by="operator", created_at="2030-12-01T12:00:00Z", revision=12)
    name: str
    scope: str
    start: datetime
    end: datetime
    reason: str
    created_by: str
    created_at: datetime
    revision: int

    @classmethod
    def of(cls, freeze: Freeze) -> Self:
        return cls(name=freeze.name, scope=freeze.scope, start=at(freeze.start), end=at(freeze.end),
                   reason=freeze.reason, created_by=freeze.created_by, created_at=at(freeze.created_at),
                   revision=freeze.revision)
