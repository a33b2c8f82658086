"""VllmClient against replicas that are odd, old, closed, dead or absent; the contract suite has the ordinary ones."""

import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from gateway.clients.vllm import ReplicaStats, VllmClient
from gateway.domain.errors import EngineRefused, InvalidRequest, ReplicaUnreachable
from gateway.domain.model import Replica
from tests.fakes.serving import serving
from tests.fakes.vllm import FakeVllm
from tests.fakes.vllm.wire import reply
from tests.fixtures.artifacts import write_adapter

NAME = "acme/support@1-0123456789ab"
EVERY_ROUTE = (
    "POST /adapters", "DELETE /adapters/{name}", "POST /invocations", "GET /metrics", "POST /v1/load_lora_adapter",
    "POST /v1/chat/completions",
)


@asynccontextmanager
async def connected(url: str, api_key: str | None = None, **options: float) -> AsyncIterator[VllmClient]:
    """A client of the replica at `url`."""
    client = VllmClient(Replica(name="r1", url=url, created_at=0.0, api_key=api_key), **options)
    yield client
    await client.close()


@contextmanager
def answering(folder: Path, status: int, body: Any, content_type: bytes = b"application/json") -> Iterator[str]:
    """A server that gives every request the same answer."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await reply(send, status, content, content_type)

    with serving(app, folder / "odd.sock") as url:
        yield url


CALLS: dict[str, Callable[[VllmClient], Awaitable[object]]] = {
    "models": lambda client: client.models(),
    "load": lambda client: client.load(NAME, "/artifacts/good"),
    "unload": lambda client: client.unload(NAME),
    "next_token_logprobs": lambda client: client.next_token_logprobs("base", ["abc"], "salt"),
    "stats": lambda client: client.stats(),
    "version": lambda client: client.version(),
    "audit_exposure": lambda client: client.audit_exposure(),
}
every_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
every_reader = pytest.mark.parametrize("call", [CALLS["models"], CALLS["next_token_logprobs"], CALLS["version"]],
                                       ids=["models", "next_token_logprobs", "version"])


@every_call
async def test_a_replica_that_is_not_there_is_unreachable(
    tmp_path: Path, call: Callable[[VllmClient], Awaitable[object]]
) -> None:
    async with connected(f"unix:{tmp_path / 'absent.sock'}") as client:
        with pytest.raises(ReplicaUnreachable, match="The replica r1 does not answer /"):
            await call(client)
        assert not await client.is_healthy()


@every_call
async def test_a_replica_that_cuts_connections_is_unreachable(
    tmp_path: Path, call: Callable[[VllmClient], Awaitable[object]]
) -> None:
    fake = FakeVllm()
    fake.behave(dead="drop")
    with serving(fake, tmp_path / "f.sock") as url:
        async with connected(url) as client:
            with pytest.raises(ReplicaUnreachable):
                await call(client)
            assert not await client.is_healthy()


@pytest.mark.parametrize("call", ["load", "next_token_logprobs"])
async def test_a_replica_whose_engine_is_dead_is_unreachable_and_not_the_adapters_fault(
    tmp_path: Path, call: str
) -> None:
    fake = FakeVllm()
    fake.behave(dead="unhealthy")
    with serving(fake, tmp_path / "f.sock") as url:
        async with connected(url) as client:
            with pytest.raises(ReplicaUnreachable, match="EngineCore encountered an issue"):
                await CALLS[call](client)


@every_reader
@pytest.mark.parametrize("body", [b"<html>", {}, [], {"data": [{}]}, {"choices": [{"index": 0}]}, {"version": 3}])
async def test_an_answer_that_is_not_vllms_is_refused(
    tmp_path: Path, call: Callable[[VllmClient], Awaitable[object]], body: Any
) -> None:
    with answering(tmp_path, 200, body) as url:
        async with connected(url) as client:
            with pytest.raises(EngineRefused, match="as vLLM does"):
                await call(client)


@pytest.mark.parametrize("status", [502, 503, 504])
async def test_a_proxy_without_its_replica_is_unreachable(tmp_path: Path, status: int) -> None:
    with answering(tmp_path, status, b"<html>bad gateway</html>", b"text/html") as url:
        async with connected(url) as client:
            with pytest.raises(ReplicaUnreachable, match="bad gateway"):
                await client.load(NAME, "/artifacts/good")


async def test_metrics_that_are_none_are_refused(tmp_path: Path) -> None:
    with answering(tmp_path, 200, b"vllm:lora_requests_info{oh dear", b"text/plain") as url:
        async with connected(url) as client:
            with pytest.raises(EngineRefused, match="cannot be read"):
                await client.stats()


async def test_a_slow_load_has_its_own_time_limit(tmp_path: Path) -> None:
    fake = FakeVllm()
    fake.behave(load_delay=0.3)
    path = str(write_adapter(tmp_path / "good"))
    with serving(fake, tmp_path / "f.sock") as url:
        async with connected(url, timeout=0.1, slow_timeout=5.0) as patient:
            await patient.load(NAME, path)
        async with connected(url, timeout=5.0, slow_timeout=0.1) as hasty:
            with pytest.raises(ReplicaUnreachable, match="ReadTimeout"):
                await hasty.load("another", path)


async def test_the_older_flat_error_envelope_is_understood(tmp_path: Path) -> None:
    path = str(write_adapter(tmp_path / "good"))
    with serving(FakeVllm(error_shape="flat"), tmp_path / "f.sock") as url:
        async with connected(url) as client:
            await client.load(NAME, path)
            await client.load(NAME, path)
            await client.unload(NAME)
            await client.unload(NAME)
            with pytest.raises(EngineRefused, match="No adapter found for"):
                await client.load(NAME, str(tmp_path / "absent"))
            assert await client.audit_exposure() == EVERY_ROUTE


async def test_a_replica_without_runtime_updating_is_told_how_to_start(tmp_path: Path) -> None:
    with serving(FakeVllm(runtime_updating=False), tmp_path / "f.sock") as url:
        async with connected(url) as client:
            with pytest.raises(EngineRefused, match="VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"):
                await client.load(NAME, "/artifacts/good")
            with pytest.raises(EngineRefused, match="VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"):
                await client.unload(NAME)


@pytest.mark.parametrize(("exposed", "api_key", "expected"), [
    (True, None, EVERY_ROUTE), (True, "key", EVERY_ROUTE[:4]), (False, "key", ("GET /metrics",)),
])
async def test_the_audit_tells_which_routes_need_no_key(
    tmp_path: Path, exposed: bool, api_key: str | None, expected: tuple[str, ...]
) -> None:
    fake = FakeVllm(exposed=exposed, api_key=api_key)
    with serving(fake, tmp_path / "f.sock") as url:
        async with connected(url, api_key) as client:
            assert await client.audit_exposure() == expected
    assert fake.seen.inferences == 0
    assert not fake.seen.loads and not fake.seen.unloads


async def test_a_replica_on_tcp_is_reached_by_its_url() -> None:
    async with connected("http://127.0.0.1:1", timeout=1.0) as client:
        started = time.monotonic()
        assert not await client.is_healthy()
    assert time.monotonic() - started < 1.0


def test_a_url_that_is_none_is_an_invalid_request() -> None:
    with pytest.raises(InvalidRequest, match="is not one") as refused:
        VllmClient(Replica(name="r1", url="http://host:port", created_at=0.0))
    assert refused.value.param == "url"


# Metrics


def test_the_newest_series_tells_which_adapters_are_busy() -> None:
    stats = ReplicaStats.parse(
        'process_start_time_seconds 1.79530127389e+09\n'
        'vllm:num_requests_running{engine="0",model_name="base"} 3.0\n'
        'vllm:num_requests_running{engine="1",model_name="base"} 1.0\n'
        'vllm:num_requests_waiting{engine="0",model_name="base"} 2.0\n'
        'vllm:num_requests_waiting_by_reason{engine="0",model_name="base",reason="capacity"} 9.0\n'
        'vllm:lora_requests_info{max_lora="4",running_lora_adapters="a@1-x,b@2-y",waiting_lora_adapters="c@1-z"} 20.5\n'
        'vllm:lora_requests_info{max_lora="4",running_lora_adapters="",waiting_lora_adapters=""} 10.5\n')

    assert stats == ReplicaStats(1795301273.89, 4, 4, 2, frozenset({"a@1-x", "b@2-y", "c@1-z"}))


def test_metrics_from_before_the_first_request_tell_no_slots() -> None:
    stats = ReplicaStats.parse('vllm:num_requests_running{engine="0"} 0.0\n')

    assert stats == ReplicaStats(None, None, 0, 0, frozenset())
