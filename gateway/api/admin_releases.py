"""Admin routes of releases: what takes traffic, the moves of a rollout, its shadow, its analysis and its history."""

from collections.abc import Mapping
from typing import Annotated, Any, Protocol

from fastapi import APIRouter, Query, Response

from gateway.api.admin_adapters import ADAPTER
from gateway.api.admin_routes import Actor, Asking, DryRun, IfMatch, refusals, tag, tagged
from gateway.api.schemas import AdapterName, ChangeOut, Page, TenantName, page
from gateway.api.schemas_releases import (
    AnalysisOut,
    ExplainIn,
    ExplanationOut,
    MoveIn,
    ReleaseIn,
    ReleaseOut,
    ShadowIn,
    ShiftIn,
    StartIn,
)
from gateway.controlplane.releases import Releases
from gateway.controlplane.rollouts import Rollouts
from gateway.domain import plan
from gateway.domain.model import Release
from gateway.domain.operators import Asker, Role
from gateway.domain.rollout import Move
from gateway.domain.windows import epoch_of

RELEASE = ADAPTER + "/release"
UNSAID = MoveIn(reason="")
NEXT = ShiftIn(weight=None, reason="")
_OPTIONS: Mapping[str, Any] = {"tags": ["releases"]}
_WRITTEN = tagged("As asked.", written=True)
_MOVES = {
    Move.PAUSE: "Keep the canary's weight until it is resumed",
    Move.RESUME: "Let a paused rollout go on",
    Move.ABORT: "Take the canary away: every caller gets the stable version",
}


class Analyses(Protocol):
    """The analyst's latest words on a release, JSON-ready; None when there are none."""

    async def latest(self, tenant: str, adapter: str) -> Mapping[str, Any] | None: ...


def add_release_routes(router: APIRouter, releases: Releases, rollouts: Rollouts, analyses: Analyses) -> None:
    """The release and all that moves it, on `router`."""
    _add_setting(router, releases, rollouts)
    _add_start_and_shift(router, rollouts)
    _add_promote(router, rollouts)
    for move, summary in _MOVES.items():
        _add_move(router, rollouts, move, summary)
    _add_shadow(router, rollouts)
    _add_reading(router, releases, rollouts, analyses)


def _add_setting(router: APIRouter, releases: Releases, rollouts: Rollouts) -> None:
    @router.get(RELEASE, operation_id="get_release", summary="Which versions take traffic, and how much",
                responses={200: tagged("The release."), **refusals(404)}, **_OPTIONS)
    async def get_release(tenant: TenantName, adapter: AdapterName, response: Response) -> ReleaseOut:
        return _answer(rollouts, releases.get(tenant, adapter), response)

    @router.put(RELEASE, operation_id="set_release", summary="Send the traffic to another version at once",
                description="Not while a rollout is live: promote or abort it.",
                responses={200: _WRITTEN, **refusals(404, 409, 412, 413, 502, 503)}, **_OPTIONS)
    async def set_release(
        tenant: TenantName, adapter: AdapterName, body: ReleaseIn, actor: Actor, if_match: IfMatch, response: Response,
        dry_run: DryRun = False,
    ) -> ReleaseOut:
        release = await releases.set_stable(
            actor, tenant, adapter, body.stable, if_match=if_match, dry_run=dry_run)
        return _answer(rollouts, release, response, written=not dry_run)


def _add_start_and_shift(router: APIRouter, rollouts: Rollouts) -> None:
    @router.post(RELEASE + "/start", operation_id="start_rollout", summary="Send some callers to a canary, by a plan",
                 responses={200: _WRITTEN, **refusals(404, 409, 412, 413, 502, 503)}, **_OPTIONS)
    async def start_rollout(
        tenant: TenantName, adapter: AdapterName, body: StartIn, asker: Asking, if_match: IfMatch, response: Response,
        dry_run: DryRun = False,
    ) -> ReleaseOut:
        _check_force(asker, body)
        release = await rollouts.start(
            asker.name, tenant, adapter, canary=body.canary, plan=plan.read(body.plan), force=body.force,
            approvals=body.approvals, reason=body.reason, if_match=if_match, dry_run=dry_run)
        return _answer(rollouts, release, response, written=not dry_run)

    @router.post(RELEASE + "/shift", operation_id="shift_rollout", summary="Raise the canary's weight",
                 description="Nobody is ever moved back: for fewer callers abort.",
                 responses={200: _WRITTEN, **refusals(404, 409, 412, 413, 502, 503)}, **_OPTIONS)
    async def shift_rollout(
        tenant: TenantName, adapter: AdapterName, actor: Actor, if_match: IfMatch, response: Response,
        body: ShiftIn = NEXT, dry_run: DryRun = False,
    ) -> ReleaseOut:
        release = await rollouts.move(
            actor, tenant, adapter, Move.SHIFT, weight=body.weight, reason=body.reason, if_match=if_match,
            dry_run=dry_run)
        return _answer(rollouts, release, response, written=not dry_run)


def _add_promote(router: APIRouter, rollouts: Rollouts) -> None:
    @router.post(RELEASE + "/promote", operation_id="promote_rollout", summary="Make the canary the stable version",
                 description="By another operator than the one who started it, it is an approval too.",
                 responses={200: _WRITTEN, 202: tagged("Approved; more operators must approve.", written=True,
                                                       model=ReleaseOut),
                            **refusals(404, 409, 412, 413, 502, 503)}, **_OPTIONS)
    async def promote_rollout(
        tenant: TenantName, adapter: AdapterName, actor: Actor, if_match: IfMatch, response: Response,
        body: MoveIn = UNSAID, dry_run: DryRun = False,
    ) -> ReleaseOut:
        release = await rollouts.move(
            actor, tenant, adapter, Move.PROMOTE, reason=body.reason, if_match=if_match, dry_run=dry_run)
        return _answer(rollouts, release, response, written=not dry_run, status=202 if release.live else 200)


def _add_move(router: APIRouter, rollouts: Rollouts, move: Move, summary: str) -> None:
    @router.post(f"{RELEASE}/{move}", operation_id=f"{move}_rollout", summary=summary,
                 responses={200: _WRITTEN, **refusals(404, 409, 412, 413, 503)}, **_OPTIONS)
    async def make_move(
        tenant: TenantName, adapter: AdapterName, actor: Actor, if_match: IfMatch, response: Response,
        body: MoveIn = UNSAID, dry_run: DryRun = False,
    ) -> ReleaseOut:
        release = await rollouts.move(
            actor, tenant, adapter, move, reason=body.reason, if_match=if_match, dry_run=dry_run)
        return _answer(rollouts, release, response, written=not dry_run)


def _add_shadow(router: APIRouter, rollouts: Rollouts) -> None:
    @router.put(RELEASE + "/shadow", operation_id="set_shadow", summary="Send copies of requests to a version",
                responses={200: _WRITTEN, **refusals(404, 409, 412, 413, 502, 503)}, **_OPTIONS)
    async def set_shadow(
        tenant: TenantName, adapter: AdapterName, body: ShadowIn, asker: Asking, if_match: IfMatch, response: Response,
        dry_run: DryRun = False,
    ) -> ReleaseOut:
        _check_force(asker, body)
        release = await rollouts.set_shadow(
            asker.name, tenant, adapter, number=body.version, share=body.share, force=body.force, if_match=if_match,
            dry_run=dry_run)
        return _answer(rollouts, release, response, written=not dry_run)

    @router.delete(RELEASE + "/shadow", operation_id="delete_shadow", summary="Send no more copies",
                   responses={200: _WRITTEN, **refusals(404, 409, 412, 503)}, **_OPTIONS)
    async def delete_shadow(
        tenant: TenantName, adapter: AdapterName, actor: Actor, if_match: IfMatch, response: Response,
        dry_run: DryRun = False,
    ) -> ReleaseOut:
        release = await rollouts.set_shadow(
            actor, tenant, adapter, number=None, if_match=if_match, dry_run=dry_run)
        return _answer(rollouts, release, response, written=not dry_run)


def _add_reading(router: APIRouter, releases: Releases, rollouts: Rollouts, analyses: Analyses) -> None:
    @router.get(RELEASE + "/analysis", operation_id="get_analysis", summary="What the analyst says of the canary now",
                responses=refusals(404, 503), **_OPTIONS)
    async def get_analysis(tenant: TenantName, adapter: AdapterName) -> AnalysisOut:
        release = releases.get(tenant, adapter)
        latest = await analyses.latest(tenant, adapter) if release.rollout else None
        of_now = latest is not None and release.rollout and latest.get("epoch") == epoch_of(release.rollout)
        found = latest if of_now else release.analysis
        return AnalysisOut(tenant=tenant, adapter=adapter, analysis=dict(found) if found is not None else None)

    @router.get(RELEASE + "/history", operation_id="get_release_history", summary="The release's moves, newest first",
                responses=refusals(404, 503), response_model=Page[ChangeOut], **_OPTIONS)
    async def get_release_history(
        tenant: TenantName, adapter: AdapterName,
        before: Annotated[int | None, Query(ge=1, le=2**53, description="Only changes below this revision.")] = None,
        limit: Annotated[int, Query(ge=1, le=1000, description="How many at most.")] = 100,
    ) -> Any:
        found = await rollouts.history(tenant, adapter, before=before, limit=limit + 1)
        return page((ChangeOut.of(change) for change in found[:limit]), has_more=len(found) > limit)


def add_explanation_route(router: APIRouter, rollouts: Rollouts) -> None:
    """What becomes of a caller, on `router`, which lets whoever may read ask."""
    @router.post(ADAPTER + "/route:explain", operation_id="explain_route", responses=refusals(404, 413, 503),
                 summary="Which version, track and replica a caller would get, and why", **_OPTIONS)
    async def explain_route(tenant: TenantName, adapter: AdapterName, body: ExplainIn) -> ExplanationOut:
        return ExplanationOut.of(await rollouts.explain(tenant, adapter, body.subject))


def _check_force(asker: Asker, body: StartIn | ShadowIn) -> None:
    if body.force:
        asker.require(Role.ADMIN, "To force it")


def _answer(
    rollouts: Rollouts, release: Release, response: Response, *, written: bool = False, status: int | None = None,
) -> ReleaseOut:
    tag(response, release.revision, written=written, status=status)
    return ReleaseOut.of(release, rollouts.warnings(release))
