"""Bodies of the admin API about the quality of production answers: opt-ins, policies, candidates, golden items."""

import math
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import AfterValidator, Field, Strict

from gateway.api.schemas import In, Label, Out, at, example
from gateway.domain.candidate import SLICE, Candidate
from gateway.domain.quality import MAX_NAMES, MAX_RULES, MAX_VALUE_CHARS, OptIn, QualityPolicy, Review, Rule, RuleKind
from gateway.domain.quality import Standing as DomainStanding

MAX_DEPTH = 12


def _plain(value: Any) -> Any:
    """The value, unless it is nested so deep, or holds what JSON cannot say, that it could not be written again."""
    pending: list[tuple[Any, int]] = [(value, 1)]
    while pending:
        each, depth = pending.pop()
        if depth > MAX_DEPTH:
            raise ValueError(f"is nested more than {MAX_DEPTH} levels deep")
        if isinstance(each, dict):
            pending += [(inner, depth + 1) for pair in each.items() for inner in pair]
        elif isinstance(each, list):
            pending += [(inner, depth + 1) for inner in each]
        elif isinstance(each, str):
            each.encode()
        elif isinstance(each, float) and not math.isfinite(each):
            raise ValueError("holds a number that JSON does not know")
    return value


Plain: TypeAlias = Annotated[Any, AfterValidator(_plain)]
PlainTable: TypeAlias = Annotated[dict[str, Any], AfterValidator(_plain)]
Reason: TypeAlias = Annotated[str, Field(max_length=1000, pattern=r"^[^\x00-\x08\x0b-\x1f\x7f]*$")]
Share: TypeAlias = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
Part: TypeAlias = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Value: TypeAlias = Annotated[str, Field(min_length=1, max_length=MAX_VALUE_CHARS)]
WHY = "Kept in the audit; name no person."


class OptInIn(In):
    """How much of a tenant's answers is sampled."""

    model_config = example(share=1.0)
    share: Share | None = Field(None, description="Percent; null: as the gateway's settings say.")


class OptInOut(Out):
    """Whether a tenant's answers are sampled. Revision 0: it has not opted in, and nothing of it is copied."""

    model_config = example(tenant="acme", opted_in=True, share=1.0, by="operator", at="2026-01-31T12:00:00Z",
                           revision=14)
    tenant: str
    opted_in: bool
    share: float | None
    by: str | None
    at: datetime | None
    revision: int

    @classmethod
    def of(cls, tenant: str, opt_in: OptIn | None) -> Self:
        if opt_in is None:
            return cls(tenant=tenant, opted_in=False, share=None, by=None, at=None, revision=0)
        return cls(tenant=tenant, opted_in=True, share=opt_in.share, by=opt_in.by, at=at(opt_in.at),
                   revision=opt_in.revision)


class RuleBody(In):
    """One thing that every answer must be. `value`: a number for max_chars; text for contains; an expression of Rust's
    `regex` for regex and forbidden; names for json (fields that must be there) and finish_reason; none for not_empty.
    """

    model_config = example(kind="max_chars", value=2000)
    kind: Annotated[RuleKind, Strict(False)]
    value: Annotated[int, Field(ge=1, le=10**9)] | Value | Annotated[list[Value], Field(max_length=MAX_NAMES)] | None \
        = None

    @classmethod
    def of(cls, rule: Rule) -> Self:
        return cls(kind=rule.kind, value=list(rule.value) if isinstance(rule.value, tuple) else rule.value)


class PolicyIn(In):
    """What an adapter's answers must be, in place of what they had to be before."""

    model_config = example(
        rules=[{"kind": "not_empty"}, {"kind": "max_chars", "value": 2000}], judge="", pass_at=0.5, floor=0.9,
        min_samples=20)
    rules: list[RuleBody] = Field(
        default_factory=lambda: [RuleBody(kind=RuleKind.NOT_EMPTY)], max_length=MAX_RULES,
        description="An answer that breaks one scores 0.")
    judge: Annotated[str, Field(max_length=4000, pattern=r"^[^\x00-\x08\x0b-\x1f\x7f]*$")] = Field(
        "", description="What a good answer is, for the judge, who scores what breaks no rule; empty: it scores 1.")
    pass_at: Part = Field(0.5, description="An answer that scores less has failed, and becomes a candidate.")
    floor: Part | None = Field(None, description="The mean score below which it is told; null: never.")
    min_samples: int = Field(20, ge=1, le=1_000_000, description="Fewer samples say nothing.")


class StandingOut(Out):
    """How one version stands. `quality`: the mean score in the window; `below`: it was told to be below its floor."""

    version: int
    quality: float | None
    samples: int
    failures: int
    below: bool


class QualityOut(Out):
    """What an adapter's answers must be, and how its versions stand. Revision 0: no policy was ever set."""

    model_config = example(
        tenant="acme", adapter="support", opted_in=True, rules=[{"kind": "not_empty", "value": None}], judge="",
        pass_at=0.5, floor=0.9, min_samples=20, approved=3, rejected=1,
        versions=[{"version": 3, "quality": 0.94, "samples": 212, "failures": 12, "below": False}], revision=15)
    tenant: str
    adapter: str
    opted_in: bool
    rules: list[RuleBody]
    judge: str
    pass_at: float
    floor: float | None
    min_samples: int
    approved: int
    rejected: int
    versions: list[StandingOut]
    revision: int

    @classmethod
    def of(
        cls, policy: QualityPolicy, opt_in: OptIn | None, review: Review, standings: Mapping[int, DomainStanding],
    ) -> Self:
        versions = [
            StandingOut(version=number, quality=standing.rolling.mean, samples=standing.rolling.samples,
                        failures=standing.rolling.failures, below=standing.is_below)
            for number, standing in sorted(standings.items())]
        return cls(
            tenant=policy.tenant, adapter=policy.adapter, opted_in=opt_in is not None,
            rules=[RuleBody.of(rule) for rule in policy.rules], judge=policy.judge, pass_at=policy.pass_at,
            floor=policy.floor, min_samples=policy.min_samples, approved=review.approved, rejected=review.rejected,
            versions=versions, revision=policy.revision)


class CandidateOut(Out):
    """An answer that failed, redacted: what was asked, what was answered, which rule (or `judge`) it failed.

    `proposal`: what approving it makes of it where nothing else is said; `item`: the golden item made of it.
    """

    model_config = example(
        id="1f2e3d4c5b6a7988", tenant="acme", adapter="support", version=3, at="2026-01-31T12:00:00Z", state="pending",
        messages=[{"role": "user", "content": "Where is my order [NUMBER]?"}], tools=[], answer="", score=0.0,
        finish_reason="stop", rule="not_empty", reason="It breaks the rule not_empty.",
        proposal={"scorer": "regex", "expected": "\\S"}, item=None)
    id: str
    tenant: str
    adapter: str
    version: int
    at: datetime
    state: Literal["pending", "approved"]
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]]
    answer: str
    finish_reason: str
    score: float
    rule: str
    reason: str
    proposal: dict[str, Any] | None
    item: dict[str, Any] | None

    @classmethod
    def of(cls, candidate: Candidate) -> Self:
        return cls(
            id=candidate.id, tenant=candidate.tenant, adapter=candidate.adapter, version=candidate.version,
            at=at(candidate.at), state="pending" if candidate.item is None else "approved",
            messages=[dict(message) for message in candidate.messages], tools=[dict(tool) for tool in candidate.tools],
            answer=candidate.answer, finish_reason=candidate.finish_reason, score=candidate.score, rule=candidate.rule,
            reason=candidate.reason, proposal=dict(candidate.proposal) if candidate.proposal else None,
            item=dict(candidate.item) if candidate.item else None)


class ApprovalIn(In):
    """What the answer should have been, and how it is compared; null: as the rule that was broken says."""

    model_config = example(expected="Your order is on its way.", scorer="normalised", options=None, slice="drift",
                           weight=1.0, reason="the customer asked twice")
    expected: Plain = Field(None, description="Any JSON that the scorer compares with.")
    scorer: Annotated[str, Field(max_length=40)] | None = Field(
        None, description="A scorer of golden sets; null: normalised where `expected` is given.")
    options: PlainTable | None = Field(None, description="The scorer's options.")
    slice: Label = Field(SLICE, description="The part of the golden set that it belongs to.")
    weight: Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)] = 1.0
    reason: Reason = Field("", description=WHY)


class RejectionIn(In):
    """Why it is no golden item."""

    model_config = example(reason="the question makes no sense")
    reason: Reason = Field("", description=WHY)
