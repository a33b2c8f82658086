"""Idempotency-Key on the admin API: done once, answered alike, on any gateway, and nothing secret is kept for it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import Request, Response
from redis.asyncio import Redis

from gateway.api.idempotency import Once
from gateway.clients.replays import Answer, Replays, State
from gateway.domain.errors import NotReplayed, OutcomeUnknown, SwitchyardError
from tests.fixtures.artifacts import archive, write_adapter
from tests.fixtures.fleet import Bench, FakeReplica, Gateway, eventually
from tests.fixtures.redis import RealValkey

VERSIONS = "/tenants/acme/adapters/support/versions"


@pytest.fixture
def bench(shared_valkey: RealValkey, registry_name: str, tmp_path: Path) -> Any:
    made = Bench(shared_valkey.url, registry_name, tmp_path)
    yield made
    made.close()


@pytest.fixture
async def replica(bench: Bench) -> AsyncIterator[FakeReplica]:
    async with bench.replica("one") as made:
        yield made


@pytest.fixture
async def gateway(bench: Bench) -> AsyncIterator[Gateway]:
    async with bench.gateway() as made:
        yield made


async def ask(
    gateway: Gateway, key: str | None, body: Any = None, *, method: str = "POST", path: str = "/tenants",
    operator: str = "", **options: Any,
) -> httpx.Response:
    headers = {} if key is None else {"Idempotency-Key": key}
    headers |= {"Authorization": f"Bearer {operator}"} if operator else {}
    return await gateway.http.request(method, path, json=body, headers={**headers, **options.pop("headers", {})},
                                      **options)


def is_replay(response: httpx.Response) -> bool:
    return bool(response.headers.get("idempotent-replayed") == "true")


def error(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["code"]


async def actions(gateway: Gateway) -> list[str]:
    return [c["action"] for c in (await gateway.http.get("/changes")).json()["data"]]


async def test_the_same_request_again_is_done_once_and_answered_alike_by_every_gateway(
    bench: Bench, gateway: Gateway,
) -> None:
    first = await ask(gateway, "k1", {"name": "acme"})
    async with bench.gateway() as other:
        for asked in (gateway, other):
            again = await ask(asked, "k1", {"name": "acme"})
            assert (again.status_code, again.json()) == (first.status_code, first.json()) == (201, first.json())
            assert is_replay(again)
            for header in ("etag", "x-switchyard-revision", "content-type"):
                assert again.headers[header] == first.headers[header]
    assert not is_replay(first)
    assert await actions(gateway) == ["tenant.create"]


async def test_without_a_key_or_with_another_the_request_is_done_anew(gateway: Gateway) -> None:
    await ask(gateway, "k1", {"name": "acme"})
    for key in (None, "k2"):
        assert error(await ask(gateway, key, {"name": "acme"})) == (409, "conflict")


async def test_every_writing_method_is_done_once(gateway: Gateway) -> None:
    await gateway.tenants.create("operator", "acme")
    key, _ = await gateway.tenants.create_key("operator", "acme", "laptop")
    await gateway.replicas.add("operator", "far", "http://127.0.0.1:9")
    for number, (method, path, body) in enumerate((
        ("PATCH", "/tenants/acme", {"base_access": False}), ("PUT", "/tenants/acme/adapters/support", {"replicas": 2}),
        ("DELETE", f"/tenants/acme/keys/{key.id}", None), ("DELETE", "/replicas/far", None),
    )):
        first = await ask(gateway, f"k{number}", body, method=method, path=path)
        done = await actions(gateway)
        again = await ask(gateway, f"k{number}", body, method=method, path=path)
        assert first.is_success, first.text
        assert (again.status_code, again.content) == (first.status_code, first.content)
        assert is_replay(again)
        assert await actions(gateway) == done


async def test_a_refusal_is_answered_alike_too(gateway: Gateway) -> None:
    await gateway.tenants.create("operator", "acme")
    first = await ask(gateway, "k1", {"name": "acme"})
    again = await ask(gateway, "k1", {"name": "acme"})
    assert error(first) == error(again) == (409, "conflict")
    assert is_replay(again)
    lost = await ask(gateway, "k2", {}, method="PATCH", path="/tenants/acme", headers={"If-Match": '"77"'})
    repeated = await ask(gateway, "k2", {}, method="PATCH", path="/tenants/acme", headers={"If-Match": '"77"'})
    assert error(repeated) == error(lost) == (412, "revision_mismatch")
    assert repeated.headers["etag"] == lost.headers["etag"]


async def test_a_request_that_could_not_be_understood_leaves_its_key_free(gateway: Gateway) -> None:
    assert (await ask(gateway, "k1", {"name": "Not Allowed"})).status_code == 400
    assert (await ask(gateway, "k1", {"name": "acme"})).status_code == 201


@pytest.mark.parametrize("other", [
    {"body": {"name": "beta"}}, {"method": "PUT", "path": "/tenants/acme/adapters/support", "body": {"name": "acme"}},
    {"path": "/replicas"}, {"headers": {"If-Match": '"1"'}}, {"path": "/operators?dry_run=true"},
])
async def test_another_request_under_the_same_key_is_refused_and_not_done(
    gateway: Gateway, other: dict[str, Any],
) -> None:
    await ask(gateway, "k1", {"name": "acme"})
    refused = await ask(gateway, "k1", **{"body": {"name": "acme"}, **other})
    assert error(refused) == (422, "idempotency_key_reused")
    assert refused.json()["error"]["param"] == "Idempotency-Key"
    assert await actions(gateway) == ["tenant.create"]


async def test_of_many_at_once_on_two_gateways_one_is_done_and_the_others_are_told_to_wait(
    bench: Bench, gateway: Gateway,
) -> None:
    async with bench.gateway() as other:
        answers = await asyncio.gather(*(
            ask(asked, "k1", {"name": "acme"}) for asked in (gateway, other) for _ in range(8)))
    assert {a.status_code for a in answers} <= {201, 409}
    assert sum(a.status_code == 201 and not is_replay(a) for a in answers) == 1
    assert {error(a) for a in answers if a.status_code == 409} <= {(409, "not_replayed")}
    assert await actions(gateway) == ["tenant.create"]


async def test_while_the_first_runs_the_same_request_waits_and_another_is_refused(
    bench: Bench, gateway: Gateway, replica: FakeReplica,
) -> None:
    await gateway.add(replica)
    await gateway.tenants.create("operator", "acme")
    replica.fake.behave(load_delay=0.5)
    body = {"source": str(write_adapter(bench.folder / "a"))}
    first = asyncio.create_task(ask(gateway, "k1", body, path=VERSIONS))
    await eventually(lambda: len(bench.kept) == 1)
    running = await ask(gateway, "k1", body, path=VERSIONS)
    assert error(running) == (409, "not_replayed")
    assert "still runs" in running.text
    assert (await first).status_code == 201
    again = await ask(gateway, "k1", body, path=VERSIONS)
    assert again.json() == (await first).json()
    assert again.headers["location"] == (await first).headers["location"]
    different = await ask(gateway, "k1", {"source": str(write_adapter(bench.folder / "b", seed=2))}, path=VERSIONS)
    assert error(different) == (422, "idempotency_key_reused")


async def test_an_uploaded_archive_is_told_from_another_by_its_bytes(
    bench: Bench, gateway: Gateway, replica: FakeReplica,
) -> None:
    await gateway.add(replica)
    await gateway.tenants.create("operator", "acme")
    content = archive(write_adapter(bench.folder / "a"))
    other = archive(write_adapter(bench.folder / "b", seed=2))
    headers = {"Content-Type": "application/gzip"}
    first = await ask(gateway, "k1", path=VERSIONS, content=content, headers=headers)
    again = await ask(gateway, "k1", path=VERSIONS, content=content, headers=headers)
    assert (first.status_code, again.status_code) == (201, 201)
    assert is_replay(again) and again.json() == first.json()
    assert error(await ask(gateway, "k1", path=VERSIONS, content=other, headers=headers)) == (
        422, "idempotency_key_reused")
    assert len(bench.kept) == 1


async def test_a_secret_is_neither_kept_nor_given_again(
    shared_valkey: RealValkey, registry_name: str, gateway: Gateway,
) -> None:
    await gateway.tenants.create("operator", "acme")
    for path, body in (("/tenants/acme/keys", {"name": "laptop"}), ("/operators", {"name": "alice", "role": "viewer"})):
        first = await ask(gateway, path, body, path=path)
        assert first.status_code == 201
        again = await ask(gateway, path, body, path=path)
        assert error(again) == (409, "not_replayed")
        message = again.json()["error"]["message"]
        assert f"revision {first.json()['revision']}" in message
        assert f"DELETE {first.headers['location']}" in message
        gone = await gateway.http.delete("http://gateway" + first.headers["location"])
        assert gone.json()["revoked_at"] is not None
        assert first.json()["key"] not in again.text
        assert first.json()["key"] not in await everything_in(shared_valkey, registry_name)


async def everything_in(valkey: RealValkey, registry_name: str) -> str:
    redis = Redis(unix_socket_path=str(valkey.socket_path))
    found = [repr(await redis.dump(key)) async for key in redis.scan_iter(f"*{{{registry_name}}}*")]
    kept = [repr(await redis.hgetall(key)) async for key in redis.scan_iter(f"*{{{registry_name}}}:answer:*")]
    await redis.aclose()
    assert kept
    return "".join(found + kept)


async def test_of_a_body_only_a_keyed_digest_is_kept(
    shared_valkey: RealValkey, registry_name: str, gateway: Gateway,
) -> None:
    body = {"name": "far", "url": "http://127.0.0.1:9", "api_key": "hunter2"}
    assert (await ask(gateway, "my-own-key", body, path="/replicas")).status_code == 201
    redis = Redis(unix_socket_path=str(shared_valkey.socket_path), decode_responses=True)
    [name] = [key async for key in redis.scan_iter(f"*{{{registry_name}}}:answer:*")]
    record, left = await redis.hgetall(name), await redis.ttl(name)
    await redis.aclose()
    assert "hunter2" not in repr(record) and "my-own-key" not in name + repr(record)
    assert 23 * 3600 < left <= 24 * 3600


async def test_two_operators_may_use_the_same_key_and_neither_sees_the_others_answer(gateway: Gateway) -> None:
    made = [(await ask(gateway, None, {"name": name, "role": "operator"}, path="/operators")).json()["key"]
            for name in ("alice", "bob")]
    answers = [await ask(gateway, "k1", {"name": f"tenant-{n}"}, operator=key) for n, key in enumerate(made)]
    assert [a.status_code for a in answers] == [201, 201]


@pytest.mark.parametrize("key", ["", "two words", "x" * 256, "tab\t", "ümlaut".encode()])
async def test_a_key_that_is_none_is_refused(gateway: Gateway, key: str | bytes) -> None:
    response = await gateway.http.post("/tenants", json={"name": "acme"}, headers=[(b"Idempotency-Key", (
        key if isinstance(key, bytes) else key.encode()))])
    assert error(response) == (400, "invalid_request")
    assert response.json()["error"]["param"] == "Idempotency-Key"


async def test_reads_do_not_care_about_a_key(gateway: Gateway) -> None:
    for path in ("/tenants", "/status"):
        response = await ask(gateway, "k1", method="GET", path=path)
        assert response.status_code == 200
        assert not is_replay(response)


async def test_with_redis_down_a_write_with_a_key_is_503_and_not_done(
    own_valkey: RealValkey, registry_name: str, tmp_path: Path,
) -> None:
    async with AsyncExitStack() as stack:
        bench = Bench(own_valkey.url, registry_name, tmp_path)
        stack.callback(bench.close)
        gateway = await stack.enter_async_context(bench.gateway())
        own_valkey.kill()
        await eventually(lambda: not gateway.snapshots.connected)
        assert error(await ask(gateway, "k1", {"name": "acme"})) == (503, "registry_unavailable")
        own_valkey.start()
        await eventually(lambda: gateway.snapshots.connected)
        assert (await ask(gateway, "k1", {"name": "acme"})).status_code == 201


async def test_a_failure_that_is_known_to_have_done_nothing_leaves_the_key_free(
    bench: Bench, gateway: Gateway, replica: FakeReplica,
) -> None:
    await gateway.tenants.create("operator", "acme")
    body = {"source": str(write_adapter(bench.folder / "a"))}
    assert error(await ask(gateway, "k1", body, path=VERSIONS)) == (503, "no_healthy_replica")
    await gateway.add(replica)
    assert (await ask(gateway, "k1", body, path=VERSIONS)).status_code == 201


async def test_what_a_gateway_left_behind_when_it_died_is_never_done_twice(gateway: Gateway) -> None:
    replays = Replays(gateway.registry, alive_seconds=0.05)
    assert (await replays.begin("n", "dead", "r", "c")).state is State.NEW
    assert (await replays.begin("n", "other", "r", "c")).state is State.RUNNING
    await asyncio.sleep(0.1)
    assert (await replays.begin("n", "other", "r", "c")).state is State.UNKNOWN
    await replays.renew("n", "other")
    assert (await replays.begin("n", "other", "r", "c")).state is State.UNKNOWN, "only the holder can renew"
    await replays.end("n", "other", State.DONE, "c", Answer(200, {}, ""))
    assert (await replays.begin("n", "other", "r", "c")).state is State.UNKNOWN, "only the holder can end it"
    await replays.forget("n", "other")
    await replays.renew("n", "dead")
    assert (await replays.begin("n", "other", "r", "c")).state is State.RUNNING
    assert (await replays.begin("n", "dead", "r", "c")).state is State.NEW, "asked again, for the answer got lost"
    await replays.forget("n", "dead")
    assert (await replays.begin("n", "other", "r", "c")).state is State.NEW


REQUEST = Request({
    "type": "http", "method": "POST", "path": "/x", "query_string": b"", "scheme": "http", "server": ("gateway", 80),
    "headers": [(b"authorization", b"Bearer k"), (b"idempotency-key", b"k1")]})


async def test_a_request_that_takes_long_stays_alive(gateway: Gateway) -> None:
    once = Once(Replays(gateway.registry, alive_seconds=0.15), gateway.system)
    may_end = asyncio.Event()

    async def handle(_: Request) -> Response:
        await may_end.wait()
        return Response(b"done", 200)

    first = asyncio.create_task(once.answer(REQUEST, b"", handle))
    await asyncio.sleep(0.5)
    with pytest.raises(NotReplayed, match="still runs"):
        await once.answer(REQUEST, b"", handle)
    may_end.set()
    assert (await first).body == b"done"
    assert (await once.answer(REQUEST, b"", handle)).headers["idempotent-replayed"] == "true"


@pytest.mark.parametrize("failure", [ValueError("ours"), OutcomeUnknown("Redis went away"), SwitchyardError("ours")])
async def test_a_request_of_which_nobody_knows_the_end_keeps_its_key(gateway: Gateway, failure: Exception) -> None:
    once = Once(Replays(gateway.registry), gateway.system)
    done = 0

    async def handle(_: Request) -> Response:
        nonlocal done
        done += 1
        raise failure

    if isinstance(failure, SwitchyardError):
        assert (await once.answer(REQUEST, b"", handle)).status_code >= 500
    else:
        with pytest.raises(ValueError):
            await once.answer(REQUEST, b"", handle)
    with pytest.raises(NotReplayed, match="Nobody knows"):
        await once.answer(REQUEST, b"", handle)
    assert done == 1
