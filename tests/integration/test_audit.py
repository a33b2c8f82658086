"""The audit's chain in a real Valkey: whichever gateway writes, and whatever somebody does to it behind our back."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from redis.asyncio import Redis

from gateway.clients.registry import Registry, connect
from gateway.domain.audit import Report, verify
from gateway.domain.errors import RegistryUnavailable
from gateway.domain.model import Change, Replica, Tenant
from gateway.system import System
from tests.fixtures.redis import RealValkey

Row = tuple[str, dict[str, str]]


@asynccontextmanager
async def connected(url: str, name: str, system: System | None = None) -> AsyncIterator[Registry]:
    registry = connect(url, name, system=system)
    yield registry
    await registry.close()


async def write(registry: Registry, name: str) -> int:
    tenant = Tenant(name=name, created_at=1.0)
    change = Change(actor="alice", action="tenant.create", target=tenant.path, at=1_700_000_000.123456789,
                    detail={"of": ("a", "tuple"), "text": "ü \ud800 '\"", "number": 1e16, "none": None})
    return await registry.commit(change, {tenant.path: tenant}, {})


async def verified(registry: Registry, **options: Any) -> Report:
    snapshot = await registry.load()
    return verify(await registry.history(limit=100_000), until=snapshot.revision, **options)


class Tamperer:
    """Somebody who may write Redis, and does to the stream what Redis itself forbids: writes all of it anew."""

    def __init__(self, valkey: RealValkey, name: str) -> None:
        self.redis = Redis(unix_socket_path=str(valkey.socket_path), decode_responses=True)
        self.prefix = f"switchyard:{{{name}}}"

    async def rows(self) -> list[Row]:
        found: Any = await self.redis.xrange(f"{self.prefix}:changes")
        return list(found)

    async def put(self, rows: list[Row]) -> None:
        await self.redis.delete(f"{self.prefix}:changes")
        for stream_id, fields in rows:
            await self.redis.xadd(f"{self.prefix}:changes", fields, id=stream_id)  # type: ignore[arg-type]

    async def write_as_an_older_release(self, name: str) -> None:
        """A change as gateways wrote it before the chain."""
        tenant = Tenant(name=name, created_at=1.0)
        rows, revision = await self.rows(), await self.redis.incr(f"{self.prefix}:revision")
        audited = {"actor": "bob", "action": "tenant.create", "target": tenant.path, "at": 5.0, "detail": {}}
        await self.redis.xadd(f"{self.prefix}:changes", {
            "id": f"old-{revision}", "previous": rows[-1][1]["id"] if rows else "", "change": json.dumps(audited),
            f"write:{tenant.path}": json.dumps(tenant.to_document())}, id=f"{revision}-0")
        await self.redis.hset(f"{self.prefix}:state", tenant.path, json.dumps(tenant.to_document()))
        await self.redis.hset(f"{self.prefix}:revisions", tenant.path, revision)


@pytest.fixture
async def tamperer(shared_valkey: RealValkey, registry_name: str) -> AsyncIterator[Tamperer]:
    made = Tamperer(shared_valkey, registry_name)
    yield made
    await made.redis.aclose()


async def test_every_change_is_chained_whichever_of_many_gateways_writes(
    shared_valkey: RealValkey, registry: Registry, registry_name: str,
) -> None:
    async def write_twenty(writer: int) -> None:
        async with connected(shared_valkey.url, registry_name) as mine:
            await asyncio.gather(*(write(mine, f"w{writer}-{n}") for n in range(20)))

    await asyncio.gather(*(write_twenty(writer) for writer in range(6)))
    report = await verified(registry)
    assert report.broken is None
    assert (report.chained, report.unchained, report.last_revision) == (120, 0, 120)
    changes = await registry.history(limit=120)
    assert [newer.previous for newer in changes[:-1]] == [older.hash for older in changes[1:]]


async def test_deleting_is_chained_too(registry: Registry) -> None:
    await write(registry, "acme")
    gone = Change(actor="alice", action="tenant.delete", target="tenant/acme", at=2.0, detail={})
    await registry.commit(gone, {"tenant/acme": None}, {"tenant/acme": 1})
    assert (await verified(registry)).broken is None


def altered(revision: int, **fields: str) -> Callable[[list[Row]], list[Row]]:
    return lambda rows: [(i, {**f, **fields}) if i == f"{revision}-0" else (i, f) for i, f in rows]


def audited(**fields: Any) -> str:
    return json.dumps({"actor": "alice", "action": "tenant.create", "target": "tenant/t3", "at": 2.0, "detail": {},
                       **fields})


def without_hashes(rows: list[Row], revisions: range) -> list[Row]:
    return [(i, {k: v for k, v in f.items() if k not in ("hash", "previous_hash")})
            if int(i.partition("-")[0]) in revisions else (i, f) for i, f in rows]


@pytest.mark.parametrize(("tamper", "revision"), [
    (altered(3, change=audited(actor="bob")), 3),
    (altered(3, **{"write:tenant/t3": json.dumps({"name": "t3", "created_at": 9.0})}), 3),
    (altered(3, **{"write:tenant/more": json.dumps({"name": "more", "created_at": 9.0})}), 3),
    (altered(3, id="another"), 3),
    (altered(3, hash="0" * 64), 3),
    (altered(3, previous_hash="0" * 64), 3),
    (lambda rows: [row for row in rows if row[0] != "3-0"], 3),
    (lambda rows: rows[:-1], 6),
    (lambda rows: rows[1:], 1),
    (lambda rows: [*rows[:3], ("3-1", rows[2][1]), *rows[3:]], 4),
    (lambda rows: [*rows, ("6-7", rows[2][1])], 7),
    (lambda rows: [(a[0], b[1]) if a[0] in ("3-0", "4-0") else a
                   for a, b in zip(rows, [*rows[:2], rows[3], rows[2], *rows[4:]], strict=True)], 3),
    (lambda rows: without_hashes(rows, range(1, 4)), 4),
    (lambda rows: without_hashes(rows, range(6, 7)), 6),
    (lambda rows: [], 1),
])
async def test_whatever_is_done_to_the_stream_is_found(
    registry: Registry, tamperer: Tamperer, tamper: Callable[[list[Row]], list[Row]], revision: int,
) -> None:
    for number in range(1, 7):
        await write(registry, f"t{number}")
    assert (await verified(registry)).broken is None
    await tamperer.put(tamper(await tamperer.rows()))
    broken = (await verified(registry)).broken
    assert broken is not None
    assert broken.revision == revision, broken.reason


async def test_a_slipped_in_row_is_seen_at_the_edge_of_a_page_too(registry: Registry, tamperer: Tamperer) -> None:
    for number in range(1, 5):
        await write(registry, f"t{number}")
    rows = await tamperer.rows()
    await tamperer.put([*rows[:2], ("2-5", rows[0][1]), *rows[2:]])
    pages = [*await registry.history(limit=2), *await registry.history(before=3, limit=10)]
    assert [c.revision for c in pages] == [4, 3, 2, 2, 1]
    assert verify(pages).broken is not None


async def test_changes_of_an_older_release_are_unchained_and_the_next_one_holds_them(
    registry: Registry, tamperer: Tamperer,
) -> None:
    for number in range(3):
        await tamperer.write_as_an_older_release(f"old-{number}")
    assert (await verified(registry)) == Report(0, 3, 1, 3, "", None)
    for number in range(2):
        await write(registry, f"new-{number}")
    report = await verified(registry)
    assert (report.broken, report.unchained, report.chained) == (None, 3, 2)
    await tamperer.put(altered(3, change=audited(actor="mallory"))(await tamperer.rows()))
    broken = (await verified(registry)).broken
    assert broken is not None and broken.revision == 4


async def test_a_gateway_of_an_older_release_that_still_writes_is_named_and_can_be_left_behind(
    registry: Registry, tamperer: Tamperer,
) -> None:
    await write(registry, "new")
    await tamperer.write_as_an_older_release("old")
    await write(registry, "newer")
    broken = (await verified(registry)).broken
    assert broken is not None and broken.revision == 2
    assert "older release" in broken.reason
    assert (await verified(registry, since=3)).broken is None


async def test_a_last_row_that_cannot_be_read_keeps_nobody_from_writing(
    registry: Registry, tamperer: Tamperer,
) -> None:
    await tamperer.write_as_an_older_release("old")
    [(stream_id, fields)] = await tamperer.rows()
    await tamperer.put([(stream_id, {**fields, "change": "{"})])
    assert await write(registry, "new") == 2


async def test_the_digest_of_writes_gives_no_hold_to_guess_a_replicas_key(
    registry: Registry, tamperer: Tamperer,
) -> None:
    digests = set()
    for _ in range(2):
        replica = Replica(name="r", url="http://r", created_at=1.0, api_key="1234")
        await registry.commit(Change(actor="a", action="x", target=replica.path, at=1.0, detail={}),
                              {replica.path: replica}, {})
        [newest] = await registry.history(limit=1)
        digests.add(newest.writes_digest)
        assert (await tamperer.rows())[-1][1]["id"] not in repr(newest)
    assert len(digests) == 2


class Overtaken(System):
    """A clock that says that a lot of time has passed whenever it is asked."""

    def monotonic(self) -> float:
        return System.monotonic(self) * 1e6


async def test_a_change_that_others_always_come_before_is_given_up_and_not_made(
    shared_valkey: RealValkey, registry: Registry, registry_name: str,
) -> None:
    names = [f"t{number}" for number in range(20)]
    async with AsyncExitStack() as stack:
        hasty = [await stack.enter_async_context(connected(shared_valkey.url, registry_name, Overtaken()))
                 for _ in names]
        writes = [write(gateway, name) for gateway, name in zip(hasty, names, strict=True)]
        outcomes = await asyncio.gather(*writes, return_exceptions=True)
    refused = [o for o in outcomes if isinstance(o, BaseException)]
    assert refused, "all read the same head, and one was first"
    assert {type(error) for error in refused} == {RegistryUnavailable}
    assert all("Nothing was changed" in str(error) for error in refused)
    made = {name for name, outcome in zip(names, outcomes, strict=True) if isinstance(outcome, int)}
    assert set((await registry.load()).tenants) == made
    assert (await verified(registry)).broken is None


async def test_what_history_answers_is_what_was_committed(registry: Registry) -> None:
    await write(registry, "acme")
    [found] = await registry.history()
    assert found == replace(found, actor="alice", revision=1, detail={
        "of": ["a", "tuple"], "text": "ü \ud800 '\"", "number": 1e16, "none": None})
