"""What each role may do, on every route of the admin API, and that it is decided before anything is read."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.domain.operators import Role
from tests.fixtures.artifacts import write_adapter
from tests.fixtures.fleet import Bench, FakeReplica, Gateway
from tests.fixtures.redis import RealValkey

ADMINS_ALONE = {
    ("POST", "/replicas"), ("DELETE", "/replicas/{name}"), ("GET", "/operators"), ("POST", "/operators"),
    ("DELETE", "/operators/{name}"), ("POST", "/freezes"), ("DELETE", "/freezes/{name}"),
    ("GET", "/webhooks"), ("POST", "/webhooks"), ("GET", "/webhooks/{name}"), ("DELETE", "/webhooks/{name}"),
    ("PUT", "/tenants/{tenant}/quality"), ("DELETE", "/tenants/{tenant}/quality"),
}
NOT_FOR_VIEWERS = {("GET", f"/tenants/{{tenant}}/adapters/{{adapter}}/quality/{what}")
                   for what in ("candidates", "golden")}
VIEWERS_TOO = {("POST", "/tenants/{tenant}/adapters/{adapter}/route:explain")}


@pytest.fixture
async def gateway(shared_valkey: RealValkey, registry_name: str, tmp_path: Path) -> AsyncIterator[Gateway]:
    bench = Bench(shared_valkey.url, registry_name, tmp_path)
    async with bench.gateway() as made:
        yield made
    bench.close()


async def key_of(gateway: Gateway, name: str, role: Role) -> str:
    made = await gateway.http.post("/operators", json={"name": name, "role": role})
    assert made.status_code == 201, made.text
    return str(made.json()["key"])


async def ask(gateway: Gateway, key: str, method: str, path: str, **options: Any) -> httpx.Response:
    return await gateway.http.request(method, path, headers={"Authorization": f"Bearer {key}"}, **options)


def needed(method: str, path: str) -> Role:
    if (method, path) in ADMINS_ALONE:
        return Role.ADMIN
    is_read = method == "GET" and (method, path) not in NOT_FOR_VIEWERS
    return Role.VIEWER if is_read or (method, path) in VIEWERS_TOO else Role.OPERATOR


@pytest.mark.parametrize("role", list(Role))
async def test_on_every_route_a_role_that_does_not_reach_is_refused_before_the_body_is_read(
    gateway: Gateway, role: Role,
) -> None:
    key = await key_of(gateway, "alice", role)
    seen = 0
    for full, operations in gateway.web.openapi()["paths"].items():
        path = full.removeprefix("/admin/v1")
        for method, operation in operations.items():
            read = False

            async def body() -> AsyncIterator[bytes]:
                nonlocal read
                read = True
                yield b"{"

            # Braces in the path: no such thing can exist, so that whoever may ask changes nothing.
            response = await ask(gateway, key, method.upper(), path, content=body())
            least = needed(method.upper(), path)
            assert operation["x-required-role"] == least, (method, path)
            if role.reaches(least):
                assert response.status_code != 403, (method, path)
            else:
                seen += 1
                error = response.json()["error"]
                assert (response.status_code, error["code"], error["required_role"]) == (
                    403, "permission_denied", least), (method, path)
                assert f"alice has the role {role}" in error["message"]
                assert not read, (method, path)
    assert (seen > 0) == (role is not Role.ADMIN)


async def test_the_audit_names_the_operator(gateway: Gateway) -> None:
    alice = await key_of(gateway, "alice", Role.OPERATOR)
    assert (await ask(gateway, alice, "POST", "/tenants", json={"name": "acme"})).status_code == 201
    changes = (await ask(gateway, alice, "GET", "/changes")).json()["data"]
    assert [(c["actor"], c["action"]) for c in changes] == [
        ("alice", "tenant.create"), ("operator", "operator.create")]


async def test_a_revoked_operator_is_nobody_and_the_name_can_have_a_new_key(gateway: Gateway) -> None:
    alice = await key_of(gateway, "alice", Role.ADMIN)
    revoked = await gateway.http.delete("/operators/alice")
    assert revoked.json()["revoked_at"] is not None
    assert (await ask(gateway, alice, "GET", "/status")).status_code == 401
    again = await key_of(gateway, "alice", Role.VIEWER)
    assert (await ask(gateway, again, "GET", "/status")).status_code == 200
    assert (await ask(gateway, alice, "GET", "/status")).status_code == 401


async def test_no_answer_but_the_first_has_a_key_or_its_digest(gateway: Gateway) -> None:
    alice = await key_of(gateway, "alice", Role.VIEWER)
    stored = gateway.snapshots.current.entities["operator/alice"]
    for path in ("/operators", "/changes", "/status"):
        text = (await gateway.http.get(path)).text
        assert alice not in text
        assert stored.to_document()["sha256"] not in text


@pytest.mark.parametrize(("body", "param"), [
    ({"name": "alice", "role": "king"}, "role"), ({"name": "alice"}, "role"), ({"name": "alice", "role": 1}, "role"),
    ({"name": "a b", "role": "viewer"}, "name"),
])
async def test_a_wrong_operator_is_refused_with_the_field(gateway: Gateway, body: dict[str, Any], param: str) -> None:
    response = await gateway.http.post("/operators", json=body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


async def test_a_dry_run_of_a_new_operator_tells_no_key_that_works(gateway: Gateway) -> None:
    made = await gateway.http.post("/operators", json={"name": "alice", "role": "admin"}, params={"dry_run": True})
    assert made.status_code == 201
    assert (await ask(gateway, made.json()["key"], "GET", "/status")).status_code == 401
    assert (await gateway.http.get("/operators")).json()["data"] == []


@pytest.fixture
async def bench(shared_valkey: RealValkey, registry_name: str, tmp_path: Path) -> AsyncIterator[Bench]:
    made = Bench(shared_valkey.url, registry_name, tmp_path)
    yield made
    made.close()


async def test_only_an_admin_may_force_a_start(bench: Bench) -> None:
    async with bench.replica("one") as replica, bench.gateway() as gateway:
        await prepare(bench, gateway, replica)
        alice = await key_of(gateway, "alice", Role.OPERATOR)
        path = "/tenants/acme/adapters/support/release/start"
        forced = await ask(gateway, alice, "POST", path, json={"canary": 2, "force": True})
        assert (forced.status_code, forced.json()["error"]["code"]) == (403, "permission_denied")
        assert (await ask(gateway, alice, "POST", path, json={"canary": 2})).status_code == 200


async def prepare(bench: Bench, gateway: Gateway, replica: FakeReplica) -> None:
    await gateway.add(replica)
    await gateway.tenants.create("operator", "acme")
    for seed in (1, 2):
        source = str(write_adapter(bench.folder / f"seed-{seed}", seed=seed))
        made = await gateway.http.post("/tenants/acme/adapters/support/versions", json={"source": source})
        assert made.status_code == 201, made.text
