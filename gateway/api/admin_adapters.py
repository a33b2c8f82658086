"""Admin routes of adapters and their versions."""

from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import ValidationError

from gateway.api.admin_routes import MAX_JSON_BYTES, Actor, DryRun, IfMatch, read_limited, refusals, tag, tagged
from gateway.api.errors import refusal_of
from gateway.api.schemas import (
    AdapterIn,
    AdapterName,
    AdapterOut,
    Label,
    Page,
    TenantName,
    VersionIn,
    VersionOut,
    page,
)
from gateway.controlplane.catalog import Catalog
from gateway.controlplane.releases import Releases
from gateway.domain.model import VersionPhase

ADAPTERS = "/tenants/{tenant}/adapters"
ADAPTER = ADAPTERS + "/{adapter}"
Number = Annotated[int, Path(ge=1, le=999_999_999, description="The version's number.")]
ARCHIVES = ("application/x-tar", "application/gzip", "application/zip", "application/octet-stream")


def add_adapter_routes(router: APIRouter, uploads: APIRouter, catalog: Catalog, releases: Releases) -> None:
    """Adapters and versions on `router`; on `uploads`, which leaves bodies unread, the registration."""
    options: dict[str, Any] = {"tags": ["adapters"]}

    @router.get(ADAPTERS, operation_id="list_adapters", summary="A tenant's adapters", responses=refusals(404),
                response_model=Page[AdapterOut], **options)
    async def list_adapters(tenant: TenantName) -> Any:
        return page(AdapterOut.of(adapter) for adapter in catalog.adapters(tenant))

    @router.get(ADAPTER, operation_id="get_adapter", summary="One adapter",
                responses={200: tagged("The adapter."), **refusals(404)}, **options)
    async def get_adapter(tenant: TenantName, adapter: AdapterName, response: Response) -> AdapterOut:
        found = catalog.adapter(tenant, adapter)
        tag(response, found.revision)
        return AdapterOut.of(found)

    @router.put(ADAPTER, operation_id="put_adapter", summary="Create an adapter, or change what it asks for",
                responses={200: tagged("As asked.", written=True), **refusals(404, 409, 412, 413, 503)}, **options)
    async def put_adapter(
        tenant: TenantName, adapter: AdapterName, body: AdapterIn, actor: Actor, if_match: IfMatch, response: Response,
        dry_run: DryRun = False,
    ) -> AdapterOut:
        written = await catalog.put_adapter(
            actor, tenant, adapter, replicas=body.replicas, evaluation=body.evaluation, if_match=if_match,
            dry_run=dry_run)
        tag(response, written.entity.revision, written=not dry_run)
        return AdapterOut.of(written.entity)

    _add_version_routes(router, catalog, releases)
    _add_registration(uploads, catalog)


def _add_version_routes(router: APIRouter, catalog: Catalog, releases: Releases) -> None:
    options: dict[str, Any] = {"tags": ["versions"]}

    @router.get(ADAPTER + "/versions", operation_id="list_versions", summary="An adapter's versions, oldest first",
                responses=refusals(404), response_model=Page[VersionOut], **options)
    async def list_versions(tenant: TenantName, adapter: AdapterName) -> Any:
        return page(VersionOut.of(version) for version in catalog.versions(tenant, adapter))

    @router.get(ADAPTER + "/versions/{number}", operation_id="get_version", summary="One version",
                responses={200: tagged("The version."), **refusals(404)}, **options)
    async def get_version(
        tenant: TenantName, adapter: AdapterName, number: Number, response: Response,
    ) -> VersionOut:
        found = catalog.version(tenant, adapter, number)
        tag(response, found.revision)
        return VersionOut.of(found)

    @router.delete(ADAPTER + "/versions/{number}", operation_id="retire_version", status_code=202,
                   summary="Retire a version: it is unloaded and its files are deleted once nothing needs them",
                   responses={202: tagged("Retiring, or retired already.", written=True),
                              **refusals(404, 409, 412, 503)}, **options)
    async def retire_version(
        tenant: TenantName, adapter: AdapterName, number: Number, actor: Actor, if_match: IfMatch, response: Response,
        dry_run: DryRun = False,
    ) -> VersionOut:
        leaving = await releases.retire(actor, tenant, adapter, number, if_match=if_match, dry_run=dry_run)
        tag(response, leaving.revision, written=not dry_run)
        return VersionOut.of(leaving)


def _add_registration(uploads: APIRouter, catalog: Catalog) -> None:
    answers: dict[int | str, Any] = {
        status: tagged(description, written=True, model=VersionOut) for status, description in (
            (200, "These bytes are registered already, as this version; or what a dry run would register."),
            (201, "Registered, proven and ready."),
            (202, "Registered; still being prepared."))
    }

    @uploads.post(
        ADAPTER + "/versions", operation_id="register_version", status_code=201, response_model=VersionOut,
        summary="Register an artifact, by its address or as an archive (tar, tar.gz, zip), and prove it",
        responses={**answers, **refusals(404, 409, 413, 422, 502, 503)}, tags=["versions"],
        openapi_extra={"requestBody": {"required": True, "content": {
            "application/json": {"schema": VersionIn.model_json_schema()},
            **{kind: {"schema": {"type": "string", "format": "binary"}} for kind in ARCHIVES}}}})
    async def register_version(
        tenant: TenantName, adapter: AdapterName, request: Request, response: Response, actor: Actor,
        base_model: Annotated[Label | None, Query(description="As in the JSON body, for archives.")] = None,
        wait: Annotated[bool, Query(description="Answer only when the version is ready or refused?")] = True,
        dry_run: Annotated[bool, Query(description="Fetch and check the files, but keep nothing.")] = False,
    ) -> VersionOut:
        upload, base_model = await _upload(request, base_model)
        done = await catalog.register(
            actor, tenant, adapter, upload, base_model=base_model, wait=wait, dry_run=dry_run)
        version = done.version
        if dry_run:
            tag(response, version.revision, status=200)
            return VersionOut.of(version)
        status = 202 if version.phase is VersionPhase.PREPARING else 201 if done.created else 200
        tag(response, version.revision, written=True, status=status)
        response.headers["Location"] = f"{request.url.path}/{version.number}"
        return VersionOut.of(version)


async def _upload(request: Request, base_model: str | None) -> tuple[str | AsyncIterator[bytes], str | None]:
    """The artifact's address with its base model, from a JSON body, or the archive's chunks; never reads an archive."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        return request.stream(), base_model
    body = await read_limited(request, MAX_JSON_BYTES)
    try:
        asked = VersionIn.model_validate_json(body)
    except ValidationError as error:
        raise refusal_of([{**problem, "loc": ("body", *problem["loc"])} for problem in error.errors()]) from error
    return asked.source, asked.base_model or base_model
