"""Admin routes of tenants and their API keys."""

from typing import Annotated, Any

from fastapi import APIRouter, Path, Response

from gateway.api.admin_routes import Actor, DryRun, IfMatch, refusals, tag, tagged
from gateway.api.schemas import KeyIn, KeyOut, NewKeyOut, Page, TenantIn, TenantName, TenantOut, TenantPatch, page
from gateway.controlplane.tenants import Tenants

KeyId = Annotated[str, Path(pattern="^[0-9a-f]{8}$", description="The id in the key's prefix, `sy-<id>`.")]


DRY_RUN_KEY = "sy-dry-run"


def add_tenant_routes(router: APIRouter, tenants: Tenants) -> None:
    """Tenants and keys, on `router`."""
    options: dict[str, Any] = {"tags": ["tenants"]}

    @router.get("/tenants", operation_id="list_tenants", summary="All tenants", responses=refusals(),
                response_model=Page[TenantOut], **options)
    async def list_tenants() -> Any:
        return page(TenantOut.of(tenant) for tenant in tenants.all())

    @router.post("/tenants", operation_id="create_tenant", summary="Create a tenant", status_code=201,
                 responses={201: tagged("Created.", written=True), **refusals(409, 413, 503)}, **options)
    async def create_tenant(
        body: TenantIn, actor: Actor, response: Response, dry_run: DryRun = False,
    ) -> TenantOut:
        tenant = await tenants.create(actor, body.name, base_access=body.base_access, dry_run=dry_run)
        tag(response, tenant.revision, written=not dry_run)
        return TenantOut.of(tenant)

    @router.get("/tenants/{tenant}", operation_id="get_tenant", summary="One tenant",
                responses={200: tagged("The tenant."), **refusals(404)}, **options)
    async def get_tenant(tenant: TenantName, response: Response) -> TenantOut:
        found = tenants.get(tenant)
        tag(response, found.revision)
        return TenantOut.of(found)

    @router.patch("/tenants/{tenant}", operation_id="patch_tenant", summary="Change a tenant",
                  responses={200: tagged("Changed.", written=True), **refusals(404, 409, 412, 413, 503)}, **options)
    async def patch_tenant(
        tenant: TenantName, body: TenantPatch, actor: Actor, if_match: IfMatch, response: Response,
        dry_run: DryRun = False,
    ) -> TenantOut:
        changed = await tenants.patch(
            actor, tenant, base_access=body.base_access, if_match=if_match, dry_run=dry_run)
        tag(response, changed.revision, written=not dry_run)
        return TenantOut.of(changed)

    _add_key_routes(router, tenants, options)


def _add_key_routes(router: APIRouter, tenants: Tenants, options: dict[str, Any]) -> None:
    @router.get("/tenants/{tenant}/keys", operation_id="list_keys", summary="A tenant's API keys, revoked ones too",
                responses=refusals(404), response_model=Page[KeyOut], **options)
    async def list_keys(tenant: TenantName) -> Any:
        return page(KeyOut.of(key) for key in tenants.keys(tenant))

    @router.post("/tenants/{tenant}/keys", operation_id="create_key", status_code=201,
                 summary="Create an API key; its text is answered once and kept nowhere",
                 responses={201: tagged("Created.", written=True), **refusals(404, 409, 413, 503)}, **options)
    async def create_key(
        tenant: TenantName, body: KeyIn, actor: Actor, response: Response, dry_run: DryRun = False,
    ) -> NewKeyOut:
        key, text = await tenants.create_key(
            actor, tenant, body.name, adapters=None if body.adapters is None else tuple(body.adapters),
            expires_at=body.expires_at.timestamp() if body.expires_at else None, may_pin=body.may_pin, dry_run=dry_run)
        tag(response, key.revision, written=not dry_run)
        response.headers["Location"] = f"/admin/v1/tenants/{tenant}/keys/{key.id}"
        response.headers["Cache-Control"] = "no-store"
        return NewKeyOut(key=DRY_RUN_KEY if dry_run else text, **KeyOut.fields_of(key))

    @router.delete("/tenants/{tenant}/keys/{key}", operation_id="revoke_key", summary="Revoke an API key, for good",
                   responses={200: tagged("Revoked.", written=True), **refusals(404, 409, 412, 503)}, **options)
    async def revoke_key(
        tenant: TenantName, key: KeyId, actor: Actor, if_match: IfMatch, response: Response, dry_run: DryRun = False,
    ) -> KeyOut:
        revoked = await tenants.revoke_key(actor, tenant, key, if_match=if_match, dry_run=dry_run)
        tag(response, revoked.revision, written=not dry_run)
        return KeyOut.of(revoked)
