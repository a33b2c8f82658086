"""Moves of rollouts: each is one write, made once, refused with the reason, and only with the canary in its place."""

import asyncio
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import pytest

from gateway.controlplane.changes import Changes
from gateway.controlplane.rollouts import Rollouts
from gateway.domain.errors import (
    AdapterNotLoaded,
    Conflict,
    EngineRefused,
    InvalidRequest,
    LostRace,
    NotFound,
    RegistryUnavailable,
    ReplicaUnreachable,
)
from gateway.domain.evaluation import Evaluation
from gateway.domain.freeze import Freeze
from gateway.domain.happening import Happening, Kind
from gateway.domain.model import Adapter, EvaluationPolicy, Release, Tenant, VersionPhase
from gateway.domain.plan import read
from gateway.domain.rollout import TABLE, Move, Phase, Rollout, apply, draw_up
from gateway.domain.slots import FLAG
from gateway.system import System
from tests.fixtures.evaluations import REGISTRYS_SECRET, signed
from tests.fixtures.memory import FleetOfViews, MemoryRegistry
from tests.unit.domain.test_reconcile import version, view

WHO = ("acme", "support")
PLAN = read("5% for 10m min 200, 25%, 100%")
ADAPTER = Adapter(tenant="acme", name="support", created_at=0.0, evaluation=EvaluationPolicy.OFF)
DIGEST = {number: f"{number}" * 64 for number in range(1, 6)}
VERSIONS = {
    number: version(number, phase, digest=DIGEST[number]) for number, phase in (
        (1, VersionPhase.READY), (2, VersionPhase.READY), (3, VersionPhase.READY), (4, VersionPhase.PREPARING),
        (5, VersionPhase.RETIRING))}
MOVES = [move for move in Move if move is not Move.START]


@dataclass(frozen=True, slots=True)
class Still(System):
    """A clock that stands where it is set."""

    at: list[float] = field(default_factory=lambda: [1000.0])

    def now(self) -> float:
        return self.at[0]


class Bench:
    """A registry with versions 1 (stable) to 3 ready, one replica, and who is told what happens."""

    def __init__(self) -> None:
        self.registry = MemoryRegistry()
        self.registry.put(Tenant(name="acme", created_at=0.0), ADAPTER, *VERSIONS.values(),
                          Release(tenant="acme", adapter="support", stable=1))
        self.fleet = FleetOfViews(view("one", *VERSIONS.values(), slots=8))
        self.told: list[Happening] = []
        self.system = Still()
        self.rollouts = Rollouts(
            Changes(self.registry, self.registry, self.system), self.fleet, self.system, notify=self.told.append)

    @property
    def release(self) -> Release:
        return self.registry.truth.releases[WHO]

    @property
    def rollout(self) -> Rollout:
        assert self.release.rollout is not None
        return self.release.rollout

    @property
    def audit(self) -> list[tuple[str, dict[str, Any]]]:
        return [(change.action, dict(change.detail)) for change in self.registry.changes]

    async def start(self, actor: str = "ann", **options: Any) -> Release:
        return await self.rollouts.start(actor, *WHO, **{"canary": 2, "plan": PLAN, **options})

    async def move(self, move: Move, actor: str = "ann", **options: Any) -> Release:
        return await self.rollouts.move(actor, *WHO, move, **options)

    def put_rollout(self, rollout: Rollout) -> None:
        self.registry.put(replace(self.release, rollout=rollout))


@pytest.fixture
def bench() -> Bench:
    return Bench()


def in_phase(phase: Phase) -> Rollout:
    drawn = draw_up(None, canary=2, baseline=1, plan=PLAN, salt="s", by="ann")
    ways: dict[Phase, tuple[Move, ...]] = {
        Phase.IDLE: (), Phase.RUNNING: (Move.START,), Phase.PAUSED: (Move.START, Move.PAUSE),
        Phase.WAITING: (Move.START, Move.WAIT), Phase.PROMOTED: (Move.START, Move.PROMOTE),
        Phase.ABORTED: (Move.START, Move.ABORT)}
    for move in ways[phase]:
        drawn = apply(drawn, move, 1.0)
    return drawn


# --- start -----------------------------------------------------------------------------------------------------------


async def test_a_start_is_one_write_at_the_plans_first_weight_and_says_all_to_the_audit(bench: Bench) -> None:
    release = await bench.start(approvals=1, reason="better")
    assert release == bench.release
    assert (bench.rollout.phase, bench.rollout.weight, bench.rollout.canary, bench.rollout.baseline) == (
        Phase.RUNNING, 5.0, 2, 1)
    assert (bench.rollout.started_by, bench.rollout.started_at, bench.rollout.forced) == ("ann", 1000.0, False)
    [(action, detail)] = bench.audit
    assert action == "release.start"
    assert (detail["canary"], detail["stable"], detail["weight"], detail["plan"], detail["approvals_needed"]) == (
        2, 1, 5.0, str(PLAN), 1)
    assert (detail["force"], detail["reason"]) == (False, "better")
    [told] = bench.told
    assert (told.kind, told.tenant, told.adapter, told.release, told.actor, told.reason, told.at) == (
        Kind.START, *WHO, release, "ann", "better", 1000.0)


async def test_every_rollout_has_a_salt_of_its_own(bench: Bench) -> None:
    first = (await bench.start()).rollout
    await bench.move(Move.ABORT)
    second = (await bench.start()).rollout
    assert first is not None
    assert second is not None
    assert first.salt != second.salt


@pytest.mark.parametrize(("canary", "words"), [
    (4, "is preparing; only a ready"), (5, "is retiring; only a ready"), (1, "is the stable version already"),
])
async def test_a_canary_must_be_ready_and_another_than_the_stable(bench: Bench, canary: int, words: str) -> None:
    with pytest.raises(Conflict, match=words):
        await bench.start(canary=canary)
    assert bench.audit == []


async def test_a_start_needs_the_adapter_the_version_and_a_stable_version(bench: Bench) -> None:
    with pytest.raises(NotFound):
        await bench.start(canary=9)
    with pytest.raises(NotFound):
        await bench.rollouts.start("ann", "acme", "none", canary=1, plan=PLAN)
    bench.registry.put(Release(tenant="acme", adapter="support"))
    with pytest.raises(Conflict, match="no stable version"):
        await bench.start()
    assert bench.told == []


async def test_another_rollout_starts_only_when_the_one_before_is_over(bench: Bench) -> None:
    await bench.start()
    with pytest.raises(Conflict, match="promote or abort it"):
        await bench.start(canary=3)
    await bench.move(Move.ABORT)
    assert (await bench.start(canary=3)).live


@pytest.mark.parametrize("approvals", [-1, 11])
async def test_nobody_asks_for_fewer_than_no_or_more_than_ten_approvals(bench: Bench, approvals: int) -> None:
    with pytest.raises(InvalidRequest):
        await bench.start(approvals=approvals)


# --- slots -----------------------------------------------------------------------------------------------------------


async def test_a_canary_that_does_not_fit_is_refused_with_the_numbers_and_the_flag(bench: Bench) -> None:
    bench.fleet.views["one"] = view("one", slots=1)
    with pytest.raises(Conflict) as refused:
        await bench.start()
    assert "one has 1 slot for 2 versions (1 too few)" in refused.value.message
    assert f"{FLAG} 2" in refused.value.message
    assert refused.value.param == "force"
    assert (bench.audit, bench.fleet.loads) == ([], [])


async def test_what_others_keep_hot_in_the_pool_counts_and_what_is_elsewhere_does_not(bench: Bench) -> None:
    bench.fleet.views["one"] = view("one", *VERSIONS.values(), slots=2)
    other = Adapter(tenant="acme", name="sales", created_at=0.0)
    elsewhere = version(1, adapter="sales", base_model="another")
    bench.registry.put(other, elsewhere, Release(tenant="acme", adapter="sales", stable=1))
    await bench.start(dry_run=True)
    bench.registry.put(version(1, adapter="sales"))
    with pytest.raises(Conflict, match="2 slots for 3 versions"):
        await bench.start()


async def test_force_starts_it_all_the_same_and_is_written_to_the_audit(bench: Bench) -> None:
    bench.fleet.views["one"] = view("one", *VERSIONS.values(), slots=1)
    await bench.start(force=True)
    assert bench.rollout.forced
    [(_, detail)] = bench.audit
    assert detail["force"] is True
    assert "1 too few" in detail["slots"]


async def test_force_that_was_not_needed_is_no_forced_rollout(bench: Bench) -> None:
    await bench.start(force=True)
    assert not bench.rollout.forced
    assert bench.audit[0][1]["force"] is True


# --- two phases ------------------------------------------------------------------------------------------------------


async def test_the_canary_is_loaded_where_it_should_be_before_the_one_write(bench: Bench) -> None:
    order: list[str] = []
    bench.fleet.views = {name: view(name, VERSIONS[1]) for name in ("a", "b")}
    bench.fleet.meanwhile.append(lambda: order.append("load"))
    bench.registry.before_commit.append(lambda: order.append("write"))
    await bench.start()
    assert order == ["load", "write"]
    assert sorted(name for name, _ in bench.fleet.loads) == ["a", "b"]
    assert len(bench.audit) == 1


async def test_only_as_many_replicas_hold_it_as_the_adapter_asks_for(bench: Bench) -> None:
    bench.registry.put(replace(ADAPTER, replicas=1))
    bench.fleet.views = {name: view(name) for name in ("a", "b", "c")}
    await bench.start()
    assert len(bench.fleet.loads) == 1


async def test_a_replica_that_lists_other_bytes_under_the_name_is_asked_to_load(bench: Bench) -> None:
    bench.fleet.views["one"] = replace(
        bench.fleet.views["one"], loaded={VERSIONS[2].served_name: "/store/sha256/other"})
    await bench.start()
    assert bench.fleet.loads == [("one", VERSIONS[2].served_name)]


@pytest.mark.parametrize(("refusal", "kind"), [
    (EngineRefused("max_lora_rank is 8"), EngineRefused), (ReplicaUnreachable("it is gone"), AdapterNotLoaded)])
async def test_a_canary_that_cannot_be_loaded_is_not_started_and_the_reason_is_told(
    bench: Bench, refusal: Any, kind: type[Exception],
) -> None:
    bench.fleet.views["one"] = view("one")
    bench.fleet.refusal = refusal
    with pytest.raises(kind, match=refusal.message):
        await bench.start()
    assert (bench.audit, bench.told) == ([], [])


async def test_a_canary_that_was_retired_while_it_was_loaded_gets_no_caller(bench: Bench) -> None:
    bench.fleet.views["one"] = view("one")
    bench.fleet.meanwhile.append(lambda: bench.registry.put(replace(VERSIONS[2], phase=VersionPhase.RETIRING)))
    with pytest.raises(Conflict, match="only a ready"):
        await bench.start()


async def test_a_promote_after_another_canary_took_the_place_meanwhile_is_lost(bench: Bench) -> None:
    await bench.start()
    bench.fleet.views["one"] = view("one")
    other = apply(draw_up(None, canary=3, baseline=1, plan=PLAN, salt="t", by="bob"), Move.START, 2.0)
    bench.fleet.meanwhile.append(lambda: bench.put_rollout(other))
    with pytest.raises(LostRace):
        await bench.move(Move.PROMOTE)
    assert bench.release.stable == 1


async def test_an_abort_asks_no_engine_anything(bench: Bench) -> None:
    await bench.start()
    bench.fleet.views.clear()
    assert (await bench.move(Move.ABORT)).live is None


# --- moves -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("phase", "move"), list(product(Phase, MOVES)))
async def test_only_the_tables_moves_are_made_and_each_is_one_write(bench: Bench, phase: Phase, move: Move) -> None:
    bench.put_rollout(in_phase(phase))
    if move not in TABLE[phase]:
        with pytest.raises(Conflict, match=f"is {phase} and cannot {move}"):
            await bench.move(move)
        assert (bench.audit, bench.told) == ([], [])
        return
    release = await bench.move(move, reason="because")
    assert release == bench.release
    assert bench.rollout.phase is TABLE[phase][move]
    assert release.stable == (2 if move is Move.PROMOTE else 1)
    [(action, detail)] = bench.audit
    assert action == f"release.{move}"
    assert detail["before"] == {"phase": phase.value, "weight": 5.0}
    assert detail["reason"] == "because"
    assert [told.kind for told in bench.told] == [Kind.of(move)]


async def test_without_a_rollout_no_move_is_possible(bench: Bench) -> None:
    for move in MOVES:
        with pytest.raises(Conflict, match="has no rollout"):
            await bench.move(move)


async def test_a_shift_goes_to_the_plans_next_weight_or_to_the_one_asked_for_and_never_down(bench: Bench) -> None:
    await bench.start()
    await bench.move(Move.SHIFT)
    assert bench.rollout.weight == 25
    await bench.move(Move.SHIFT, weight=60)
    assert bench.rollout.weight == 60
    with pytest.raises(Conflict, match="only raises"):
        await bench.move(Move.SHIFT, weight=10)


async def test_two_operators_who_promote_at_once_promote_once(bench: Bench) -> None:
    await bench.start()
    results = await asyncio.gather(
        bench.move(Move.PROMOTE), bench.move(Move.PROMOTE, "bob"), return_exceptions=True)
    assert sum(isinstance(result, Release) for result in results) == 1
    assert sum(isinstance(result, Conflict) for result in results) == 1
    assert [action for action, _ in bench.audit] == ["release.start", "release.promote"]


async def test_two_operators_who_shift_at_once_shift_once(bench: Bench) -> None:
    await bench.start()
    bench.registry.before_commit.append(
        lambda: bench.put_rollout(apply(bench.rollout, Move.SHIFT, 1001.0)))
    with pytest.raises(LostRace):
        await bench.move(Move.SHIFT)
    assert bench.rollout.weight == 25


async def test_a_move_at_another_revision_than_it_was_decided_on_is_lost(bench: Bench) -> None:
    started = await bench.start()
    await bench.move(Move.PAUSE, if_match=started.revision)
    with pytest.raises(LostRace) as lost:
        await bench.move(Move.RESUME, if_match=started.revision)
    assert lost.value.current == bench.release.revision


async def test_the_analyst_moves_only_the_rollout_that_it_judged(bench: Bench) -> None:
    judged = (await bench.start()).rollout
    await bench.move(Move.PAUSE)
    with pytest.raises(LostRace):
        await bench.move(Move.ABORT, "analyst", expected=judged, fence=1)
    assert bench.rollout.phase is Phase.PAUSED


async def test_an_analyst_that_lost_its_lease_moves_nothing_any_more(bench: Bench) -> None:
    await bench.start()
    await bench.move(Move.SHIFT, "analyst", fence=7)
    assert bench.release.fence == 7
    for move in (Move.SHIFT, Move.ABORT):
        with pytest.raises(LostRace, match="later analyst"):
            await bench.move(move, "analyst", fence=6, expected=bench.rollout)
    with pytest.raises(LostRace, match="later analyst"):
        await bench.rollouts.note("analyst", *WHO, {"verdict": "pass"}, expected=bench.rollout, fence=6)
    await bench.move(Move.PAUSE, "ann")
    assert bench.release.fence == 7


async def test_the_numbers_of_a_verdict_are_kept_on_the_release_and_in_the_audit(bench: Bench) -> None:
    await bench.start()
    numbers = {"verdict": "inconclusive", "findings": [{"metric": "error_rate", "p": 0.2}]}
    noted = await bench.rollouts.note(
        "analyst", *WHO, numbers, expected=bench.rollout, reason="too few", fence=1)
    assert noted.analysis == numbers
    assert bench.audit[-1] == ("release.verdict", {"reason": "too few", "analysis": numbers})
    worse = {"verdict": "fail"}
    await bench.move(Move.ABORT, "analyst", reason="twice the errors", analysis=worse, fence=1)
    assert bench.release.analysis == worse
    assert bench.audit[-1][1]["analysis"] == worse
    assert [(told.kind, told.analysis) for told in bench.told[1:]] == [(Kind.VERDICT, numbers), (Kind.ABORT, worse)]
    assert (await bench.start()).analysis is None, "which is of the rollout before"


# --- approvals -------------------------------------------------------------------------------------------------------


async def test_who_started_it_cannot_promote_it_alone(bench: Bench) -> None:
    await bench.start(approvals=1)
    with pytest.raises(Conflict, match="one more operator must approve"):
        await bench.move(Move.PROMOTE)
    assert (await bench.move(Move.PROMOTE, "bob")).stable == 2
    assert bench.rollout.approved_by == ("bob",)
    assert bench.audit[-1][1]["approved_by"] == ["bob"]


async def test_an_approval_that_does_not_suffice_is_kept_and_the_last_one_promotes(bench: Bench) -> None:
    await bench.start(approvals=2)
    approved = await bench.move(Move.PROMOTE, "bob")
    assert (approved.stable, approved.live) == (1, bench.rollout)
    assert bench.audit[-1][0] == "release.approve"
    assert bench.told[-1].kind is Kind.APPROVE
    with pytest.raises(Conflict, match="one more operator"):
        await bench.move(Move.PROMOTE, "bob")
    promoted = await bench.move(Move.PROMOTE, "cleo")
    assert promoted.stable == 2
    assert bench.rollout.approved_by == ("bob", "cleo")


async def test_the_analyst_is_no_second_operator(bench: Bench) -> None:
    await bench.start(approvals=1)
    with pytest.raises(Conflict, match="one more operator"):
        await bench.move(Move.PROMOTE, "analyst", fence=1)
    assert bench.rollout.approved_by == ()


# --- freezes and evaluations -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("move", MOVES)
async def test_in_a_freeze_window_only_an_abort_is_possible(bench: Bench, move: Move) -> None:
    bench.put_rollout(in_phase(Phase.PAUSED if move is Move.RESUME else Phase.RUNNING))
    bench.registry.put(Freeze(name="f", scope="acme", start=900.0, end=1100.0, reason="sale", created_by="ann",
                              created_at=0.0))
    if move is Move.ABORT:
        assert (await bench.move(move)).live is None
        return
    with pytest.raises(Conflict, match="is frozen until"):
        await bench.move(move)
    bench.system.at[0] = 1100.0
    await bench.move(move)


async def test_in_a_freeze_window_nothing_starts_and_no_shadow_is_set_but_one_may_be_taken_away(bench: Bench) -> None:
    await bench.rollouts.set_shadow("ann", *WHO, number=3)
    bench.registry.put(Freeze(name="f", scope="acme/support", start=900.0, end=1100.0, reason="sale", created_by="ann",
                              created_at=0.0))
    with pytest.raises(Conflict, match="a start must wait"):
        await bench.start()
    with pytest.raises(Conflict, match="a shadow must wait"):
        await bench.rollouts.set_shadow("ann", *WHO, number=2)
    assert (await bench.rollouts.set_shadow("ann", *WHO, number=None)).shadow is None


def evaluated(number: int, passed: bool = True, at: float = 1.0) -> Evaluation:
    return signed(Evaluation(
        tenant="acme", adapter="support", digest=DIGEST[number], id=f"{number}-{at}", golden_set="d" * 64,
        metric="exact_match", value=0.9 if passed else 0.1, floor=0.8, passed=passed, by="ann", at=at))


async def test_a_required_evaluation_that_is_missing_or_failed_keeps_the_canary_from_any_more_callers(
    bench: Bench,
) -> None:
    bench.registry.put(replace(ADAPTER, evaluation=EvaluationPolicy.REQUIRED))
    with pytest.raises(Conflict, match="no evaluation record for its digest 222222222222"):
        await bench.start()
    bench.registry.put(REGISTRYS_SECRET, evaluated(2))
    await bench.start()
    bench.registry.put(evaluated(2, False, at=2.0))
    for move in (Move.SHIFT, Move.PROMOTE):
        with pytest.raises(Conflict, match=r"exact_match 0\.1"):
            await bench.move(move)
    assert (await bench.move(Move.PAUSE)).live
    assert (await bench.move(Move.ABORT)).live is None


async def test_a_policy_that_warns_lets_start_and_tells_the_audit_and_the_operator(bench: Bench) -> None:
    bench.registry.put(replace(ADAPTER, evaluation=EvaluationPolicy.WARN), REGISTRYS_SECRET, evaluated(1))
    release = await bench.start()
    assert "no evaluation record" in bench.audit[-1][1]["warning"]
    [warning] = bench.rollouts.warnings(release)
    assert "Version 2 of acme/support has no evaluation record" in warning
    bench.registry.put(evaluated(2))
    assert bench.rollouts.warnings(release) == []


async def test_a_policy_that_changes_while_a_start_is_decided_is_not_overlooked(bench: Bench) -> None:
    strict = replace(ADAPTER, evaluation=EvaluationPolicy.REQUIRED)
    bench.registry.before_commit.append(lambda: bench.registry.put(strict))
    with pytest.raises(Conflict, match="no evaluation record"):
        await bench.start()


# --- shadow, dry runs, reading ---------------------------------------------------------------------------------------


async def test_a_shadow_keeps_its_salt_while_it_is_the_same_version(bench: Bench) -> None:
    first = (await bench.rollouts.set_shadow("ann", *WHO, number=3, share=10)).shadow
    second = (await bench.rollouts.set_shadow("ann", *WHO, number=3, share=20)).shadow
    third = (await bench.rollouts.set_shadow("ann", *WHO, number=2, share=20)).shadow
    assert first and second and third
    assert (first.salt == second.salt, second.salt == third.salt, second.share) == (True, False, 20)


@pytest.mark.parametrize(("number", "share", "kind"), [
    (1, 10, Conflict), (4, 10, Conflict), (9, 10, NotFound), (3, 101, InvalidRequest), (3, 0.001, InvalidRequest)])
async def test_a_shadow_is_a_ready_version_beside_the_stable_with_a_share_in_percent(
    bench: Bench, number: int, share: float, kind: type[Exception],
) -> None:
    with pytest.raises(kind):
        await bench.rollouts.set_shadow("ann", *WHO, number=number, share=share)


async def test_a_shadow_needs_a_slot_too(bench: Bench) -> None:
    bench.fleet.views["one"] = view("one", *VERSIONS.values(), slots=1)
    with pytest.raises(Conflict, match="too few"):
        await bench.rollouts.set_shadow("ann", *WHO, number=3)
    await bench.rollouts.set_shadow("ann", *WHO, number=3, force=True)
    assert bench.audit[-1][1]["force"] is True


async def test_taking_away_a_shadow_that_is_not_there_writes_nothing(bench: Bench) -> None:
    await bench.rollouts.set_shadow("ann", *WHO, number=None)
    assert bench.audit == []


@pytest.mark.parametrize("what", ["start", "shadow", *(move.value for move in MOVES if move is not Move.RESUME)])
async def test_a_dry_run_decides_and_answers_as_if_and_neither_writes_loads_nor_tells(bench: Bench, what: str) -> None:
    bench.fleet.views["one"] = view("one")
    if what == "start":
        ask = bench.start(dry_run=True)
    elif what == "shadow":
        ask = bench.rollouts.set_shadow("ann", *WHO, number=3, dry_run=True)
    else:
        bench.put_rollout(in_phase(Phase.RUNNING))
        ask = bench.move(Move(what), dry_run=True)
    before = bench.registry.truth
    would_be = await ask
    assert would_be != bench.release
    assert would_be.revision == bench.release.revision
    assert bench.registry.truth is before
    assert (bench.audit, bench.told, bench.fleet.loads) == ([], [], [])


async def test_while_the_registry_is_away_nothing_is_even_loaded(bench: Bench) -> None:
    bench.fleet.views["one"] = view("one")
    bench.registry.connected = bench.registry.answers = False
    for dry_run in (False, True):
        with pytest.raises(RegistryUnavailable):
            await bench.start(dry_run=dry_run)
    assert bench.fleet.loads == []


async def test_a_subject_is_explained_and_the_history_is_of_this_release_alone(bench: Bench) -> None:
    told = await bench.rollouts.explain(*WHO, "u")
    assert (told.version, told.replicas) == (1, ("one",))
    with pytest.raises(NotFound):
        await bench.rollouts.explain("acme", "none", "u")
    with pytest.raises(NotFound):
        await bench.rollouts.history("acme", "none")
    await bench.start()
    assert [change.action for change in await bench.rollouts.history(*WHO)] == ["release.start"]
