"""Judges every live canary, once a second, and makes the moves that its plan and the evidence allow.

Every gateway runs one; the one that holds the lease judges. Should two believe that they hold it (one was stopped for
longer than a lease lasts, and goes on), no step is moved on from twice: a move says which rollout it was decided on,
and which hold of the lease decided, and the registry takes it only while both are right.
"""

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Final, Protocol, TypeAlias

from gateway.controlplane.changes import Snapshots
from gateway.domain import reconcile
from gateway.domain.analysis import DEFAULTS, Analysis, Thresholds, Verdict, analyse
from gateway.domain.counts import TrackCounts
from gateway.domain.errors import LostRace, RegistryUnavailable, SwitchyardError
from gateway.domain.happening import Happening, Kind, Notify
from gateway.domain.model import Release
from gateway.domain.rollout import Decision, Move, Rollout, is_ripe, next_step
from gateway.domain.routing import Track
from gateway.domain.windows import epoch_of
from gateway.system import System

ACTOR: Final = "analyst"
LEASE: Final = "analyst"
LEASE_SECONDS: Final = 5.0
LOOKS_AT_ONCE: Final = 16
TELL_SECONDS: Final = 10.0
"""A verdict that comes and goes is told no more often than this; one that fails is told at once."""
NONE: Final = TrackCounts()

_NOTHING_YET = ((Verdict.INCONCLUSIVE,), (Verdict.NO_TRAFFIC,))

_Who: TypeAlias = tuple[str, str]
"""(tenant, adapter)"""


class Leases(Protocol):
    """The registry's leases; see `gateway.clients.registry`."""

    async def acquire_lease(self, name: str, holder: str, seconds: float) -> int | None: ...
    async def release_lease(self, name: str, holder: str) -> None: ...


class Evidence(Protocol):
    """What all gateways counted; see `gateway.clients.tallies.Tallies`."""

    async def read(self, tenant: str, adapter: str, epoch: str) -> Mapping[tuple[str, int], TrackCounts]: ...


class Analyses(Protocol):
    """Where the latest analyses are kept; see `gateway.clients.tallies.Analyses`."""

    async def keep(self, tenant: str, adapter: str, document: Mapping[str, Any], fence: int) -> bool: ...
    async def latest(self, tenant: str, adapter: str) -> dict[str, Any] | None: ...


class Moves(Protocol):
    """What the analyst asks of `gateway.controlplane.rollouts.Rollouts`."""

    async def move(
        self, actor: str, tenant: str, adapter: str, move: Move, *, reason: str = "",
        expected: Rollout | None = None, analysis: Mapping[str, Any] | None = None, fence: int | None = None,
    ) -> Release: ...
    async def note(
        self, actor: str, tenant: str, adapter: str, analysis: Mapping[str, Any], *, expected: Rollout,
        reason: str = "", fence: int | None = None,
    ) -> Release: ...


@dataclass(slots=True)
class _Watch:
    """What this holder of the lease knows of one epoch. Monotonic seconds; `told`: what was told last (see `_told`)."""

    epoch: str
    looks: int
    told: tuple[str, ...]
    told_at: float = float("-inf")
    judged: tuple[TrackCounts, TrackCounts, bool] | None = None
    analysis: Analysis | None = None
    refused: str = ""
    refusals: int = 0
    patient_until: float = float("-inf")


class Analyst:
    """One loop; the looks at the releases run beside it, each release's at most once at a time, so that one whose
    canary takes long to load keeps no other from being aborted."""

    def __init__(
        self, leases: Leases, snapshots: Snapshots, evidence: Evidence, analyses: Analyses, rollouts: Moves,
        system: System, log: Any, *, notify: Notify, thresholds: Thresholds = DEFAULTS, interval: float = 1.0,
    ) -> None:
        self._leases = leases
        self._snapshots = snapshots
        self._evidence = evidence
        self._analyses = analyses
        self._rollouts = rollouts
        self._system = system
        self._log = log
        self._notify = notify
        self._thresholds = thresholds
        self._interval = interval
        self._holder = system.hex(8)
        self._leads = False
        self._room = asyncio.Semaphore(LOOKS_AT_ONCE)
        self._looks: dict[_Who, asyncio.Task[None]] = {}
        self._watched: dict[_Who, _Watch] = {}

    @property
    def leads(self) -> bool:
        """Did this gateway hold the lease at the last step?"""
        return self._leads

    async def run(self) -> None:
        """Step for ever; ends by cancellation, and then gives the lease away."""
        try:
            while True:
                await self.step()
                await asyncio.sleep(self._interval)
        finally:
            await self.close()

    async def close(self) -> None:
        """End the looks, and give the lease away; what they did not finish the next holder does."""
        looks = list(self._looks.values())
        for look in looks:
            look.cancel()
        await asyncio.gather(*looks, return_exceptions=True)
        if self._leads:
            self._leads = False
            with suppress(RegistryUnavailable):  # then it runs out by itself
                await self._leases.release_lease(LEASE, self._holder)

    async def step(self) -> None:
        """Renew the lease, and begin a look at every live release."""
        fence = await self._lead()
        self._leads = fence is not None
        live = {who: release for who, release in self._snapshots.current.releases.items() if release.live}
        for who in self._watched.keys() - (live.keys() if self._leads else set()):
            del self._watched[who]  # others may judge meanwhile: what they told stands on the release
        if fence is None:
            return
        for who, release in live.items():
            if who not in self._looks:
                task = self._looks[who] = asyncio.create_task(self._safely(who, release, fence))
                task.add_done_callback(partial(self._looked, who))

    async def settle(self) -> None:
        """Wait until the looks that run now have ended."""
        await asyncio.gather(*self._looks.values(), return_exceptions=True)

    def _looked(self, who: _Who, task: asyncio.Task[None]) -> None:
        """A look that ends by an error is a fault of ours: say so, and go on with the others."""
        self._looks.pop(who, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._log.error("look_died", tenant=who[0], adapter=who[1], exc_info=error)

    async def _lead(self) -> int | None:
        try:
            return await self._leases.acquire_lease(LEASE, self._holder, LEASE_SECONDS)
        except RegistryUnavailable:
            return None
        except SwitchyardError as error:
            self._log.error("lease_refused", lease=LEASE, error=error.message)
            return None

    async def _safely(self, who: _Who, release: Release, fence: int) -> None:
        try:
            async with self._room:
                await self._look(who, release, fence)
        except LostRace:
            pass  # somebody else moved it: the next look sees what it became
        except RegistryUnavailable as error:
            self._log.info("look_put_off", tenant=who[0], adapter=who[1], error=error.message)
        except SwitchyardError as error:
            self._log.error("look_failed", tenant=who[0], adapter=who[1], error=error.message)

    async def _look(self, who: _Who, release: Release, fence: int) -> None:
        rollout = release.live
        assert rollout is not None, "only live releases are looked at"
        watch = await self._watch(who, release, rollout)
        counts = await self._evidence.read(*who, watch.epoch)
        stable = counts.get((Track.STABLE, rollout.baseline), NONE)
        canary = counts.get((Track.CANARY, rollout.canary), NONE)
        now = self._system.now()
        analysis = self._judge(watch, rollout, stable, canary, now)
        decision = next_step(rollout, analysis.verdict, now, requests=canary.requests, finding=analysis.reason)
        document = {
            **analysis.to_document(), "looks": watch.looks, "epoch": watch.epoch, "at": now, "step": rollout.step,
            "canary": rollout.canary, "stable": rollout.baseline, "thresholds": asdict(self._thresholds),
            "tracks": {"stable": summary(stable), "canary": summary(canary)},
            "decision": {"move": decision.move, "reason": decision.reason, "until": decision.until,
                         "held": decision.tell and decision.move is None, "refused": watch.refused or None}}
        if await self._analyses.keep(*who, document, fence):
            await self._act(who, rollout, watch, decision, document, fence)

    async def _watch(self, who: _Who, release: Release, rollout: Rollout) -> _Watch:
        epoch, watch = epoch_of(rollout), self._watched.get(who)
        if watch is None or watch.epoch != epoch:
            kept = await self._analyses.latest(*who)
            looks = int(kept["looks"]) if kept is not None and kept["epoch"] == epoch else 0
            noted = release.analysis
            told = _told(noted) if noted is not None and noted.get("epoch") == epoch else ()
            watch = self._watched[who] = _Watch(epoch, looks, told)
        watch.looks += 1
        return watch

    def _judge(
        self, watch: _Watch, rollout: Rollout, stable: TrackCounts, canary: TrackCounts, now: float,
    ) -> Analysis:
        """The analysis; of the same counts it is the same."""
        judged = (stable, canary, is_ripe(rollout, now, requests=canary.requests))
        if watch.analysis is None or watch.judged != judged:
            watch.judged = judged
            watch.analysis = analyse(
                stable, canary, weight=rollout.weight, thresholds=self._thresholds, steps=rollout.plan.compared,
                is_final=judged[2], looks=watch.looks)
        return watch.analysis

    async def _act(
        self, who: _Who, rollout: Rollout, watch: _Watch, decision: Decision, document: Mapping[str, Any], fence: int,
    ) -> None:
        """Move, or hold; and tell what is new. A move keeps the numbers on the release, and what it tells has them."""
        if decision.move is None:
            if self._is_news(watch, document):
                await self._rollouts.note(
                    ACTOR, *who, document, expected=rollout, reason=_reason(document), fence=fence)
                self._was_told(watch, document)
            return
        moved = await self._move(who, rollout, watch, decision, document, fence)
        if moved is not None and watch.told != _told(document):
            self._notify(Happening(
                kind=Kind.VERDICT, tenant=who[0], adapter=who[1], release=moved, reason=_reason(document),
                at=self._system.now(), actor=ACTOR, analysis=document))
            self._was_told(watch, document)

    async def _move(
        self, who: _Who, rollout: Rollout, watch: _Watch, decision: Decision, document: Mapping[str, Any], fence: int,
    ) -> Release | None:
        """Make the move. One that is refused (a freeze, an evaluation that is missing, a replica that cannot load the
        canary) is tried again, more and more slowly; an abort, which needs nothing, at every look."""
        assert decision.move is not None, "there is a move to make"
        if decision.move is not Move.ABORT and self._system.monotonic() < watch.patient_until:
            return None
        try:
            return await self._rollouts.move(
                ACTOR, *who, decision.move, reason=decision.reason, expected=rollout, analysis=document, fence=fence)
        except (LostRace, RegistryUnavailable):
            raise
        except SwitchyardError as error:
            watch.refusals += 1
            watch.patient_until = self._system.monotonic() + reconcile.patience(watch.refusals)
            if watch.refused != error.message:
                watch.refused = error.message
                self._log.warning("move_refused", tenant=who[0], adapter=who[1], move=decision.move,
                                  error=error.message)
            return None

    def _is_news(self, watch: _Watch, document: Mapping[str, Any]) -> bool:
        """Is it to be told? At the start of a step that nothing can be said as yet is none."""
        told = _told(document)
        if told == watch.told or (not watch.told and told in _NOTHING_YET):
            return False
        return self._system.monotonic() >= watch.told_at + TELL_SECONDS

    def _was_told(self, watch: _Watch, document: Mapping[str, Any]) -> None:
        watch.told, watch.told_at = _told(document), self._system.monotonic()


def summary(counts: TrackCounts) -> dict[str, Any]:
    """A track's counts for the eye: calls, errors by class, and the middle and the tail of each distribution.

    Seconds, or tokens; None without samples.
    """
    spread = {name: _spread(counts, name) for name in counts.edges}
    return {
        "requests": counts.requests, "completed": counts.completed, "errors": counts.errors,
        "client_errors": counts.client_errors, "server_errors": counts.server_errors,
        "upstream_failures": counts.upstream_failures, "timeouts": counts.timeouts,
        "empty_outputs": counts.empty_outputs, "length_finishes": counts.length_finishes,
        "json_asked": counts.json_asked, "json_invalid": counts.json_invalid,
        "completion_tokens": counts.completion_tokens, **spread}


def _spread(counts: TrackCounts, name: str) -> dict[str, float | None]:
    histogram = counts.histogram(name)
    return {"samples": histogram.samples, "p50": histogram.quantile(0.5), "p95": histogram.quantile(0.95)}


def _told(document: Mapping[str, Any]) -> tuple[str, ...]:
    """What of an analysis is worth telling when it changes, its numbers apart: the verdict, what made it so, and
    whether it holds a step that has lasted as long as it must, or longer than it may (`late`)."""
    verdict, decision = Verdict(document["verdict"]), document["decision"]
    if verdict is Verdict.FAIL:
        return (verdict, *(f["metric"] for f in document["findings"] if f["verdict"] == Verdict.FAIL))
    if not decision["held"]:
        return (verdict,)
    lacking = [f["metric"] for f in document["findings"] if f["required"] and f["verdict"] == Verdict.INCONCLUSIVE]
    return (verdict, "late" if decision["until"] is None else "held", *lacking)


def _reason(document: Mapping[str, Any]) -> str:
    decision = document["decision"]
    return str(document["reason"] if decision["move"] else decision["reason"])
