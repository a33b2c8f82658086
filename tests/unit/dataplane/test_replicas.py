"""The replicas as one process sees them, over engines that the test plays."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import structlog

from gateway.dataplane.replicas import PROBE_RUNS, Replicas
from gateway.domain import placement
from gateway.domain.errors import (
    AdapterNotLoaded,
    ArtifactRefused,
    EngineRefused,
    NoHealthyReplica,
    ReplicaUnreachable,
)
from gateway.domain.model import Replica, Snapshot, Version, VersionPhase
from gateway.domain.parity import Computed, Observed, Prompt, Reference
from gateway.domain.routing import Route, Track
from gateway.system import System
from gateway.telemetry import Metrics

VERSION = Version(
    tenant="acme", adapter="support", number=1, digest="0" * 64, phase=VersionPhase.READY, base_model="base", rank=8,
    alpha=16.0, targets=(), size_bytes=1, source="upload", created_at=0.0, phase_at=0.0)
ROUTE = Route("acme", VERSION.served_name, "base", Track.STABLE, VERSION)
BASE = Route("acme", "base", "base", Track.BASE)


@dataclass
class Model:
    id: str
    root: str | None
    parent: str | None


@dataclass
class Stats:
    started_at: float | None = 1.0
    slots: int | None = 4
    busy_adapters: frozenset[str] = frozenset()


@dataclass
class PlayedEngine:
    """Holds adapters in a dict; `refuses` and `is_up` are the test's to set."""

    adapters: dict[str, str] = field(default_factory=dict)
    loads: int = 0
    is_up: bool = True
    refuses: Exception | None = None
    lists_elsewhere: bool = False
    logprobs: dict[str, Sequence[list[list[float]]]] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)
    prompts: Sequence[Any] = ()
    exposed: tuple[str, ...] = ("POST /adapters",)
    stats_now: Stats = field(default_factory=Stats)

    async def is_healthy(self) -> bool:
        return self.is_up

    async def models(self) -> list[Model]:
        where = "/elsewhere" if self.lists_elsewhere else ""
        return [Model("base", "/base", None), *(Model(n, where + r, "base") for n, r in self.adapters.items())]

    async def load(self, served_name: str, path: str) -> None:
        self.loads += 1
        await asyncio.sleep(0)
        if self.refuses:
            raise self.refuses
        self.adapters[served_name] = path

    async def unload(self, served_name: str) -> None:
        self.adapters.pop(served_name, None)

    async def tokenize(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        return [len(messages), *(len(message["content"]) for message in messages)]

    async def next_token_logprobs(
        self, model: str, prompts: Sequence[str] | Sequence[Sequence[int]], salt: str, count: int = 5,
    ) -> list[dict[int, float]]:
        self.asked.append((model, salt))
        self.prompts = list(prompts)
        answers = self.logprobs[model]
        answer = answers[sum(name == model for name, _ in self.asked) % len(answers)]
        return [dict(enumerate(logprobs)) for logprobs in answer]

    async def stats(self) -> Stats:
        return self.stats_now

    async def audit_exposure(self) -> tuple[str, ...]:
        return self.exposed

    async def version(self) -> str:
        return "0.32.0"

    async def close(self) -> None:
        pass


class NoWire:
    """No test here sends."""

    async def send(self, path: str, request_id: str, body: bytes, seconds: float) -> Any:
        raise AssertionError

    def close(self) -> None:
        pass


class Store:
    """Every artifact is there, unless it was `tampered` with."""

    tampered = False

    async def verify(self, digest: str) -> Path:
        if self.tampered:
            raise ArtifactRefused(["not what it was"])
        return Path("/store/sha256") / digest


class Yard:
    def __init__(self, *names: str, **fields: Any) -> None:
        self.engines = {name: PlayedEngine() for name in names}
        self.store = Store()
        replicas = [Replica(name=n, url=f"http://{n}", created_at=0.0, **fields) for n in names]
        self.snapshot = Snapshot.of(1, {r.path: r for r in replicas})
        self.replicas = Replicas(
            lambda replica: (self.engines[replica.name], NoWire()), self.store, Metrics(10),
            structlog.wrap_logger(structlog.ReturnLogger()), System(), health_interval=3600.0, eject_after=2)

    async def begin(self) -> Replicas:
        self.replicas.follow(self.snapshot)
        await self.replicas.wait_probed(5)
        return self.replicas

    def view(self, name: str) -> Any:
        return next(view for view in self.replicas.replicas() if view.name == name)


@pytest.fixture
async def yards() -> AsyncIterator[list[Yard]]:
    made: list[Yard] = []
    yield made
    for yard in made:
        await yard.replicas.close()


async def test_a_probe_tells_what_a_replica_serves_and_leaves_open(yards: list[Yard]) -> None:
    yards.append(yard := Yard("a"))
    await yard.begin()
    view = yard.view("a")
    assert (view.healthy, view.base_model, view.root, view.slots, view.engine_version, view.exposed) == (
        True, "base", "/base", 4, "0.32.0", ("POST /adapters",))
    assert yard.replicas.base_models == {"base"}


async def test_a_socket_that_only_its_owner_can_reach_is_not_exposed(yards: list[Yard], tmp_path: Path) -> None:
    for mode, expected in ((0o700, ()), (0o755, ("POST /adapters",))):
        (folder := tmp_path / oct(mode)).mkdir(mode=mode)
        yards.append(yard := Yard("a"))
        yard.snapshot = Snapshot.of(1, {"replica/a": Replica(name="a", url=f"unix:{folder}/s", created_at=0.0)})
        await yard.begin()
        assert yard.view("a").exposed == expected


async def test_a_call_takes_a_replica_that_has_the_version_before_one_that_must_load_it(yards: list[Yard]) -> None:
    yards.append(yard := Yard("a", "b", "c"))
    yard.engines["b"].adapters[VERSION.served_name] = "/somewhere/" + VERSION.digest
    replicas = await yard.begin()
    assert (await replicas.pick(ROUTE, {})).name == "b"
    assert sum(engine.loads for engine in yard.engines.values()) == 0


async def test_calls_at_a_time_share_one_load(yards: list[Yard]) -> None:
    yards.append(yard := Yard("a"))
    replicas = await yard.begin()
    picked = await asyncio.gather(*(replicas.pick(ROUTE, {}) for _ in range(10)))
    assert yard.engines["a"].loads == 1
    assert {state.in_flight for state in picked} == {10}
    for state in picked:
        replicas.release(state)
    assert yard.view("a").in_flight == 0


async def test_a_caller_that_leaves_does_not_stop_a_load_that_others_wait_for(yards: list[Yard]) -> None:
    yards.append(yard := Yard("a"))
    replicas = await yard.begin()
    first, second = (asyncio.create_task(replicas.pick(ROUTE, {})) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    assert (await second).name == "a"


@pytest.mark.parametrize("refusal", [EngineRefused("no"), ReplicaUnreachable("gone")])
async def test_a_load_that_fails_on_one_replica_is_tried_on_the_next(yards: list[Yard], refusal: Exception) -> None:
    yards.append(yard := Yard("a", "b"))
    replicas = await yard.begin()
    first = placement.rank(VERSION.served_name, yard.engines)[0]
    yard.engines[first].refuses = refusal
    assert (await replicas.pick(ROUTE, {})).name != first
    assert yard.engines[first].loads == 1
    for engine in yard.engines.values():
        engine.refuses, engine.adapters = refusal, {}
    for name in yard.engines:
        await replicas.refresh(name)
    with pytest.raises(AdapterNotLoaded):
        await replicas.pick(ROUTE, {})


async def test_bytes_that_changed_are_loaded_nowhere(yards: list[Yard]) -> None:
    yards.append(yard := Yard("a", "b"))
    replicas = await yard.begin()
    yard.store.tampered = True
    with pytest.raises(AdapterNotLoaded):
        await replicas.pick(ROUTE, {})
    assert not any(engine.loads for engine in yard.engines.values())


async def test_a_version_listed_under_another_path_is_refused(yards: list[Yard]) -> None:
    yards.append(yard := Yard("a"))
    replicas = await yard.begin()
    yard.engines["a"].lists_elsewhere = True
    with pytest.raises(EngineRefused, match="elsewhere"):
        await replicas.load("a", VERSION)


async def test_the_store_may_be_mounted_elsewhere_on_the_replica(yards: list[Yard]) -> None:
    yards.append(yard := Yard("a", artifacts_path="/mnt/adapters"))
    replicas = await yard.begin()
    await replicas.load("a", VERSION)
    assert yard.engines["a"].adapters == {VERSION.served_name: f"/mnt/adapters/sha256/{VERSION.digest}"}


async def test_a_replica_is_out_after_failures_in_a_row_and_back_after_a_good_probe(yards: list[Yard]) -> None:
    yards.append(yard := Yard("a"))
    replicas = await yard.begin()
    state = await replicas.pick(BASE, {})
    replicas.failed(state, ReplicaUnreachable("broke off"))
    replicas.succeeded(state)
    replicas.failed(state, ReplicaUnreachable("broke off"))
    assert yard.view("a").healthy
    replicas.failed(state, ReplicaUnreachable("broke off"))
    with pytest.raises(NoHealthyReplica):
        await replicas.pick(BASE, {})
    await replicas.refresh("a")
    assert (await replicas.pick(BASE, {})).name == "a"


async def test_a_replica_that_forgot_its_adapters_is_seen_to(yards: list[Yard]) -> None:
    yards.append(yard := Yard("a"))
    replicas = await yard.begin()
    await replicas.load("a", VERSION)
    yard.engines["a"].adapters.clear()
    yard.engines["a"].stats_now = Stats(started_at=2.0)
    await replicas.refresh("a")
    assert (yard.view("a").loaded, yard.view("a").started_at) == ({}, 2.0)


async def test_what_is_tried_already_is_not_tried_again(yards: list[Yard]) -> None:
    yards.append(yard := Yard("a", "b"))
    replicas = await yard.begin()
    first = await replicas.pick(BASE, {})
    second = await replicas.pick(BASE, {first.name: 1})
    assert first.name != second.name
    with pytest.raises(NoHealthyReplica):
        await replicas.pick(BASE, {"a": 1, "b": 1})


async def test_a_replica_of_another_base_model_is_never_picked(yards: list[Yard]) -> None:
    yards.append(yard := Yard("a"))
    replicas = await yard.begin()
    with pytest.raises(NoHealthyReplica):
        await replicas.pick(Route("acme", "other", "other", Track.BASE), {})


async def test_a_replica_taken_from_the_registry_is_dropped(yards: list[Yard]) -> None:
    yards.append(yard := Yard("a", "b"))
    replicas = await yard.begin()
    replicas.follow(Snapshot.of(2, {"replica/a": yard.snapshot.replicas["a"]}))
    assert [view.name for view in replicas.replicas()] == ["a"]
    assert (await replicas.pick(BASE, {})).name == "a"


async def test_the_probe_lets_base_and_adapter_take_turns_and_never_meets_the_prefix_cache(yards: list[Yard]) -> None:
    yards.append(yard := Yard("a"))
    replicas = await yard.begin()
    engine = yard.engines["a"]
    engine.logprobs = {"base": [[[-1.0]]], VERSION.served_name: [[[-1.5]]]}
    effect = await replicas.measure_effect("a", VERSION)
    assert (effect.effect, effect.noise) == (0.5, 0.0)
    asked = [name == "base" for name, _ in engine.asked]
    assert asked == [True, False, False, True] * (PROBE_RUNS // 2) + [True, False] * (PROBE_RUNS % 2)
    assert len({salt for _, salt in engine.asked}) == 2 * PROBE_RUNS


async def test_an_adapter_that_does_nothing_has_no_effect_whichever_bit_pattern_it_meets(yards: list[Yard]) -> None:
    yards.append(yard := Yard("a"))
    replicas = await yard.begin()
    patterns = [[[-1.0, -2.0], [-3.0], [-1.0]], [[-1.2, -2.0], [-3.1], [-1.1]]]
    yard.engines["a"].logprobs = {"base": patterns, VERSION.served_name: patterns[1:]}
    assert (await replicas.measure_effect("a", VERSION)).effect == 0.0


async def test_a_comparison_asks_base_and_adapter_with_the_trainers_own_tokens(yards: list[Yard]) -> None:
    yards.append(yard := Yard("a"))
    replicas = await yard.begin()
    engine = yard.engines["a"]
    engine.logprobs = {"base": [[[-1.0], [-2.0]]], VERSION.served_name: [[[-1.5], [-2.5]]]}
    said = Computed({1: -1.0})
    prompts = tuple(Prompt(({"role": "user", "content": text},), (7, 8, 9), said, said) for text in ("hi", "hello"))
    seen = await replicas.observe("a", VERSION, Reference("base", "none", None, prompts))
    assert seen == Observed([[1, 2], [1, 5]], [{0: -1.0}, {0: -2.0}], [{0: -1.5}, {0: -2.5}])
    assert [tuple(prompt) for prompt in engine.prompts] == [(7, 8, 9), (7, 8, 9)]
    assert len({salt for _, salt in engine.asked}) == 2, "no answer comes from the prefix cache"
