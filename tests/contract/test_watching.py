"""Health, metrics, keys and what they leave open, and callers that hang up."""

import asyncio
import json
import time
from pathlib import Path

import httpx
import pytest

from gateway.clients.vllm import ReplicaStats, VllmClient
from tests.contract.conftest import MAX_LORAS, Subject

LONG = {"model": "base", "prompt": "abc", "max_tokens": 4000, "ignore_eos": True, "temperature": 0}
FREED_WITHIN = 1.0  # seconds


async def stats_when(client: VllmClient, running: int, seconds: float) -> tuple[ReplicaStats, float]:
    """The metrics once so many requests run, and how long that took; fails after `seconds`."""
    started = time.monotonic()
    while (stats := await client.stats()).running != running:
        assert time.monotonic() - started < seconds, f"{stats.running} requests run, not {running}"
        await asyncio.sleep(0.02)
    return stats, time.monotonic() - started


async def test_health_has_an_empty_body(wire: httpx.AsyncClient, client: VllmClient) -> None:
    answer = await wire.get("/health")

    assert (answer.status_code, answer.content) == (200, b"")
    assert await client.is_healthy()


async def test_the_version_is_told(wire: httpx.AsyncClient, client: VllmClient) -> None:
    answer = (await wire.get("/version")).json()

    assert list(answer) == ["version"]
    assert await client.version() == answer["version"]
    assert await client.version() >= "0.2"


@pytest.mark.parametrize("line", [
    "# TYPE process_start_time_seconds gauge", "# TYPE vllm:num_requests_running gauge",
    "# TYPE vllm:num_requests_waiting gauge", "# TYPE vllm:lora_requests_info gauge",
    "# TYPE vllm:kv_cache_usage_perc gauge", 'vllm:num_requests_running{engine="0",model_name="base"} ',
])
async def test_the_metrics_have_the_names_that_are_read(wire: httpx.AsyncClient, line: str) -> None:
    answer = await wire.get("/metrics")

    assert answer.headers["content-type"].startswith("text/plain; version=")
    assert f"\n{line}" in f"\n{answer.text}"


async def test_the_stats_tell_slots_start_and_busy_adapters(client: VllmClient, subject: Subject, good: str) -> None:
    async with subject.wire() as wire, wire.stream(
        "POST", "/v1/completions", json={**LONG, "model": good, "stream": True}
    ) as stream:
        await anext(stream.aiter_raw())
        stats, _ = await stats_when(client, 1, FREED_WITHIN)

    assert stats.busy_adapters == {good}
    assert stats.slots == MAX_LORAS
    assert stats.started_at is not None and 0 < time.time() - stats.started_at < 3600
    stats, _ = await stats_when(client, 0, FREED_WITHIN)
    assert stats.busy_adapters == frozenset()


async def test_a_stream_that_is_hung_up_on_frees_its_slot_within_a_second(
    client: VllmClient, subject: Subject
) -> None:
    async with subject.wire() as wire, wire.stream("POST", "/v1/completions", json={**LONG, "stream": True}) as stream:
        chunks = stream.aiter_raw()
        for _ in range(3):
            await anext(chunks)
        await stats_when(client, 1, FREED_WITHIN)

    _, seconds = await stats_when(client, 0, FREED_WITHIN)
    assert seconds < FREED_WITHIN


async def test_a_request_that_is_hung_up_on_before_its_answer_frees_its_slot_within_a_second(
    client: VllmClient, subject: Subject
) -> None:
    reader, writer = await asyncio.open_unix_connection(subject.url.removeprefix("unix:"))
    content = json.dumps(LONG).encode()
    writer.write(
        b"POST /v1/completions HTTP/1.1\r\nhost: replica\r\nauthorization: Bearer the-replicas-key\r\n"
        b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(content) + content)
    await stats_when(client, 1, 5)
    assert not reader.at_eof()

    writer.close()
    await writer.wait_closed()

    _, seconds = await stats_when(client, 0, FREED_WITHIN)
    assert seconds < FREED_WITHIN


async def test_a_wrong_key_is_unauthorized_in_a_string(subject: Subject) -> None:
    for key in (None, "another key"):
        async with subject.wire(key) as wire:
            answer = await wire.get("/v1/models")
            assert (answer.status_code, answer.json()) == (401, {"error": "Unauthorized"})


async def test_a_key_does_not_protect_everything(client: VllmClient) -> None:
    assert await client.audit_exposure() == (
        "POST /adapters", "DELETE /adapters/{name}", "POST /invocations", "GET /metrics")


async def test_the_audit_has_no_effect(client: VllmClient, wire: httpx.AsyncClient, good: str) -> None:
    await client.next_token_logprobs(good, ["abc"], "salt")
    before = await client.models()
    spent = [line for line in (await wire.get("/metrics")).text.splitlines() if "tokens_total{" in line]

    await client.audit_exposure()

    assert await client.models() == before
    assert [line for line in (await wire.get("/metrics")).text.splitlines() if "tokens_total{" in line] == spent


async def test_strangers_can_load_and_unload_through_the_unprotected_routes(
    subject: Subject, client: VllmClient, adapters: Path, name: str
) -> None:
    async with subject.wire(None) as stranger:
        loaded = await stranger.post("/adapters", json={"name": "stranger", "src": str(adapters / "good")})
        assert (loaded.status_code, loaded.text) == (200, "Adapter stranger registered")
        assert "stranger" in [model.id for model in await client.models()]

        removed = await stranger.delete("/adapters/stranger")
        assert (removed.status_code, removed.text) == (200, "Adapter stranger unregistered")
        assert "stranger" not in [model.id for model in await client.models()]


async def test_invocations_ignore_the_bodys_model(subject: Subject) -> None:
    async with subject.wire(None) as stranger:
        answer = await stranger.post("/invocations", json={"model": "nobody", "prompt": "abc", "max_tokens": 1})

    assert (answer.status_code, answer.json()["model"]) == (200, "base")
