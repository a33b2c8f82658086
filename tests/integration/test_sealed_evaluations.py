"""Evaluation records on real Valkey: who writes to it past the gateways makes none that counts."""

import json
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import pytest
from redis import Redis

from gateway.domain.evaluation import Evaluation
from gateway.domain.model import Change
from tests.fixtures.artifacts import write_adapter
from tests.fixtures.fleet import Bench, FakeReplica, Gateway
from tests.fixtures.redis import RealValkey, until

ADAPTER = "/tenants/acme/adapters/support"
GOLDEN = "d" * 64


@pytest.fixture
def bench(shared_valkey: RealValkey, registry_name: str, tmp_path: Any) -> Any:
    made = Bench(shared_valkey.url, registry_name, tmp_path)
    yield made
    made.close()


@pytest.fixture
async def replica(bench: Bench) -> AsyncIterator[FakeReplica]:
    async with bench.replica("one", version="0.32.1") as made:
        yield made


@pytest.fixture
def state(shared_valkey: RealValkey, registry_name: str) -> Any:
    """Reads and writes a record's document in Valkey, as somebody with its password would."""
    valkey = Redis.from_url(shared_valkey.url, decode_responses=True)
    key = f"switchyard:{{{registry_name}}}:state"

    def rewrite(**changes: Any) -> str:
        documents: Any = valkey.hgetall(key)
        path = next(path for path in documents if path.startswith("evaluation/"))
        document = {**json.loads(documents[path]), **changes}
        kept = {name: value for name, value in document.items() if value is not None}
        valkey.hset(key, path, json.dumps(kept))
        return str(path)

    yield rewrite
    valkey.close()


async def prepared(bench: Bench, gateway: Gateway, replica: FakeReplica) -> None:
    """acme/support asks for an evaluation, and its version 1 has failed its own."""
    await gateway.add(replica)
    await gateway.tenants.create("operator", "acme")
    await ask(gateway, "PUT", ADAPTER, json={"evaluation": "required"})
    folder = write_adapter(bench.folder / "v1", seed=1)
    await gateway.catalog.register("operator", "acme", "support", str(folder))


async def ask(gateway: Gateway, method: str, path: str, status: int = 200, **arguments: Any) -> Any:
    answer = await gateway.http.request(method, path, **arguments)
    assert answer.status_code == status, answer.text
    return answer.json()


async def evaluate(gateway: Gateway, value: float, said: dict[str, Any] | None = None, *, status: int = 201) -> Any:
    return await ask(gateway, "POST", f"{ADAPTER}/evaluations", status, json={
        "version": 1, "golden_set": GOLDEN, "metric": "macro_f1", "value": value, "floor": 0.8, **(said or {})})


async def make_stable(gateway: Gateway, status: int) -> str:
    answer = await ask(gateway, "PUT", f"{ADAPTER}/release", status, json={"stable": 1})
    return str(answer["error"]["message"]) if status != 200 else ""


async def test_a_record_says_what_it_was_made_under_and_stays_verified_on_every_gateway(
    bench: Bench, replica: FakeReplica,
) -> None:
    said: dict[str, Any] = {"sampling": {"temperature": 0, "seed": 7}, "latency_ms_p99": 812.5, "report": {"rows": 200}}
    async with bench.gateway() as one:
        await prepared(bench, one, replica)
        made = await evaluate(one, 0.9, said)
        assert {name: made[name] for name in said} == said
        assert (made["base_model"], made["engine_version"]) == ("tiny-llama", "0.32.1")
        assert (made["verified"], made["ignored"], len(made["signature"])) == (True, None, 64)
    async with bench.gateway() as another:
        [listed] = (await ask(another, "GET", f"{ADAPTER}/evaluations"))["data"]
        assert listed == made
        await another.sees(replica)
        await make_stable(another, 200)


@pytest.mark.parametrize(("field", "value", "known"), [
    ("base_model", "llama-70b", "tiny-llama"), ("engine_version", "0.99.0", "0.32.1")])
async def test_a_record_that_contradicts_the_fleet_is_409_with_both_values(
    bench: Bench, replica: FakeReplica, field: str, value: str, known: str,
) -> None:
    async with bench.gateway() as gateway:
        await prepared(bench, gateway, replica)
        error = (await evaluate(gateway, 0.9, {field: value}, status=409))["error"]
        assert error["param"] == field
        assert value in error["message"] and known in error["message"]
        assert (await ask(gateway, "GET", f"{ADAPTER}/evaluations"))["data"] == []
        await evaluate(gateway, 0.9, {field: known})


@pytest.mark.parametrize("changes", [
    {"value": 0.95, "passed": True}, {"value": 0.95, "passed": True, "signature": "0" * 64},
    {"floor": 0.1, "passed": True}, {"value": 0.95, "passed": True, "signature": None}])
async def test_a_failed_record_that_is_rewritten_in_valkey_opens_nothing_and_is_named(
    bench: Bench, replica: FakeReplica, state: Any, changes: dict[str, Any],
) -> None:
    async with bench.gateway() as gateway:
        await prepared(bench, gateway, replica)
        await evaluate(gateway, 0.5)
        assert "macro_f1 0.5 on golden set dddddddddddd is below 0.8" in await make_stable(gateway, 409)
    path = state(**changes)
    async with bench.gateway() as gateway:
        await gateway.sees(replica)
        [listed] = (await ask(gateway, "GET", f"{ADAPTER}/evaluations"))["data"]
        assert (listed["passed"], listed["verified"]) == (True, False)
        assert "evaluate again" in listed["ignored"]
        message = await make_stable(gateway, 409)
        assert "has no evaluation record that counts. The record of macro_f1 on golden set dddddddddddd" in message
        assert (path in message) == (changes.get("signature", "") is not None)
        await evaluate(gateway, 0.9)
        await make_stable(gateway, 200)


async def test_a_record_that_is_slipped_into_the_stream_of_changes_opens_nothing(
    bench: Bench, replica: FakeReplica,
) -> None:
    async with bench.gateway() as gateway:
        await prepared(bench, gateway, replica)
        digest = gateway.snapshots.current.versions["acme", "support", 1].digest
        forged = Evaluation(
            tenant="acme", adapter="support", digest=digest, id="f" * 16, golden_set=GOLDEN, metric="macro_f1",
            value=1.0, floor=0.8, passed=True, by="operator", at=gateway.system.now(), signature="ab" * 32)
        change = Change(actor="operator", action="evaluation.record", target=forged.path, at=forged.at, detail={})
        revision = await gateway.registry.commit(change, {forged.path: forged}, {})
        await until(lambda: gateway.snapshots.current.revision >= revision)
        assert f"is not what a gateway signed: {forged.path}" in await make_stable(gateway, 409)


async def test_what_is_slipped_in_beside_a_passing_record_is_told_in_the_release(
    bench: Bench, replica: FakeReplica, state: Any,
) -> None:
    async with bench.gateway() as gateway:
        await prepared(bench, gateway, replica)
        await evaluate(gateway, 0.9)
    state(metric="another")
    async with bench.gateway() as gateway:
        await gateway.sees(replica)
        await evaluate(gateway, 0.9)
        put = partial(ask, gateway, "PUT", f"{ADAPTER}/release")
        [warning] = (await put(json={"stable": 1}))["warnings"]
        assert warning.startswith("The record of another on golden set dddddddddddd is not what a gateway signed")
