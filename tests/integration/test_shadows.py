"""A shadow version gets copies, and nobody who asks can tell."""

import json
from functools import partial
from typing import Any

import pytest

from tests.fixtures.yard import Yard

CHAT = {"model": "support", "messages": [{"role": "user", "content": "hi"}]}
SHADOW = "/tenants/acme/adapters/support/release/shadow"


@pytest.fixture
def yard(empty_yard: Yard) -> Yard:
    """Version 1 of acme's support is stable, version 2 its shadow."""
    empty_yard.start_replica("r0")
    empty_yard.start_gateway(log_level="info")
    empty_yard.key = empty_yard.add_tenant("acme")
    for seed in (1, 2):
        empty_yard.add_adapter("acme", "support", seed=seed)
    empty_yard.admin("PUT", SHADOW, json={"version": 2, "share": 100})
    return empty_yard


def served(yard: Yard, number: int) -> str:
    versions = yard.admin("GET", "/tenants/acme/adapters/support/versions")["data"]
    return str(versions[number - 1]["served_name"])


def copies(yard: Yard, number: int = 2) -> list[dict[str, Any]]:
    """What the replica was asked of a version, but for the probe."""
    name = served(yard, number)
    return [r for r in yard.fakes["r0"].seen.requests if r["body"]["model"] == name and "messages" in r["body"]]


def counted(yard: Yard, outcome: str) -> float:
    lines = [line for line in yard.operator.get("/metrics").text.splitlines()
             if line.startswith("switchyard_shadow_requests_total{") and f'outcome="{outcome}"' in line]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


def answered(yard: Yard, copies: int) -> bool:
    return counted(yard, "differ") + counted(yard, "shed") == copies


@pytest.mark.parametrize("stream", [False, True])
def test_a_copy_is_sent_once_the_caller_has_its_answer_and_compared_with_it(yard: Yard, stream: bool) -> None:
    answer = yard.caller(yard.key).post("/v1/chat/completions", json={**CHAT, "stream": stream})
    assert answer.headers["x-switchyard-version"] == "1"
    yard.wait_until(lambda: counted(yard, "differ") == 1)
    [copy] = copies(yard)
    assert copy["body"]["messages"] == CHAT["messages"]
    assert "stream" not in copy["body"]


def test_a_shadow_with_the_same_bytes_says_the_same(empty_yard: Yard) -> None:
    empty_yard.start_replica("r0")
    empty_yard.start_gateway()
    key = empty_yard.add_tenant("acme")
    for seed in (1, 2):
        empty_yard.add_adapter("acme", "support", seed=seed)
    empty_yard.admin("PUT", SHADOW, json={"version": 2, "share": 100})
    weights = empty_yard.fakes["r0"].engine
    weights.adapters[served(empty_yard, 2)] = weights.adapters[served(empty_yard, 1)]
    empty_yard.caller(key).post("/v1/chat/completions", json={**CHAT, "stream": True})
    empty_yard.wait_until(lambda: counted(empty_yard, "match") + counted(empty_yard, "differ") == 1)
    assert counted(empty_yard, "match") == 1


def test_a_shadow_that_fails_is_not_asked_again_and_its_caller_never_hears_of_it(yard: Yard) -> None:
    yard.fakes["r0"].behave(error_rate=1.0, only=served(yard, 2))
    answer = yard.caller(yard.key).post("/v1/chat/completions", json=CHAT)
    assert answer.status_code == 200
    yard.wait_until(lambda: counted(yard, "error") == 1)
    assert len(copies(yard)) == 1
    assert yard.admin("GET", "/replicas")["data"][0]["healthy"]


def test_a_slow_shadow_delays_nobody_and_what_does_not_fit_is_shed(empty_yard: Yard) -> None:
    empty_yard.start_replica("r0")
    empty_yard.start_gateway(shadow_max_in_flight=2)
    key = empty_yard.add_tenant("acme")
    for seed in (1, 2):
        empty_yard.add_adapter("acme", "support", seed=seed)
    empty_yard.admin("PUT", SHADOW, json={"version": 2, "share": 100})
    empty_yard.fakes["r0"].behave(latency=30.0, only=served(empty_yard, 2))
    for _ in range(6):
        assert empty_yard.caller(key).post("/v1/chat/completions", json=CHAT, timeout=5).status_code == 200
    empty_yard.wait_until(lambda: counted(empty_yard, "shed") == 4)
    assert len(copies(empty_yard)) == 2


def test_the_tokens_of_a_shadow_are_budgeted_and_not_the_tenants(empty_yard: Yard) -> None:
    empty_yard.start_replica("r0")
    empty_yard.start_gateway(shadow_tokens_a_minute=6)
    key = empty_yard.add_tenant("acme")
    for seed in (1, 2):
        empty_yard.add_adapter("acme", "support", seed=seed)
    empty_yard.admin("PUT", SHADOW, json={"version": 2, "share": 100})
    for number in range(3):
        empty_yard.caller(key).post("/v1/chat/completions", json=CHAT)
        empty_yard.wait_until(partial(answered, empty_yard, number + 1))
    assert (counted(empty_yard, "differ"), counted(empty_yard, "shed")) == (1, 2)
    tokens = [line for line in empty_yard.operator.get("/metrics").text.splitlines()
              if line.startswith("switchyard_tokens_total{") and 'kind="completion"' in line]
    assert [line.rsplit(" ", 1)[1] for line in tokens] == ["36.0"]


def test_without_a_shadow_nothing_is_copied(yard: Yard) -> None:
    yard.admin("DELETE", SHADOW)
    yard.caller(yard.key).post("/v1/chat/completions", json=CHAT)
    yard.caller(yard.key).post("/v1/chat/completions", json=CHAT)
    assert copies(yard) == []


def test_the_comparison_is_logged_without_a_word_of_either_answer(yard: Yard) -> None:
    text = yard.caller(yard.key).post("/v1/chat", json={"adapter_name": "support", "prompt": "hi"}).json()["text"]
    yard.wait_until(lambda: counted(yard, "differ") == 1)
    [line] = yard.logged("shadow")
    assert line["live_characters"] == len(text)
    assert {"live_ms", "shadow_ms", "live_finish", "shadow_finish", "live_tokens", "shadow_tokens"} <= line.keys()
    assert text.split()[0] not in json.dumps(line)
