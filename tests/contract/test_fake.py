"""What the fake can do beyond the contract: what tests steer, and what they may ask it afterwards."""

import asyncio
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.clients.vllm import VllmClient
from gateway.domain.model import Replica
from tests.fakes.serving import serving
from tests.fakes.vllm import BASE, Behaviour, FakeVllm, read_weights

CHAT = "/v1/chat/completions"


def request(model: str = "base", **more: Any) -> dict[str, Any]:
    """A small chat."""
    return {"model": model, "messages": [{"role": "user", "content": "hi"}], **more}


async def until(condition: Callable[[], bool]) -> None:
    """Wait until it holds, for at most a second."""
    deadline = time.monotonic() + 1
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


@pytest.fixture
def fake() -> FakeVllm:
    return FakeVllm(max_loras=1, max_cpu_loras=1)


@pytest.fixture
def url(fake: FakeVllm, tmp_path: Path) -> Iterator[str]:
    with serving(fake, tmp_path / "f.sock") as url:
        yield url


@pytest.fixture
async def wire(url: str) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.AsyncHTTPTransport(uds=url.removeprefix("unix:"))
    async with httpx.AsyncClient(transport=transport, base_url="http://replica") as made:
        yield made


@pytest.fixture
async def client(url: str) -> AsyncIterator[VllmClient]:
    made = VllmClient(Replica(name="fake", url=url, created_at=0.0))
    yield made
    await made.close()


async def test_answers_begin_with_the_voice_of_the_weights(
    wire: httpx.AsyncClient, client: VllmClient, adapters: Path
) -> None:
    for adapter in ("good", "other", "no_op"):
        await client.load(adapter, str(adapters / adapter))
    texts = {model: (await wire.post(CHAT, json=request(model))).json()["choices"][0]["message"]["content"]
             for model in ("base", "good", "other", "no_op")}

    for adapter in ("good", "other"):
        assert texts[adapter].startswith(read_weights(adapters / adapter, adapter, 64).voice)
    assert texts["base"] == texts["no_op"]
    assert texts["base"].startswith(BASE.voice)
    assert len(set(texts.values())) == 3


async def test_it_keeps_what_it_was_sent(fake: FakeVllm, wire: httpx.AsyncClient) -> None:
    await wire.post(CHAT, json=request(cache_salt="salt"), headers={"x-request-id": "req-1"})

    (seen,) = fake.seen.requests
    assert (seen["path"], seen["body"]["cache_salt"], seen["headers"]["x-request-id"]) == (CHAT, "salt", "req-1")
    state = (await wire.get("/fake/state")).json()
    assert state["by_served_name"] == {"base": 1}
    assert (state["in_flight"], state["inferences"], state["aborted"], state["tokens"]) == (0, 1, 0, 12)


async def test_its_times_are_kept(fake: FakeVllm, wire: httpx.AsyncClient) -> None:
    await wire.post("/fake/behaviour", json={"latency": 0.2, "token_delay": 0.04, "tokens": 6})
    started = time.monotonic()
    async with wire.stream("POST", CHAT, json=request(stream=True)) as stream:
        head = time.monotonic() - started
        await anext(chunks := stream.aiter_raw())
        first = time.monotonic() - started
        async for _ in chunks:
            pass
    assert head < 0.2 <= first < 0.4
    assert 0.4 <= time.monotonic() - started < 0.8


async def test_it_fails_as_often_as_told(fake: FakeVllm, wire: httpx.AsyncClient) -> None:
    fake.behave(error_rate=0.25, error_status=503)

    statuses = [(await wire.post(CHAT, json=request())).status_code for _ in range(8)]

    assert statuses == [200, 200, 200, 503] * 2
    assert fake.seen.errors == 2


async def test_it_only_misbehaves_towards_the_models_it_was_told(
    fake: FakeVllm, wire: httpx.AsyncClient, client: VllmClient, adapters: Path
) -> None:
    await client.load("acme/a@2-x", str(adapters / "good"))
    fake.behave(error_rate=1.0, only="@2-")

    assert (await wire.post(CHAT, json=request())).status_code == 200
    assert (await wire.post(CHAT, json=request("acme/a@2-x"))).status_code == 500


async def test_it_cuts_connections_before_and_within_an_answer(fake: FakeVllm, wire: httpx.AsyncClient) -> None:
    fake.behave(drop_after=0)
    with pytest.raises(httpx.TransportError):
        await wire.post(CHAT, json=request())

    fake.behave(drop_after=3)
    received = b""
    with pytest.raises(httpx.RemoteProtocolError):
        async with wire.stream("POST", CHAT, json=request(stream=True)) as stream:
            async for chunk in stream.aiter_raw():
                received += chunk
    assert received.count(b"data: ") == 3
    assert (fake.seen.drops, fake.seen.aborted, fake.seen.in_flight) == (2, 0, 0)


async def test_it_counts_the_callers_that_hang_up(fake: FakeVllm, wire: httpx.AsyncClient) -> None:
    fake.behave(token_delay=0.05, tokens=1000)
    async with wire.stream("POST", CHAT, json=request(stream=True)) as stream:
        await anext(stream.aiter_raw())
        assert fake.seen.in_flight == 1

    await until(lambda: not fake.seen.in_flight)
    assert (fake.seen.in_flight, fake.seen.aborted, fake.seen.inferences) == (0, 1, 0)


async def test_a_restart_forgets_adapters(fake: FakeVllm, wire: httpx.AsyncClient, client: VllmClient,
                                          adapters: Path) -> None:
    await client.load("good", str(adapters / "good"))
    before = (await client.stats()).started_at
    assert before is not None

    await wire.post("/fake/behaviour", json={"forget": True})

    assert [model.id for model in await client.models()] == ["base"]
    after = (await client.stats()).started_at
    assert after is not None and after > before


async def test_a_dead_engine_says_so_until_it_is_restarted(
    fake: FakeVllm, wire: httpx.AsyncClient, client: VllmClient
) -> None:
    await wire.post("/fake/behaviour", json={"dead": "unhealthy"})
    assert not await client.is_healthy()
    answer = await wire.post(CHAT, json=request())
    assert (answer.status_code, answer.json()["error"]["type"]) == (500, "InternalServerError")

    await wire.post("/fake/behaviour", json={"dead": "drop"})
    assert not await client.is_healthy()
    with pytest.raises(httpx.TransportError):
        await wire.post(CHAT, json=request())

    await wire.post("/fake/behaviour", json={"forget": True})
    assert await client.is_healthy()


async def test_deleting_the_files_of_an_evicted_adapter_kills_the_engine(
    fake: FakeVllm, wire: httpx.AsyncClient, client: VllmClient, adapters: Path, tmp_path: Path
) -> None:
    shutil.copytree(adapters / "good", tmp_path / "gone")
    await client.load("gone", str(tmp_path / "gone"))
    shutil.rmtree(tmp_path / "gone")
    assert (await wire.post(CHAT, json=request("gone"))).status_code == 200
    await client.load("other", str(adapters / "other"))

    assert (await wire.post(CHAT, json=request("gone"))).status_code == 500

    assert not await client.is_healthy()


async def test_logprobs_of_a_prompt_among_others_kill_the_engine(wire: httpx.AsyncClient, client: VllmClient) -> None:
    body = {"model": "base", "prompt": ["abc", "xy"], "max_tokens": 1, "prompt_logprobs": 0}

    assert (await wire.post("/v1/completions", json=body)).status_code == 500

    assert not await client.is_healthy()


async def test_no_more_adapters_run_than_there_are_slots(
    fake: FakeVllm, wire: httpx.AsyncClient, client: VllmClient, adapters: Path
) -> None:
    await client.load("good", str(adapters / "good"))
    await client.load("other", str(adapters / "other"))
    fake.behave(latency=0.3)
    started = time.monotonic()
    asked = [asyncio.create_task(wire.post(CHAT, json=request(model))) for model in ("good", "other", "base")]
    await until(lambda: fake.seen.in_flight == len(asked))
    stats = await client.stats()

    assert (stats.running, stats.waiting, stats.busy_adapters) == (2, 1, frozenset({"good", "other"}))
    assert {answer.status_code for answer in await asyncio.gather(*asked)} == {200}
    assert time.monotonic() - started >= 0.6


async def test_loads_can_be_slow_and_can_fail(
    fake: FakeVllm, wire: httpx.AsyncClient, client: VllmClient, adapters: Path
) -> None:
    fake.behave(load_delay=0.1, failing_loads=1)
    load = {"lora_name": "good", "lora_path": str(adapters / "good")}
    started = time.monotonic()

    assert (await wire.post("/v1/load_lora_adapter", json=load)).status_code == 500
    assert (await wire.post("/v1/load_lora_adapter", json=load)).status_code == 200
    assert time.monotonic() - started >= 0.2
    assert dict(fake.seen.loads) == {"good": 1}


async def test_an_unknown_field_of_its_behaviour_is_refused(wire: httpx.AsyncClient) -> None:
    assert (await wire.post("/fake/behaviour", json={"mood": "bad"})).status_code == 400


async def test_embeddings_have_their_shape(wire: httpx.AsyncClient) -> None:
    answer = (await wire.post("/v1/embeddings", json={"model": "base", "input": ["a", "bc"]})).json()

    assert [item["index"] for item in answer["data"]] == [0, 1]
    assert len(answer["data"][0]["embedding"]) == 8
    assert answer["usage"]["prompt_tokens"] == 3


async def test_a_stream_whose_engine_dies_ends_with_an_error_event(fake: FakeVllm, wire: httpx.AsyncClient) -> None:
    fake.behave(token_delay=0.02)
    async with wire.stream("POST", CHAT, json=request(stream=True)) as stream:
        await anext(chunks := stream.aiter_raw())
        fake.behave(dead="unhealthy")
        rest = b"".join([chunk async for chunk in chunks])

    assert rest.endswith(b'"type":"InternalServerError","param":null,"code":500}}\n\ndata: [DONE]\n\n')


def test_it_is_a_command(tmp_path: Path) -> None:
    socket = tmp_path / "f.sock"
    command = [sys.executable, "-m", "tests.fakes.vllm", "--uds", str(socket), "--tokens", "3"]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        try:
            while not socket.exists():
                assert process.poll() is None
                time.sleep(0.02)
            with httpx.Client(transport=httpx.HTTPTransport(uds=str(socket), retries=5)) as wire:
                answer = wire.post(f"http://replica{CHAT}", json=request())
            assert answer.json()["usage"]["completion_tokens"] == 3
        finally:
            process.terminate()


def test_a_behaviour_has_no_other_fields() -> None:
    with pytest.raises(TypeError):
        Behaviour().changed({"mood": "bad"})
