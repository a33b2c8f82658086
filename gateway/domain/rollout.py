"""The course of a release from start to promote or abort: a table of phases and moves, and what the analyst does next.

The rules:

1. `TABLE` names every legal move; any other raises Conflict and changes nothing. A rollout is a frozen value, so a move
   gives a new one, which goes into its release, and so into the registry, in one write.
2. A weight is only ever raised: a caller stays on its track. Who wants fewer callers on the canary aborts.
3. Promote makes the canary the stable version; abort takes the canary away. Both end the rollout for good.
4. A failed canary is aborted wherever the rollout stands, also when it is paused or waits at a gate.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Self

from gateway.domain.analysis import Verdict
from gateway.domain.errors import Conflict
from gateway.domain.plan import AtDeadline, Plan, Step, as_duration
from gateway.domain.split import check_percent


class Phase(StrEnum):
    """Where a rollout stands."""

    IDLE = "idle"          # drawn up; no caller gets the canary yet
    RUNNING = "running"    # a step's weight is in force, and the analyst moves on when the evidence allows
    PAUSED = "paused"      # the weight stays until an operator resumes
    WAITING = "waiting"    # the weight stays until an operator says go: a gate, or an approval is missing
    PROMOTED = "promoted"  # the canary is the stable version
    ABORTED = "aborted"    # the canary takes no traffic any more


class Move(StrEnum):
    """What one may ask of a rollout; `wait` is the analyst's alone."""

    START = "start"
    SHIFT = "shift"
    WAIT = "wait"
    PAUSE = "pause"
    RESUME = "resume"
    PROMOTE = "promote"
    ABORT = "abort"


TABLE: Mapping[Phase, Mapping[Move, Phase]] = MappingProxyType({
    phase: MappingProxyType(moves) for phase, moves in {
        Phase.IDLE: {Move.START: Phase.RUNNING},
        Phase.RUNNING: {Move.SHIFT: Phase.RUNNING, Move.WAIT: Phase.WAITING, Move.PAUSE: Phase.PAUSED,
                        Move.PROMOTE: Phase.PROMOTED, Move.ABORT: Phase.ABORTED},
        Phase.PAUSED: {Move.RESUME: Phase.RUNNING, Move.PROMOTE: Phase.PROMOTED, Move.ABORT: Phase.ABORTED},
        Phase.WAITING: {Move.SHIFT: Phase.RUNNING, Move.PROMOTE: Phase.PROMOTED, Move.ABORT: Phase.ABORTED},
        Phase.PROMOTED: {},
        Phase.ABORTED: {},
    }.items()
})

LIVE = frozenset({Phase.RUNNING, Phase.PAUSED, Phase.WAITING})
"""The phases in which callers get the canary."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """A canary's way to the traffic of `baseline`, the version that was stable when it was drawn up.

    `weight`: the percentage of callers that get the canary now; 0 unless it is live, 100 once promoted. `step`: index
    of the plan's step in force, or last in force. `salt`: what the split is hashed with. `forced`: an operator overrode
    a check to start it. `approvals_needed`: operators other than `started_by` who must approve before a promote.
    `step_since`: when the weight came into force; `moved_at`: the last move; `reason`: why it was made. Times are Unix
    seconds, 0 for not yet.
    """

    canary: int
    baseline: int
    plan: Plan
    salt: str
    started_by: str = ""
    forced: bool = False
    approvals_needed: int = 0
    approved_by: tuple[str, ...] = ()
    phase: Phase = Phase.IDLE
    step: int = 0
    weight: float = 0.0
    started_at: float = 0.0
    step_since: float = 0.0
    moved_at: float = 0.0
    reason: str = ""

    @property
    def is_live(self) -> bool:
        """Do callers get the canary?"""
        return self.phase in LIVE

    @property
    def approvals_missing(self) -> int:
        """How many more operators must approve before a promote."""
        return max(0, self.approvals_needed - len(self.approved_by))

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Self:
        """The rollout that `dataclasses.asdict` made; fields that this release does not know are dropped."""
        values = {field.name: document[field.name] for field in fields(cls) if field.name in document}
        values["plan"] = Plan.from_document(document["plan"])
        values["phase"] = Phase(document["phase"])
        values["approved_by"] = tuple(document.get("approved_by", ()))
        return cls(**values)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shadow:
    """The version that gets a copy of `share` percent of an adapter's requests; `salt`: what they are sampled with."""

    number: int
    share: float
    salt: str

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Self:
        """The shadow that `dataclasses.asdict` made; fields that this release does not know are dropped."""
        return cls(**{field.name: document[field.name] for field in fields(cls) if field.name in document})


def draw_up(
    before: Rollout | None, *, canary: int, baseline: int, plan: Plan, salt: str, by: str, forced: bool = False,
    approvals_needed: int = 0,
) -> Rollout:
    """A rollout of `canary` that has not started; Conflict while the release's rollout `before` is live."""
    if before is not None and before.is_live:
        raise Conflict(
            f"The rollout of version {before.canary} is {before.phase} at {before.weight:g}%: promote or abort it "
            "before another starts.")
    if canary == baseline:
        raise Conflict(f"Version {canary} is the stable version already; it needs no rollout.", param="canary")
    return Rollout(canary=canary, baseline=baseline, plan=plan, salt=salt, started_by=by, forced=forced,
                   approvals_needed=approvals_needed)


def apply(
    rollout: Rollout, move: Move, now: float, *, weight: float | None = None, reason: str = "",
) -> Rollout:
    """The rollout after `move`; Conflict when the table has no such move, or the rules above forbid it.

    `weight`, for a shift alone: the percentage to raise to (None: the plan's next). A pause starts the step's deadline
    anew, but not its least time, since the canary's requests went on meanwhile.
    """
    phase = TABLE[rollout.phase].get(move)
    if phase is None:
        raise Conflict(_illegal(rollout, move))
    moved = replace(rollout, phase=phase, moved_at=now, reason=reason)
    match move:
        case Move.START:
            return replace(_at_weight(moved, rollout.plan.steps[0].weight, now), started_at=now)
        case Move.SHIFT:
            return _at_weight(moved, _raised(rollout, weight), now)
        case Move.PROMOTE:
            _check_approved(rollout)
            return replace(moved, weight=100.0)
        case Move.ABORT:
            return replace(moved, weight=0.0)
        case Move.WAIT | Move.PAUSE | Move.RESUME:
            return moved


def approve(rollout: Rollout, by: str) -> Rollout:
    """The rollout with that operator's approval of a promote; Conflict unless it is live and another started it."""
    if not rollout.is_live:
        raise Conflict(f"The rollout of version {rollout.canary} is {rollout.phase}: there is nothing to approve.")
    if by == rollout.started_by:
        raise Conflict(f"{by} started this rollout: another operator must approve it.")
    if by in rollout.approved_by:
        return rollout
    return replace(rollout, approved_by=(*rollout.approved_by, by))


@dataclass(frozen=True, slots=True)
class Decision:
    """What the analyst should do: make `move`, or hold when it is None; `reason` says why, in a sentence.

    `until`: when time alone can change a hold, in Unix seconds (None: it cannot). `tell`: something keeps the rollout
    from moving on that an operator should hear of (once, not at every look).
    """

    move: Move | None
    reason: str
    until: float | None = None
    tell: bool = False


def is_ripe(rollout: Rollout, now: float, *, requests: int) -> bool:
    """Has the step in force lasted as long, and had as many of the canary's requests, as the plan asks for?"""
    step = rollout.plan.steps[rollout.step]
    return now >= rollout.step_since + step.min_time and requests >= step.min_requests


def next_step(rollout: Rollout, verdict: Verdict, now: float, *, requests: int, finding: str = "") -> Decision:
    """What to do about a rollout, given the verdict on its canary.

    `requests`: the canary's since `step_since`; `finding`: the analysis' own sentence, taken over into the reason. At
    100% nothing is left to compare with, so that there a step needs no pass, only no fail.
    """
    if not rollout.is_live:
        return Decision(None, f"The rollout is {rollout.phase}.")
    if verdict is Verdict.FAIL:
        return Decision(Move.ABORT, _sentence(f"The canary failed at {rollout.weight:g}%", finding))
    if rollout.phase is not Phase.RUNNING:
        return Decision(None, _sentence(f"The rollout is {rollout.phase} at {rollout.weight:g}%", rollout.reason))
    step = rollout.plan.steps[rollout.step]
    ripe_at = rollout.step_since + step.min_time
    if now < ripe_at:
        return Decision(None, f"{_step(rollout)} takes at least {as_duration(step.min_time)}.", until=ripe_at)
    lack = _lack(rollout, step, verdict, requests)
    return _onward(rollout, step) if lack is None else _held(rollout, step, now, _sentence(lack, finding))


def diagram() -> str:
    """The table as a Mermaid state diagram."""
    arrows = [f"    {phase} --> {target}: {move}" for phase, moves in TABLE.items() for move, target in moves.items()]
    ends = [f"    {phase} --> [*]" for phase, moves in TABLE.items() if not moves]
    return "\n".join(["stateDiagram-v2", f"    [*] --> {Phase.IDLE}", *arrows, *ends]) + "\n"


def _at_weight(rollout: Rollout, weight: float, now: float) -> Rollout:
    return replace(rollout, weight=weight, step=rollout.plan.index_at(weight), step_since=now)


def _raised(rollout: Rollout, weight: float | None) -> float:
    if weight is None:
        following = rollout.plan.weight_after(rollout.weight)
        if following is None:
            raise Conflict(f"The rollout of version {rollout.canary} is at the end of its plan: promote or abort it.")
        return following
    wanted = check_percent(weight, "weight")
    if wanted <= rollout.weight:
        raise Conflict(
            f"The canary has {rollout.weight:g}% of the callers and a shift only raises that, since a caller stays on "
            "its track. Pause to keep it there, or abort.", param="weight")
    return wanted


def _check_approved(rollout: Rollout) -> None:
    if rollout.approvals_missing:
        raise Conflict(
            f"Version {rollout.canary} cannot be promoted yet: {_more_operators(rollout)} must approve, other than "
            f"{rollout.started_by}, who started it.")


def _more_operators(rollout: Rollout) -> str:
    missing = rollout.approvals_missing
    return "one more operator" if missing == 1 else f"{missing} more operators"


def _illegal(rollout: Rollout, move: Move) -> str:
    legal = [str(known) for known in TABLE[rollout.phase] if known is not Move.WAIT]
    can = f"it can {' or '.join(legal)}" if legal else "it is over; start another one"
    return f"The rollout of version {rollout.canary} is {rollout.phase} and cannot {move}: {can}."


def _lack(rollout: Rollout, step: Step, verdict: Verdict, requests: int) -> str | None:
    """What keeps a step from being left, or None."""
    if requests < step.min_requests:
        return f"{_step(rollout)} needs at least {step.min_requests} requests of the canary and has {requests}"
    if verdict is not Verdict.PASS and rollout.weight < 100:
        return f"{_step(rollout)} needs a pass and the verdict is {verdict}"
    return None


def _held(rollout: Rollout, step: Step, now: float, lack: str) -> Decision:
    within = rollout.plan.deadline_of(step)
    if now < rollout.moved_at + within:
        return Decision(None, lack, until=rollout.moved_at + within, tell=True)
    late = f"No pass within {as_duration(within)}. {lack}"
    if rollout.plan.at_deadline is AtDeadline.ABORT:
        return Decision(Move.ABORT, late)
    return Decision(None, late, tell=True)


def _onward(rollout: Rollout, step: Step) -> Decision:
    if step.gate:
        return Decision(Move.WAIT, f"{_step(rollout)} has a gate: an operator must shift, promote or abort.", tell=True)
    if rollout.plan.weight_after(rollout.weight) is not None:
        return Decision(Move.SHIFT, f"{_step(rollout)} is passed.")
    if rollout.approvals_missing:
        return Decision(Move.WAIT, f"The plan is passed; {_more_operators(rollout)} must approve.", tell=True)
    return Decision(Move.PROMOTE, "The plan is passed.")


def _step(rollout: Rollout) -> str:
    return f"Step {rollout.step + 1} of {len(rollout.plan.steps)} ({rollout.weight:g}%)"


def _sentence(text: str, more: str) -> str:
    return f"{text}: {more}" if more else f"{text}."
