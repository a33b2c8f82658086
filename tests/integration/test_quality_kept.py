"""Scores of several gateways are one, and candidates few, in a Redis that may go away and lose nothing but samples."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.asyncio import Redis

from gateway.clients.quality import AT_ONCE, MAX_REJECTED, Candidates, Scores
from gateway.clients.registry import Registry, connect
from gateway.controlplane.drift import Drift
from gateway.domain.candidate import MAX_APPROVED, MAX_PENDING, Approval, Candidate
from gateway.domain.errors import Conflict, RegistryUnavailable
from gateway.domain.happening import Happening
from gateway.domain.model import Adapter, Entity, Snapshot
from gateway.domain.quality import OptIn, QualityPolicy, Rolling, Standing, Who
from gateway.system import System
from tests.fixtures.fleet import Log
from tests.fixtures.memory import MemoryRegistry
from tests.fixtures.redis import RealValkey, until

WHO = Who("acme", "support", "o1")
OTHER = Who("acme", "sales", "o1")


def scores(registry: Any, counts: Counter[str] | None = None, window: float = 3600) -> Scores:
    counted = Counter[str]() if counts is None else counts

    def count(result: str, samples: int) -> None:
        counted[result] += samples

    return Scores(registry, System(), Log(), count, window_seconds=window)


def candidate(number: int, **more: Any) -> Candidate:
    known: dict[str, Any] = {
        "id": f"{number:016x}", "tenant": "acme", "adapter": "support", "version": 1, "at": 1.0,
        "messages": [{"role": "user", "content": f"question {number}"}], "answer": "", "finish_reason": "stop",
        "score": 0.0, "rule": "not_empty", "reason": "", "proposal": None, "tools": []}
    return Candidate(**{**known, **more})


@pytest.fixture
async def away(own_valkey: RealValkey) -> AsyncIterator[Registry]:
    """A registry whose Redis has been killed."""
    registry = connect(own_valkey.url, "away")
    own_valkey.kill()
    yield registry
    await registry.close()


# --- scores ----------------------------------------------------------------------------------------------------------

async def test_what_two_gateways_scored_reads_as_one(registry: Registry) -> None:
    counts = Counter[str]()
    one, two = scores(registry, counts), scores(registry, counts)
    await one.fold({WHO: {1: Rolling(2, 1500, 1), 2: Rolling(1, 0, 1)}, OTHER: {7: Rolling(1, 1000, 0)}})
    await two.fold({WHO: {1: Rolling(3, 3000, 0)}})
    found = await two.read([WHO, OTHER, Who("acme", "none", "o1"), Who("acme", "support", "o2")])
    assert found[WHO] == {1: Standing(Rolling(5, 4500, 1)), 2: Standing(Rolling(1, 0, 1))}
    assert found[OTHER] == {7: Standing(Rolling(1, 1000, 0))}
    assert found[Who("acme", "none", "o1")] == {} == found[Who("acme", "support", "o2")]
    assert counts == {"passed": 5, "failed": 2}


async def test_a_batch_that_is_sent_twice_counts_once(registry: Registry) -> None:
    class Twice:
        async def call(self, *words: Any) -> Any:
            await registry.call(*words)
            return await registry.call(*words)

    one = scores(Twice())
    await one.fold({WHO: {1: Rolling(1, 1000, 0)}})
    await one.fold({WHO: {1: Rolling(1, 1000, 0)}})
    assert await one.read([WHO]) == {WHO: {1: Standing(Rolling(2, 2000, 0))}}


async def test_more_adapters_than_go_at_once_are_all_folded_and_read(registry: Registry) -> None:
    many = {Who("acme", f"a{n}", "o1"): {1: Rolling(1, n, 0)} for n in range(AT_ONCE + 3)}
    one = scores(registry)
    await one.fold(many)
    assert await one.read(many) == {who: {1: Standing(found[1])} for who, found in many.items()}


async def test_what_is_older_than_the_window_is_neither_read_nor_kept(
    registry: Registry, shared_valkey: RealValkey, registry_name: str,
) -> None:
    one = scores(registry, window=20)
    redis = Redis.from_url(shared_valkey.url, decode_responses=True)
    key = f"switchyard:{{{registry_name}}}:quality:acme/support:o1"
    now = int(time.time())
    for age, total in ((0, 1000), (10, 500), (20, 100), (500, 100)):
        await redis.hset(key, mapping={f"1/{now - age}/samples": 1, f"1/{now - age}/total": total})
    assert (await one.read([WHO]))[WHO][1].rolling.total == 1500
    await one.fold({WHO: {1: Rolling(1, 1, 0)}})
    assert not {f"1/{now - 20}/samples", f"1/{now - 500}/total"} & set(await redis.hgetall(key))
    assert f"1/{now - 10}/samples" in await redis.hgetall(key) and 0 < await redis.ttl(key) <= 21
    await redis.aclose()


async def test_while_redis_is_away_scores_are_dropped_and_counted_and_then_it_goes_on(own_valkey: RealValkey) -> None:
    registry, counts = connect(own_valkey.url, "r"), Counter[str]()
    one = scores(registry, counts)
    own_valkey.kill()
    await one.fold({WHO: {1: Rolling(3, 3000, 1)}})
    assert counts == {"dropped": 3}
    own_valkey.start()
    await until(lambda: _folded(one, counts))
    assert (await one.read([WHO]))[WHO][1].rolling.samples == counts["passed"]
    await registry.close()


async def _folded(one: Scores, counts: Counter[str]) -> bool:
    await one.fold({WHO: {1: Rolling(1, 1000, 0)}})
    return counts["passed"] > 0


async def test_of_several_that_note_a_crossing_one_hears_that_it_was_the_first(registry: Registry) -> None:
    many = [scores(registry) for _ in range(5)]
    for below in (True, False, True):
        first = await asyncio.gather(*(one.cross(WHO, 1, is_below=below) for one in many))
        assert sorted(first) == [False] * 4 + [True]
        assert ((await many[0].read([WHO]))[WHO] == {1: Standing(Rolling(), True)}) is below


# --- candidates ------------------------------------------------------------------------------------------------------

async def test_the_newest_candidates_are_kept_and_each_question_once(registry: Registry) -> None:
    kept = Candidates(registry)
    assert await kept.keep(WHO, candidate(0)) and not await kept.keep(WHO, candidate(0, answer="another"))
    for number in range(1, MAX_PENDING + 5):
        await kept.keep(WHO, candidate(number))
    page, count = await kept.page(WHO, approved=False, offset=0, limit=3)
    assert count == MAX_PENDING and len(page) == 3
    assert await kept.find(WHO, candidate(0).id) is None
    assert await kept.find(WHO, candidate(MAX_PENDING + 4).id) == candidate(MAX_PENDING + 4)
    assert await kept.page(OTHER, approved=False, offset=0, limit=3) == ([], 0)


async def test_what_was_approved_stays_however_many_come_and_what_was_rejected_stays_away(registry: Registry) -> None:
    kept, item = Candidates(registry), candidate(1).approved(Approval(expected="x"))
    await kept.keep(WHO, candidate(1))
    await kept.keep(WHO, candidate(2))
    await kept.approve(WHO, item)
    await kept.reject(WHO, candidate(2).id)
    assert not await kept.keep(WHO, candidate(1)) and not await kept.keep(WHO, candidate(2))
    assert await kept.page(WHO, approved=False, offset=0, limit=9) == ([], 0)
    for number in range(3, MAX_PENDING + 9):
        await kept.keep(WHO, candidate(number))
    assert await kept.page(WHO, approved=True, offset=0, limit=9) == ([item], 1)
    await kept.reject(WHO, item.id)
    assert await kept.page(WHO, approved=True, offset=0, limit=9) == ([], 0)


async def test_no_more_is_approved_than_is_kept_but_what_is_may_be_approved_anew(registry: Registry) -> None:
    kept = Candidates(registry)
    for number in range(MAX_APPROVED):
        await kept.approve(WHO, candidate(number).approved(Approval(expected="x")))
    with pytest.raises(Conflict, match="Export"):
        await kept.approve(WHO, candidate(MAX_APPROVED).approved(Approval(expected="x")))
    anew = candidate(0).approved(Approval(expected="y"))
    await kept.approve(WHO, anew)
    assert await kept.find(WHO, anew.id) == anew


async def test_only_so_many_rejections_are_remembered(registry: Registry) -> None:
    kept = Candidates(registry)
    for number in range(MAX_REJECTED + 2):
        await kept.reject(WHO, f"{number:016x}")
        if number == 1:
            await asyncio.sleep(0.01)  # so that the first two are the oldest by Redis' clock, in milliseconds
    assert await kept.keep(WHO, candidate(0)) and not await kept.keep(WHO, candidate(MAX_REJECTED))


async def test_of_an_opt_in_that_has_ended_nothing_is_kept_any_more(
    registry: Registry, shared_valkey: RealValkey, registry_name: str,
) -> None:
    kept, one = Candidates(registry), scores(registry)
    await kept.keep(WHO, candidate(1))
    await kept.approve(WHO, candidate(2).approved(Approval(expected="x")))
    await kept.reject(WHO, candidate(3).id)
    await one.fold({WHO: {1: Rolling(1, 0, 1)}})
    await one.cross(WHO, 1, is_below=True)
    await kept.end(WHO)
    assert not await kept.keep(WHO, candidate(4)) and not await one.cross(WHO, 1, is_below=True)
    with pytest.raises(Conflict):
        await kept.approve(WHO, candidate(1).approved(Approval(expected="x")))
    redis = Redis.from_url(shared_valkey.url, decode_responses=True)
    left = [key async for key in redis.scan_iter(f"switchyard:{{{registry_name}}}:quality:*")]
    assert left == []
    assert await kept.keep(Who("acme", "support", "o2"), candidate(4))
    await redis.aclose()


async def test_a_store_that_is_away_says_so(away: Registry) -> None:
    with pytest.raises(RegistryUnavailable):
        await Candidates(away).keep(WHO, candidate(1))
    with pytest.raises(RegistryUnavailable):
        await scores(away).read([WHO])


# --- drift -----------------------------------------------------------------------------------------------------------

class Watch:
    """A watch on what one gateway shows and tells."""

    def __init__(self, registry: Registry) -> None:
        self.memory = MemoryRegistry()
        self.told: list[Happening] = []
        self.shown: list[tuple[Any, Any]] = []
        self.kept, self.scores = Candidates(registry), scores(registry)
        self.drift = Drift(
            self.memory, self.scores, self.kept, lambda *numbers: self.shown.append(numbers), System(), Log(),
            notify=self.told.append, share=1.0)
        self.put(Adapter(tenant="acme", name="support", created_at=0.0))

    def put(self, *entities: Entity) -> None:
        self.memory.put(*entities)

    def remove(self, path: str) -> None:
        self.memory.current = self.memory.truth = Snapshot.of(
            9, {at: entity for at, entity in self.memory.truth.entities.items() if at != path})


OPT_IN = OptIn(tenant="acme", id="o1", by="alice", at=0.0)
POLICY = QualityPolicy(tenant="acme", adapter="support", floor=0.8, min_samples=3)


async def test_what_crosses_its_floor_is_told_once_by_whoever_sees_it_and_once_when_it_is_back(
    registry: Registry,
) -> None:
    watches = [Watch(registry), Watch(registry)]
    for watch in watches:
        watch.put(OPT_IN, POLICY)
    one = watches[0]

    async def told() -> list[tuple[Any, ...]]:
        for watch in (*watches, *watches):
            await watch.drift.step()
        news = [(h.kind, h.actor, h.analysis["below"], h.analysis["samples"]) for watch in watches
                for h in watch.told if h.analysis]
        for watch in watches:
            watch.told.clear()
        return news

    await one.scores.fold({WHO: {1: Rolling(2, 0, 2), 2: Rolling(9, 9000, 0)}})
    assert await told() == []
    await one.scores.fold({WHO: {1: Rolling(1, 0, 1)}})
    assert await told() == [("quality", "quality", True, 3)]
    await one.scores.fold({WHO: {1: Rolling(13, 13_000, 0)}})
    assert await told() == []  # 0.8125, above the floor but not by enough
    await one.scores.fold({WHO: {1: Rolling(84, 84_000, 0)}})
    assert await told() == [("quality", "quality", False, 100)]


async def test_means_of_too_few_samples_are_not_shown_and_nothing_of_who_did_not_opt_in(registry: Registry) -> None:
    watch = Watch(registry)
    watch.put(POLICY)
    await watch.scores.fold({WHO: {1: Rolling(2, 0, 2), 2: Rolling(4, 3000, 0)}})
    await watch.drift.step()
    assert watch.shown[-1] == ({}, {})
    watch.put(OPT_IN)
    await watch.drift.step()
    assert watch.shown[-1] == ({("acme", "support", "2"): 0.75}, {("acme", "support"): 0.8})


async def test_a_floor_that_is_taken_away_is_no_news(registry: Registry) -> None:
    watch = Watch(registry)
    watch.put(OPT_IN, POLICY)
    await watch.scores.fold({WHO: {1: Rolling(3, 0, 3)}})
    await watch.drift.step()
    watch.put(QualityPolicy(tenant="acme", adapter="support"))
    await watch.drift.step()
    assert len(watch.told) == 1 and not (await watch.scores.read([WHO]))[WHO][1].is_below


async def test_what_an_opt_in_had_kept_is_deleted_by_whoever_sees_it_end(registry: Registry) -> None:
    watch = Watch(registry)
    watch.put(OPT_IN, POLICY)
    await watch.kept.keep(WHO, candidate(1))
    await watch.drift.step()
    watch.remove(OPT_IN.path)
    await watch.drift.step()
    assert await watch.kept.find(WHO, candidate(1).id) is None and not await watch.kept.keep(WHO, candidate(1))
