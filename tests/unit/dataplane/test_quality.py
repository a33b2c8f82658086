"""Sampling waits for nobody: what does not fit is shed, what cannot be read is told, what is secret is not logged."""

import asyncio
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest

from gateway.clients.judge import Grade
from gateway.dataplane import body as bodies
from gateway.dataplane.answers import Kept
from gateway.dataplane.quality import MAX_SAMPLE_CHARS, MAX_UNDER_WAY, Quality
from gateway.domain.candidate import MAX_BYTES, Candidate
from gateway.domain.errors import RegistryUnavailable, Unavailable
from gateway.domain.model import Adapter, Entity, Snapshot
from gateway.domain.quality import OptIn, QualityPolicy, Rolling, Rule, Watched, Who
from gateway.domain.routing import Route, Track
from gateway.system import System
from tests.fixtures.evidence import version
from tests.fixtures.fleet import Log
from tests.fixtures.redis import until

SECRET = "bob@example.com"
OPT_IN = OptIn(tenant="acme", id="first", by="alice", at=0.0, share=100.0)
POLICY = QualityPolicy(tenant="acme", adapter="support", rules=(Rule.of("max_chars", 5),))
WHO = Who("acme", "support", "first")
ROUTE = Route("acme", "acme/support@1", "base", Track.STABLE, version(1))


@dataclass(frozen=True, slots=True)
class Clock(System):
    """A clock that stands where `at[0]` says, in seconds."""

    at: list[float]

    def monotonic(self) -> float:
        return self.at[0]


class Store:
    """Keeps candidates, or is away."""

    def __init__(self) -> None:
        self.kept: list[Candidate] = []
        self.is_away = False

    async def keep(self, who: Who, candidate: Candidate) -> bool:
        if self.is_away:
            raise RegistryUnavailable("Redis does not answer.")
        self.kept.append(candidate)
        return True


class Opinion:
    """A judge with one opinion; it gives it once `free` is set."""

    def __init__(self, score: float | None) -> None:
        self.score = score
        self.is_well = True
        self.has_room = True
        self.free = asyncio.Event()
        self.free.set()
        self.asked: list[str] = []

    async def grade(self, criteria: str, conversation: Sequence[Mapping[str, Any]], answer: str) -> Grade:
        self.asked.append(json.dumps([criteria, list(conversation), answer]))
        await self.free.wait()
        if self.score is None:
            raise Unavailable("The judge gave no score: status 500.")
        return Grade(self.score, f"says {SECRET}")


class Bench:
    """Quality on a registry of one adapter, with what it counts, keeps and logs."""

    def __init__(self, judge: Opinion | None = None, rate: float = 1000.0) -> None:
        self.counts: Counter[str] = Counter()
        self.store, self.log, self.clock = Store(), Log(), Clock([0.0])
        self.breaks = False
        self.quality = Quality(judge, self.store, self.matches, self.count, self.log, self.clock, share=1.0,
                               samples_a_second=rate)
        self.put(OPT_IN, POLICY)

    def matches(self, pattern: str, text: str) -> bool:
        if self.breaks:
            raise ValueError(f"what {text} is")
        return pattern in text

    def count(self, result: str, samples: int) -> None:
        self.counts[result] += samples

    def put(self, *entities: Entity) -> None:
        adapter = Adapter(tenant="acme", name="support", created_at=0.0)
        self.quality.follow(Snapshot.of(1, {entity.path: entity for entity in (adapter, *entities)}))

    def watch(self, request: str = "r", endpoint: str = "chat.completions", route: Route = ROUTE) -> Watched | None:
        return self.quality.watch(route, endpoint, request)

    def offer(self, text: str, *, asked: Any = None, finish: str = "stop", **message: Any) -> None:
        found, kept = self.watch(), Kept()
        assert found is not None
        kept.add(json.dumps({"choices": [{"message": {"content": text, **message}, "finish_reason": finish}]}).encode(),
                 is_stream=False)
        fields = {"model": "support", **(asked or {"messages": [{"role": "user", "content": f"I am {SECRET}"}]})}
        self.quality.offer(found, ROUTE, bodies.parse(json.dumps(fields).encode()), kept)

    async def settle(self) -> dict[Who, dict[int, Rolling]]:
        await self.quality.settle()
        await asyncio.sleep(0)  # the tasks' ends are seen to after they have ended
        return {who: dict(scores) for who, scores in self.quality.take().items()}


async def test_scores_are_added_up_and_failures_are_kept_redacted() -> None:
    bench = Bench()
    asked = {"messages": [{"role": "user", "content": f"I am {SECRET}"}], "tools": [{"description": f"of {SECRET}"}]}
    for text in ("short", f"too long, {SECRET}", "ok"):
        bench.offer(text, asked=asked)
    assert await bench.settle() == {WHO: {1: Rolling(3, 2000, 1)}}
    assert await bench.settle() == {}
    [kept] = bench.store.kept
    assert (kept.answer, kept.messages) == ("too long, [EMAIL]", [{"role": "user", "content": "I am [EMAIL]"}])
    assert kept.tools == [{"description": "of [EMAIL]"}] and SECRET not in kept.to_json()


def test_nobody_who_did_not_opt_in_and_nothing_but_completions_of_adapters_is_watched() -> None:
    bench = Bench()
    assert bench.watch() is not None
    assert bench.watch(endpoint="embeddings") is None and bench.watch(endpoint="messages") is None
    assert bench.watch(route=Route("acme", "base", "base", Track.BASE)) is None
    assert bench.watch(route=replace(ROUTE, tenant="beta")) is None
    bench.put(replace(OPT_IN, share=0.0), POLICY)
    assert bench.watch() is None
    bench.put(POLICY)
    assert bench.watch() is None and not bench.counts


def test_more_than_the_rate_is_shed_before_anything_is_copied() -> None:
    bench = Bench(rate=2.0)
    assert [bench.watch() is not None for _ in range(4)] == [True, True, False, False]
    bench.clock.at[0] += 0.5
    assert [bench.watch() is not None for _ in range(2)] == [True, False]
    assert bench.counts == {"shed": 3}


async def test_more_than_may_be_under_way_is_shed() -> None:
    judge = Opinion(1.0)
    judge.free.clear()
    bench = Bench(judge)
    bench.put(OPT_IN, replace(POLICY, judge="be kind", rules=()))
    found = bench.watch()
    for _ in range(MAX_UNDER_WAY):
        bench.offer("x")
    assert found is not None and bench.watch() is None and bench.counts == {"shed": 1}
    bench.quality.offer(found, ROUTE, bodies.parse(b'{"model":"m","messages":[]}'), Kept())
    assert bench.counts == {"shed": 2}
    judge.free.set()
    assert await bench.settle() == {WHO: {1: Rolling(MAX_UNDER_WAY, 1000 * MAX_UNDER_WAY, 0)}}
    assert bench.watch() is not None


@pytest.mark.parametrize(("asked", "text"), [
    ({"messages": [{"role": "user", "content": "x" * MAX_SAMPLE_CHARS}]}, "x"),
    ({"messages": [{"role": "user", "content": "hi"}], "tools": [{"d": "x" * MAX_SAMPLE_CHARS}]}, "x"),
    (None, "x" * (MAX_SAMPLE_CHARS + 1)),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}]}, "x"),
    ({"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "We"}]}, "x"),
    ({"messages": [{"role": "robot", "content": "hi"}]}, "x"), ({"messages": []}, "x"), ({"messages": "hi"}, "x"),
    ({"messages": [{"role": "user", "content": ""}]}, "x"), ({"prompt": ["a", "b"]}, "x"), ({"prompt": [1, 2]}, "x"),
    ({"stop": "x"}, "x"), ({"messages": [{"role": "user", "content": "hi"}], "tools": "none"}, "x"),
])
async def test_what_is_too_long_or_not_all_text_is_not_looked_at(asked: Any, text: str) -> None:
    bench = Bench()
    bench.offer(text, asked=asked)
    assert await bench.settle() == {} and bench.counts == {"unread": 1}


@pytest.mark.parametrize("asked", [
    {"prompt": "hi"}, {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}], "tools": None},
    {"messages": [{"role": "user", "content": "hi"},
                  {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
                  {"role": "tool", "content": "3", "tool_call_id": "1", "name": "f"}], "tools": [{"type": "function"}]},
])
async def test_conversations_of_text_and_tools_are_looked_at(asked: Any) -> None:
    bench = Bench()
    bench.offer("too long for it", asked=asked)
    await bench.settle()
    [kept] = bench.store.kept
    assert kept.messages[-1]["role"] in ("user", "tool") and "name" not in kept.messages[-1]


async def test_an_answer_that_broke_off_says_nothing_of_the_adapter() -> None:
    bench = Bench()
    bench.offer("too long for it", finish="error")
    assert await bench.settle() == {} and bench.counts == {"unread": 1}


async def test_once_the_tenant_has_opted_out_what_is_under_way_is_forgotten() -> None:
    bench = Bench()
    bench.offer("too long for it")
    bench.put(POLICY)
    assert await bench.settle() == {} and bench.store.kept == []
    bench.put(OPT_IN, POLICY)
    bench.offer("too long for it")
    bench.put(replace(OPT_IN, id="second"), POLICY)
    assert await bench.settle() == {} and bench.store.kept == []


async def test_a_failure_too_long_to_be_kept_still_counts() -> None:
    bench = Bench()
    bench.offer("x" * (MAX_BYTES + 1))
    assert await bench.settle() == {WHO: {1: Rolling(1, 0, 1)}} and bench.store.kept == []


async def test_redis_away_loses_the_candidate_and_tells_without_its_words() -> None:
    bench = Bench()
    bench.store.is_away = True
    bench.offer(f"too long, {SECRET}")
    assert await bench.settle() == {WHO: {1: Rolling(1, 0, 1)}}
    assert [event for event, _ in bench.log.events] == ["candidate_dropped"] and "long" not in str(bench.log.events)


async def test_a_fault_of_ours_is_told_without_a_word_of_the_answer() -> None:
    bench = Bench()
    bench.put(OPT_IN, replace(POLICY, rules=(Rule.of("regex", "x"),)))
    bench.breaks = True
    bench.offer(f"tell {SECRET}")
    await bench.settle()
    [(event, values)] = bench.log.events
    assert (event, values["error"]) == ("sample_died", "ValueError") and "tell" not in str(values)
    assert bench.counts == {"unread": 1}


async def test_the_judge_is_asked_redacted_and_only_of_what_breaks_no_rule() -> None:
    judge = Opinion(0.25)
    bench = Bench(judge)
    bench.put(OPT_IN, replace(POLICY, judge="be kind"))
    bench.offer("x@y.z")
    bench.offer("too long for it")
    assert await bench.settle() == {WHO: {1: Rolling(2, 250, 2)}}
    [asked] = judge.asked
    assert SECRET not in asked and "[EMAIL]" in asked
    assert sorted(kept.reason for kept in bench.store.kept) == ["It breaks the rule max_chars.", "says [EMAIL]"]


@pytest.mark.parametrize("lack", ["room", "well", "judge"])
async def test_without_a_judge_who_scores_neither_good_nor_bad_samples_count(lack: str) -> None:
    judge = Opinion(None)
    bench = Bench(None if lack == "judge" else judge)
    bench.put(OPT_IN, replace(POLICY, judge="be kind"))
    judge.has_room, judge.is_well = lack != "room", lack != "well"
    bench.offer("short")
    bench.offer("too long for it")
    scores = await bench.settle()
    assert scores == {} and bench.counts == {"unjudged": 2} and bench.store.kept == []


async def test_a_tool_call_is_nothing_for_the_judge() -> None:
    judge = Opinion(1.0)
    bench = Bench(judge)
    bench.put(OPT_IN, replace(POLICY, judge="be kind"))
    bench.offer("", tool_calls=[{"id": "1"}], finish="tool_calls")
    assert await bench.settle() == {} and judge.asked == [] and bench.counts == {"unread": 1}


async def test_a_tool_call_without_text_is_not_empty() -> None:
    bench = Bench()
    bench.put(OPT_IN, replace(POLICY, rules=(Rule.of("not_empty", None),)))
    bench.offer("", tool_calls=[{"id": "1"}], finish="tool_calls")
    bench.offer("")
    assert await bench.settle() == {WHO: {1: Rolling(2, 1000, 1)}}


async def test_closing_gives_up_what_is_under_way() -> None:
    judge = Opinion(1.0)
    judge.free.clear()
    bench = Bench(judge)
    bench.put(OPT_IN, replace(POLICY, judge="be kind"))
    bench.offer("short")
    await until(lambda: bool(judge.asked))
    await bench.quality.close()
    assert await bench.settle() == {}
