"""Counts of several gateways are one, through a Redis that dies; and what an analyst makes of them."""

import asyncio
import time
from functools import reduce
from operator import add
from pathlib import Path
from random import Random

import pytest

from gateway.clients.registry import connect
from gateway.clients.registry_scripts import Script
from gateway.clients.tallies import Tallies
from gateway.dataplane.tally import Tally
from gateway.domain.counts import TrackCounts
from gateway.domain.errors import LostRace, RegistryUnavailable
from gateway.domain.happening import Kind
from gateway.domain.rollout import Move, Phase
from gateway.domain.windows import Fields, TallyKey
from gateway.system import System
from tests.fixtures.evidence import Quality, evidence_gateway, made_record, put_release
from tests.fixtures.fleet import Log
from tests.fixtures.redis import RealValkey, until

GOOD = Quality(errors=0.01)
BAD = Quality(errors=0.10)
WHO = ("acme", "support")
PLAN = "5% for 1s min 200, 50% for 1s min 200, 100%"


LET_RUN_OUT = Script("return redis.call('DEL', KEYS[1])")


def counts_of(calls: int, seed: int, *, track: str = "canary", adapter: str = "support") -> dict[TallyKey, Fields]:
    tally, random = Tally(), Random(seed)
    for number in range(calls):
        tally.add(made_record(random, GOOD, tenant="acme", adapter=adapter, version="2", track=track, epoch="e-1",
                              subject=f"{seed}-{number}"))
    return dict(tally.take())


def together(*counted: Fields) -> TrackCounts:
    return reduce(add, map(TrackCounts.from_fields, counted))


# --- tallies ---------------------------------------------------------------------------------------------------------

async def test_what_two_gateways_counted_reads_as_one_count(shared_valkey: RealValkey, registry_name: str) -> None:
    one, other = (connect(shared_valkey.url, registry_name) for _ in range(2))
    first, second = counts_of(50, 1), counts_of(70, 2)
    stable = counts_of(30, 3, track="stable")
    await asyncio.gather(Tallies(one, System(), Log()).fold({**first, **stable}),
                         Tallies(other, System(), Log()).fold(second))
    [key], [stable_key] = first, stable
    read = await Tallies(other, System(), Log()).read(*WHO, "e-1")
    assert read == {("canary", 2): together(first[key], second[key]), ("stable", 2): together(stable[stable_key])}
    assert await Tallies(one, System(), Log()).read(*WHO, "e-2") == {}
    await one.close()
    await other.close()


async def test_a_redis_that_is_killed_again_and_again_loses_nothing_and_counts_nothing_twice(
    own_valkey: RealValkey, registry_name: str,
) -> None:
    registries = [connect(own_valkey.url, registry_name) for _ in range(2)]
    tallies = [Tallies(registry, System(), Log()) for registry in registries]
    expected, failures, done = TrackCounts(), 0, asyncio.Event()

    async def fold(number: int) -> None:
        nonlocal expected, failures
        seed = number
        while not done.is_set():
            seed += 2
            counts = counts_of(5, seed)
            expected += together(*counts.values())
            try:
                await tallies[number].fold(counts)
            except RegistryUnavailable:
                failures += 1
                await asyncio.sleep(0.01)

    folding = [asyncio.create_task(fold(number)) for number in range(2)]
    for _ in range(4):
        await asyncio.sleep(0.3)
        own_valkey.kill()
        await asyncio.sleep(0.05)
        own_valkey.start()
    await asyncio.sleep(0.3)
    done.set()
    await asyncio.gather(*folding)
    for each in tallies:
        await each.fold({})
    assert failures, "no fold met a dead Redis, so this proves nothing"
    assert await tallies[0].read(*WHO, "e-1") == {("canary", 2): expected}
    for registry in registries:
        await registry.close()


async def test_a_fold_whose_answer_got_lost_is_not_added_again(own_valkey: RealValkey, registry_name: str) -> None:
    registry = connect(own_valkey.url, registry_name)
    tallies = Tallies(registry, System(), Log())
    first, second = counts_of(20, 1), counts_of(30, 2)
    [key] = first
    await tallies.fold(counts_of(1, 0, adapter="other"))  # connects, and lets Redis know the script
    own_valkey.freeze()
    with pytest.raises(RegistryUnavailable):
        await tallies.fold(first)  # it lies in the socket: Redis does it when it wakes, and nobody hears the answer
    own_valkey.thaw()
    await until(lambda: _has_counts(tallies))
    await tallies.fold(second)
    assert await tallies.read(*WHO, "e-1") == {("canary", 2): together(first[key], second[key])}
    await registry.close()


async def _has_counts(tallies: Tallies) -> bool:
    return bool(await tallies.read(*WHO, "e-1"))


async def test_more_versions_than_one_batch_takes_are_all_folded(
    shared_valkey: RealValkey, registry_name: str,
) -> None:
    registry = connect(shared_valkey.url, registry_name)
    tallies = Tallies(registry, System(), Log())
    many = {key: counts for n in range(150) for key, counts in counts_of(1, n, adapter=f"a{n}").items()}
    await tallies.fold(many)
    for key, counts in many.items():
        assert await tallies.read("acme", key.adapter, "e-1") == {("canary", 2): together(counts)}
    await registry.close()


# --- the analyst -----------------------------------------------------------------------------------------------------

async def test_a_bad_canary_is_aborted_by_itself_and_the_release_says_why(
    shared_valkey: RealValkey, registry_name: str, tmp_path: Path,
) -> None:
    async with evidence_gateway(shared_valkey.url, registry_name, tmp_path) as gateway:
        await put_release(gateway)
        await gateway.start(PLAN)
        gateway.serve(20_000, GOOD, BAD)
        await gateway.fold()
        await gateway.look()
        release, kept = gateway.release, await gateway.analyses.latest(*WHO)
        assert release.rollout and release.rollout.phase is Phase.ABORTED and release.stable == 1
        assert "error_rate" in release.rollout.reason
        assert release.analysis and kept and release.analysis["verdict"] == kept["verdict"] == "fail"
        counted = await gateway.tallies.read(*WHO, kept["epoch"])
        [finding] = [f for f in release.analysis["findings"] if f["metric"] == "error_rate"]
        assert finding["verdict"] == "fail" and finding["statistic"] >= finding["threshold"] > 0
        assert finding["canary_samples"] == counted["canary", 2].attempts
        assert release.analysis["tracks"]["canary"]["errors"] == counted["canary", 2].errors
        assert release.analysis["thresholds"]["false_alarm"] == 0.05
        assert [c.action for c in await gateway.audit()] == ["put", "release.start", "release.abort"]
        assert (await gateway.audit())[-1].detail["analysis"]["verdict"] == "fail"
        assert [h.kind for h in gateway.told] == [Kind.START, Kind.ABORT, Kind.VERDICT]


@pytest.mark.parametrize(("canary", "metric"), [
    (Quality(errors=0.01, first_token=0.4), "time_to_first_token"),
    (Quality(errors=0.01, tokens=25), "output_tokens"),
])
async def test_a_canary_that_is_slow_or_terse_is_aborted_for_that(
    shared_valkey: RealValkey, registry_name: str, tmp_path: Path, canary: Quality, metric: str,
) -> None:
    async with evidence_gateway(shared_valkey.url, registry_name, tmp_path) as gateway:
        await put_release(gateway)
        await gateway.start("50%, 100%")
        gateway.serve(8_000, GOOD, canary)
        await gateway.fold()
        await gateway.look()
        rollout = gateway.release.rollout
        assert rollout and rollout.phase is Phase.ABORTED and metric in rollout.reason


async def test_an_identical_canary_walks_the_plan_and_is_promoted(
    shared_valkey: RealValkey, registry_name: str, tmp_path: Path,
) -> None:
    async with evidence_gateway(shared_valkey.url, registry_name, tmp_path) as gateway:
        await put_release(gateway)
        await gateway.start(PLAN)
        weights, seed = [], 0
        while gateway.release.live:
            weights.append(gateway.release.live.weight)
            seed += 1
            gateway.serve(40_000, GOOD, GOOD, seed=seed)
            await gateway.fold()
            await gateway.look()
            gateway.ahead[0] += 1.0
            assert seed < 10, gateway.release.rollout
        assert sorted(set(weights)) == [5.0, 50.0, 100.0] == list(dict.fromkeys(weights))
        release = gateway.release
        assert release.rollout and release.rollout.phase is Phase.PROMOTED and release.stable == 2
        moves = [c.action for c in await gateway.audit() if c.action != "release.verdict"]
        assert moves == ["put", "release.start", "release.shift", "release.shift", "release.promote"]
        kinds = [happening.kind for happening in gateway.told]
        assert kinds.count(Kind.STEP) == 2 and kinds.count(Kind.PROMOTE) == 1


async def test_without_traffic_the_step_is_held_and_told_once(
    shared_valkey: RealValkey, registry_name: str, tmp_path: Path,
) -> None:
    async with evidence_gateway(shared_valkey.url, registry_name, tmp_path) as gateway:
        await put_release(gateway)
        await gateway.start("5% for 1m within 1h, 100%; within 1h else hold")
        for _ in range(5):
            await gateway.look()
            gateway.ahead[0] += 15
        assert [h.kind for h in gateway.told] == [Kind.START, Kind.VERDICT]
        for _ in range(5):
            await gateway.look()
            gateway.ahead[0] += 15
        assert [h.kind for h in gateway.told] == [Kind.START, Kind.VERDICT]
        assert gateway.told[-1].analysis and gateway.told[-1].analysis["verdict"] == "no_traffic"
        gateway.ahead[0] += 3600
        await gateway.look()
        assert gateway.release.live and "No pass within 1h" in gateway.told[-1].reason


async def test_when_the_analyst_is_killed_another_takes_over_within_15_seconds(
    shared_valkey: RealValkey, registry_name: str, tmp_path: Path,
) -> None:
    async with (
        evidence_gateway(shared_valkey.url, registry_name, tmp_path) as first,
        evidence_gateway(shared_valkey.url, registry_name, tmp_path, seed=1) as second,
    ):
        await put_release(first)
        await first.start("5% for 1h, 100%")
        await first.look()  # and never again: killed, its lease not given back
        assert first.analyst.leads
        running = asyncio.create_task(second.analyst.run())
        killed_at = time.monotonic()
        first.serve(20_000, GOOD, BAD)
        await first.fold()
        assert not second.analyst.leads
        await until(lambda: not second.release.live, 15)
        assert time.monotonic() - killed_at < 15
        assert [h.kind for h in second.told] == [Kind.ABORT, Kind.VERDICT]
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_a_holder_that_ends_in_order_gives_the_lease_away_at_once(
    shared_valkey: RealValkey, registry_name: str, tmp_path: Path,
) -> None:
    async with (
        evidence_gateway(shared_valkey.url, registry_name, tmp_path) as first,
        evidence_gateway(shared_valkey.url, registry_name, tmp_path, seed=1) as second,
    ):
        await first.look()
        await second.look()
        assert (first.analyst.leads, second.analyst.leads) == (True, False)
        await first.analyst.close()
        await second.look()
        assert second.analyst.leads


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
async def test_two_analysts_that_both_believe_they_lead_move_on_once(
    shared_valkey: RealValkey, registry_name: str, tmp_path: Path, order: tuple[int, int],
) -> None:
    async with (
        evidence_gateway(shared_valkey.url, registry_name, tmp_path) as first,
        evidence_gateway(shared_valkey.url, registry_name, tmp_path, seed=1) as second,
    ):
        await put_release(first)
        await first.start("50%, 75% for 1h, 100%")
        await second.snapshots.wait_for(first.snapshots.current.revision)
        first.serve(20_000, Quality(), Quality())
        await first.fold()
        for gateway in (first, second):
            gateway.gate.open.clear()
            await gateway.analyst.step()
            await asyncio.wait_for(gateway.gate.reached.wait(), 10)
            await gateway.registry.call(LET_RUN_OUT, ["lease:analyst"])  # while its holder is stopped
        assert first.analyst.leads and second.analyst.leads
        for gateway in [(first, second)[number] for number in order]:
            gateway.gate.open.set()
            await gateway.analyst.settle()
            for follower in (first, second):
                await follower.snapshots.wait_for(gateway.snapshots.current.revision)
        assert [c.action for c in await first.audit()] == ["put", "release.start", "release.shift"]
        assert len([h for h in (*first.told, *second.told) if h.kind is Kind.STEP]) == 1


async def test_the_holder_of_an_old_lease_can_no_longer_move_or_write(
    shared_valkey: RealValkey, registry_name: str, tmp_path: Path,
) -> None:
    async with evidence_gateway(shared_valkey.url, registry_name, tmp_path) as gateway:
        await put_release(gateway)
        rollout = (await gateway.start("5%, 100%")).live
        assert rollout is not None
        await gateway.rollouts.note("analyst", *WHO, {"verdict": "pass"}, expected=rollout, fence=7)
        with pytest.raises(LostRace):
            await gateway.rollouts.move(
                "analyst", *WHO, Move.SHIFT, expected=rollout, fence=6)
        assert await gateway.analyses.keep(*WHO, {"looks": 2}, 7)
        assert not await gateway.analyses.keep(*WHO, {"looks": 1}, 6)
        assert await gateway.analyses.latest(*WHO) == {"looks": 2}


async def test_who_takes_over_neither_tells_again_nor_forgets_how_often_it_was_looked_at(
    shared_valkey: RealValkey, registry_name: str, tmp_path: Path,
) -> None:
    async with (
        evidence_gateway(shared_valkey.url, registry_name, tmp_path) as first,
        evidence_gateway(shared_valkey.url, registry_name, tmp_path, seed=1) as second,
    ):
        await put_release(first)
        await first.start("5%, 100%")
        for _ in range(3):
            await first.look()
        await first.analyst.close()
        await second.snapshots.wait_for(first.snapshots.current.revision)
        await second.look()
        kept = await second.analyses.latest(*WHO)
        assert kept and kept["looks"] == 4 and kept["decision"]["held"]
        assert [h.kind for h in first.told] == [Kind.START, Kind.VERDICT] and second.told == []
