"""The request path behind its door: what callers get, what replicas are sent, and what happens when one fails."""

import json
import re
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.dataplane.serving import ENDPOINTS
from tests.fakes.vllm import FakeVllm
from tests.fixtures.artifacts import write_adapter
from tests.fixtures.yard import Yard

BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}], "seed": 7},
    "/v1/completions": {"prompt": "hi", "max_tokens": 4},
    "/v1/embeddings": {"input": "hi"},
    "/v1/responses": {"input": "hi"},
    "/v1/messages": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 5},
    "/tokenize": {"prompt": "hi"},
}
STREAMED = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages")
CHAT = BODIES["/v1/chat/completions"]
_CHANGING = re.compile(r'("(?:id|item_id|response_id|created|created_at|completed_at)":)("[^"]*"|[0-9.]+)')


def same(text: str) -> str:
    """An answer without what differs from call to call."""
    return _CHANGING.sub(r"\1_", text)


@pytest.fixture
def key(yard: Yard) -> str:
    made = yard.add_tenant("acme")
    yard.add_adapter("acme", "support")
    return made


def served_name(yard: Yard) -> str:
    return str(yard.admin("GET", "/tenants/acme/adapters/support/versions")["data"][-1]["served_name"])


def direct(yard: Yard, path: str, body: dict[str, Any]) -> httpx.Response:
    """The same question, asked of the replica itself."""
    transport = httpx.HTTPTransport(uds=yard.urls["r0"].removeprefix("unix:"))
    with httpx.Client(transport=transport, base_url="http://r0") as client:
        return client.post(path, json={**body, "model": served_name(yard)})


@pytest.mark.parametrize("path", sorted(BODIES))
def test_an_answer_is_the_replicas_byte_for_byte_but_for_the_models_name(yard: Yard, key: str, path: str) -> None:
    assert BODIES.keys() == ENDPOINTS.keys()
    for stream in (False, True) if path in STREAMED else (False,):
        body = {**BODIES[path], **({"stream": True} if stream else {})}
        ours, theirs = yard.caller(key).post(path, json={**body, "model": "support"}), direct(yard, path, body)
        assert (ours.status_code, theirs.status_code) == (200, 200), ours.text
        assert same(ours.text) == same(theirs.text).replace(f'"model":"{served_name(yard)}"', '"model":"support"')
        assert served_name(yard) not in ours.text
        assert ours.headers["content-type"] == theirs.headers["content-type"]


def test_an_answer_says_who_gave_it(yard: Yard, key: str) -> None:
    caller = yard.caller(key)
    headers = caller.post("/v1/chat/completions", json={**CHAT, "model": "support"},
                          headers={"x-request-id": "mine-1"}).headers
    assert {name: headers[f"x-switchyard-{name}"] for name in ("adapter", "version", "track", "replica")} == {
        "adapter": "support", "version": "1", "track": "stable", "replica": "r0"}
    assert float(headers["x-switchyard-overhead-ms"]) > 0
    assert headers["x-request-id"] == "mine-1"
    made = caller.post("/v1/chat/completions", json={**CHAT, "model": "base"}, headers={"x-request-id": "a b"}).headers
    assert made["x-switchyard-track"] == "base"
    assert re.fullmatch("[0-9a-f]{32}", made["x-request-id"])


def test_the_prefix_cache_is_salted_by_tenant_and_the_callers_own_fields_do_not_pass(yard: Yard, key: str) -> None:
    other = yard.add_tenant("globex")
    for caller in (key, key, other):
        answer = yard.caller(caller).post("/v1/chat/completions", json={
            **CHAT, "model": "base", "cache_salt": "guessed", "priority": -5, "request_id": "x", "temperature": 0.5,
        }, headers={"x-data-parallel-rank": "1", "cookie": "c=1", "x-request-id": "chosen"})
        assert answer.status_code == 200
    first, again, theirs = [r for r in yard.fakes["r0"].seen.requests if r["body"].get("temperature") == 0.5]
    assert first["body"]["cache_salt"] == again["body"]["cache_salt"] != theirs["body"]["cache_salt"]
    assert "guessed" not in json.dumps([first, theirs])
    assert not {"priority", "request_id"} & first["body"].keys()
    assert not {"cookie", "x-data-parallel-rank", "authorization"} & first["headers"].keys()
    assert len({r["headers"]["x-request-id"] for r in (first, again, theirs)}) == 3


def test_the_simple_door_answers_flat(yard: Yard, key: str) -> None:
    caller = yard.caller(key)
    answer = caller.post("/v1/chat", json={"adapter_name": "support", "prompt": "hi", "max_tokens": 5})
    assert answer.json().keys() == {"text", "adapter", "version", "latency_ms", "usage"}
    assert (answer.json()["adapter"], answer.json()["version"]) == ("support", 1)
    streamed = caller.post("/v1/chat", json={
        "adapter_name": "support", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5, "stream": True})
    events = [json.loads(line[6:]) for line in streamed.text.splitlines() if line.startswith("data: {")]
    assert "".join(event["text"] for event in events) == answer.json()["text"]
    assert events[-1]["usage"]["completion_tokens"] == answer.json()["usage"]["completion_tokens"]
    assert streamed.text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize(("given", "status", "code"), [
    ({"content": b"{"}, 400, "malformed_json"),
    ({"content": b"[]"}, 400, "invalid_request"),
    ({"json": {"messages": []}}, 400, "invalid_request"),
    ({"json": {**CHAT, "model": "support", "chat_template": "{{ x }}"}}, 400, "field_refused"),
    ({"json": {**CHAT, "model": "nowhere"}}, 404, "model_not_found"),
    ({"content": b'{"model":"' + b"x" * 5000 + b'"}'}, 413, "body_too_large"),
    ({"json": {**CHAT, "model": "support"}, "headers": {"authorization": "Bearer sy-00000000-wrong"}}, 401,
     "invalid_api_key"),
])
def test_what_cannot_be_served_is_refused_with_the_reason(
    empty_yard: Yard, given: dict[str, Any], status: int, code: str
) -> None:
    empty_yard.start_replica("r0")
    empty_yard.start_gateway(max_body_bytes=4096)
    answer = empty_yard.caller(empty_yard.add_tenant("acme")).post("/v1/chat/completions", **given)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert answer.json()["error"].keys() == {"message", "type", "param", "code"}
    assert not empty_yard.fakes["r0"].seen.requests


def test_a_body_sent_in_chunks_without_a_length_is_held_to_the_limit(empty_yard: Yard) -> None:
    empty_yard.start_replica("r0")
    empty_yard.start_gateway(max_body_bytes=4096)
    caller = empty_yard.caller(empty_yard.add_tenant("acme"))
    answer = caller.post("/v1/chat/completions", content=(b"x" * 1000 for _ in range(100)))
    assert answer.status_code == 413


def test_without_a_key_nothing_of_the_body_matters(yard: Yard) -> None:
    answer = yard.caller(None).post("/v1/chat/completions", content=b"{")
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"


def test_a_revoked_key_is_refused_at_once(yard: Yard, key: str) -> None:
    caller = yard.caller(key)
    assert caller.get("/v1/models").status_code == 200
    [listed] = yard.admin("GET", "/tenants/acme/keys")["data"]
    yard.admin("DELETE", f"/tenants/acme/keys/{listed['id']}")
    assert caller.get("/v1/models").status_code == 401


def test_models_are_those_that_the_key_may_use(yard: Yard, key: str) -> None:
    yard.add_adapter("acme", "sales", seed=1)
    limited = yard.caller(yard.add_tenant("acme", adapters=["sales"]))
    listed = yard.caller(key).get("/v1/models").json()
    assert [m["id"] for m in listed["data"]] == ["sales", "support", "base"]
    assert listed["data"][0].keys() == {"id", "object", "created", "owned_by"}
    assert [m["id"] for m in limited.get("/v1/models").json()["data"]] == ["sales"]
    assert limited.get("/v1/models/sales").json()["id"] == "sales"
    assert limited.get("/v1/models/acme/sales").json()["id"] == "sales"
    assert {limited.get(f"/v1/models/{name}").status_code for name in ("support", "base", "nothing")} == {404}


def test_the_replicas_own_errors_pass_unchanged(yard: Yard, key: str) -> None:
    body = {**CHAT, "max_tokens": 999_999}
    ours, theirs = yard.caller(key).post("/v1/chat/completions", json={**body, "model": "support"}), direct(
        yard, "/v1/chat/completions", body)
    assert theirs.status_code == 400
    assert (ours.status_code, ours.text) == (400, theirs.text)


def test_no_healthy_replica_is_503_with_retry_after(yard: Yard, key: str) -> None:
    yard.fakes["r0"].behave(dead="drop")
    yard.wait_until(lambda: not yard.admin("GET", "/replicas")["data"][0]["healthy"])
    answer = yard.caller(key).post("/v1/chat/completions", json={**CHAT, "model": "support"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "no_healthy_replica")
    assert int(answer.headers["retry-after"]) >= 1
    yard.fakes["r0"].behave(dead="")
    yard.wait_until(lambda: yard.admin("GET", "/replicas")["data"][0]["healthy"])
    assert yard.caller(key).post("/v1/chat/completions", json={**CHAT, "model": "support"}).status_code == 200


def has_aborted(fake: FakeVllm, count: int) -> bool:
    return fake.seen.aborted == count


def test_a_caller_that_hangs_up_frees_the_replica(yard: Yard, key: str) -> None:
    fake = yard.fakes["r0"]
    fake.behave(latency=30.0)
    for stream in (False, True):
        aborted = fake.seen.aborted
        with pytest.raises(httpx.ReadTimeout):
            yard.caller(key).post(
                "/v1/chat/completions", json={**CHAT, "model": "support", "stream": stream}, timeout=0.3)
        yard.wait_until(partial(has_aborted, fake, aborted + 1), 1.0)
    fake.behave(latency=0.0, token_delay=0.05, tokens=1000)
    body = {**CHAT, "model": "support", "stream": True}
    with yard.caller(key).stream("POST", "/v1/chat/completions", json=body) as answer:
        next(answer.iter_bytes())
    yard.wait_until(lambda: fake.seen.aborted == 3 and fake.seen.in_flight == 0, 1.0)


@pytest.fixture
def pair(empty_yard: Yard) -> Yard:
    """Two replicas that both have `support` loaded; `first` in rank is found by asking."""
    for name in ("r0", "r1"):
        empty_yard.start_replica(name)
    empty_yard.start_gateway()
    return empty_yard


def ask(yard: Yard, key: str, **fields: Any) -> httpx.Response:
    return yard.caller(key).post("/v1/chat/completions", json={**CHAT, "model": "support", **fields})


@pytest.mark.parametrize("stream", [False, True])
def test_a_replica_that_breaks_off_before_the_first_byte_is_passed_over(pair: Yard, stream: bool) -> None:
    key = pair.add_tenant("acme")
    pair.add_adapter("acme", "support")
    first = ask(pair, key).headers["x-switchyard-replica"]
    pair.fakes[first].behave(drop_after=0)
    answer = ask(pair, key, stream=stream)
    assert answer.status_code == 200
    assert answer.headers["x-switchyard-replica"] != first
    assert pair.fakes[first].seen.drops > 0


def test_two_replicas_that_break_off_are_the_callers_502(pair: Yard) -> None:
    key = pair.add_tenant("acme")
    pair.add_adapter("acme", "support")
    for fake in pair.fakes.values():
        fake.behave(drop_after=0)
    answer = ask(pair, key)
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "upstream_failed")
    assert sum(fake.seen.drops for fake in pair.fakes.values()) == 2


def test_a_stream_that_breaks_off_says_so_and_is_not_begun_again(pair: Yard) -> None:
    key = pair.add_tenant("acme")
    pair.add_adapter("acme", "support")
    for fake in pair.fakes.values():
        fake.behave(drop_after=3)
    answer = ask(pair, key, stream=True)
    events = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: ")]
    assert events[-1]["error"]["code"] == "upstream_failed"
    assert "[DONE]" not in answer.text
    assert sum(fake.seen.drops for fake in pair.fakes.values()) == 1


def test_a_replica_that_says_503_is_passed_over_once(pair: Yard) -> None:
    key = pair.add_tenant("acme")
    pair.add_adapter("acme", "support")
    first = ask(pair, key).headers["x-switchyard-replica"]
    pair.fakes[first].behave(error_rate=1.0, error_status=503)
    assert ask(pair, key).headers["x-switchyard-replica"] != first
    for fake in pair.fakes.values():
        fake.behave(error_rate=1.0, error_status=503)
    assert ask(pair, key).status_code == 503


def test_a_restarted_replica_gets_its_adapter_back_with_the_first_call(empty_yard: Yard) -> None:
    empty_yard.start_replica("r0")
    empty_yard.start_gateway(health_interval_seconds=3600)
    key = empty_yard.add_tenant("acme")
    empty_yard.add_adapter("acme", "support")
    before = ask(empty_yard, key).json()["choices"][0]["message"]["content"]
    empty_yard.fakes["r0"].restart()
    answer = ask(empty_yard, key)
    assert answer.json()["choices"][0]["message"]["content"] == before
    assert len(empty_yard.fakes["r0"].engine.adapters) == 1


def test_many_calls_for_a_version_that_is_not_loaded_load_it_once(empty_yard: Yard) -> None:
    fake = empty_yard.start_replica("r0")
    empty_yard.start_gateway(health_interval_seconds=3600)
    key = empty_yard.add_tenant("acme")
    version = empty_yard.add_adapter("acme", "support")
    fake.restart()
    before = fake.seen.loads[version["served_name"]]
    fake.behave(load_delay=0.3)
    statuses: list[int] = []
    threads = [threading.Thread(target=lambda: statuses.append(ask(empty_yard, key).status_code)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [200] * 8
    assert fake.seen.loads[version["served_name"]] == before + 1


def test_a_busy_replica_spills_to_the_next(empty_yard: Yard) -> None:
    for name in ("r0", "r1"):
        empty_yard.start_replica(name)
    empty_yard.start_gateway(replicas="")
    for name, url in empty_yard.urls.items():
        empty_yard.admin("POST", "/replicas", json={"name": name, "url": url, "max_in_flight": 1})
    empty_yard.wait_until(lambda: all(r["healthy"] for r in empty_yard.admin("GET", "/replicas")["data"]))
    key = empty_yard.add_tenant("acme")
    empty_yard.add_adapter("acme", "support")
    for fake in empty_yard.fakes.values():
        fake.behave(latency=0.5)
    used: list[str] = []
    threads = [threading.Thread(target=lambda: used.append(ask(empty_yard, key).headers["x-switchyard-replica"]))
               for _ in range(2)]
    for thread in threads:
        thread.start()
        time.sleep(0.1)
    for thread in threads:
        thread.join()
    assert sorted(used) == ["r0", "r1"]


def test_the_metrics_count_a_call(yard: Yard, key: str) -> None:
    yard.caller(key).post("/v1/chat/completions", json={**CHAT, "model": "support", "stream": True})
    text = yard.operator.get("/metrics").text
    who = 'adapter="support",{}tenant="acme",track="stable",version="1"'
    assert f"switchyard_time_to_first_token_seconds_count{{{who.format('')}}} 1.0" in text
    assert f"switchyard_request_duration_seconds_count{{{who.format('')}}} 1.0" in text
    assert f'switchyard_tokens_total{{{who.format("kind=@completion@,").replace("@", chr(34))}}} 12.0' in text
    assert f'switchyard_request_duration_seconds_bucket{{adapter="support",le="0.001",{who.split(",{}")[1]}}}' in text
    assert f'switchyard_request_duration_seconds_bucket{{adapter="support",le="300.0",{who.split(",{}")[1]}}}' in text


def test_metrics_are_for_those_who_may_see_all_tenants(empty_yard: Yard) -> None:
    empty_yard.start_replica("r0")
    empty_yard.start_gateway(metrics_key="prom")
    key = empty_yard.add_tenant("acme")
    assert empty_yard.caller("prom").get("/metrics").status_code == 200
    assert empty_yard.operator.get("/metrics").status_code == 200
    assert {empty_yard.caller(k).get("/metrics").status_code for k in (key, None)} == {401}
    assert empty_yard.caller("prom").get("/admin/v1/tenants").status_code == 401


def test_a_request_is_one_log_line_without_prompt_or_key(empty_yard: Yard) -> None:
    empty_yard.start_replica("r0")
    empty_yard.start_gateway(log_level="info")
    key = empty_yard.add_tenant("acme")
    empty_yard.add_adapter("acme", "support")
    prompt = {"messages": [{"role": "user", "content": "my secret prompt"}]}
    empty_yard.caller(key).post("/v1/chat/completions", json={**prompt, "model": "support"},
                                headers={"x-request-id": "r-1"})
    [line] = empty_yard.logged("request")
    lines = empty_yard.log.getvalue().decode()
    assert {name: line[name] for name in ("request_id", "tenant", "adapter", "version", "track", "replica", "status",
                                          "completion_tokens", "finish_reason")} == {
        "request_id": "r-1", "tenant": "acme", "adapter": "support", "version": 1, "track": "stable", "replica": "r0",
        "status": 200, "completion_tokens": 12, "finish_reason": "stop"}
    assert line["duration_ms"] > line["overhead_ms"] > 0
    assert "secret prompt" not in lines
    assert key not in lines and key.split("-", 2)[2] not in lines


def test_readiness_tells_drain_and_degradation(yard: Yard) -> None:
    probe = yard.caller(None)
    assert probe.get("/healthz").status_code == 200
    assert probe.get("/readyz").json()["status"] == "ok"
    yard.fakes["r0"].behave(dead="drop")
    yard.wait_until(lambda: probe.get("/readyz").json()["status"] == "degraded")
    assert probe.get("/readyz").status_code == 200
    yard.app.begin_drain()
    assert (probe.get("/readyz").status_code, probe.get("/readyz").json()["status"]) == (503, "draining")
    assert probe.get("/v1/models").headers["connection"] == "close"


def test_a_tampered_artifact_is_not_loaded(empty_yard: Yard, tmp_path: Path) -> None:
    fake = empty_yard.start_replica("r0")
    empty_yard.start_gateway()
    key = empty_yard.add_tenant("acme")
    version = empty_yard.add_adapter("acme", "support")
    kept = next((empty_yard.folder / "state" / "artifacts").rglob("adapter_model.safetensors"))
    write_adapter(tmp_path, seed=99)
    kept.chmod(0o600)
    kept.write_bytes((tmp_path / "adapter_model.safetensors").read_bytes())
    loads = fake.seen.loads[version["served_name"]]
    fake.restart()
    empty_yard.wait_until(lambda: not empty_yard.admin("GET", "/replicas/r0")["loaded"])
    answer = ask(empty_yard, key)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "adapter_not_loaded")
    assert str(kept.parent.name) not in answer.text
    assert fake.seen.loads[version["served_name"]] == loads
