"""The admin API, for operators: tenants, keys, adapters, versions, releases, replicas, the audit, how it all stands.

Every entity carries its `revision`, also as ETag; a write with `If-Match` happens only at that revision, and answers
the revision it was made at as `X-Switchyard-Revision`. Reads come from this gateway's snapshot; a write waits for it.
"""

from collections import Counter
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query
from fastapi.security import HTTPBearer

from gateway.api.admin_adapters import add_adapter_routes
from gateway.api.admin_replicas import add_replica_routes
from gateway.api.admin_routes import MAX_JSON_BYTES, OperatorCheck, guarded_route, refusals
from gateway.api.admin_tenants import add_tenant_routes
from gateway.api.schemas import ChangeOut, Page, page
from gateway.api.schemas_replicas import RegistryStatus, ReplicaStatus, StatusOut
from gateway.controlplane.catalog import Catalog
from gateway.controlplane.changes import Changes
from gateway.controlplane.fleet import Fleet, Replicas
from gateway.controlplane.releases import Releases
from gateway.controlplane.tenants import Tenants
from gateway.domain.model import VersionPhase

PREFIX = "/admin/v1"


def admin_router(
    tenants: Tenants, catalog: Catalog, releases: Releases, replicas: Replicas, fleet: Fleet, changes: Changes,
    operator_check: OperatorCheck,
) -> APIRouter:
    """Every route under `/admin/v1`; `operator_check` tells who asks, before anything of a body is read."""
    documented = [Depends(HTTPBearer(auto_error=False, scheme_name="operator", description="The operator's key."))]
    plain, unread = guarded_route(operator_check, MAX_JSON_BYTES), guarded_route(operator_check, None)
    router = APIRouter(prefix=PREFIX, dependencies=documented, route_class=plain)
    uploads = APIRouter(prefix=PREFIX, dependencies=documented, route_class=unread)
    add_tenant_routes(router, tenants)
    add_adapter_routes(router, uploads, catalog, releases)
    add_replica_routes(router, replicas, fleet)
    _add_audit_route(router, changes)
    _add_status_route(router, fleet, changes)
    both = APIRouter()
    both.include_router(router)
    both.include_router(uploads)
    return both


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
