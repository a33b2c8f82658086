"""Admin routes of what releases rest on: evaluations, aliases and freeze windows."""

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Response

from gateway.api.admin_adapters import ADAPTER
from gateway.api.admin_routes import Actor, DryRun, IfMatch, refusals, tag, tagged
from gateway.api.schemas import AdapterName, Page, TenantName, page
from gateway.api.schemas_releases import AliasIn, AliasOut, EvaluationIn, EvaluationOut, FreezeIn, FreezeOut
from gateway.controlplane.aliases import Aliases
from gateway.controlplane.evaluations import Evaluations, Kept
from gateway.controlplane.freezes import Freezes

ALIASES = "/tenants/{tenant}/aliases"
ALIAS = ALIASES + "/{alias}"
_WRITTEN = tagged("As asked.", written=True)


def add_evaluation_routes(router: APIRouter, evaluations: Evaluations) -> None:
    """Evaluation records, on `router`."""
    options: dict[str, Any] = {"tags": ["evaluations"]}

    @router.get(ADAPTER + "/evaluations", operation_id="list_evaluations", responses=refusals(404),
                summary="What golden sets made of an adapter's versions, newest first",
                response_model=Page[EvaluationOut], **options)
    async def list_evaluations(
        tenant: TenantName, adapter: AdapterName,
        version: Annotated[int | None, Query(ge=1, le=999_999_999, description="Only of this version's bytes.")] = None,
        limit: Annotated[int, Query(ge=1, le=1000, description="How many at most.")] = 100,
    ) -> Any:
        found = evaluations.all(tenant, adapter, number=version)
        return page((EvaluationOut.of(kept) for kept in found[:limit]), has_more=len(found) > limit)

    @router.post(ADAPTER + "/evaluations", operation_id="record_evaluation", status_code=201,
                 summary="Record what a golden set made of a version",
                 responses={201: tagged("Recorded.", written=True), **refusals(404, 409, 412, 413, 503)}, **options)
    async def record_evaluation(
        tenant: TenantName, adapter: AdapterName, body: EvaluationIn, actor: Actor, if_match: IfMatch,
        response: Response, dry_run: DryRun = False,
    ) -> EvaluationOut:
        made = await evaluations.record(
            actor, tenant, adapter, number=body.version, digest=body.digest, golden_set=body.golden_set,
            metric=body.metric, value=body.value, floor=body.floor, passed=body.passed, report=body.report,
            conditions=body.conditions, if_match=if_match, dry_run=dry_run)
        tag(response, made.revision, written=not dry_run)
        return EvaluationOut.of(Kept(made, verified=True, ignored=""))


def add_alias_routes(router: APIRouter, aliases: Aliases) -> None:
    """Aliases, on `router`."""
    options: dict[str, Any] = {"tags": ["aliases"]}

    @router.get(ALIASES, operation_id="list_aliases", summary="A tenant's aliases", responses=refusals(404),
                response_model=Page[AliasOut], **options)
    async def list_aliases(tenant: TenantName) -> Any:
        return page(AliasOut.of(alias) for alias in aliases.all(tenant))

    @router.get(ALIAS, operation_id="get_alias", summary="One alias",
                responses={200: tagged("The alias."), **refusals(404)}, **options)
    async def get_alias(tenant: TenantName, alias: AdapterName, response: Response) -> AliasOut:
        found = aliases.get(tenant, alias)
        tag(response, found.revision)
        return AliasOut.of(found)

    @router.put(ALIAS, operation_id="put_alias", summary="Give an adapter, or a version of it, another name",
                responses={200: _WRITTEN, **refusals(404, 409, 412, 413, 503)}, **options)
    async def put_alias(
        tenant: TenantName, alias: AdapterName, body: AliasIn, actor: Actor, if_match: IfMatch, response: Response,
        dry_run: DryRun = False,
    ) -> AliasOut:
        made = await aliases.put(actor, tenant, alias, body.target, if_match=if_match, dry_run=dry_run)
        tag(response, made.revision, written=not dry_run)
        return AliasOut.of(made)

    @router.delete(ALIAS, operation_id="delete_alias", summary="Delete an alias", status_code=204,
                   responses={204: tagged("Deleted.", written=True), **refusals(404, 409, 412, 503)}, **options)
    async def delete_alias(
        tenant: TenantName, alias: AdapterName, actor: Actor, if_match: IfMatch, response: Response,
        dry_run: DryRun = False,
    ) -> None:
        gone = await aliases.delete(actor, tenant, alias, if_match=if_match, dry_run=dry_run)
        tag(response, gone.revision, written=not dry_run)


def add_freeze_routes(router: APIRouter, freezes: Freezes) -> None:
    """Freeze windows, on `router`."""
    options: dict[str, Any] = {"tags": ["freezes"]}
    name_in_path = Path(description="The window's name.")

    @router.get("/freezes", operation_id="list_freezes", summary="Freeze windows, past and to come",
                responses=refusals(), response_model=Page[FreezeOut], **options)
    async def list_freezes() -> Any:
        return page(FreezeOut.of(freeze) for freeze in freezes.all())

    @router.post("/freezes", operation_id="create_freeze", status_code=201,
                 summary="Let no release of a tenant or an adapter move for a time",
                 description="An abort is always possible.",
                 responses={201: tagged("Created.", written=True), **refusals(404, 409, 412, 413, 503)}, **options)
    async def create_freeze(
        body: FreezeIn, actor: Actor, if_match: IfMatch, response: Response, dry_run: DryRun = False,
    ) -> FreezeOut:
        made = await freezes.create(
            actor, body.name, scope=body.scope, start=body.start.timestamp() if body.start else None,
            end=body.end.timestamp(), reason=body.reason, if_match=if_match, dry_run=dry_run)
        tag(response, made.revision, written=not dry_run)
        return FreezeOut.of(made)

    @router.get("/freezes/{name}", operation_id="get_freeze", summary="One freeze window",
                responses={200: tagged("The window."), **refusals(404)}, **options)
    async def get_freeze(name: Annotated[AdapterName, name_in_path], response: Response) -> FreezeOut:
        found = freezes.get(name)
        tag(response, found.revision)
        return FreezeOut.of(found)

    @router.delete("/freezes/{name}", operation_id="delete_freeze", summary="End a freeze window", status_code=204,
                   responses={204: tagged("Deleted.", written=True), **refusals(404, 409, 412, 503)}, **options)
    async def delete_freeze(
        name: Annotated[AdapterName, name_in_path], actor: Actor, if_match: IfMatch, response: Response,
        dry_run: DryRun = False,
    ) -> None:
        gone = await freezes.delete(actor, name, if_match=if_match, dry_run=dry_run)
        tag(response, gone.revision, written=not dry_run)
