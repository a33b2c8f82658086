"""What becomes of a version whose trainer left a reference, by policy, with fake replicas."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from gateway.controlplane.parity import ParityPolicy
from gateway.domain.errors import ArtifactRefused
from gateway.domain.model import Version
from gateway.domain.parity import Fault, Verdict
from tests.fakes.vllm.prompts import detokenize, render, tokenize
from tests.fakes.vllm.weights import BASE, Weights, read_weights
from tests.fixtures.artifacts import write_adapter
from tests.fixtures.fleet import Bench, FakeReplica, Gateway
from tests.fixtures.redis import RealValkey

CHATS = [[{"role": "user", "content": text}] for text in ("Hello!", "Why?", "List three colours.")]
POLICIES = [ParityPolicy.OFF, ParityPolicy.WARN, ParityPolicy.REQUIRED]


@pytest.fixture
def bench(shared_valkey: RealValkey, registry_name: str, tmp_path: Path) -> Any:
    made = Bench(shared_valkey.url, registry_name, tmp_path)
    yield made
    made.close()


@pytest.fixture
async def replica(bench: Bench) -> AsyncIterator[FakeReplica]:
    async with bench.replica("one") as made:
        yield made


def trained(folder: Path, base: Weights = BASE, **fields: Any) -> Path:
    """An adapter with what its trainer saw: the fake's own arithmetic, on `base`."""
    write_adapter(folder)
    weights = read_weights(folder, "it", 64)

    def side(of: Weights, ids: list[int]) -> dict[str, Any]:
        return {"trained": of.logprobs(detokenize(ids))[:5], "served": None}

    prompts = [{"messages": chat, "token_ids": ids, "base": side(base, ids), "adapter": side(weights, ids)}
               for chat, ids in ((chat, tokenize(render(chat))) for chat in CHATS)]
    document = {"schema": "switchyard.parity/1", "base_model": "tiny-llama", "quantization": "none",
                "chat_template_sha256": None, "prompts": prompts, **fields}
    (folder / "parity.json").write_text(json.dumps(document))
    return folder


async def register(gateway: Gateway, replica: FakeReplica, folder: Path) -> Version:
    await gateway.add(replica)
    await gateway.tenants.create("operator", "acme")
    return (await gateway.catalog.register("operator", "acme", "support", str(folder))).version


@pytest.mark.parametrize("policy", POLICIES)
async def test_a_version_that_is_served_as_it_was_trained_is_ready_under_every_policy(
    bench: Bench, replica: FakeReplica, policy: ParityPolicy,
) -> None:
    async with bench.gateway(parity=policy) as gateway:
        version = await register(gateway, replica, trained(bench.folder / "a"))
        assert version.warnings == ()
        if policy is ParityPolicy.OFF:
            assert version.parity is None
            assert not any(seen["path"] == "/tokenize" for seen in replica.fake.seen.requests)
            return
        assert version.parity is not None and version.parity.verdict is Verdict.PASS
        answer = await gateway.http.get("/tenants/acme/adapters/support/versions/1")
        assert answer.json()["parity"]["numbers"]["prompts"] == len(CHATS)
        assert answer.json()["parity"]["verdict"] == "pass"


async def test_a_fault_becomes_a_warning_that_names_it_and_is_kept_with_its_numbers(
    bench: Bench, replica: FakeReplica,
) -> None:
    async with bench.gateway() as gateway:
        version = await register(gateway, replica, trained(bench.folder / "a", Weights("another base")))
        assert version.parity is not None
        assert [finding.fault for finding in version.parity.findings] == [Fault.BASE]
        assert version.warnings == (version.parity.findings[0].text,)
        shown = (await gateway.http.get("/tenants/acme/adapters/support/versions")).json()["data"][0]
        assert shown["parity"]["findings"] == [{"fault": "wrong_base", "text": version.warnings[0]}]
        [ready] = [c for c in await gateway.registry.history() if c.action == "version.ready"]
        assert ready.detail["parity"]["verdict"] == "warn"
    async with bench.gateway() as another:
        assert another.snapshots.current.versions["acme", "support", 1] == version


async def test_a_fault_is_refused_where_parity_is_required_and_leaves_nothing_but_the_audit(
    bench: Bench, replica: FakeReplica,
) -> None:
    async with bench.gateway(parity=ParityPolicy.REQUIRED) as gateway:
        with pytest.raises(ArtifactRefused, match=r"Wrong base: .* nats from what 'tiny-llama' said in training"):
            await register(gateway, replica, trained(bench.folder / "a", Weights("another base")))
        assert (gateway.snapshots.current.versions_of("acme", "support"), replica.listed, bench.kept) == ([], set(), [])
        [refused] = [c for c in await gateway.registry.history() if c.action == "version.refuse"]
        assert refused.detail["parity"]["numbers"]["base_trained"] > 0.5
        assert refused.detail["effect"] > 0


async def test_without_a_reference_a_version_is_absent_from_the_comparison_and_refused_where_it_is_required(
    bench: Bench, replica: FakeReplica,
) -> None:
    plain = write_adapter(bench.folder / "a")
    async with bench.gateway(parity=ParityPolicy.REQUIRED) as gateway:
        with pytest.raises(ArtifactRefused, match=r"no parity\.json .* or set SWITCHYARD_PARITY=warn"):
            await register(gateway, replica, plain)
    async with bench.gateway() as gateway:
        await gateway.sees(replica)
        version = (await gateway.catalog.register("operator", "acme", "support", str(plain))).version
        assert version.parity is not None
        assert (version.parity.verdict, version.warnings) == (Verdict.ABSENT, ())


async def test_an_engine_that_will_not_answer_is_a_finding_in_its_own_words(bench: Bench) -> None:
    async with bench.replica("one", max_model_len=128) as replica, bench.gateway() as gateway:
        folder = trained(bench.folder / "a")
        document = json.loads((folder / "parity.json").read_text())
        document["prompts"][1]["token_ids"] = [70] * 200
        (folder / "parity.json").write_text(json.dumps(document))
        version = await register(gateway, replica, folder)
        assert version.parity is not None and version.parity.verdict is Verdict.WARN
        [finding] = version.parity.findings
        assert finding.fault is Fault.NOT_COMPARED
        assert "maximum context length is 128 tokens" in finding.text


async def test_a_malformed_reference_is_refused_before_any_engine_sees_the_adapter(
    bench: Bench, replica: FakeReplica,
) -> None:
    async with bench.gateway() as gateway:
        with pytest.raises(ArtifactRefused, match=r"parity\.json cannot be understood: .*\$\.quantization"):
            await register(gateway, replica, trained(bench.folder / "a", quantization=4))
        assert replica.fake.seen.loads == {}


async def test_the_manifests_template_is_on_the_version(bench: Bench, replica: FakeReplica) -> None:
    folder = write_adapter(bench.folder / "a", files={"manifest.json": json.dumps({
        "schema": "switchyard.manifest/1", "base_model": "tiny-llama", "rank": 8, "alpha": 16.0, "targets": ["q_proj"],
        "data_sha256": "d" * 64, "rows": 1, "seed": 0, "created_at": "2026-01-31T12:00:00Z",
        "chat_template_sha256": "e" * 64})})
    async with bench.gateway() as gateway:
        await register(gateway, replica, folder)
        shown = (await gateway.http.get("/tenants/acme/adapters/support/versions/1")).json()
        assert shown["chat_template_sha256"] == "e" * 64
        body = {"version": 1, "golden_set": "d" * 64, "metric": "m", "value": 1.0, "floor": 0.5}
        path = "/tenants/acme/adapters/support/evaluations"
        refused = await gateway.http.post(path, json={**body, "chat_template_sha256": "f" * 64})
        assert (refused.status_code, refused.json()["error"]["param"]) == (409, "chat_template_sha256")
        assert (await gateway.http.post(path, json=body)).json()["chat_template_sha256"] == "e" * 64
