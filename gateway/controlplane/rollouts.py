"""The course of releases: a canary starts, shifts and ends, a shadow comes and goes, each in one write of the registry.

What sends callers to a version has two phases: it is loaded wherever it should be, then one write sends them. What
takes callers away (abort) is the write alone, and asks no engine anything.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from gateway.controlplane.activation import Activation
from gateway.controlplane.catalog import adapter_of, version_of
from gateway.controlplane.changes import Changes, Step
from gateway.controlplane.fleet import Fleet
from gateway.controlplane.releases import ready_version_of, release_of
from gateway.domain.errors import Conflict, InvalidRequest, LostRace
from gateway.domain.evaluation import Gate, gate_of
from gateway.domain.explanation import Explanation, explain
from gateway.domain.freeze import check_thawed, in_force
from gateway.domain.happening import Happening, Kind, Notify
from gateway.domain.hot import hot_versions
from gateway.domain.model import Change, Release, Snapshot, Version
from gateway.domain.plan import Plan
from gateway.domain.reconcile import pool_of
from gateway.domain.rollout import Move, Rollout, Shadow, apply, approve, draw_up
from gateway.domain.seal import SHARED, Seal
from gateway.domain.slots import SlotCheck, check_slots, holders_of
from gateway.domain.split import check_percent
from gateway.system import System

MAX_APPROVALS = 10
ADDS_TRAFFIC = frozenset({Move.START, Move.SHIFT, Move.PROMOTE})
"""The moves after which more callers get the canary."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ask:
    """A move that somebody asks for; see `Rollouts.move`."""

    actor: str
    move: Move
    weight: float | None
    reason: str
    expected: Rollout | None
    analysis: Mapping[str, Any] | None
    fence: int | None


class Rollouts:
    """Makes the moves of rollouts, for operators and for the analyst; `notify` hears of each that was made."""

    def __init__(
        self, changes: Changes, fleet: Fleet, system: System, *, notify: Notify, seal: Seal = SHARED,
    ) -> None:
        self._changes = changes
        self._fleet = fleet
        self._activation = Activation(fleet)
        self._system = system
        self._notify = notify
        self._seal = seal

    async def start(
        self, actor: str, tenant: str, adapter: str, *, canary: int, plan: Plan, force: bool = False,
        approvals: int = 0, reason: str = "", if_match: int | None = None, dry_run: bool = False,
    ) -> Release:
        """The release with a rollout of `canary` at the first weight of `plan`.

        Conflict: no stable version, the canary not ready or not evaluated as the adapter's policy asks, another rollout
        live, a freeze window, or too few slots on a replica, which `force` overrides and the audit keeps. `approvals`:
        how many operators other than `actor` must approve before a promote. Errors of `Activation.load`.
        """
        if not 0 <= approvals <= MAX_APPROVALS:
            raise InvalidRequest(f"approvals must be 0 to {MAX_APPROVALS}.", param="approvals")

        def decide(snapshot: Snapshot) -> Step[Release]:
            release = _release_with_stable(snapshot, tenant, adapter)
            version = ready_version_of(snapshot, tenant, adapter, canary)
            now = self._system.now()
            check_thawed(in_force(snapshot, tenant, adapter, now), "a start")
            drawn = draw_up(release.rollout, canary=canary, baseline=release.stable or 0, plan=plan,
                            salt=self._system.hex(8), by=actor, approvals_needed=approvals)
            gate, slots = self._checked_gate(snapshot, version), self._check_slots(snapshot, version, force=force)
            started = replace(apply(drawn, Move.START, now, reason=reason), forced=not slots.fits)
            new = replace(release.with_rollout(started), analysis=None)
            detail = {**_told(new, gate), "plan": str(plan), "approvals": approvals, "force": force,
                      "slots": slots.sentence}
            return Step("release.start", new, {new.path: new}, detail, (version.path, *gate.paths))

        release = await self._flip(actor, decide, _canary, if_match=if_match, dry_run=dry_run)
        if not dry_run:
            self._tell(Kind.START, actor, release, reason)
        return release

    async def move(
        self, actor: str, tenant: str, adapter: str, move: Move, *, weight: float | None = None, reason: str = "",
        expected: Rollout | None = None, analysis: Mapping[str, Any] | None = None, if_match: int | None = None,
        dry_run: bool = False, fence: int | None = None,
    ) -> Release:
        """The release after `move`; Conflict when it is not legal, frozen (but for an abort), or not evaluated.

        A promote by another operator than the one who started counts as an approval; while more are missing it is
        kept, and the release answered is not promoted yet. `expected`: the rollout that was decided upon; LostRace
        when the registry holds another, so that no step is moved on from twice. `fence`: the analyst's fencing token;
        LostRace when a later holder of its lease has written. `analysis` goes into the audit, and on the release.
        """
        if move is Move.SHIFT and weight is None and expected is None and if_match is None:
            expected = _rollout(await self._changes.fresh(), tenant, adapter)
        ask = _Ask(actor=actor, move=move, weight=weight, reason=reason, expected=expected, analysis=analysis,
                   fence=fence)

        def decide(snapshot: Snapshot) -> Step[Release]:
            return self._decide_move(snapshot, tenant, adapter, ask)

        takes = _canary if move in ADDS_TRAFFIC else None
        release = await self._flip(actor, decide, takes, if_match=if_match, dry_run=dry_run)
        if not dry_run:
            kind = Kind.of(move) if move is not Move.PROMOTE or _is_over(release) else Kind.APPROVE
            self._tell(kind, actor, release, reason, analysis)
        return release

    async def note(
        self, actor: str, tenant: str, adapter: str, analysis: Mapping[str, Any], *, expected: Rollout,
        reason: str = "", fence: int | None = None,
    ) -> Release:
        """The release with a verdict noted that leads to no move: its numbers are kept on it and in the audit.

        LostRace as for a move.
        """
        def decide(snapshot: Snapshot) -> Step[Release]:
            release = release_of(snapshot, tenant, adapter)
            _check_current(release, expected, fence)
            new = replace(release, analysis=dict(analysis), fence=max(release.fence, fence or 0))
            return Step("release.verdict", new, {new.path: new}, {"reason": reason, "analysis": dict(analysis)})

        release = (await self._changes.commit(actor, decide)).entity
        self._tell(Kind.VERDICT, actor, release, reason, analysis)
        return release

    async def set_shadow(
        self, actor: str, tenant: str, adapter: str, *, number: int | None, share: float = 100.0, force: bool = False,
        if_match: int | None = None, dry_run: bool = False,
    ) -> Release:
        """The release with that version as shadow (None: with none), which gets copies of `share` percent of requests.

        Conflict: not ready, the stable version itself, a freeze window, too few slots on a replica without `force`.
        """
        def decide(snapshot: Snapshot) -> Step[Release]:
            release = release_of(snapshot, tenant, adapter)
            if number is None:
                new = replace(release, shadow=None)
                return Step("release.shadow", new, {} if new == release else {new.path: new}, {"shadow": None})
            version = ready_version_of(snapshot, tenant, adapter, number)
            if number == release.stable:
                raise Conflict(f"Version {number} is the stable version: its own copies would tell nothing.")
            check_thawed(in_force(snapshot, tenant, adapter, self._system.now()), "a shadow")
            slots = self._check_slots(snapshot, version, force=force)
            known = release.shadow
            salt = known.salt if known is not None and known.number == number else self._system.hex(8)
            new = replace(release, shadow=Shadow(number=number, share=check_percent(share, "share"), salt=salt))
            detail = {"shadow": number, "share": share, "force": force, "slots": slots.sentence}
            return Step("release.shadow", new, {} if new == release else {new.path: new}, detail, (version.path,))

        takes = None if number is None else _shadow
        return await self._flip(actor, decide, takes, if_match=if_match, dry_run=dry_run)

    async def explain(self, tenant: str, adapter: str, subject: str) -> Explanation:
        """What becomes of a subject's next call (the caller's session, user, or key id), and why."""
        def read(snapshot: Snapshot) -> Explanation:
            return explain(snapshot, self._fleet.replicas(), adapter_of(snapshot, tenant, adapter), subject)

        return await self._changes.check(read)

    async def history(
        self, tenant: str, adapter: str, *, before: int | None = None, limit: int = 100,
    ) -> list[Change]:
        """The changes of the adapter's release, newest first, below revision `before`."""
        adapter_of(self._changes.current, tenant, adapter)
        return await self._changes.history(before=before, limit=limit, target=f"release/{tenant}/{adapter}")

    def warnings(self, release: Release) -> list[str]:
        """What the adapter's evaluation policy wants told of the versions that the release sends callers to."""
        snapshot = self._changes.current
        live = release.live
        numbers = dict.fromkeys(n for n in (release.stable, live.canary if live else None) if n is not None)
        versions = [snapshot.versions.get((release.tenant, release.adapter, number)) for number in numbers]
        found = [gate_of(snapshot, version, self._seal).warning for version in versions if version is not None]
        return [warning for warning in found if warning]

    def _decide_move(self, snapshot: Snapshot, tenant: str, adapter: str, ask: _Ask) -> Step[Release]:
        release, rollout = release_of(snapshot, tenant, adapter), _rollout(snapshot, tenant, adapter)
        _check_current(release, ask.expected, ask.fence)
        now = self._system.now()
        after = _moved(rollout, ask, now)
        if ask.move is not Move.ABORT:
            check_thawed(in_force(snapshot, tenant, adapter, now), f"a {ask.move}")
        gate: Gate | None = None
        reads: tuple[str, ...] = ()
        if ask.move in ADDS_TRAFFIC:
            version = ready_version_of(snapshot, tenant, adapter, rollout.canary)
            gate = self._checked_gate(snapshot, version)
            reads = (version.path, *gate.paths)
        new = replace(release.with_rollout(after), fence=max(release.fence, ask.fence or 0))
        action = ask.move if after.phase is not rollout.phase or after.weight != rollout.weight else "approve"
        detail = {**_told(new, gate), "reason": ask.reason,
                  "before": {"phase": rollout.phase.value, "weight": rollout.weight}}
        if ask.analysis is not None:
            new, detail["analysis"] = replace(new, analysis=dict(ask.analysis)), dict(ask.analysis)
        return Step(f"release.{action}", new, {new.path: new}, detail, reads)

    async def _flip(
        self, actor: str, decide: Callable[[Snapshot], Step[Release]], takes: Callable[[Release], int] | None, *,
        if_match: int | None, dry_run: bool,
    ) -> Release:
        """Make the change, once the version that `takes` says (None: no engine is asked) is loaded where it should be.
        """
        if takes is None or dry_run:
            return (await self._changes.commit(actor, decide, if_match=if_match, dry_run=dry_run)).entity
        await self._changes.require_registry()
        planned = (await self._changes.commit(actor, decide, if_match=if_match, dry_run=True)).entity
        number = takes(planned)
        version = await self._changes.check(
            lambda snapshot: version_of(snapshot, planned.tenant, planned.adapter, number))
        await self._activation.load(self._changes.current, version)

        def decide_again(snapshot: Snapshot) -> Step[Release]:
            step = decide(snapshot)
            if takes(step.entity) != number:
                raise LostRace(f"{step.entity.path} was changed while version {number} was loaded. Read it again.",
                               current=step.entity.revision)
            return step

        return (await self._changes.commit(actor, decide_again, if_match=if_match)).entity

    def _checked_gate(self, snapshot: Snapshot, version: Version) -> Gate:
        gate = gate_of(snapshot, version, self._seal)
        gate.check()
        return gate

    def _check_slots(self, snapshot: Snapshot, version: Version, *, force: bool) -> SlotCheck:
        """Whether the version fits beside all that takes traffic in its pool; Conflict if not, unless forced."""
        hot = hot_versions(snapshot, version.base_model)
        count = snapshot.adapters[version.tenant, version.adapter].replicas
        slots = {view.name: view.slots for view in pool_of(version.base_model, self._fleet.replicas())}
        found = check_slots(version.served_name, holders_of(version.served_name, count, hot, slots))
        if not (found.fits or force):
            raise Conflict(found.sentence, param="force")
        return found

    def _tell(
        self, kind: Kind, actor: str, release: Release, reason: str, analysis: Mapping[str, Any] | None = None,
    ) -> None:
        self._notify(Happening(
            kind=kind, tenant=release.tenant, adapter=release.adapter, release=release, reason=reason,
            at=self._system.now(), actor=actor, analysis=analysis))


def _release_with_stable(snapshot: Snapshot, tenant: str, adapter: str) -> Release:
    release = release_of(snapshot, tenant, adapter)
    if release.stable is None:
        raise Conflict(
            f"The adapter {tenant}/{adapter} has no stable version to compare a canary with: set one first, with PUT "
            f"/admin/v1/tenants/{tenant}/adapters/{adapter}/release.")
    return release


def _rollout(snapshot: Snapshot, tenant: str, adapter: str) -> Rollout:
    rollout = release_of(snapshot, tenant, adapter).rollout
    if rollout is None:
        raise Conflict(f"The adapter {tenant}/{adapter} has no rollout: start one with POST "
                       f"/admin/v1/tenants/{tenant}/adapters/{adapter}/release/start.")
    return rollout


def _check_current(release: Release, expected: Rollout | None, fence: int | None) -> None:
    if fence is not None and fence < release.fence:
        raise LostRace(f"{release.path} was written by a later analyst (fencing token {release.fence}, yours is "
                       f"{fence}).", current=release.revision)
    if expected is not None and expected != release.rollout:
        raise LostRace(f"The rollout of {release.tenant}/{release.adapter} has moved since it was read. Read it again, "
                       "then decide again.", current=release.revision)


def _moved(rollout: Rollout, ask: _Ask, now: float) -> Rollout:
    """The rollout after what was asked for; an approval alone when a promote needs more than this one."""
    if ask.move is Move.PROMOTE and ask.fence is None and rollout.approvals_missing and ask.actor != rollout.started_by:
        approved = approve(rollout, ask.actor)
        if approved.approvals_missing and approved != rollout:
            return approved
        rollout = approved
    return apply(rollout, ask.move, now, weight=ask.weight, reason=ask.reason)


def _canary(release: Release) -> int:
    assert release.rollout is not None, "a move is of a rollout"
    return release.rollout.canary


def _shadow(release: Release) -> int:
    assert release.shadow is not None, "the change sets a shadow"
    return release.shadow.number


def _is_over(release: Release) -> bool:
    return release.live is None


def _told(release: Release, gate: Gate | None) -> dict[str, Any]:
    """What the audit says of a move."""
    rollout = release.rollout
    assert rollout is not None, "a move is of a rollout"
    told: dict[str, Any] = {
        "canary": rollout.canary, "stable": release.stable, "phase": rollout.phase.value, "weight": rollout.weight,
        "step": rollout.step, "reason": rollout.reason}
    if rollout.approvals_needed:
        told |= {"approvals_needed": rollout.approvals_needed, "approved_by": list(rollout.approved_by)}
    if gate is not None and gate.warning:
        told["warning"] = gate.warning
    return told
