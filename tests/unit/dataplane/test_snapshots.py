"""The snapshots over a feed that the test steers: what is served while the registry comes, goes and goes back."""

import asyncio
import json
import stat
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from gateway.dataplane.snapshots import DiskCopy, Snapshots
from gateway.domain.errors import RegistryUnavailable, SwitchyardError
from gateway.domain.model import Snapshot, Tenant
from gateway.system import System
from tests.fixtures.redis import until


class SteeredFeed:
    """Yields what the test puts in; an exception put in is raised, which ends the feed as a lost Redis does."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[tuple[Snapshot, str] | SwitchyardError] = asyncio.Queue()
        self.follows = 0

    async def follow(self) -> AsyncGenerator[tuple[Snapshot, str], None]:
        self.follows += 1
        while True:
            item = await self.queue.get()
            if isinstance(item, SwitchyardError):
                raise item
            yield item

    def send(self, snapshot: Snapshot, reason: str = "") -> None:
        self.queue.put_nowait((snapshot, reason))

    def fail(self) -> None:
        self.queue.put_nowait(RegistryUnavailable("Redis does not answer."))


class Log:
    """Remembers what was logged."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str, dict[str, Any]]] = []

    def info(self, event: str, **values: Any) -> None:
        self.events.append(("info", event, values))

    def warning(self, event: str, **values: Any) -> None:
        self.events.append(("warning", event, values))

    def error(self, event: str, **values: Any) -> None:
        self.events.append(("error", event, values))

    @property
    def names(self) -> list[str]:
        return [name for _, name, _ in self.events]


class Bench:
    """Snapshots with everything around them."""

    def __init__(self, folder: Path, registry_name: str = "default") -> None:
        self.feed, self.log, self.path = SteeredFeed(), Log(), folder / "snapshot.json"
        self.copy = DiskCopy(self.path, registry_name, self.log)
        self.snapshots = Snapshots(self.feed, self.copy, system=System(), log=self.log)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Snapshots]:
        task = asyncio.create_task(self.snapshots.run())
        yield self.snapshots
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def at(revision: int, *names: str) -> Snapshot:
    tenants = [Tenant(name=name, created_at=1.0, revision=revision) for name in names]
    return Snapshot.of(revision, {t.path: t for t in tenants})


async def test_callbacks_see_each_new_snapshot_once_and_in_order(bench: Bench) -> None:
    seen: list[int] = []
    bench.snapshots.subscribe(lambda snapshot: seen.append(snapshot.revision))
    async with bench.running() as snapshots:
        first, second = at(1), at(2)
        for snapshot in (first, first, second, second):
            bench.feed.send(snapshot)
        await snapshots.wait_for(2)
        await until(bench.feed.queue.empty)
    assert seen == [1, 2]


async def test_a_lost_registry_leaves_the_current_snapshot_and_heals_by_itself(bench: Bench) -> None:
    async with bench.running() as snapshots:
        bench.feed.send(at(1, "acme"), "first read")
        await snapshots.wait_for(1)
        bench.feed.fail()
        await until(lambda: not snapshots.connected)
        assert "acme" in snapshots.current.tenants
        bench.feed.send(at(2, "acme", "zeta"), "first read")
        assert (await snapshots.wait_for(2)).revision == 2
        assert snapshots.connected
    assert bench.log.names == ["registry_read", "registry_lost", "registry_read"]


async def test_a_registry_that_stays_away_is_logged_once_and_asked_again(bench: Bench) -> None:
    for _ in range(3):
        bench.feed.fail()
    async with bench.running():
        await until(lambda: bench.feed.follows == 4)
    assert bench.log.names == ["registry_lost"]


async def test_a_fault_that_waiting_does_not_mend_is_asked_again_too(bench: Bench) -> None:
    bench.feed.queue.put_nowait(SwitchyardError("the registry's document tenant/acme cannot be read"))
    bench.feed.send(at(3))
    async with bench.running() as snapshots:
        assert (await snapshots.wait_for(3)).revision == 3


async def test_waiting_for_a_revision_ends_when_the_time_is_up(bench: Bench) -> None:
    assert (await bench.snapshots.wait_for(7, timeout=0.01)).revision == 0


async def test_the_copy_on_disk_serves_when_the_registry_is_away_at_the_start(tmp_path: Path) -> None:
    before = Bench(tmp_path)
    async with before.running() as snapshots:
        before.feed.send(at(4, "acme"))
        await snapshots.wait_for(4)
        await until(before.path.exists)
    after = Bench(tmp_path)
    after.feed.fail()
    async with after.running() as snapshots:
        assert await snapshots.wait_loaded()
        assert snapshots.current == at(4, "acme")
        assert not snapshots.connected
    assert after.log.names == ["registry_lost", "snapshot_from_disk"]


async def test_without_registry_and_copy_nothing_is_loaded(bench: Bench) -> None:
    bench.feed.fail()
    async with bench.running() as snapshots:
        assert not await snapshots.wait_loaded()
    assert bench.snapshots.current == Snapshot.empty()


@pytest.mark.parametrize("text", [
    "", "{", "null", "[]", "{}", '{"schema": "switchyard.snapshot/1", "registry": "default", "revision": 3}',
    '{"schema": "switchyard.snapshot/1", "registry": "default", "revision": 3, "entities": {"tenant/a": [1]}}',
    '{"schema": "switchyard.snapshot/1", "registry": "default", "revision": 3, "entities": {"tenant/a": [1, {}]}}',
    '{"schema": "switchyard.snapshot/1", "registry": "default", "revision": 3, "entities": []}',
    '{"schema": "switchyard.snapshot/9", "registry": "default", "revision": 3, "entities": {}}', "\udcff",
])
def test_a_copy_that_cannot_be_read_is_ignored_and_logged(text: str, bench: Bench) -> None:
    bench.path.write_bytes(text.encode(errors="surrogateescape"))
    assert bench.copy.read() is None
    assert [level for level, _, _ in bench.log.events] == ["warning"]


def test_another_registrys_copy_is_ignored(tmp_path: Path) -> None:
    Bench(tmp_path, "default").copy.write(at(1, "acme"))
    other = Bench(tmp_path, "other")
    assert other.copy.read() is None
    assert other.log.names == ["snapshot_copy_foreign"]


def test_a_copy_reads_back_as_it_was_written_and_only_its_owner_may(bench: Bench) -> None:
    bench.copy.write(at(1))
    bench.copy.write(at(2, "acme", "zeta"))
    assert bench.copy.read() == at(2, "acme", "zeta")
    assert stat.S_IMODE(bench.path.stat().st_mode) == 0o600
    assert [p.name for p in bench.path.parent.iterdir()] == ["snapshot.json"]


def test_a_copy_that_cannot_be_written_is_logged_and_nothing_breaks(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "absent")
    bench.copy.write(at(1))
    assert bench.log.names == ["snapshot_copy_not_written"]


async def test_many_changes_write_the_copy_at_most_once_a_second_and_the_last_one_is_kept(bench: Bench) -> None:
    written: list[int] = []
    bench.snapshots.subscribe(lambda _: written.append(bench.path.stat().st_ino) if bench.path.exists() else None)
    async with bench.running() as snapshots:
        for revision in range(1, 51):
            bench.feed.send(at(revision))
            await asyncio.sleep(0.002)
        await snapshots.wait_for(50)
    assert len(set(written)) == 1
    assert json.loads(bench.path.read_bytes())["revision"] == 50


async def test_a_registry_that_went_back_is_followed_and_the_lost_snapshot_is_set_aside(bench: Bench) -> None:
    async with bench.running() as snapshots:
        bench.feed.send(at(9, "acme"))
        await until(bench.path.exists)
        bench.feed.send(at(2), "the registry went back from revision 9 to 2")
        await until(lambda: snapshots.current.revision == 2)
    assert "registry_went_back" in bench.log.names
    assert json.loads((bench.path.parent / "snapshot-9.json").read_bytes())["revision"] == 9
    assert json.loads(bench.path.read_bytes())["revision"] == 2
