"""The gateway in front of each subject: what the fake promises of the request path, the real engine must keep."""

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.contract.conftest import KEY, Subject
from tests.fixtures.artifacts import write_adapter
from tests.fixtures.redis import RealValkey
from tests.fixtures.yard import Yard, open_yard

FREED_WITHIN = 1.0  # seconds
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 6, "temperature": 0},
    "/v1/completions": {"prompt": "hi", "max_tokens": 6, "temperature": 0},
    "/v1/responses": {"input": "hi", "max_output_tokens": 6, "temperature": 0},
    "/v1/messages": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 6, "temperature": 0},
    "/tokenize": {"messages": [{"role": "user", "content": "hi"}]},
}
_CHANGING = re.compile(
    r'("(?:id|item_id|response_id|created|created_at|completed_at|incomplete_at)":)("[^"]*"|[0-9.]+)')


@pytest.fixture(scope="module")
def yard(subject: Subject, shared_valkey: RealValkey, adapters: Path) -> Iterator[Yard]:
    """A gateway in front of the subject, with acme's `support` registered from the good adapter."""
    with open_yard(shared_valkey, f"contract-{id(subject)}") as made:
        made.urls["r0"] = subject.url
        made.start_gateway(replica_api_key=KEY, max_rank=64)
        made.key = made.add_tenant("acme")
        register(made, "acme", "support", adapters / "good")
        yield made


def register(yard: Yard, tenant: str, adapter: str, folder: Path) -> httpx.Response:
    return yard.operator.post(f"/admin/v1/tenants/{tenant}/adapters/{adapter}/versions",
                              json={"source": str(folder), "base_model": "base"}, timeout=120)


def versions(yard: Yard, tenant: str, adapter: str) -> list[dict[str, Any]]:
    return list(yard.admin("GET", f"/tenants/{tenant}/adapters/{adapter}/versions")["data"])


def metric(subject: Subject, name: str) -> float:
    """A gauge of the subject's own."""
    transport = httpx.HTTPTransport(uds=subject.url.removeprefix("unix:"))
    with httpx.Client(transport=transport, base_url="http://replica") as client:
        text = client.get("/metrics").text
    return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(f"{name}{{"))


def wait_for_running(subject: Subject, count: int, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while (running := metric(subject, "vllm:num_requests_running")) != count:
        assert time.monotonic() < deadline, f"{running} requests run, not {count}"
        time.sleep(0.02)


def test_a_good_adapter_is_proven_and_takes_traffic(yard: Yard) -> None:
    [version] = versions(yard, "acme", "support")
    assert (version["phase"], version["number"]) == ("ready", 1)
    assert version["effect"] > 0.001 > version["noise"]
    assert yard.admin("GET", "/tenants/acme/adapters/support/release")["stable"] == 1


@pytest.mark.parametrize("path", sorted(BODIES))
def test_an_answer_is_the_replicas_byte_for_byte_but_for_the_models_name(
    yard: Yard, subject: Subject, path: str
) -> None:
    served = versions(yard, "acme", "support")[0]["served_name"]
    transport = httpx.HTTPTransport(uds=subject.url.removeprefix("unix:"))
    with httpx.Client(transport=transport, base_url="http://replica", timeout=60,
                      headers={"authorization": f"Bearer {KEY}"}) as replica:
        for stream in (False, True) if path != "/tokenize" else (False,):
            body = {**BODIES[path], **({"stream": True} if stream else {})}
            theirs = replica.post(path, json={**body, "model": served})
            ours = yard.caller(yard.key).post(path, json={**body, "model": "support"})
            assert (ours.status_code, theirs.status_code) == (200, 200), ours.text
            expected = _CHANGING.sub(r"\1_", theirs.text).replace(f'"model":"{served}"', '"model":"support"')
            assert _CHANGING.sub(r"\1_", ours.text) == expected
            assert served not in ours.text


def test_the_adapter_and_the_base_model_answer_differently(yard: Yard) -> None:
    said = {model: yard.caller(yard.key).post("/v1/chat/completions", json={
        **BODIES["/v1/chat/completions"], "model": model, "max_tokens": 12}).json()["choices"][0]["message"]["content"]
        for model in ("support", "base")}
    assert said["support"] != said["base"]


def test_tokens_are_counted_as_the_engine_counts_them(yard: Yard) -> None:
    def counted() -> dict[str, float]:
        found = re.findall(r'switchyard_tokens_total\{adapter="support",kind="(\w+)".*\} (.*)',
                           yard.operator.get("/metrics").text)
        return {kind: float(value) for kind, value in found}

    before = counted()
    answer = yard.caller(yard.key).post(
        "/v1/chat/completions", json={**BODIES["/v1/chat/completions"], "model": "support"}).json()
    yard.caller(yard.key).post(
        "/v1/chat/completions", json={**BODIES["/v1/chat/completions"], "model": "support", "stream": True})
    for kind in ("prompt", "completion"):
        assert counted()[kind] - before.get(kind, 0) == 2 * answer["usage"][f"{kind}_tokens"]


def test_a_caller_that_hangs_up_frees_the_engines_slot_within_a_second(yard: Yard, subject: Subject) -> None:
    endless = {"model": "support", "prompt": "abc", "max_tokens": 4000, "ignore_eos": True}
    with yard.caller(yard.key).stream("POST", "/v1/completions", json={**endless, "stream": True}) as answer:
        assert answer.status_code == 200, answer.read()
        chunks = answer.iter_bytes()  # closes the answer when it is dropped
        next(chunks)
        wait_for_running(subject, 1, 10)
    wait_for_running(subject, 0, FREED_WITHIN)
    with pytest.raises(httpx.ReadTimeout):
        yard.caller(yard.key).post("/v1/completions", json=endless, timeout=1.5)
    wait_for_running(subject, 0, FREED_WITHIN)


def test_an_adapter_that_does_nothing_is_refused_with_the_numbers(
    yard: Yard, adapters: Path, tmp_path: Path
) -> None:
    """Its B matrices are so small that no check of the files can tell, and the engine's bfloat16 drops them."""
    write_adapter(tmp_path / "faint", seed=1, scale=1e-9)
    before = yard.admin("GET", "/replicas/r0")["loaded"]
    answer = register(yard, "acme", "faint", tmp_path / "faint")
    assert answer.status_code == 422, answer.text
    assert re.search(r"change of\s+a log probability was 0\.\d+ nats", answer.json()["error"]["reasons"][0])
    assert versions(yard, "acme", "faint") == []
    assert yard.admin("GET", "/replicas/r0")["loaded"] == before
    store = yard.folder / "state" / "artifacts"
    assert len(list((store / "sha256").iterdir())) == 1
    assert register(yard, "acme", "faint", adapters / "no_op").status_code == 422


def test_what_the_engine_refuses_is_refused_with_its_words_and_leaves_nothing(yard: Yard, adapters: Path) -> None:
    answer = register(yard, "acme", "large", adapters / "high_rank")
    assert answer.status_code == 422
    assert "rank" in json.dumps(answer.json()).lower()
    assert versions(yard, "acme", "large") == []
    assert register(yard, "acme", "broken", adapters / "corrupt").status_code == 422
    assert len(list((yard.folder / "state" / "artifacts" / "sha256").iterdir())) == 1


def test_a_retired_version_is_unloaded_and_its_files_are_deleted_only_then(
    subject: Subject, shared_valkey: RealValkey, tmp_path: Path
) -> None:
    for seed in (11, 12):
        write_adapter(tmp_path / str(seed), seed=seed, scale=0.5)
    with open_yard(shared_valkey, f"retire-{id(subject)}") as yard:
        yard.urls["r0"] = subject.url
        yard.start_gateway(replica_api_key=KEY, retire_grace_seconds=0.2)
        key = yard.add_tenant("globex")
        assert register(yard, "globex", "support", tmp_path / "11").status_code == 201
        assert register(yard, "globex", "support", tmp_path / "12").status_code == 201
        yard.admin("PUT", "/tenants/globex/adapters/support/release", json={"stable": 2})
        yard.admin("DELETE", "/tenants/globex/adapters/support/versions/1")
        yard.wait_until(lambda: versions(yard, "globex", "support")[0]["phase"] == "retired", 30)
        digests = {version["number"]: version["digest"] for version in versions(yard, "globex", "support")}
        kept = {folder.name for folder in (yard.folder / "state" / "artifacts" / "sha256").iterdir()}
        assert kept == {digests[2]}
        answer = yard.caller(key).post("/v1/completions", json={"model": "support", "prompt": "hi", "max_tokens": 3})
        assert (answer.status_code, answer.headers["x-switchyard-version"]) == (200, "2")
