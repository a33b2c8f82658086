"""`?dry_run=true` on every write: checked and answered as if, and nothing is changed."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures.artifacts import archive, write_adapter
from tests.fixtures.fleet import Bench, FakeReplica, Gateway
from tests.fixtures.redis import RealValkey

DRY = {"dry_run": "true"}
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
async def gateway(bench: Bench, replica: FakeReplica) -> AsyncIterator[Gateway]:
    async with bench.gateway() as made:
        await made.add(replica)
        await made.tenants.create("operator", "acme")
        yield made


async def test_every_write_can_be_tried_without_being_made(bench: Bench, gateway: Gateway) -> None:
    source = str(write_adapter(bench.folder / "a"))
    for seed in (1, 2):
        folder = str(write_adapter(bench.folder / str(seed), seed=seed))
        await gateway.http.post(VERSIONS, json={"source": folder})
    key = (await gateway.http.post("/tenants/acme/keys", json={"name": "k"})).json()["id"]
    before = await gateway.registry.load()
    writes: list[tuple[str, str, Any, int]] = [
        ("POST", "/tenants", {"name": "new"}, 201), ("PATCH", "/tenants/acme", {"base_access": False}, 200),
        ("POST", "/tenants/acme/keys", {"name": "new"}, 201), ("DELETE", f"/tenants/acme/keys/{key}", None, 200),
        ("PUT", "/tenants/acme/adapters/new", {"replicas": 1}, 200), ("DELETE", f"{VERSIONS}/2", None, 202),
        ("POST", VERSIONS, {"source": source}, 200),
        ("PUT", "/tenants/acme/adapters/support/release", {"stable": 2}, 200),
        ("POST", "/replicas", {"name": "new", "url": "http://127.0.0.1:9"}, 201),
        ("DELETE", "/replicas/one", None, 204),
        ("POST", "/operators", {"name": "alice", "role": "viewer"}, 201),
    ]
    for method, path, body, status in writes:
        response = await gateway.http.request(method, path, json=body, params=DRY)
        assert response.status_code == status, (path, response.text)
        assert "x-switchyard-revision" not in response.headers
    assert await gateway.registry.load() == before


async def test_every_write_of_the_api_offers_a_dry_run(gateway: Gateway) -> None:
    for path, operations in gateway.web.openapi()["paths"].items():
        for method, operation in operations.items():
            if method != "get" and not path.endswith(":explain"):
                names = {parameter["name"] for parameter in operation["parameters"]}
                assert {"dry_run", "Idempotency-Key"} <= names, (method, path)


async def test_a_dry_run_is_refused_like_the_write(bench: Bench, gateway: Gateway) -> None:
    assert (await gateway.http.post("/tenants", json={"name": "acme"}, params=DRY)).status_code == 409
    assert (await gateway.http.patch(
        "/tenants/acme", json={}, params=DRY, headers={"If-Match": '"77"'})).status_code == 412
    assert (await gateway.http.delete("/replicas/none", params=DRY)).status_code == 404


async def test_a_dry_run_of_a_registration_checks_the_files_and_keeps_none(
    bench: Bench, gateway: Gateway, replica: FakeReplica,
) -> None:
    good, bad = write_adapter(bench.folder / "a"), write_adapter(bench.folder / "b", rank=128, zero_b=True)
    found = await gateway.http.post(VERSIONS, content=archive(good), params=DRY,
                                    headers={"Content-Type": "application/gzip"})
    assert (found.status_code, found.json()["number"], found.json()["rank"]) == (200, 1, 8)
    refused = await gateway.http.post(VERSIONS, json={"source": str(bad)}, params=DRY)
    assert refused.status_code == 422 and len(json.loads(refused.text)["error"]["reasons"]) >= 2
    assert bench.kept == []
    assert replica.fake.seen.loads.total() == 0
    assert (await gateway.http.get("/tenants/acme/adapters")).json()["data"] == []


async def test_the_key_of_a_dry_run_opens_nothing(gateway: Gateway) -> None:
    made = (await gateway.http.post("/tenants/acme/keys", json={"name": "k"}, params=DRY)).json()
    assert made["key"] == "sy-dry-run"
    assert (await gateway.http.get("/tenants/acme/keys")).json()["data"] == []
