"""Admin routes of the operators themselves, for admins alone."""

from typing import Any

from fastapi import APIRouter, Response

from gateway.api.admin_routes import Actor, DryRun, IfMatch, refusals, tag, tagged
from gateway.api.schemas import Page, page
from gateway.api.schemas_operators import NewOperatorOut, OperatorIn, OperatorName, OperatorOut
from gateway.controlplane.operators import OperatorCatalog

DRY_RUN_KEY = "sy-operator-dry-run"


def add_operator_routes(router: APIRouter, operators: OperatorCatalog) -> None:
    """Named operators, on `router`, which asks for the role admin also to read."""
    options: dict[str, Any] = {"tags": ["operators"]}

    @router.get("/operators", operation_id="list_operators", summary="All named operators, revoked ones too",
                responses=refusals(), response_model=Page[OperatorOut], **options)
    async def list_operators() -> Any:
        return page(OperatorOut.of(operator) for operator in operators.all())

    @router.post("/operators", operation_id="create_operator", status_code=201,
                 summary="Create an operator with a role; the key is answered once and kept nowhere",
                 responses={201: tagged("Created.", written=True), **refusals(409, 413, 503)}, **options)
    async def create_operator(
        body: OperatorIn, actor: Actor, response: Response, dry_run: DryRun = False,
    ) -> NewOperatorOut:
        made, key = await operators.create(actor, body.name, body.role, dry_run=dry_run)
        tag(response, made.revision, written=not dry_run)
        response.headers["Location"] = f"/admin/v1/operators/{made.name}"
        response.headers["Cache-Control"] = "no-store"
        return NewOperatorOut(key=DRY_RUN_KEY if dry_run else key, **OperatorOut.fields_of(made))

    @router.delete("/operators/{name}", operation_id="revoke_operator",
                   summary="Revoke an operator's key; the name stays, for the audit",
                   responses={200: tagged("Revoked.", written=True), **refusals(404, 409, 412, 503)}, **options)
    async def revoke_operator(
        name: OperatorName, actor: Actor, if_match: IfMatch, response: Response, dry_run: DryRun = False,
    ) -> OperatorOut:
        revoked = await operators.revoke(actor, name, if_match=if_match, dry_run=dry_run)
        tag(response, revoked.revision, written=not dry_run)
        return OperatorOut.of(revoked)
