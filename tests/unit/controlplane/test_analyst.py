"""What the analyst does with what it is told: it moves, holds, tells what is new, and minds what it is refused."""

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from gateway.controlplane.analyst import LEASE_SECONDS, TELL_SECONDS, Analyst
from gateway.controlplane.changes import Changes
from gateway.controlplane.rollouts import Rollouts
from gateway.domain.counts import TrackCounts
from gateway.domain.errors import RegistryUnavailable
from gateway.domain.freeze import Freeze
from gateway.domain.happening import Happening, Kind
from gateway.domain.model import Adapter, Release, Tenant
from gateway.domain.plan import read
from gateway.domain.rollout import Move, Phase
from gateway.domain.windows import epoch_of
from tests.fixtures.evidence import OneReplica, version
from tests.fixtures.fleet import Log, SteeredSystem
from tests.fixtures.memory import MemoryRegistry

WHO = ("acme", "support")
FINE, EMPTY = TrackCounts(requests=20_000), TrackCounts()
FAILING = TrackCounts(requests=20_000, server_errors=2_000)


class Evidence:
    """Both tracks' counts as the test says, of whatever epoch is asked for."""

    def __init__(self) -> None:
        self.stable, self.canary = EMPTY, EMPTY
        self.asked: list[str] = []
        self.away = False
        self.gate = asyncio.Event()
        self.gate.set()

    async def read(self, tenant: str, adapter: str, epoch: str) -> Mapping[tuple[str, int], TrackCounts]:
        self.asked.append(epoch)
        await self.gate.wait()
        if self.away:
            raise RegistryUnavailable("away")
        return {("stable", 1): self.stable, ("canary", 2): self.canary}


class Kept:
    """Keeps analyses; refuses a writer whose token is below `fence`."""

    def __init__(self) -> None:
        self.document: dict[str, Any] | None = None
        self.fence = 0

    async def keep(self, tenant: str, adapter: str, document: Mapping[str, Any], fence: int) -> bool:
        if fence < self.fence:
            return False
        self.document = dict(document)
        return True

    async def latest(self, tenant: str, adapter: str) -> dict[str, Any] | None:
        return self.document


class Bench:
    def __init__(self) -> None:
        self.ahead = [0.0]
        self.system = SteeredSystem(self.ahead)
        self.registry, self.evidence, self.kept, self.log = MemoryRegistry(), Evidence(), Kept(), Log()
        self.told: list[Happening] = []
        self.registry.put(
            Tenant(name="acme", created_at=0.0), Adapter(tenant="acme", name="support", created_at=0.0, last_number=2),
            version(1), version(2), Release(tenant="acme", adapter="support", stable=1))
        changes = Changes(self.registry, self.registry, self.system)
        self.rollouts = Rollouts(changes, OneReplica(), self.system, notify=self.told.append)
        self.analyst = self.another()

    def another(self) -> Analyst:
        return Analyst(self.registry, self.registry, self.evidence, self.kept, self.rollouts, self.system, self.log,
                       notify=self.told.append)

    @property
    def release(self) -> Release:
        return self.registry.truth.releases[WHO]

    @property
    def kinds(self) -> list[Kind]:
        return [happening.kind for happening in self.told]

    async def start(self, plan: str) -> None:
        await self.rollouts.start("alice", *WHO, canary=2, plan=read(plan))

    async def look(self, seconds: float = 0.0) -> None:
        self.ahead[0] += seconds
        await self.analyst.step()
        await self.analyst.settle()

    def verdicts(self) -> list[str]:
        return [str(h.analysis["verdict"]) for h in self.told if h.kind is Kind.VERDICT and h.analysis]


@pytest.fixture
def bench() -> Bench:
    return Bench()


async def test_a_release_without_a_live_rollout_is_not_looked_at(bench: Bench) -> None:
    await bench.look()
    assert bench.analyst.leads and bench.evidence.asked == []


async def test_the_counts_of_the_present_epoch_are_asked_for(bench: Bench) -> None:
    await bench.start("50% for 1m, 75%, 100%")
    before = bench.release.live
    bench.evidence.stable = bench.evidence.canary = FINE
    await bench.look()
    await bench.look(61)
    after = bench.release.live
    assert before and after and (before.weight, after.weight) == (50, 75)
    await bench.look()
    assert bench.evidence.asked == [epoch_of(before), epoch_of(before), epoch_of(after)]
    assert epoch_of(before) != epoch_of(after)


async def test_pausing_and_resuming_begins_no_new_epoch(bench: Bench) -> None:
    await bench.start("50% for 1m, 100%")
    await bench.look()
    await bench.rollouts.move("alice", *WHO, Move.PAUSE)
    await bench.rollouts.move("alice", *WHO, Move.RESUME)
    await bench.look()
    assert len(set(bench.evidence.asked)) == 1


async def test_a_paused_canary_that_fails_is_aborted_all_the_same(bench: Bench) -> None:
    await bench.start("50% for 1m, 100%")
    await bench.rollouts.move("alice", *WHO, Move.PAUSE)
    bench.evidence.stable, bench.evidence.canary = FINE, FAILING
    await bench.look()
    assert bench.release.rollout and bench.release.rollout.phase is Phase.ABORTED
    assert bench.kinds[-2:] == [Kind.ABORT, Kind.VERDICT] and bench.verdicts() == ["fail"]


async def test_a_gate_waits_for_an_operator_and_is_told_once(bench: Bench) -> None:
    await bench.start("50% gate, 100%")
    bench.evidence.stable = bench.evidence.canary = FINE
    for _ in range(3):
        await bench.look(20)
    assert bench.release.live and bench.release.live.phase is Phase.WAITING
    assert bench.kinds == [Kind.START, Kind.WAIT, Kind.VERDICT]


async def test_a_pass_is_told_when_it_comes_and_not_again(bench: Bench) -> None:
    await bench.start("50% for 1h, 100%")
    for _ in range(3):
        await bench.look(5)
    assert bench.verdicts() == []  # at the start of a step nothing can be said: no news
    bench.evidence.stable = bench.evidence.canary = TrackCounts(requests=20_000, server_errors=400)
    for _ in range(5):
        await bench.look(TELL_SECONDS)
    assert bench.verdicts() == ["pass"]
    assert bench.release.analysis and bench.release.analysis["verdict"] == "pass"
    assert [c.action for c in bench.registry.changes] == ["release.start", "release.verdict"]


async def test_a_verdict_that_comes_and_goes_is_told_no_more_often_than_it_may(bench: Bench) -> None:
    await bench.start("50% for 1h, 100%")
    for number in range(40):
        bench.evidence.stable = bench.evidence.canary = (
            TrackCounts(requests=20_000, server_errors=400) if number % 2 else TrackCounts(requests=10))
        await bench.look(1)
    assert 2 <= len(bench.verdicts()) <= 40 / TELL_SECONDS + 1


async def test_a_step_that_is_held_says_what_it_waits_for_and_when_it_is_late(bench: Bench) -> None:
    await bench.start("50% for 1m min 500, 100%; within 1h else hold")
    for _ in range(10):
        await bench.look(61)
    assert bench.verdicts() == ["no_traffic"] and "needs at least 500 requests" in bench.told[-1].reason
    await bench.look(3600)
    assert bench.verdicts() == ["no_traffic"] * 2 and bench.told[-1].reason.startswith("No pass within 1h")
    await bench.look(3600)
    assert len(bench.verdicts()) == 2


async def test_a_move_that_is_frozen_is_tried_again_more_slowly_and_shown(bench: Bench) -> None:
    await bench.start("50%, 100%")
    now = bench.system.now()
    bench.registry.put(Freeze(name="xmas", scope="acme", start=now - 1, end=now + 1000, reason="holiday",
                              created_by="alice", created_at=now))
    bench.evidence.stable = bench.evidence.canary = FINE
    for _ in range(30):
        await bench.look(1)
    warnings = [values for event, values in bench.log.events if event == "move_refused"]
    assert len(warnings) == 1 and warnings[0]["move"] is Move.SHIFT
    assert bench.kept.document and "frozen" in bench.kept.document["decision"]["refused"]
    assert bench.release.live and bench.release.live.weight == 50
    await bench.look(2000)
    assert bench.release.live is not None and bench.release.live.weight == 100


async def test_a_frozen_release_is_still_aborted_at_once(bench: Bench) -> None:
    await bench.start("50%, 100%")
    now = bench.system.now()
    bench.registry.put(Freeze(name="xmas", scope="acme", start=now - 1, end=now + 1000, reason="holiday",
                              created_by="alice", created_at=now))
    bench.evidence.stable, bench.evidence.canary = FINE, FAILING
    await bench.look()
    assert bench.release.live is None


async def test_while_redis_is_away_nothing_happens_and_then_it_goes_on(bench: Bench) -> None:
    await bench.start("50%, 100%")
    bench.evidence.stable, bench.evidence.canary, bench.evidence.away = FINE, FAILING, True
    await bench.look()
    assert bench.release.live and [event for event, _ in bench.log.events] == ["look_put_off"]
    bench.evidence.away = False
    await bench.look()
    assert bench.release.live is None


async def test_who_has_lost_the_lease_without_knowing_does_nothing(bench: Bench) -> None:
    await bench.start("50%, 100%")
    bench.evidence.stable, bench.evidence.canary = FINE, FAILING
    bench.kept.fence = 99
    await bench.look()
    assert bench.release.live is not None and bench.kinds == [Kind.START]


async def test_only_the_holder_of_the_lease_looks(bench: Bench) -> None:
    await bench.start("50% for 1h, 100%")
    await bench.look()
    other = bench.another()
    await other.step()
    assert (bench.analyst.leads, other.leads, len(bench.evidence.asked)) == (True, False, 1)
    await bench.analyst.close()
    await other.step()
    assert (bench.analyst.leads, other.leads) == (False, True)
    await other.close()


async def test_a_look_that_takes_long_is_not_begun_twice_and_keeps_the_lease_alive(bench: Bench) -> None:
    await bench.start("50% for 1h, 100%")
    bench.evidence.gate.clear()
    for _ in range(3):
        await bench.analyst.step()
        await asyncio.sleep(0)
    assert len(bench.evidence.asked) == 1 and bench.analyst.leads
    await bench.analyst.close()  # ends the look


async def test_what_was_decided_on_a_rollout_that_an_operator_moved_meanwhile_is_dropped(bench: Bench) -> None:
    await bench.start("50%, 100%")
    bench.evidence.stable, bench.evidence.canary = FINE, FAILING
    bench.evidence.gate.clear()
    await bench.analyst.step()
    await asyncio.sleep(0)
    await bench.rollouts.move("alice", *WHO, Move.PROMOTE)
    bench.evidence.gate.set()
    await bench.analyst.settle()
    assert bench.release.stable == 2 and bench.kinds == [Kind.START, Kind.PROMOTE]


async def test_a_look_that_dies_is_logged_and_the_others_go_on(bench: Bench) -> None:
    await bench.start("50%, 100%")
    bench.kept.document = {"nonsense": True}
    await bench.look()
    assert [event for event, _ in bench.log.events] == ["look_died"]
    bench.kept.document = None
    bench.evidence.stable, bench.evidence.canary = FINE, FAILING
    await bench.look()
    assert bench.release.live is None


def test_a_lease_that_is_not_renewed_is_free_well_within_15_seconds() -> None:
    assert LEASE_SECONDS + 1 <= 15 / 2
