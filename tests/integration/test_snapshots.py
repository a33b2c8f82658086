"""Snapshots that follow a real Valkey, alone, behind Sentinel and in a Cluster, through deaths and failovers."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from gateway.clients.registry import Registry, connect
from gateway.dataplane.snapshots import DiskCopy, Snapshots
from gateway.domain.errors import RegistryUnavailable
from gateway.domain.model import Change, Snapshot, Tenant
from gateway.system import System
from tests.fixtures.redis import RealValkey, free_port, until, valkey_on_tcp


class Log:
    """Remembers the names and values of what was logged."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []

    def info(self, event: str, **values: Any) -> None:
        self.events.append((event, values))

    warning = error = info

    def reasons(self) -> list[str]:
        return [values["reason"] for event, values in self.events if event == "registry_read"]


class Gateway:
    """A registry with snapshots that follow it, as every gateway process has."""

    def __init__(self, url: str, name: str, folder: Path) -> None:
        self.log = Log()
        self.registry = connect(url, name)
        self.snapshots = Snapshots(
            self.registry, DiskCopy(folder / "snapshot.json", name, self.log), system=System(), log=self.log)
        self.seen: list[Snapshot] = []
        self.snapshots.subscribe(self.seen.append)


@asynccontextmanager
async def gateway(url: str, name: str, folder: Path) -> AsyncIterator[Gateway]:
    made = Gateway(url, name, folder)
    task = asyncio.create_task(made.snapshots.run())
    try:
        yield made
    finally:
        task.cancel()
        await asyncio.wait([task])
        await made.registry.close()


async def write(registry: Registry, name: str, *, created_at: float = 1.0) -> int:
    tenant = Tenant(name=name, created_at=created_at)
    change = Change(actor="operator", action="tenant.create", target=tenant.path, at=1.0, detail={})
    return await registry.commit(change, {tenant.path: tenant}, {})


async def test_two_gateways_come_to_the_same_truth_in_the_same_order(
    shared_valkey: RealValkey, registry_name: str, tmp_path: Path,
) -> None:
    async with (
        gateway(shared_valkey.url, registry_name, tmp_path) as one,
        gateway(shared_valkey.url, registry_name, tmp_path) as two,
    ):
        await one.snapshots.wait_loaded()
        await asyncio.gather(*(
            write(g.registry, f"t{i % 7}", created_at=i) for i in range(100) for g in (one, two)))
        await asyncio.gather(one.snapshots.wait_for(200), two.snapshots.wait_for(200))
        loaded = await one.registry.load()
    assert one.snapshots.current == two.snapshots.current == loaded
    revisions = {g: [s.revision for s in g.seen] for g in (one, two)}
    assert all(seen == sorted(set(seen)) for seen in revisions.values())
    by_revision = {s.revision: s for s in one.seen}
    common = [s for s in two.seen if s.revision in by_revision]
    assert common and all(by_revision[s.revision] == s for s in common)


async def test_a_writer_reads_its_own_write(shared_valkey: RealValkey, registry_name: str, tmp_path: Path) -> None:
    async with gateway(shared_valkey.url, registry_name, tmp_path) as one:
        for i in range(20):
            snapshot = await one.snapshots.wait_for(await write(one.registry, f"t{i}"))
            assert f"t{i}" in snapshot.tenants
        await asyncio.sleep(1.5)
        assert one.snapshots.lag_seconds < 1.2
    assert one.log.reasons() == ["first read"]


async def test_a_killed_and_restarted_redis_is_followed_again(own_valkey: RealValkey, tmp_path: Path) -> None:
    async with gateway(own_valkey.url, "default", tmp_path) as one:
        await one.snapshots.wait_for(await write(one.registry, "before"))
        own_valkey.kill()
        await until(lambda: not one.snapshots.connected)
        assert "before" in one.snapshots.current.tenants
        with pytest.raises(RegistryUnavailable):
            await write(one.registry, "meanwhile")
        own_valkey.start()
        await until(lambda: one.snapshots.connected)
        snapshot = await one.snapshots.wait_for(await write(one.registry, "after"))
        assert set(snapshot.tenants) == {"before", "after"}


async def test_a_redis_that_hangs_is_noticed_and_followed_again(own_valkey: RealValkey, tmp_path: Path) -> None:
    async with gateway(own_valkey.url, "default", tmp_path) as one:
        await one.snapshots.wait_for(await write(one.registry, "before"))
        own_valkey.freeze()
        await until(lambda: not one.snapshots.connected, 4)
        assert one.snapshots.lag_seconds > 1
        own_valkey.thaw()
        await until(lambda: one.snapshots.connected)


async def test_the_copy_on_disk_serves_a_gateway_that_starts_while_redis_is_down(
    own_valkey: RealValkey, tmp_path: Path,
) -> None:
    async with gateway(own_valkey.url, "default", tmp_path) as one:
        await one.snapshots.wait_for(await write(one.registry, "acme"))
        before = one.snapshots.current
    own_valkey.kill()
    async with gateway(own_valkey.url, "default", tmp_path) as two:
        assert await two.snapshots.wait_loaded(1)
        assert two.snapshots.current == before
        assert not two.snapshots.connected
        own_valkey.start()
        await until(lambda: two.snapshots.connected)
        assert two.snapshots.current == before


class History:
    """The registry's keys as they were at one moment, to bring a server back to, as a failover that loses does."""

    def __init__(self, redis: Redis, kept: dict[bytes | str, bytes]) -> None:
        self._redis, self._kept = redis, kept

    @classmethod
    async def of(cls, redis: Redis) -> "History":
        return cls(redis, {key: await redis.dump(key) or b"" for key in await redis.keys()})

    async def bring_back(self, *revisions: int) -> None:
        """In one step, so that no follower sees the middle; `revisions` are made anew by somebody else."""
        async with self._redis.pipeline(transaction=True) as pipeline:
            pipeline.flushall()
            for key, dump in self._kept.items():
                pipeline.restore(key, 0, dump)
            for revision in revisions:
                pipeline.eval(_WRITE.format(revision=revision), 0)
            await pipeline.execute()


@pytest.fixture
async def redis(own_valkey: RealValkey) -> AsyncIterator[Redis]:
    redis = Redis(unix_socket_path=str(own_valkey.socket_path))
    yield redis
    await redis.aclose()


async def test_a_registry_that_went_back_is_read_again(own_valkey: RealValkey, redis: Redis, tmp_path: Path) -> None:
    async with gateway(own_valkey.url, "default", tmp_path) as one:
        await write(one.registry, "kept")
        history = await History.of(redis)
        await write(one.registry, "lost")
        await one.snapshots.wait_for(2)
        await history.bring_back()
        await until(lambda: one.snapshots.current.revision == 1)
        assert set(one.snapshots.current.tenants) == {"kept"}
    assert one.log.reasons() == ["first read", "the registry went back from revision 2 to 1"]


@pytest.mark.parametrize("further", [0, 1])
async def test_another_history_at_the_same_revision_is_noticed(
    own_valkey: RealValkey, redis: Redis, tmp_path: Path, further: int,
) -> None:
    async with gateway(own_valkey.url, "default", tmp_path) as one:
        await write(one.registry, "kept")
        history = await History.of(redis)
        await one.snapshots.wait_for(await write(one.registry, "lost"))
        await history.bring_back(*range(2, 3 + further))
        await until(lambda: "other" in one.snapshots.current.tenants)
        assert set(one.snapshots.current.tenants) == {"kept", "other"}
    assert one.log.reasons() == ["first read", "the registry holds another change at revision 2"]


_WRITE = """
local p, r = 'switchyard:{{default}}:', {revision}
redis.call('XADD', p .. 'changes', r .. '-0', 'id', 'other' .. r, 'previous', r > 2 and 'other' .. (r - 1) or 'x',
  'change', '{{}}', 'write:tenant/other', '{{"name": "other", "created_at": 1}}')
redis.call('SET', p .. 'revision', r)
redis.call('HSET', p .. 'state', 'tenant/other', '{{"name": "other", "created_at": 1}}')
redis.call('HSET', p .. 'revisions', 'tenant/other', r)
"""


async def test_a_flushed_registry_is_followed_to_nothing_and_from_there(
    own_valkey: RealValkey, redis: Redis, tmp_path: Path,
) -> None:
    async with gateway(own_valkey.url, "default", tmp_path) as one:
        await one.snapshots.wait_for(await write(one.registry, "lost"))
        await until((tmp_path / "snapshot.json").exists)
        await redis.flushall()
        await until(lambda: one.snapshots.current.revision == 0)
        await write(one.registry, "new")
        assert set((await one.snapshots.wait_for(1)).tenants) == {"new"}
    assert (tmp_path / "snapshot-1.json").exists()


async def test_a_gap_in_the_changes_is_noticed(own_valkey: RealValkey, redis: Redis, tmp_path: Path) -> None:
    async with gateway(own_valkey.url, "default", tmp_path) as one:
        await one.snapshots.wait_for(await write(one.registry, "a"))
        async with redis.pipeline(transaction=True) as pipeline:
            for revision in (2, 3):
                pipeline.eval(_WRITE.format(revision=revision), 0)
            pipeline.xtrim("switchyard:{default}:changes", maxlen=1, approximate=False)
            await pipeline.execute()
        assert set((await one.snapshots.wait_for(3)).tenants) == {"a", "other"}
    assert one.log.reasons() == ["first read", "the changes between revisions 1 and 3 are missing"]


async def test_a_change_reaches_the_snapshot_soon(
    shared_valkey: RealValkey, registry_name: str, tmp_path: Path,
) -> None:
    loop = asyncio.get_running_loop()
    async with gateway(shared_valkey.url, registry_name, tmp_path) as one:
        await one.snapshots.wait_loaded()
        delays = []
        for i in range(50):
            began_at = loop.time()
            await one.snapshots.wait_for(await write(one.registry, f"t{i}"))
            delays.append(loop.time() - began_at)
    assert sorted(delays)[25] < 0.1


async def test_sentinel_leads_to_the_master_also_after_a_failover(tmp_path: Path) -> None:
    for name in ("master", "replica", "sentinel"):
        (tmp_path / name).mkdir()
    with (
        valkey_on_tcp(tmp_path / "master", "--repl-diskless-sync-delay", "0") as (master, master_process),
        valkey_on_tcp(tmp_path / "replica", "--replicaof", f"127.0.0.1 {master}") as (replica, _),
    ):
        await until(lambda: has_replica(master))
        config = tmp_path / "sentinel.conf"
        config.write_text(
            f"sentinel monitor yard 127.0.0.1 {master} 1\nsentinel down-after-milliseconds yard 300\n"
            "sentinel failover-timeout yard 1000\n")
        with valkey_on_tcp(tmp_path / "sentinel", str(config), "--sentinel") as (sentinel, _):
            await until(lambda: knows_replica(sentinel))
            url = f"redis+sentinel://127.0.0.1:1,127.0.0.1:{sentinel}/yard/0"
            async with gateway(url, "default", tmp_path) as one:
                await one.snapshots.wait_for(await write(one.registry, "before"))
                await wait_replicated(master)
                master_process.kill()
                await until(lambda: can_write(one.registry), 20)
                await one.snapshots.wait_for(2, timeout=10)
                assert set(one.snapshots.current.tenants) == {"before", "after"}
            async with Redis(port=replica) as promoted:
                assert (await promoted.role())[0] in (b"master", "master")


async def has_replica(port: int) -> bool:
    async with Redis(port=port) as redis:
        info = await redis.info("replication")
        return any(v.get("state") == "online" for k, v in info.items() if k.startswith("slave") and isinstance(v, dict))


async def knows_replica(port: int) -> bool:
    async with Redis(port=port) as sentinel:
        masters: Any = await sentinel.sentinel_masters()
        return bool(masters["yard"]["num-slaves"] == 1)


async def wait_replicated(port: int) -> None:
    async with Redis(port=port) as redis:
        # WAIT counts the writes of its own connection only.
        await redis.set("marker", 1)
        assert await redis.wait(1, 5000) == 1


async def can_write(registry: Registry) -> bool:
    try:
        await write(registry, "after")
    except RegistryUnavailable:
        return False
    return True


async def test_a_cluster_holds_a_registry_in_one_slot(tmp_path: Path) -> None:
    with valkey_on_tcp(tmp_path, "--cluster-enabled", "yes", "--cluster-port", str(free_port())) as (port, _):
        async with Redis(port=port) as redis:
            await redis.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)  # type: ignore[no-untyped-call]
            await until(lambda: is_cluster_ok(redis))
            async with gateway(f"redis+cluster://127.0.0.1:{port},127.0.0.1:1", "default", tmp_path) as one:
                assert await one.registry.acquire_lease("reconciler", "a", 5) == 1
                await one.snapshots.wait_for(await write(one.registry, "acme"))
                assert set(one.snapshots.current.tenants) == {"acme"}
                assert [c.revision for c in await one.registry.history()] == [1]
            slots = {await redis.cluster("KEYSLOT", key) for key in await redis.keys()}
            assert len(slots) == 1


async def is_cluster_ok(redis: Redis) -> bool:
    return "cluster_state:ok" in str(await redis.execute_command("CLUSTER", "INFO"))  # type: ignore[no-untyped-call]
