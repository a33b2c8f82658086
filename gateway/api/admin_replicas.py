"""Admin routes of the replicas."""

from typing import Any

from fastapi import APIRouter, Response

from gateway.api.admin_routes import Actor, DryRun, IfMatch, refusals, tag, tagged
from gateway.api.schemas import Page, ReplicaName, page
from gateway.api.schemas_replicas import ReplicaIn, ReplicaOut
from gateway.controlplane.fleet import Fleet, Replicas
from gateway.domain.errors import NotFound
from gateway.domain.fleet import ReplicaView
from gateway.domain.model import Replica


def add_replica_routes(router: APIRouter, replicas: Replicas, fleet: Fleet) -> None:
    """Replicas, on `router`: what the registry says of them, and what this gateway sees of them."""
    options: dict[str, Any] = {"tags": ["replicas"]}

    @router.get("/replicas", operation_id="list_replicas", summary="All replicas, the settings' own too",
                responses=refusals(), response_model=Page[ReplicaOut], **options)
    async def list_replicas() -> Any:
        return page(_all())

    @router.post("/replicas", operation_id="add_replica", summary="Send requests to one more vLLM", status_code=201,
                 responses={201: tagged("Added.", written=True), **refusals(409, 413, 503)}, **options)
    async def add_replica(
        body: ReplicaIn, actor: Actor, response: Response, dry_run: DryRun = False,
    ) -> ReplicaOut:
        replica = await replicas.add(
            actor, body.name, body.url, api_key=body.api_key, artifacts_path=body.artifacts_path,
            max_in_flight=body.max_in_flight, dry_run=dry_run)
        tag(response, replica.revision, written=not dry_run)
        return ReplicaOut.of(replica, replica, None)

    @router.get("/replicas/{name}", operation_id="get_replica", summary="One replica",
                responses={200: tagged("The replica."), **refusals(404)}, **options)
    async def get_replica(name: ReplicaName, response: Response) -> ReplicaOut:
        found = next((replica for replica in _all() if replica.name == name), None)
        if found is None:
            raise NotFound(f"There is no replica {name!r}.", param="name")
        tag(response, found.revision)
        return found

    @router.delete("/replicas/{name}", operation_id="remove_replica", status_code=204,
                   summary="Send no more requests to a replica",
                   description="Stop its process too: the files of retired versions no longer wait for it.",
                   responses={204: tagged("Removed.", written=True), **refusals(404, 409, 412, 503)}, **options)
    async def remove_replica(
        name: ReplicaName, actor: Actor, if_match: IfMatch, response: Response, dry_run: DryRun = False,
    ) -> None:
        removed = await replicas.remove(actor, name, if_match=if_match, dry_run=dry_run)
        tag(response, removed.revision, written=not dry_run)

    def _all() -> list[ReplicaOut]:
        registered = {replica.name: replica for replica in replicas.all()}
        seen = {view.name: view for view in fleet.replicas()}
        known: dict[str, Replica | ReplicaView] = {**seen, **registered}
        return [ReplicaOut.of(known[name], registered.get(name), seen.get(name)) for name in sorted(known)]
