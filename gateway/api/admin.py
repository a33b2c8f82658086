"""The admin API, for operators: tenants, keys, adapters, versions, releases, replicas, the audit, how it all stands.

Every entity carries its `revision`, also as ETag; a write with `If-Match` happens only at that revision, and answers
the revision it was made at as `X-Switchyard-Revision`. Reads come from this gateway's snapshot; a write waits for it.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query
from fastapi.security import HTTPBearer

from gateway.api.admin_adapters import add_adapter_routes
from gateway.api.admin_evidence import add_alias_routes, add_evaluation_routes, add_freeze_routes
from gateway.api.admin_operators import add_operator_routes
from gateway.api.admin_quality import add_candidate_routes, add_opt_in_routes, add_quality_routes
from gateway.api.admin_releases import Analyses, add_explanation_route, add_release_routes
from gateway.api.admin_replicas import add_replica_routes
from gateway.api.admin_routes import MAX_JSON_BYTES, OperatorCheck, guarded_route, refusals
from gateway.api.admin_tenants import add_tenant_routes
from gateway.api.admin_webhooks import add_webhook_routes
from gateway.api.idempotency import Once
from gateway.api.schemas import ChangeOut, Page, page
from gateway.api.schemas_replicas import RegistryStatus, ReplicaStatus, StatusOut
from gateway.controlplane.aliases import Aliases
from gateway.controlplane.catalog import Catalog
from gateway.controlplane.changes import Changes
from gateway.controlplane.evaluations import Evaluations
from gateway.controlplane.fleet import Fleet, Replicas
from gateway.controlplane.freezes import Freezes
from gateway.controlplane.notify import Webhooks
from gateway.controlplane.operators import OperatorCatalog
from gateway.controlplane.quality import QualityControl
from gateway.controlplane.releases import Releases
from gateway.controlplane.rollouts import Rollouts
from gateway.controlplane.tenants import Tenants
from gateway.domain.model import VersionPhase
from gateway.domain.operators import Role

PREFIX = "/admin/v1"


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlPlane:
    """All that the admin API asks."""

    changes: Changes
    tenants: Tenants
    catalog: Catalog
    releases: Releases
    rollouts: Rollouts
    analyses: Analyses
    evaluations: Evaluations
    aliases: Aliases
    freezes: Freezes
    replicas: Replicas
    fleet: Fleet
    operators: OperatorCatalog
    webhooks: Webhooks
    quality: QualityControl


def admin_router(plane: ControlPlane, operator_check: OperatorCheck, once: Once) -> APIRouter:
    """Every route under `/admin/v1`; `operator_check` tells who asks, before anything of a body is read.

    What a route needs is decided by the router that it is on: `router` for the day's work, `admins` for what only an
    admin may change, `secluded` for what others may not even see, `readers` for questions that have a body, `reviewers`
    for what callers were answered, which a viewer may not read.
    """
    def make(max_bytes: int | None = MAX_JSON_BYTES, **needed: Role) -> APIRouter:
        route = guarded_route(operator_check, once, max_bytes, **needed)
        return APIRouter(prefix=PREFIX, dependencies=documented, route_class=route)

    documented = [Depends(HTTPBearer(auto_error=False, scheme_name="operator", description="An operator's key."))]
    router, uploads, readers = make(), make(None), make(writes=Role.VIEWER)
    admins, secluded = make(writes=Role.ADMIN), make(reads=Role.ADMIN, writes=Role.ADMIN)
    reviewers = make(reads=Role.OPERATOR)
    add_tenant_routes(router, plane.tenants)
    add_adapter_routes(router, uploads, plane.catalog, plane.releases)
    add_release_routes(router, plane.releases, plane.rollouts, plane.analyses)
    add_explanation_route(readers, plane.rollouts)
    add_evaluation_routes(router, plane.evaluations)
    add_alias_routes(router, plane.aliases)
    add_freeze_routes(admins, plane.freezes)
    add_opt_in_routes(admins, plane.quality)
    add_quality_routes(router, plane.quality)
    add_candidate_routes(reviewers, plane.quality)
    add_replica_routes(admins, plane.replicas, plane.fleet)
    add_operator_routes(secluded, plane.operators)
    add_webhook_routes(secluded, plane.webhooks)
    _add_audit_route(router, plane.changes)
    _add_status_route(router, plane.fleet, plane.changes)
    whole = APIRouter()
    for each in (router, uploads, readers, admins, secluded, reviewers):
        whole.include_router(each)
    return whole


def _add_audit_route(router: APIRouter, changes: Changes) -> None:
    @router.get("/changes", operation_id="list_changes", summary="Who changed what and when, newest first",
                responses=refusals(503), response_model=Page[ChangeOut], tags=["audit"])
    async def list_changes(
        before: Annotated[int | None, Query(ge=1, le=2**53, description="Only changes below this revision.")] = None,
        limit: Annotated[int, Query(ge=1, le=1000, description="How many at most.")] = 100,
        target: Annotated[str | None, Query(
            max_length=300, description="Only changes of this path or below it, such as `version/acme`.")] = None,
    ) -> Any:
        found = await changes.history(before=before, limit=limit + 1, target=target)
        return page((ChangeOut.of(change) for change in found[:limit]), has_more=len(found) > limit)


def _add_status_route(router: APIRouter, fleet: Fleet, changes: Changes) -> None:
    @router.get("/status", operation_id="get_status", summary="How this gateway stands", responses=refusals(),
                tags=["status"])
    async def get_status() -> StatusOut:
        snapshot = changes.current
        phases = Counter(version.phase for version in snapshot.versions.values())
        return StatusOut(
            registry=RegistryStatus(
                connected=changes.connected, revision=snapshot.revision, lag_seconds=changes.lag_seconds),
            replicas=[
                ReplicaStatus(name=view.name, healthy=view.healthy, base_model=view.base_model, loaded=len(view.loaded))
                for view in fleet.replicas()],
            versions={phase: phases[phase] for phase in VersionPhase},
            tenants=len(snapshot.tenants), adapters=len(snapshot.adapters))
