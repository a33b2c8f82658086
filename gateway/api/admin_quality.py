"""Admin routes of the quality of production answers: who is sampled, what answers must be, what failed."""

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Response

from gateway.api.admin_adapters import ADAPTER
from gateway.api.admin_routes import Actor, DryRun, IfMatch, refusals, tag, tagged
from gateway.api.schemas import AdapterName, Page, TenantName, page
from gateway.api.schemas_quality import (
    ApprovalIn,
    CandidateOut,
    OptInIn,
    OptInOut,
    PolicyIn,
    QualityOut,
    RejectionIn,
)
from gateway.controlplane.quality import QualityControl, rules_of
from gateway.domain.candidate import ID, Approval
from gateway.domain.quality import QualityPolicy

OPT_IN = "/tenants/{tenant}/quality"
QUALITY = ADAPTER + "/quality"
CANDIDATE = QUALITY + "/candidates/{candidate}"
CandidateId = Annotated[str, Path(pattern=f"^{ID.pattern}$", description="The candidate's id.")]
Offset = Annotated[int, Query(ge=0, le=100_000, description="How many to pass over.")]
Limit = Annotated[int, Query(ge=1, le=100, description="How many at most.")]
_WRITTEN = tagged("As asked.", written=True)


def add_opt_in_routes(router: APIRouter, quality: QualityControl) -> None:
    """Tenants' opt-ins, on `router`."""
    options: dict[str, Any] = {"tags": ["quality"]}

    @router.get(OPT_IN, operation_id="get_quality_opt_in", summary="Is a share of a tenant's answers sampled?",
                responses={200: tagged("The opt-in."), **refusals(404)}, **options)
    async def get_opt_in(tenant: TenantName, response: Response) -> OptInOut:
        found = quality.opt_in_of(tenant)
        tag(response, found.revision if found else 0)
        return OptInOut.of(tenant, found)

    @router.put(OPT_IN, operation_id="put_quality_opt_in",
                summary="Sample a share of a tenant's answers, redacted, and score them in the background",
                responses={200: _WRITTEN, **refusals(404, 409, 412, 413, 503)}, **options)
    async def put_opt_in(
        tenant: TenantName, body: OptInIn, actor: Actor, if_match: IfMatch, response: Response, dry_run: DryRun = False,
    ) -> OptInOut:
        made = await quality.opt_in(actor, tenant, share=body.share, if_match=if_match, dry_run=dry_run)
        tag(response, made.revision, written=not dry_run)
        return OptInOut.of(tenant, made)

    @router.delete(OPT_IN, operation_id="delete_quality_opt_in", status_code=204,
                   summary="Sample a tenant no more, and delete what was kept of its answers",
                   responses={204: tagged("Deleted.", written=True), **refusals(404, 409, 412, 503)}, **options)
    async def delete_opt_in(
        tenant: TenantName, actor: Actor, if_match: IfMatch, response: Response, dry_run: DryRun = False,
    ) -> None:
        gone = await quality.opt_out(actor, tenant, if_match=if_match, dry_run=dry_run)
        tag(response, gone.revision, written=not dry_run)


def add_quality_routes(router: APIRouter, quality: QualityControl) -> None:
    """Adapters' policies and standing, on `router`."""
    options: dict[str, Any] = {"tags": ["quality"]}

    async def shown(tenant: str, adapter: str, policy: QualityPolicy) -> QualityOut:
        standings = await quality.standings(tenant, adapter)
        return QualityOut.of(policy, quality.opt_in_of(tenant), quality.review(tenant, adapter), standings)

    @router.get(QUALITY, operation_id="get_quality", responses={200: tagged("The quality."), **refusals(404, 503)},
                summary="What an adapter's answers must be, and how its versions stand", **options)
    async def get_quality(tenant: TenantName, adapter: AdapterName, response: Response) -> QualityOut:
        policy = quality.policy(tenant, adapter)
        tag(response, policy.revision)
        return await shown(tenant, adapter, policy)

    @router.put(QUALITY, operation_id="put_quality", responses={200: _WRITTEN, **refusals(404, 409, 412, 413, 503)},
                summary="Set what an adapter's answers must be, and the floor of their mean score", **options)
    async def put_quality(
        tenant: TenantName, adapter: AdapterName, body: PolicyIn, actor: Actor, if_match: IfMatch, response: Response,
        dry_run: DryRun = False,
    ) -> QualityOut:
        policy = QualityPolicy(
            tenant=tenant, adapter=adapter, rules=rules_of((rule.kind, rule.value) for rule in body.rules),
            judge=body.judge, pass_at=body.pass_at, floor=body.floor, min_samples=body.min_samples)
        made = await quality.put_policy(actor, policy, if_match=if_match, dry_run=dry_run)
        tag(response, made.revision, written=not dry_run)
        return await shown(tenant, adapter, made)


def add_candidate_routes(router: APIRouter, quality: QualityControl) -> None:
    """Failures and what people made of them, on `router`, which not everybody may read."""
    options: dict[str, Any] = {"tags": ["quality"]}

    @router.get(QUALITY + "/candidates", operation_id="list_candidates", responses=refusals(404, 503),
                summary="Answers that failed, redacted, newest first", response_model=Page[CandidateOut], **options)
    async def list_candidates(
        tenant: TenantName, adapter: AdapterName, offset: Offset = 0, limit: Limit = 100,
        approved: Annotated[bool, Query(description="Those that were approved, not those that wait.")] = False,
    ) -> Any:
        found, count = await quality.page(tenant, adapter, approved=approved, offset=offset, limit=limit)
        return page((CandidateOut.of(each) for each in found), has_more=offset + limit < count)

    @router.get(QUALITY + "/golden", operation_id="list_golden_items", responses=refusals(404, 503),
                summary="The golden items that were made of candidates, newest first",
                response_model=Page[dict[str, Any]], **options)
    async def list_golden_items(
        tenant: TenantName, adapter: AdapterName, offset: Offset = 0, limit: Limit = 100,
    ) -> Any:
        found, count = await quality.page(tenant, adapter, approved=True, offset=offset, limit=limit)
        return page((dict(each.item or {}) for each in found), has_more=offset + limit < count)

    @router.post(CANDIDATE + "/approve", operation_id="approve_candidate", summary="Make a golden item of a candidate",
                 responses=refusals(404, 409, 413, 503), **options)
    async def approve_candidate(
        tenant: TenantName, adapter: AdapterName, candidate: CandidateId, body: ApprovalIn, actor: Actor,
        dry_run: DryRun = False,
    ) -> CandidateOut:
        approval = Approval(expected=body.expected, scorer=body.scorer, options=body.options, slice=body.slice,
                            weight=body.weight)
        return CandidateOut.of(await quality.approve(
            actor, tenant, adapter, candidate, approval, reason=body.reason, dry_run=dry_run))

    @router.post(CANDIDATE + "/reject", operation_id="reject_candidate",
                 summary="Forget a candidate, approved or not; its question does not come back",
                 responses=refusals(404, 409, 413, 503), **options)
    async def reject_candidate(
        tenant: TenantName, adapter: AdapterName, candidate: CandidateId, body: RejectionIn, actor: Actor,
        dry_run: DryRun = False,
    ) -> CandidateOut:
        return CandidateOut.of(await quality.reject(
            actor, tenant, adapter, candidate, reason=body.reason, dry_run=dry_run))
