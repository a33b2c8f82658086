"""The registry on a real Valkey: atomic changes, following, history, leases, and what becomes of a lost answer."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from redis.asyncio import Redis

from gateway.clients.registry import Registry, connect
from gateway.clients.registry_scripts import COMMIT
from gateway.domain.errors import InvalidRequest, LostRace, RegistryUnavailable, SwitchyardError
from gateway.domain.model import Adapter, Change, Entity, Secret, Snapshot, Tenant
from tests.fixtures.redis import RealValkey, until


def tenant(name: str, *, created_at: float = 1.0) -> Tenant:
    return Tenant(name=name, created_at=created_at)


def change(target: str, action: str = "tenant.create") -> Change:
    return Change(actor="operator", action=action, target=target, at=2.0, detail={"why": "a test, \ud800 and 'quotes'"})


async def write(registry: Registry, *entities: Entity, expected: dict[str, int] | None = None) -> int:
    return await registry.commit(change(entities[0].path), {e.path: e for e in entities}, expected or {})


@asynccontextmanager
async def connected(url: str, name: str) -> AsyncIterator[Registry]:
    registry = connect(url, name)
    yield registry
    await registry.close()


async def test_what_is_committed_is_loaded_with_its_revisions(registry: Registry) -> None:
    assert await registry.load() == Snapshot.empty()
    adapter = Adapter(tenant="acme", name="support", created_at=3.0)
    assert await write(registry, tenant("acme"), adapter) == 1
    assert await write(registry, tenant("zeta")) == 2
    snapshot = await registry.load()
    assert snapshot.revision == 2
    assert {path: e.revision for path, e in snapshot.entities.items()} == {
        "tenant/acme": 1, "adapter/acme/support": 1, "tenant/zeta": 2}
    assert snapshot.adapters["acme", "support"].created_at == 3.0


async def test_a_deleted_entity_is_gone_and_its_path_can_be_used_again(registry: Registry) -> None:
    await write(registry, tenant("acme"))
    await registry.commit(change("tenant/acme", "tenant.delete"), {"tenant/acme": None}, {"tenant/acme": 1})
    assert (await registry.load()).entities == {}
    assert await write(registry, tenant("acme"), expected={"tenant/acme": 0}) == 3


@pytest.mark.parametrize(("expected", "current"), [
    ({"tenant/acme": 0}, 1), ({"tenant/acme": 2}, 1), ({"tenant/acme": 1, "tenant/zeta": 1}, 0),
])
async def test_a_lost_race_changes_nothing(registry: Registry, expected: dict[str, int], current: int) -> None:
    await write(registry, tenant("acme"))
    before = await registry.load()
    with pytest.raises(LostRace) as lost:
        await write(registry, tenant("acme", created_at=9.0), tenant("other"), expected=expected)
    assert lost.value.current == current
    assert await registry.load() == before
    assert len(await registry.history()) == 1


async def test_eight_concurrent_writers_who_repeat_lost_races_lose_nothing(
    shared_valkey: RealValkey, registry_name: str,
) -> None:
    """Each adds 1 to one shared number ten times, by read, change and compare-and-set."""
    async def add_ten(writer: int) -> int:
        races = 0
        async with connected(shared_valkey.url, registry_name) as registry:
            for _ in range(10):
                while True:
                    current = (await registry.load()).tenants["counter"]
                    more = tenant("counter", created_at=current.created_at + 1)
                    try:
                        await write(registry, more, tenant(f"writer-{writer}"), expected={more.path: current.revision})
                        break
                    except LostRace:
                        races += 1
        return races

    async with connected(shared_valkey.url, registry_name) as registry:
        await write(registry, tenant("counter", created_at=0.0))
        races = sum(await asyncio.gather(*(add_ten(writer) for writer in range(8))))
        snapshot = await registry.load()
        changes = await registry.history(limit=1000)
    assert races > 0
    assert snapshot.tenants["counter"].created_at == 80
    assert [c.revision for c in changes] == list(range(81, 0, -1))


async def test_history_is_newest_first_and_can_be_paged_and_narrowed(registry: Registry) -> None:
    for name in ("acme", "acme-labs", "acme", "zeta"):
        await write(registry, tenant(name))
    assert [c.revision for c in await registry.history()] == [4, 3, 2, 1]
    assert [c.revision for c in await registry.history(before=3, limit=1)] == [2]
    assert [c.revision for c in await registry.history(before=1)] == []
    assert [c.revision for c in await registry.history(before=0)] == []
    assert [c.revision for c in await registry.history(target="tenant/acme")] == [3, 1]
    assert [c.revision for c in await registry.history(target="tenant", limit=2)] == [4, 3]
    [newest] = await registry.history(limit=1)
    assert replace(newest, writes_digest="", previous="", hash="") == replace(change("tenant/zeta"), revision=4)


async def test_history_finds_a_target_behind_pages_of_others(registry: Registry) -> None:
    await write(registry, tenant("needle"))
    for _ in range(250):
        await write(registry, tenant("hay"))
    assert [c.revision for c in await registry.history(target="tenant/needle")] == [1]
    assert len(await registry.history(limit=205)) == 205


async def test_registries_of_one_redis_do_not_see_each_other(shared_valkey: RealValkey, registry: Registry) -> None:
    await write(registry, tenant("acme"))
    async with connected(shared_valkey.url, "another") as other:
        assert await other.load() == Snapshot.empty()


async def test_a_lease_is_one_holders_until_it_ends_and_its_token_only_grows(registry: Registry) -> None:
    first = await registry.acquire_lease("reconciler", "a", 5)
    assert first is not None
    assert await registry.acquire_lease("reconciler", "b", 5) is None
    assert await registry.acquire_lease("reconciler", "a", 5) == first
    await registry.release_lease("reconciler", "b")
    assert await registry.acquire_lease("reconciler", "b", 5) is None
    await registry.release_lease("reconciler", "a")
    second = await registry.acquire_lease("reconciler", "b", 0.05)
    assert second is not None and second > first
    assert await registry.acquire_lease("other", "a", 5) is not None
    await asyncio.sleep(0.1)
    third = await registry.acquire_lease("reconciler", "a", 5)
    assert third is not None and third > second


async def test_a_key_of_the_wrong_type_is_a_fault_not_an_outage_and_nothing_is_half_written(
    shared_valkey: RealValkey, registry: Registry, registry_name: str,
) -> None:
    await write(registry, tenant("acme"))
    redis = Redis(unix_socket_path=str(shared_valkey.socket_path))
    for key in ("state", "revisions", "changes", "revision"):
        name = f"switchyard:{{{registry_name}}}:{key}"
        dump = await redis.dump(name)
        assert dump is not None
        await redis.delete(name)
        await redis.sadd(name, "wrong")
        with pytest.raises(SwitchyardError) as fault:
            await write(registry, tenant("zeta"))
        assert not isinstance(fault.value, RegistryUnavailable)
        await redis.restore(name, 0, dump, replace=True)
        assert (await registry.load()).revision == 1
        assert len(await registry.history()) == 1
    await redis.aclose()


async def test_a_document_that_cannot_be_read_is_named(
    shared_valkey: RealValkey, registry: Registry, registry_name: str,
) -> None:
    redis = Redis(unix_socket_path=str(shared_valkey.socket_path))
    for text in ("{", "{}", "[1]", '{"name": "acme"}'):
        await redis.hset(f"switchyard:{{{registry_name}}}:state", "tenant/acme", text)
        with pytest.raises(SwitchyardError, match="tenant/acme"):
            await registry.load()
    await redis.aclose()


async def test_entities_of_kinds_that_this_release_does_not_know_are_left_alone(
    shared_valkey: RealValkey, registry: Registry, registry_name: str,
) -> None:
    redis = Redis(unix_socket_path=str(shared_valkey.socket_path))
    await redis.hset(f"switchyard:{{{registry_name}}}:state", "novelty/x", '{"of": "a later release"}')
    await redis.aclose()
    await write(registry, tenant("acme"))
    assert list((await registry.load()).entities) == ["tenant/acme"]


async def test_an_entity_under_a_foreign_path_is_refused(registry: Registry) -> None:
    with pytest.raises(ValueError, match="tenant/zeta"):
        await registry.commit(change("tenant/acme"), {"tenant/zeta": tenant("acme")}, {})


async def test_a_change_of_too_many_entities_is_refused_before_it_is_sent(registry: Registry) -> None:
    with pytest.raises(InvalidRequest, match="1000"):
        await write(registry, *(tenant(f"t{i}") for i in range(1001)))
    assert await write(registry, *(tenant(f"t{i}") for i in range(1000))) == 1
    assert len((await registry.load()).tenants) == 1000


async def test_a_dead_redis_is_reported_at_once_and_nothing_is_left_half_done(own_valkey: RealValkey) -> None:
    async with connected(own_valkey.url, "default") as registry:
        await write(registry, tenant("acme"))
        own_valkey.kill()
        async with asyncio.timeout(1):
            for call in (registry.load(), write(registry, tenant("zeta")), registry.history(),
                         registry.acquire_lease("x", "a", 1), registry.release_lease("x", "a")):
                with pytest.raises(RegistryUnavailable, match="does not answer"):
                    await call
        own_valkey.start()
        assert (await registry.load()).revision == 1
        assert await write(registry, tenant("zeta")) == 2


async def test_a_redis_that_hangs_is_reported_within_its_time(own_valkey: RealValkey) -> None:
    async with connected(own_valkey.url, "default") as registry:
        await write(registry, tenant("acme"))
        own_valkey.freeze()
        async with asyncio.timeout(3):
            with pytest.raises(RegistryUnavailable, match="does not answer"):
                await write(registry, tenant("zeta"))
        own_valkey.thaw()
        await until(lambda: is_revision(registry, 1))


async def is_revision(registry: Registry, revision: int) -> bool:
    return (await registry.load()).revision == revision


async def test_no_acknowledged_change_is_lost_when_redis_is_killed(own_valkey: RealValkey) -> None:
    acknowledged: dict[str, int] = {}

    async def keep_writing(writer: int) -> None:
        async with connected(own_valkey.url, "default") as registry:
            with suppress(RegistryUnavailable):
                for i in range(100_000):
                    acknowledged[f"w{writer}-{i}"] = await write(registry, tenant(f"w{writer}-{i}"))

    writers = [asyncio.create_task(keep_writing(w)) for w in range(4)]
    await until(lambda: len(acknowledged) > 100)
    own_valkey.kill()
    await asyncio.gather(*writers)
    own_valkey.start()
    async with connected(own_valkey.url, "default") as registry:
        snapshot = await registry.load()
    assert {name: snapshot.tenants[name].revision for name in acknowledged} == acknowledged


class Proxy:
    """Stands between registry and server on a socket of its own, and can swallow answers to commits."""

    def __init__(self, path: Path, server: Path) -> None:
        self.path, self._server = path, server
        self.answers_to_swallow = 0
        self.is_open = True
        self.commits = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Proxy"]:
        async with await asyncio.start_unix_server(self._serve, self.path):
            yield self

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to_reader, to_writer = await asyncio.open_unix_connection(self._server)
        try:
            while self.is_open and (asked := await reader.read(65536)):
                to_writer.write(asked)
                answer = await to_reader.read(65536)
                if COMMIT.sha.encode() in asked or COMMIT.text.encode() in asked:
                    self.commits += 1
                    if self.answers_to_swallow:
                        self.answers_to_swallow -= 1
                        return
                writer.write(answer)
        finally:
            writer.close()
            to_writer.close()


@pytest.fixture
async def proxy(shared_valkey: RealValkey) -> AsyncIterator[Proxy]:
    path = shared_valkey.socket_path.with_name("proxy.sock")
    async with Proxy(path, shared_valkey.socket_path).running() as proxy:
        yield proxy


@pytest.mark.parametrize("lost_answers", [1, 3])
async def test_a_change_whose_answer_gets_lost_is_done_once(
    proxy: Proxy, registry: Registry, registry_name: str, lost_answers: int,
) -> None:
    await write(registry, tenant("acme"))
    async with connected(f"unix://{proxy.path}", registry_name) as through_proxy:
        proxy.answers_to_swallow = lost_answers
        assert await write(through_proxy, tenant("zeta"), expected={"tenant/zeta": 0}) == 2
        proxy.answers_to_swallow = lost_answers
        assert await write(through_proxy, tenant("acme")) == 3
    assert proxy.commits >= 2 * (lost_answers + 1)
    assert [c.target for c in await registry.history()] == ["tenant/acme", "tenant/zeta", "tenant/acme"]


async def test_a_change_of_which_nobody_knows_whether_it_was_done_says_so(
    proxy: Proxy, registry: Registry, registry_name: str,
) -> None:
    await write(registry, tenant("acme"))
    async with connected(f"unix://{proxy.path}", registry_name) as through_proxy:
        proxy.answers_to_swallow = 1_000_000
        with pytest.raises(RegistryUnavailable, match=r"unknown: read before you repeat"):
            await write(through_proxy, tenant("zeta"))
    assert [c.target for c in await registry.history()] == ["tenant/zeta", "tenant/acme"]


async def test_a_replica_that_cannot_write_is_an_outage_and_changes_nothing(own_valkey: RealValkey) -> None:
    redis = Redis(unix_socket_path=str(own_valkey.socket_path))
    async with connected(own_valkey.url, "default") as registry:
        await write(registry, tenant("acme"))
        await redis.config_set("min-replicas-to-write", 1)
        with pytest.raises(RegistryUnavailable, match="just now"):
            await write(registry, tenant("zeta"))
        await redis.config_set("min-replicas-to-write", 0)
        await redis.config_set("maxmemory", 1)
        with pytest.raises(RegistryUnavailable, match="just now"):
            await write(registry, tenant("zeta"))
        assert (await registry.load()).revision == 1
    await redis.aclose()


async def test_a_cancelled_follower_ends_even_when_an_answer_comes_in_the_same_instant(
    shared_valkey: RealValkey, registry_name: str,
) -> None:
    async with connected(shared_valkey.url, registry_name) as registry, asyncio.timeout(20):
        for turns in [*range(40), *range(10)]:  # of the event loop, so that the cancellation finds it at every step
            task = asyncio.create_task(follow_for_ever(registry))
            await write(registry, tenant("acme"))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            done, _ = await asyncio.wait([task], timeout=0.5)
            assert done, f"after {turns} turns"


async def follow_for_ever(registry: Registry) -> None:
    async with aclosing(registry.follow()) as feed:
        async for _ in feed:
            pass


async def test_scripts_are_sent_again_to_a_redis_that_forgot_them(own_valkey: RealValkey) -> None:
    async with connected(own_valkey.url, "default") as registry:
        await write(registry, tenant("acme"))
        own_valkey.restart()
        assert await write(registry, tenant("zeta")) == 2


async def test_large_documents_survive_unchanged(registry: Registry) -> None:
    secret = Secret(name="s", value="\x00 ü \U0001f600 " + "x" * 200_000)
    await write(registry, secret)
    assert (await registry.load()).entities["secret/s"] == Secret(name="s", value=secret.value, revision=1)
