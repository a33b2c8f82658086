"""Webhooks are registered and removed; what happens is queued for each, and nobody waits for a receiver."""

import asyncio
import json
import time
from collections import Counter
from dataclasses import dataclass, replace

import pytest

from gateway.controlplane.changes import Changes
from gateway.controlplane.notify import MAX_WAITING, Notifier, Webhooks
from gateway.domain.errors import Conflict, InvalidRequest, LostRace, NotFound
from gateway.domain.happening import Happening, Kind
from gateway.domain.model import Release
from gateway.system import System
from tests.fixtures.fleet import Log
from tests.fixtures.memory import MemoryRegistry
from tests.fixtures.redis import until

HAPPENED = Happening(
    kind=Kind.ABORT, tenant="acme", adapter="support", release=Release(tenant="acme", adapter="support", revision=7),
    reason="Worse.", at=1_700_000_000.5, actor="analyst", analysis={"verdict": "fail"})


@dataclass
class Outcome:
    attempts: int = 1
    failure: str = ""


class Sender:
    """Delivers when its gate is open; `sent` is (url, payload)."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, dict[str, object]]] = []
        self.outcome = Outcome()
        self.gates: dict[str, asyncio.Event] = {}

    async def deliver(self, url: str, secret: str, body: bytes) -> Outcome:
        if url in self.gates:
            await self.gates[url].wait()
        self.sent.append((url, json.loads(body)))
        return self.outcome


class Bench:
    def __init__(self) -> None:
        self.registry = MemoryRegistry()
        self.webhooks = Webhooks(Changes(self.registry, self.registry, System()), System())
        self.sender, self.log = Sender(), Log()
        self.counts: Counter[tuple[str, str]] = Counter()
        self.notify = Notifier(
            lambda: self.registry.current, self.sender, lambda *what: self.counts.update([what]), System(), self.log)

    @property
    def kinds_sent(self) -> list[object]:
        return [payload["kind"] for _, payload in self.sender.sent]


@pytest.fixture
def bench() -> Bench:
    return Bench()


async def test_a_webhook_is_registered_listed_and_removed_and_the_audit_has_no_secret(bench: Bench) -> None:
    made = await bench.webhooks.add("alice", "ops", "https://h.example/in?token=t0k", kinds=(Kind.ABORT, Kind.ABORT))
    assert len(made.secret) >= 32 and made.kinds == (Kind.ABORT,) and bench.webhooks.all() == [made]
    with pytest.raises(LostRace):
        await bench.webhooks.remove("alice", "ops", if_match=made.revision + 1)
    await bench.webhooks.remove("alice", "ops", if_match=made.revision)
    assert bench.webhooks.all() == []
    told = json.dumps([dict(change.detail) for change in bench.registry.changes])
    assert made.secret not in told and "t0k" not in told and "https://h.example" in told


async def test_what_cannot_be_registered_is_refused(bench: Bench) -> None:
    await bench.webhooks.add("alice", "ops", "https://h.example/")
    with pytest.raises(Conflict):
        await bench.webhooks.add("alice", "ops", "https://other.example/")
    with pytest.raises(InvalidRequest):
        await bench.webhooks.add("alice", "more", "file:///etc/passwd")
    with pytest.raises(InvalidRequest):
        await bench.webhooks.add("alice", "more", "https://h.example/", secret="short")
    with pytest.raises(NotFound):
        await bench.webhooks.remove("alice", "more")


async def test_every_webhook_that_wants_it_is_told_once(bench: Bench) -> None:
    await bench.webhooks.add("alice", "all", "https://all.example/")
    await bench.webhooks.add("alice", "aborts", "https://aborts.example/", kinds=(Kind.ABORT,))
    await bench.webhooks.add("alice", "starts", "https://starts.example/", kinds=(Kind.START,))
    bench.notify(HAPPENED)
    await until(lambda: len(bench.sender.sent) == 2)
    await bench.notify.close()
    assert sorted(url for url, _ in bench.sender.sent) == ["https://aborts.example/", "https://all.example/"]
    [(_, one), (_, other)] = bench.sender.sent
    assert one == other and one["at"] == "2023-11-14T22:13:20.500Z" and one["analysis"] == {"verdict": "fail"}
    assert (one["kind"], one["tenant"], one["adapter"], one["actor"]) == ("abort", "acme", "support", "analyst")
    assert isinstance(one["release"], dict) and one["release"]["revision"] == 7
    assert bench.counts == {("all", "delivered"): 1, ("aborts", "delivered"): 1}


async def test_one_receiver_is_told_in_order_and_does_not_keep_another_waiting(bench: Bench) -> None:
    await bench.webhooks.add("alice", "slow", "https://slow.example/")
    await bench.webhooks.add("alice", "fast", "https://fast.example/")
    gate = bench.sender.gates["https://slow.example/"] = asyncio.Event()
    kinds = [Kind.START, Kind.STEP, Kind.PROMOTE]
    for kind in kinds:
        bench.notify(replace(HAPPENED, kind=kind))
    await until(lambda: bench.kinds_sent == kinds)  # all of them the fast one's
    gate.set()
    await until(lambda: bench.kinds_sent == kinds * 2)
    assert len({str(payload["id"]) for _, payload in bench.sender.sent}) == 3


async def test_taking_note_never_waits_and_what_is_too_much_is_dropped_and_counted(bench: Bench) -> None:
    await bench.webhooks.add("alice", "slow", "https://slow.example/")
    bench.sender.gates["https://slow.example/"] = asyncio.Event()
    started = time.monotonic()
    for _ in range(MAX_WAITING + 5):
        bench.notify(HAPPENED)
    assert time.monotonic() - started < 1
    assert bench.counts == {("slow", "dropped"): 5}
    await bench.notify.close(0.05)
    assert bench.counts == {("slow", "dropped"): MAX_WAITING + 5}


async def test_a_delivery_that_failed_is_logged_without_the_url_and_the_next_one_goes_on(bench: Bench) -> None:
    await bench.webhooks.add("alice", "ops", "https://h.example/in?token=t0k")
    bench.sender.outcome = Outcome(4, "status 500")
    bench.notify(HAPPENED)
    bench.notify(HAPPENED)
    await until(lambda: bench.counts[("ops", "failed")] == 2)
    assert bench.log.events[0] == ("webhook_failed", {
        "webhook": "ops", "origin": "https://h.example", "attempts": 4, "error": "status 500"})


async def test_a_removed_webhook_is_told_no_more(bench: Bench) -> None:
    await bench.webhooks.add("alice", "ops", "https://h.example/")
    gate = bench.sender.gates["https://h.example/"] = asyncio.Event()
    for _ in range(3):
        bench.notify(HAPPENED)
    await asyncio.sleep(0)
    await bench.webhooks.remove("alice", "ops")
    gate.set()
    await until(lambda: len(bench.sender.sent) == 1)  # the one that was under way
    await bench.notify.close()
    assert len(bench.sender.sent) == 1


async def test_without_webhooks_nothing_is_made(bench: Bench) -> None:
    bench.notify(HAPPENED)
    await bench.notify.close()
    assert bench.sender.sent == []
