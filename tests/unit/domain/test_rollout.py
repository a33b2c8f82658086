"""Only the table's moves are possible, a weight never falls, and the analyst goes on with evidence alone."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.domain.analysis import Verdict
from gateway.domain.errors import Conflict, InvalidRequest
from gateway.domain.plan import read
from gateway.domain.rollout import (
    TABLE,
    Decision,
    Move,
    Phase,
    Rollout,
    Shadow,
    apply,
    approve,
    diagram,
    draw_up,
    is_ripe,
    next_step,
)

PLAN = read("5% for 10m min 200, 25% for 10m min 500 gate, 50%, 100%; within 1h")
DRAWN = draw_up(None, canary=4, baseline=3, plan=PLAN, salt="5f", by="ann")
STARTED = apply(DRAWN, Move.START, 1000.0)
IN_PHASE: dict[Phase, Rollout] = {
    Phase.IDLE: DRAWN,
    Phase.RUNNING: STARTED,
    Phase.PAUSED: apply(STARTED, Move.PAUSE, 1100.0, reason="lunch"),
    Phase.WAITING: apply(STARTED, Move.WAIT, 1100.0),
    Phase.PROMOTED: apply(STARTED, Move.PROMOTE, 1100.0),
    Phase.ABORTED: apply(STARTED, Move.ABORT, 1100.0, reason="bad"),
}
LEGAL = {
    ("idle", "start"): "running",
    ("running", "shift"): "running", ("running", "wait"): "waiting", ("running", "pause"): "paused",
    ("running", "promote"): "promoted", ("running", "abort"): "aborted",
    ("paused", "resume"): "running", ("paused", "promote"): "promoted", ("paused", "abort"): "aborted",
    ("waiting", "shift"): "running", ("waiting", "promote"): "promoted", ("waiting", "abort"): "aborted",
}
LIVE = (Phase.RUNNING, Phase.PAUSED, Phase.WAITING)


def at(weight: float, now: float = 1000.0, rollout: Rollout = STARTED) -> Rollout:
    """The rollout, running at `weight` since `now`."""
    return apply(rollout, Move.SHIFT, now, weight=weight)


@pytest.mark.parametrize(("phase", "move"), list(product(Phase, Move)))
def test_a_move_leads_where_the_rules_say_and_any_other_is_refused_and_changes_nothing(
    phase: Phase, move: Move,
) -> None:
    rollout = IN_PHASE[phase]
    before = replace(rollout)
    target = LEGAL.get((phase.value, move.value))
    if target is None:
        with pytest.raises(Conflict, match=f"is {phase} and cannot {move}"):
            apply(rollout, move, 2000.0)
    else:
        moved = apply(rollout, move, 2000.0, reason="because")
        assert (moved.phase, moved.moved_at, moved.reason) == (target, 2000.0, "because")
    assert rollout == before


def test_every_phase_is_in_the_table() -> None:
    assert set(TABLE) == set(Phase)


@pytest.mark.parametrize("phase", [p for p in Phase if TABLE[p]])
def test_a_refusal_says_what_can_be_asked_instead_and_never_the_analysts_own_move(phase: Phase) -> None:
    with pytest.raises(Conflict) as refused:
        apply(IN_PHASE[phase], Move.START if phase is not Phase.IDLE else Move.ABORT, 2000.0)
    offered = refused.value.message.rsplit("it can ", 1)[1].rstrip(".").split(" or ")
    assert offered == [move for move in TABLE[phase] if move != "wait"]


def test_the_diagram_has_an_arrow_for_every_move_and_no_other() -> None:
    lines = [line.strip() for line in diagram().splitlines()]
    assert lines[0] == "stateDiagram-v2"
    ends = {"[*] --> idle", "promoted --> [*]", "aborted --> [*]"}
    assert set(lines[1:]) == {f"{phase} --> {target}: {move}" for (phase, move), target in LEGAL.items()} | ends
    assert len(lines) == 1 + len(LEGAL) + len(ends)


def test_a_start_puts_the_first_weight_in_force() -> None:
    assert (STARTED.weight, STARTED.step, STARTED.started_at, STARTED.step_since) == (5, 0, 1000, 1000)
    assert DRAWN.weight == 0


def test_a_shift_goes_to_the_plans_next_weight_or_to_the_one_asked_for() -> None:
    shifted = apply(STARTED, Move.SHIFT, 1500.0)
    assert (shifted.weight, shifted.step, shifted.step_since, shifted.started_at) == (25, 1, 1500, 1000)
    between = at(30)
    assert (between.weight, between.step) == (30, 1)
    assert apply(between, Move.SHIFT, 1500.0).weight == 50


@pytest.mark.parametrize("weight", [0, 4.99, 5])
def test_a_shift_that_would_take_callers_back_is_refused(weight: float) -> None:
    with pytest.raises(Conflict, match="only raises"):
        apply(STARTED, Move.SHIFT, 2000.0, weight=weight)


@pytest.mark.parametrize("weight", [100.5, 5.001, float("nan")])
def test_a_shift_to_what_is_no_percentage_is_refused(weight: float) -> None:
    with pytest.raises(InvalidRequest, match="is no percentage"):
        apply(STARTED, Move.SHIFT, 2000.0, weight=weight)


def test_a_shift_at_the_end_of_the_plan_is_refused() -> None:
    with pytest.raises(Conflict, match="end of its plan: promote or abort"):
        apply(at(100), Move.SHIFT, 2000.0)


def test_an_aborted_canary_gets_no_caller_and_a_promoted_one_every_caller() -> None:
    aborted, promoted = apply(at(25), Move.ABORT, 2000.0, reason="slow"), apply(at(25), Move.PROMOTE, 2000.0)
    assert (aborted.weight, aborted.step, aborted.reason, aborted.is_live) == (0, 1, "slow", False)
    assert (promoted.weight, promoted.is_live) == (100, False)


@pytest.mark.parametrize("phase", LIVE)
def test_no_other_rollout_starts_while_one_is_live(phase: Phase) -> None:
    with pytest.raises(Conflict, match="promote or abort it before another starts"):
        draw_up(IN_PHASE[phase], canary=5, baseline=3, plan=PLAN, salt="60", by="ann")


@pytest.mark.parametrize("phase", [p for p in Phase if p not in LIVE])
def test_a_rollout_that_is_over_makes_room_for_another(phase: Phase) -> None:
    drawn = draw_up(IN_PHASE[phase], canary=5, baseline=3, plan=PLAN, salt="60", by="ann", forced=True)
    assert (drawn.phase, drawn.canary, drawn.salt, drawn.reason, drawn.forced) == (Phase.IDLE, 5, "60", "", True)


def test_the_stable_version_needs_no_rollout() -> None:
    with pytest.raises(Conflict, match="is the stable version already"):
        draw_up(None, canary=3, baseline=3, plan=PLAN, salt="5f", by="ann")


def test_a_promote_waits_for_another_operators_approval() -> None:
    needs = replace(STARTED, approvals_needed=1)
    with pytest.raises(Conflict, match="one more operator must approve"):
        apply(needs, Move.PROMOTE, 2000.0)
    with pytest.raises(Conflict, match="another operator must approve"):
        approve(needs, "ann")
    approved = approve(needs, "bob")
    assert apply(approved, Move.PROMOTE, 2000.0).phase is Phase.PROMOTED
    assert apply(needs, Move.ABORT, 2000.0).phase is Phase.ABORTED


def test_an_operator_who_approves_twice_counts_once() -> None:
    needs = replace(STARTED, approvals_needed=2)
    once = approve(needs, "bob")
    assert approve(once, "bob") == once
    assert once.approvals_missing == 1


@pytest.mark.parametrize("phase", [p for p in Phase if p not in LIVE])
def test_only_a_live_rollout_can_be_approved(phase: Phase) -> None:
    with pytest.raises(Conflict, match="nothing to approve"):
        approve(IN_PHASE[phase], "bob")


@pytest.mark.parametrize("phase", list(Phase))
def test_a_rollout_reads_back_from_the_registrys_json(phase: Phase) -> None:
    rollout = replace(IN_PHASE[phase], approved_by=("bob",), approvals_needed=1)
    document = json.loads(json.dumps(asdict(rollout), allow_nan=False))
    assert Rollout.from_document(document) == rollout
    assert Rollout.from_document({**document, "later": 1}) == rollout


def test_a_shadow_reads_back_from_the_registrys_json() -> None:
    shadow = Shadow(number=4, share=2.5, salt="5f")
    assert Shadow.from_document({**json.loads(json.dumps(asdict(shadow))), "later": 1}) == shadow


# --- what the analyst does -------------------------------------------------------------------------------------------

def ask(rollout: Rollout, verdict: Verdict, now: float, requests: int = 10_000, finding: str = "") -> Decision:
    return next_step(rollout, verdict, now, requests=requests, finding=finding)


@pytest.mark.parametrize("phase", LIVE)
def test_a_failed_canary_is_aborted_wherever_the_rollout_stands(phase: Phase) -> None:
    decision = ask(IN_PHASE[phase], Verdict.FAIL, 1000.0, requests=0, finding="errors 4.1 % against 1.9 %.")
    assert decision == Decision(Move.ABORT, "The canary failed at 5%: errors 4.1 % against 1.9 %.")


@pytest.mark.parametrize(("phase", "verdict"), list(product([p for p in Phase if p not in LIVE], Verdict)))
def test_a_rollout_that_is_not_live_is_left_alone(phase: Phase, verdict: Verdict) -> None:
    assert ask(IN_PHASE[phase], verdict, 10**9).move is None


@pytest.mark.parametrize(("phase", "verdict"), list(product(
    [Phase.PAUSED, Phase.WAITING], [v for v in Verdict if v is not Verdict.FAIL])))
def test_a_rollout_that_an_operator_holds_is_left_alone_even_after_the_deadline(phase: Phase, verdict: Verdict) -> None:
    assert ask(IN_PHASE[phase], verdict, 10**9).move is None


@pytest.mark.parametrize("verdict", [v for v in Verdict if v is not Verdict.FAIL])
def test_a_step_is_never_left_before_its_least_time(verdict: Verdict) -> None:
    decision = ask(STARTED, verdict, 1599.9)
    assert (decision.move, decision.until, decision.tell) == (None, 1600.0, False)


def test_a_step_is_never_left_before_its_least_requests() -> None:
    decision = ask(STARTED, Verdict.PASS, 1600.0, requests=199)
    assert (decision.move, decision.until, decision.tell) == (None, 1000 + 3600, True)
    assert "at least 200 requests of the canary and has 199" in decision.reason
    assert ask(STARTED, Verdict.PASS, 1600.0, requests=200).move is Move.SHIFT


@given(st.floats(1000, 2000), st.integers(0, 400))
def test_a_passed_step_is_left_exactly_when_it_is_ripe(now: float, requests: int) -> None:
    assert is_ripe(STARTED, now, requests=requests) == (ask(STARTED, Verdict.PASS, now, requests).move is Move.SHIFT)


@pytest.mark.parametrize("verdict", [Verdict.INCONCLUSIVE, Verdict.NO_TRAFFIC])
def test_without_a_pass_a_step_is_held_and_told_of_until_the_deadline_and_then_aborted(verdict: Verdict) -> None:
    held = ask(STARTED, verdict, 4599.9, finding="3 of 400 requests.")
    assert held == Decision(
        None, f"Step 1 of 4 (5%) needs a pass and the verdict is {verdict}: 3 of 400 requests.", 4600.0, True)
    late = ask(STARTED, verdict, 4600.0)
    assert late.move is Move.ABORT
    assert late.reason == f"No pass within 1h. Step 1 of 4 (5%) needs a pass and the verdict is {verdict}."


def test_a_plan_that_holds_at_its_deadline_is_held_and_told_of_for_ever() -> None:
    held = ask(replace(STARTED, plan=read("5%, 100%; within 1h else hold")), Verdict.NO_TRAFFIC, 10**9)
    assert (held.move, held.until, held.tell) == (None, None, True)


def test_a_pause_starts_the_deadline_anew_but_not_the_least_time() -> None:
    resumed = apply(apply(STARTED, Move.PAUSE, 1100.0), Move.RESUME, 9000.0)
    held = ask(resumed, Verdict.INCONCLUSIVE, 9001.0)
    assert (held.move, held.until) == (None, 9000 + 3600)
    assert ask(resumed, Verdict.PASS, 9001.0).move is Move.SHIFT


def test_a_passed_step_with_a_gate_waits_for_an_operator_to_shift() -> None:
    gated = at(25)
    decision = ask(gated, Verdict.PASS, 1600.0)
    assert (decision.move, decision.tell) == (Move.WAIT, True)
    waiting = apply(gated, Move.WAIT, 1600.0, reason=decision.reason)
    assert waiting.weight == 25
    assert ask(waiting, Verdict.PASS, 10**9).move is None
    assert apply(waiting, Move.SHIFT, 2000.0).weight == 50


@pytest.mark.parametrize("verdict", [Verdict.PASS, Verdict.INCONCLUSIVE, Verdict.NO_TRAFFIC])
def test_at_100_percent_where_nothing_is_left_to_compare_with_no_pass_is_needed(verdict: Verdict) -> None:
    assert ask(at(100), verdict, 1000.0, requests=0).move is Move.PROMOTE


def test_at_the_end_of_a_plan_that_needs_an_approval_the_analyst_waits_for_it() -> None:
    needs = replace(at(100), approvals_needed=1)
    assert ask(needs, Verdict.PASS, 1600.0).move is Move.WAIT
    assert ask(approve(needs, "bob"), Verdict.PASS, 1600.0).move is Move.PROMOTE


def test_a_good_canary_goes_through_its_plan_in_the_plans_time() -> None:
    rollout, now, weights = STARTED, 1000.0, [STARTED.weight]
    while rollout.is_live:
        now += 15
        decision = ask(rollout, Verdict.PASS, now)
        if decision.move is not None:
            rollout = apply(rollout, decision.move, now, reason=decision.reason)
            weights.append(rollout.weight)
        elif rollout.phase is Phase.WAITING:
            rollout = apply(rollout, Move.SHIFT, now)
            weights.append(rollout.weight)
    assert rollout.phase is Phase.PROMOTED
    assert weights == [5, 25, 25, 50, 100, 100]
    assert 1000 + 1200 <= now <= 1000 + 1200 + 6 * 15


PLANS = st.sampled_from(["5% for 10s min 2, 25% gate, 50%, 100%", "100%", "1%, 100% for 5s gate; within 20s else hold"])
ACTS = st.one_of(
    st.tuples(st.sampled_from(Move), st.none() | st.floats(0, 110).map(lambda weight: round(weight, 2))),
    st.tuples(st.sampled_from(Verdict), st.integers(0, 4)),
)


@given(PLANS, st.lists(st.tuples(ACTS, st.floats(0, 30)), max_size=40), st.integers(0, 2))
def test_whatever_operators_and_the_analyst_do_callers_are_never_taken_back_but_by_an_abort(
    plan: str, acts: list[tuple[tuple[Move | Verdict, float | None], float]], approvals: int,
) -> None:
    rollout = apply(replace(DRAWN, plan=read(plan), approvals_needed=approvals), Move.START, 0.0)
    now = 0.0
    for (act, number), seconds in acts:
        before, now = rollout, now + seconds
        rollout = _tried(rollout, lambda r, a=act, n=number, t=now: _after(r, a, n, t))  # type: ignore[misc]
        assert rollout.weight >= before.weight or rollout.phase is Phase.ABORTED
        assert before.is_live or rollout == before
        assert rollout.is_live == (rollout.weight > 0 and rollout.phase is not Phase.PROMOTED)
        assert rollout.phase is not Phase.PROMOTED or approvals == 0


def _after(rollout: Rollout, act: Move | Verdict, number: float | None, now: float) -> Rollout:
    if isinstance(act, Move):
        return apply(rollout, act, now, weight=number)
    decision = next_step(rollout, act, now, requests=int(number or 0))
    if decision.move is None:
        return rollout
    return apply(rollout, decision.move, now, reason=decision.reason)


def _tried(rollout: Rollout, change: Callable[[Rollout], Rollout]) -> Rollout:
    try:
        return change(rollout)
    except (Conflict, InvalidRequest):
        return rollout
