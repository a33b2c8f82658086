"""The admin API on real Valkey, a real artifact store and fake replicas: what each change leaves behind."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.clients.registry import Registry
from tests.fixtures.artifacts import archive, write_adapter
from tests.fixtures.fleet import Bench, FakeReplica, Gateway, eventually
from tests.fixtures.redis import RealValkey

VERSIONS = "/tenants/acme/adapters/support/versions"
RELEASE = "/tenants/acme/adapters/support/release"


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
async def gateway(bench: Bench, replica: FakeReplica) -> AsyncIterator[Gateway]:
    async with bench.gateway() as made:
        await made.add(replica)
        await made.tenants.create("operator", "acme")
        yield made


@pytest.fixture
async def still(bench: Bench, replica: FakeReplica) -> AsyncIterator[Gateway]:
    """A gateway whose reconciler takes only the steps that a test asks for."""
    async with bench.gateway(reconciling=False) as made:
        await made.add(replica)
        await made.tenants.create("operator", "acme")
        yield made


async def register(gateway: Gateway, folder: Path, **params: Any) -> httpx.Response:
    return await gateway.http.post(VERSIONS, json={"source": str(folder)}, params=params)


def error_of(response: httpx.Response) -> dict[str, Any]:
    error: dict[str, Any] = response.json()["error"]
    assert {"message", "type", "param", "code"} <= error.keys()
    return error


async def test_the_first_version_of_an_artifact_becomes_ready_loaded_and_stable(
    bench: Bench, gateway: Gateway, replica: FakeReplica,
) -> None:
    response = await register(gateway, write_adapter(bench.folder / "a"))
    assert response.status_code == 201, response.text
    version = response.json()
    assert version["phase"] == "ready"
    assert version["number"] == 1
    assert version["effect"] > 0.001
    assert version["rank"] == 8
    assert replica.listed == {version["served_name"]}
    assert bench.kept == [version["digest"]]
    assert response.headers["etag"] == f'"{version["revision"]}"' == f'"{response.headers["x-switchyard-revision"]}"'
    assert response.headers["location"].endswith("/versions/1")
    release = (await gateway.http.get(RELEASE)).json()
    assert release["stable"] == 1
    assert release["revision"] == version["revision"], "stable was set in the same write"


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "zip"])
async def test_an_archive_in_the_body_is_registered_like_a_folder(bench: Bench, gateway: Gateway, kind: Any) -> None:
    content = archive(write_adapter(bench.folder / "a"), kind)
    response = await gateway.http.post(VERSIONS, content=content, headers={"Content-Type": "application/x-tar"})
    assert response.status_code == 201, response.text
    assert response.json()["source"] == "upload"


async def test_the_second_version_is_ready_but_takes_no_traffic_until_the_release_says_so(
    bench: Bench, gateway: Gateway, replica: FakeReplica,
) -> None:
    await register(gateway, write_adapter(bench.folder / "a"))
    second = (await register(gateway, write_adapter(bench.folder / "b", seed=2))).json()
    assert second["number"] == 2
    assert (await gateway.http.get(RELEASE)).json()["stable"] == 1
    assert (await gateway.http.put(RELEASE, json={"stable": 2})).status_code == 200
    assert (await gateway.http.get(RELEASE)).json()["stable"] == 2
    assert len(replica.listed) == 2


async def test_the_same_bytes_again_are_the_version_that_has_them(bench: Bench, gateway: Gateway) -> None:
    first = await register(gateway, write_adapter(bench.folder / "a"))
    again = await register(gateway, write_adapter(bench.folder / "a-copy"))
    assert (first.status_code, again.status_code) == (201, 200)
    assert again.json() == first.json()
    assert len((await gateway.http.get(VERSIONS)).json()["data"]) == 1


async def test_two_registrations_at_once_get_two_numbers(bench: Bench, gateway: Gateway) -> None:
    folders = [write_adapter(bench.folder / str(seed), seed=seed) for seed in range(4)]
    responses = await asyncio.gather(*(register(gateway, folder) for folder in folders))
    assert [r.status_code for r in responses] == [201] * 4
    assert sorted(r.json()["number"] for r in responses) == [1, 2, 3, 4]


async def test_the_same_bytes_at_once_are_one_version(bench: Bench, gateway: Gateway) -> None:
    folder = write_adapter(bench.folder / "a")
    responses = await asyncio.gather(*(register(gateway, folder) for _ in range(4)))
    assert {r.json()["number"] for r in responses} == {1}
    assert sorted(r.status_code for r in responses)[-1] <= 202


async def test_one_artifact_may_be_a_version_of_two_adapters(bench: Bench, gateway: Gateway) -> None:
    folder = write_adapter(bench.folder / "a")
    await register(gateway, folder)
    other = await gateway.http.post("/tenants/acme/adapters/sales/versions", json={"source": str(folder)})
    assert other.status_code == 201
    assert len(bench.kept) == 1


async def assert_nothing_is_left(bench: Bench, gateway: Gateway, replica: FakeReplica) -> None:
    assert bench.kept == []
    assert replica.listed == set()
    assert [path for path in gateway.snapshots.current.entities if path.startswith("version/")] == []
    staging = bench.artifacts / ".staging"
    assert [path for path in staging.rglob("*") if path.is_file() and path.stat().st_size] == []


async def test_what_fails_the_static_checks_is_refused_with_every_reason_and_leaves_nothing(
    bench: Bench, gateway: Gateway, replica: FakeReplica,
) -> None:
    response = await register(gateway, write_adapter(bench.folder / "a", rank=128, zero_b=True))
    assert response.status_code == 422
    error = error_of(response)
    assert error["code"] == "artifact_refused"
    assert len(error["reasons"]) >= 2
    assert replica.fake.seen.loads.total() == 0, "no engine has seen it"
    await assert_nothing_is_left(bench, gateway, replica)


async def test_a_no_op_is_refused_with_the_numbers_and_leaves_nothing(bench: Bench, replica: FakeReplica) -> None:
    async with bench.gateway(min_effect=1000.0) as gateway:
        await gateway.add(replica)
        await gateway.tenants.create("operator", "acme")
        response = await register(gateway, write_adapter(bench.folder / "a"))
        assert response.status_code == 422
        assert "1000.000000" in error_of(response)["message"]
        await assert_nothing_is_left(bench, gateway, replica)
        changes = (await gateway.http.get("/changes")).json()["data"]
        refused = next(change for change in changes if change["action"] == "version.refuse")
        assert refused["detail"]["effect"] > 0
        assert refused["detail"]["noise"] == 0
        assert refused["detail"]["reasons"]
        assert (await gateway.http.get(VERSIONS)).json()["data"] == []


async def test_an_engine_that_refuses_the_load_refuses_the_version_in_its_own_words(
    bench: Bench, gateway: Gateway, replica: FakeReplica,
) -> None:
    replica.fake.behave(failing_loads=1)
    response = await register(gateway, write_adapter(bench.folder / "a"))
    assert response.status_code == 422
    assert "told to fail" in error_of(response)["message"]
    await assert_nothing_is_left(bench, gateway, replica)


async def test_a_number_is_never_given_twice_even_when_its_version_was_refused(
    bench: Bench, gateway: Gateway, replica: FakeReplica,
) -> None:
    replica.fake.behave(failing_loads=1)
    await register(gateway, write_adapter(bench.folder / "a"))
    assert (await register(gateway, write_adapter(bench.folder / "b", seed=2))).json()["number"] == 2


async def test_a_refused_upload_keeps_the_files_that_another_version_has(bench: Bench, gateway: Gateway) -> None:
    folder = write_adapter(bench.folder / "a")
    await register(gateway, folder)
    async with bench.replica("two") as second:
        await gateway.add(second)
        await eventually(lambda: len(second.listed) == 1)
        second.fake.behave(failing_loads=99)
        refused = await gateway.http.post("/tenants/acme/adapters/sales/versions", json={"source": str(folder)})
        assert refused.status_code == 422
        assert len(bench.kept) == 1


async def test_without_a_healthy_replica_nothing_of_the_body_is_read(bench: Bench) -> None:
    async with bench.gateway() as gateway:
        await gateway.tenants.create("operator", "acme")
        read = False

        async def body() -> AsyncIterator[bytes]:
            nonlocal read
            read = True
            yield b"x"

        response = await gateway.http.post(VERSIONS, content=body(), headers={"Content-Type": "application/x-tar"})
        assert response.status_code == 503
        assert error_of(response)["code"] == "no_healthy_replica"
        assert int(response.headers["retry-after"]) >= 1
        assert not read


async def test_without_waiting_the_version_is_answered_while_it_is_prepared(
    bench: Bench, gateway: Gateway, replica: FakeReplica,
) -> None:
    replica.fake.behave(load_delay=0.3)
    response = await register(gateway, write_adapter(bench.folder / "a"), wait=False)
    assert response.status_code == 202
    assert response.json()["phase"] == "preparing"
    assert (await gateway.http.put(RELEASE, json={"stable": 1})).status_code == 409
    await eventually(lambda: gateway.snapshots.current.versions["acme", "support", 1].phase == "ready")
    assert gateway.snapshots.current.releases["acme", "support"].stable == 1


async def test_a_failure_that_nobody_waited_for_is_in_the_audit(
    bench: Bench, gateway: Gateway, replica: FakeReplica,
) -> None:
    replica.fake.behave(failing_loads=1, load_delay=0.1)
    assert (await register(gateway, write_adapter(bench.folder / "a"), wait=False)).status_code == 202
    await eventually(lambda: not gateway.snapshots.current.versions)
    changes = (await gateway.http.get("/changes", params={"target": "version/acme"})).json()["data"]
    assert [c["action"] for c in changes] == ["version.remove", "version.refuse", "version.register"]
    assert "told to fail" in changes[1]["detail"]["reasons"][0]


async def test_a_replica_that_dies_while_it_loads_is_503_and_nothing_is_left_once_it_is_back(
    bench: Bench, gateway: Gateway, replica: FakeReplica,
) -> None:
    replica.fake.behave(load_delay=0.3)
    asked = asyncio.create_task(register(gateway, write_adapter(bench.folder / "a")))
    await eventually(lambda: len(bench.kept) == 1)
    replica.fake.behave(dead="drop")
    response = await asked
    assert response.status_code == 503
    assert error_of(response)["code"] == "adapter_not_loaded"
    assert len(bench.kept) == 1, "whether it lists the adapter is not known"
    replica.fake.behave(dead="", load_delay=0.0)
    await eventually(lambda: not gateway.snapshots.current.versions)
    await assert_nothing_is_left(bench, gateway, replica)
    assert (await register(gateway, bench.folder / "a")).status_code == 201


async def test_a_version_whose_gateway_died_while_preparing_is_prepared_by_another(
    bench: Bench, replica: FakeReplica,
) -> None:
    async with bench.gateway() as first:
        await first.add(replica)
        await first.tenants.create("operator", "acme")
        replica.fake.behave(load_delay=60.0)
        assert (await register(first, write_adapter(bench.folder / "a"), wait=False)).status_code == 202
        await eventually(lambda: len(bench.kept) == 1)
    replica.fake.behave(load_delay=0.0)
    async with bench.gateway() as second:
        await second.sees(replica)
        assert second.snapshots.current.versions["acme", "support", 1].phase == "preparing"
        second.ahead[0] = 61.0
        await eventually(lambda: second.snapshots.current.versions["acme", "support", 1].phase == "ready")
        assert second.snapshots.current.releases["acme", "support"].stable == 1


async def test_a_version_that_is_being_prepared_is_not_prepared_by_another(bench: Bench, gateway: Gateway) -> None:
    async with bench.gateway() as other, gateway.leases.held("preparing-acme/support@1-0123456789ab") as mine:
        assert mine
        async with other.leases.held("preparing-acme/support@1-0123456789ab") as theirs:
            assert not theirs


async def test_retiring_the_stable_version_is_refused_with_what_to_do(bench: Bench, gateway: Gateway) -> None:
    await register(gateway, write_adapter(bench.folder / "a"))
    response = await gateway.http.delete(f"{VERSIONS}/1")
    assert response.status_code == 409
    assert "/release" in error_of(response)["message"]


async def test_a_retired_version_is_unloaded_and_then_its_files_are_deleted(
    bench: Bench, gateway: Gateway, replica: FakeReplica,
) -> None:
    first = (await register(gateway, write_adapter(bench.folder / "a"))).json()
    second = (await register(gateway, write_adapter(bench.folder / "b", seed=2))).json()
    await gateway.http.put(RELEASE, json={"stable": 2})
    response = await gateway.http.delete(f"{VERSIONS}/1")
    assert response.status_code == 202
    assert response.json()["phase"] == "retiring"
    await eventually(lambda: gateway.snapshots.current.versions["acme", "support", 1].phase == "retired")
    assert replica.listed == {second["served_name"]}
    assert bench.kept == [second["digest"]]
    assert (await gateway.http.delete(f"{VERSIONS}/1")).json()["phase"] == "retired", "asking again changes nothing"
    again = await register(gateway, bench.folder / "a")
    assert (again.status_code, again.json()["number"], again.json()["digest"]) == (201, 3, first["digest"])


async def test_files_stay_while_a_replica_that_may_list_them_does_not_answer(
    bench: Bench, gateway: Gateway, replica: FakeReplica,
) -> None:
    async with bench.replica("two") as second:
        await gateway.add(second)
        first = (await register(gateway, write_adapter(bench.folder / "a"))).json()
        await register(gateway, write_adapter(bench.folder / "b", seed=2))
        await gateway.http.put(RELEASE, json={"stable": 2})
        second.fake.behave(dead="drop")
        await gateway.http.delete(f"{VERSIONS}/1")
        await eventually(lambda: first["served_name"] not in replica.listed)
        await asyncio.sleep(0.5)
        assert first["digest"] in bench.kept
        assert gateway.snapshots.current.versions["acme", "support", 1].phase == "retiring"
        second.fake.behave(dead="")
        await eventually(lambda: gateway.snapshots.current.versions["acme", "support", 1].phase == "retired")
        assert first["served_name"] not in second.listed
        assert first["digest"] not in bench.kept


async def test_files_stay_while_a_request_still_runs_on_them(
    bench: Bench, gateway: Gateway, replica: FakeReplica,
) -> None:
    first = (await register(gateway, write_adapter(bench.folder / "a"))).json()
    await register(gateway, write_adapter(bench.folder / "b", seed=2))
    await gateway.http.put(RELEASE, json={"stable": 2})
    replica.fake.behave(latency=1.0)
    transport = httpx.AsyncHTTPTransport(uds=replica.url.removeprefix("unix:"))
    async with httpx.AsyncClient(transport=transport, base_url="http://replica", timeout=10) as caller:
        call = asyncio.create_task(caller.post(
            "/v1/completions", json={"model": first["served_name"], "prompt": "x", "max_tokens": 1}))
        await eventually(lambda: replica.fake.seen.in_flight == 1)
        await gateway.http.delete(f"{VERSIONS}/1")
        await eventually(lambda: first["served_name"] not in replica.listed)
        assert not call.done()
        assert first["digest"] in bench.kept
        assert (await call).status_code == 200
    await eventually(lambda: first["digest"] not in bench.kept)
    assert not replica.fake.engine.death


async def test_a_restarted_replica_gets_its_versions_back(
    bench: Bench, gateway: Gateway, replica: FakeReplica,
) -> None:
    version = (await register(gateway, write_adapter(bench.folder / "a"))).json()
    await replica.stop()
    replica.fake.restart()
    assert replica.listed == set()
    await replica.start()
    await eventually(lambda: replica.listed == {version["served_name"]})


async def test_a_failing_load_is_tried_again_later_and_later(
    bench: Bench, still: Gateway, replica: FakeReplica,
) -> None:
    version = (await register(still, write_adapter(bench.folder / "a"))).json()
    replica.fake.restart()
    replica.fake.behave(failing_loads=2)
    await still.fleet.refresh("one")
    for waited in (0.0, 1.1, 2.1):
        still.ahead[0] += waited
        for _ in range(3):
            await still.reconciler.step()
            await still.reconciler.settle()
    failures = [values["times"] for event, values in still.log.events if event == "reconcile_failed"]
    assert failures == [1, 2]
    assert replica.listed == {version["served_name"]}
    assert still.reconciler.failures == {}


async def test_a_served_name_of_ours_that_the_registry_does_not_know_is_unloaded_after_a_grace_time(
    bench: Bench, still: Gateway, replica: FakeReplica,
) -> None:
    version = (await register(still, write_adapter(bench.folder / "a"))).json()
    path = str(still.store.path_of(version["digest"]))
    replica.fake.engine.load("acme/ghost@9-0123456789ab", path)
    replica.fake.engine.load("somebody-elses", path)
    await still.fleet.refresh("one")
    await still.reconciler.step()
    await still.reconciler.settle()
    assert "acme/ghost@9-0123456789ab" in replica.listed
    still.ahead[0] = 61.0
    await still.reconciler.step()
    await still.reconciler.settle()
    assert replica.listed == {version["served_name"], "somebody-elses"}


async def test_only_one_of_two_gateways_leads(bench: Bench, still: Gateway) -> None:
    async with bench.gateway(reconciling=False) as other:
        await still.reconciler.step()
        await other.reconciler.step()
        assert still.reconciler.leads
        assert not other.reconciler.leads
        await still.reconciler.close()
        await other.reconciler.step()
        assert other.reconciler.leads


async def test_a_lost_race_changes_nothing_and_says_the_current_revision(bench: Bench, gateway: Gateway) -> None:
    await register(gateway, write_adapter(bench.folder / "a"))
    await register(gateway, write_adapter(bench.folder / "b", seed=2))
    seen = (await gateway.http.get(RELEASE)).headers["etag"]
    won = await gateway.http.put(RELEASE, json={"stable": 2}, headers={"If-Match": seen})
    lost = await gateway.http.put(RELEASE, json={"stable": 1}, headers={"If-Match": seen})
    assert won.status_code == 200
    assert lost.status_code == 412
    assert error_of(lost)["code"] == "revision_mismatch"
    assert error_of(lost)["current_revision"] == won.json()["revision"]
    assert lost.headers["etag"] == won.headers["etag"]
    assert (await gateway.http.get(RELEASE)).json()["stable"] == 2


async def test_with_redis_down_changes_are_503_and_reads_go_on(
    own_valkey: RealValkey, registry_name: str, tmp_path: Path,
) -> None:
    async with AsyncExitStack() as stack:
        bench = Bench(own_valkey.url, registry_name, tmp_path)
        stack.callback(bench.close)
        replica = await stack.enter_async_context(bench.replica("one"))
        gateway = await stack.enter_async_context(bench.gateway())
        await gateway.add(replica)
        await gateway.tenants.create("operator", "acme")
        version = (await register(gateway, write_adapter(bench.folder / "a"))).json()
        own_valkey.kill()
        await eventually(lambda: not gateway.snapshots.connected)
        for request in (
            gateway.http.post("/tenants", json={"name": "other"}), gateway.http.put(RELEASE, json={"stable": None}),
            register(gateway, write_adapter(bench.folder / "b", seed=2)), gateway.http.get("/changes"),
        ):
            response = await request
            assert response.status_code == 503, response.text
            assert error_of(response)["code"] == "registry_unavailable"
            assert int(response.headers["retry-after"]) >= 1
        assert (await gateway.http.get(f"{VERSIONS}/1")).json() == version
        assert not (await gateway.http.get("/status")).json()["registry"]["connected"]
        replica.fake.restart()
        await eventually(lambda: replica.listed == {version["served_name"]})
        own_valkey.start()
        await eventually(lambda: gateway.snapshots.connected)
        assert (await gateway.http.post("/tenants", json={"name": "other"})).status_code == 201


async def test_an_adapter_on_one_replica_is_loaded_on_one(bench: Bench, gateway: Gateway, replica: FakeReplica) -> None:
    async with bench.replica("two") as second:
        await gateway.add(second)
        assert (await gateway.http.put("/tenants/acme/adapters/support", json={"replicas": 1})).status_code == 200
        await register(gateway, write_adapter(bench.folder / "a"))
        await asyncio.sleep(0.3)
        assert len(replica.listed) + len(second.listed) == 1
        await gateway.http.put("/tenants/acme/adapters/support", json={"replicas": None})
        await eventually(lambda: len(replica.listed) == len(second.listed) == 1)


async def test_a_key_is_shown_once_and_nothing_answers_a_secret(gateway: Gateway, registry: Registry) -> None:
    made = await gateway.http.post("/tenants/acme/keys", json={"name": "shop", "adapters": ["support"]})
    assert made.status_code == 201
    key = made.json()
    assert key["key"].startswith(f"sy-{key['id']}-")
    assert len(key["key"]) == 3 + 8 + 1 + 43
    await gateway.http.post("/replicas", json={"name": "far", "url": "http://127.0.0.1:9", "api_key": "very-secret"})
    stored = next(iter(gateway.snapshots.current.keys_by_sha256.values()))
    everything = [await gateway.http.get(path) for path in (
        "/tenants/acme/keys", "/replicas", "/replicas/far", "/changes", "/status", "/tenants")]
    revoked = await gateway.http.delete(f"/tenants/acme/keys/{key['id']}")
    for response in (*everything, revoked):
        assert response.status_code == 200
        assert key["key"] not in response.text
        assert stored.sha256 not in response.text
        assert "very-secret" not in response.text
    assert revoked.json()["revoked_at"] is not None
    assert (await gateway.http.get("/replicas/far")).json()["has_api_key"] is True
    assert (await gateway.http.delete("/replicas/far")).status_code == 204
    assert (await gateway.http.get("/replicas/far")).status_code == 404


async def test_a_change_is_seen_by_the_next_read_and_in_the_audit(gateway: Gateway) -> None:
    for number in range(5):
        made = await gateway.http.post("/tenants", json={"name": f"tenant-{number}"})
        assert (await gateway.http.get(f"/tenants/tenant-{number}")).json() == made.json()
    page = (await gateway.http.get("/changes", params={"limit": 2})).json()
    assert [c["target"] for c in page["data"]] == ["tenant/tenant-4", "tenant/tenant-3"]
    assert page["has_more"]
    assert {c["actor"] for c in page["data"]} == {"operator"}
    older = (await gateway.http.get("/changes", params={"before": page["data"][-1]["revision"], "limit": 1})).json()
    assert [c["target"] for c in older["data"]] == ["tenant/tenant-2"]


async def test_another_gateways_fresh_tenant_is_known_to_every_write(bench: Bench, gateway: Gateway) -> None:
    async with bench.gateway() as other:
        for number in range(10):
            name = f"fresh-{number}"
            await gateway.http.post("/tenants", json={"name": name})
            assert (await other.http.post(f"/tenants/{name}/keys", json={"name": "k"})).status_code == 201


@pytest.mark.parametrize(("method", "path", "body", "status", "param"), [
    ("POST", "/tenants", {"name": "Not Allowed"}, 400, "name"),
    ("POST", "/tenants", {"name": "x", "colour": "red"}, 400, "colour"),
    ("POST", "/tenants", {"name": 7}, 400, "name"),
    ("POST", "/tenants", {"name": "acme"}, 409, "name"),
    ("GET", "/tenants/nobody", None, 404, "tenant"),
    ("GET", "/tenants/Nobody!", None, 400, "tenant"),
    ("GET", "/tenants/acme/adapters/none", None, 404, "adapter"),
    ("PUT", "/tenants/acme/adapters/a", {"replicas": 0}, 400, "replicas"),
    ("POST", "/tenants/acme/keys", {"name": "k", "expires_at": "2001-01-01T00:00:00Z"}, 400, "expires_at"),
    ("POST", "/tenants/acme/keys", {"name": "k", "expires_at": "2030-01-01T00:00:00"}, 400, "expires_at"),
    ("POST", "/tenants/acme/keys", {"name": "k", "adapters": ["ok", "not ok"]}, 400, "adapters.1"),
    ("POST", "/replicas", {"name": "r", "url": "ftp://h"}, 400, "url"),
    ("POST", "/replicas", {"name": "r", "url": "http://u:p@h"}, 400, "url"),
    ("POST", VERSIONS, {"source": ""}, 400, "source"),
    ("POST", VERSIONS, {}, 400, "source"),
    ("GET", "/changes?limit=0", None, 400, "limit"),
    ("GET", "/nowhere", None, 404, None),
    ("PUT", "/tenants", None, 405, None),
])
async def test_what_is_wrong_is_told_in_the_envelope(
    gateway: Gateway, method: str, path: str, body: Any, status: int, param: str | None,
) -> None:
    response = await gateway.http.request(method, path, json=body) if body is not None else (
        await gateway.http.request(method, path))
    assert response.status_code == status, response.text
    assert error_of(response)["param"] == param


@pytest.mark.parametrize(("content", "kind", "status", "code"), [
    (b"{", "application/json", 400, "malformed_json"),
    (b"[]", "application/json", 400, "invalid_request"),
    (b"\xff", "application/json", 400, None),
    (b'{"name":"t"}', "text/plain", 400, "invalid_request"),
    (b"", "application/json", 400, None),
    (b'{"name":"' + b"a" * (1 << 20) + b'"}', "application/json", 413, "body_too_large"),
])
async def test_a_body_that_is_no_json_object_is_refused(
    gateway: Gateway, content: bytes, kind: str, status: int, code: str | None,
) -> None:
    for path in ("/tenants", VERSIONS) if kind == "application/json" else ("/tenants",):
        response = await gateway.http.post(path, content=content, headers={"Content-Type": kind})
        assert response.status_code == status, response.text
        assert code is None or error_of(response)["code"] == code


@pytest.mark.parametrize("etag", ["7", '"x"', 'W/"7"', "*", '"-1"'])
async def test_an_if_match_that_is_no_etag_is_refused(gateway: Gateway, etag: str) -> None:
    response = await gateway.http.patch("/tenants/acme", json={}, headers={"If-Match": etag})
    assert response.status_code == 400
    assert error_of(response)["param"] == "If-Match"


async def test_without_the_operators_key_nothing_is_read_or_done(gateway: Gateway) -> None:
    paths = json.loads((await gateway.http.get("/openapi.json")).text)["paths"]
    for path, operations in paths.items():
        for method in operations:
            for authorization in ("", "Bearer wrong", "Basic b3BlcmF0b3I6"):
                response = await gateway.http.request(
                    method.upper(), "http://gateway" + path.replace("{", "").replace("}", ""), content=b"{",
                    headers={"Authorization": authorization})
                assert response.status_code == 401, (method, path)
                assert response.headers["www-authenticate"] == "Bearer"
                assert error_of(response)["code"] == "invalid_api_key"
