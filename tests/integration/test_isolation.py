"""Whatever one tenant does, nothing it gets to see speaks of another."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.dataplane.serving import ENDPOINTS
from tests.fixtures.redis import RealValkey
from tests.fixtures.yard import Yard, open_yard

MARK = "zebra"
"""Stands in every name of the other tenant and nowhere else."""
NAMES = ["support", "nothing", "base", f"{MARK}-sales", f"{MARK}-corp/{MARK}-sales", f"acme/{MARK}-sales",
         f"{MARK}-corp/support", "acme/support", "../support", f"{MARK}-corp"]
PATHS = [*ENDPOINTS, "/v1/chat", "/v1/models", "/metrics", "/readyz", "/healthz", "/admin/v1/tenants",
         f"/admin/v1/tenants/{MARK}-corp", "/admin/v1/replicas", "/admin/v1/changes", "/admin/v1/status",
         f"/v1/models/{MARK}-sales", f"/v1/models/{MARK}-corp/{MARK}-sales", "/v1/models/support", "/nowhere",
         "/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/adapters", "/invocations"]


@pytest.fixture(scope="module")
def two(shared_valkey: RealValkey) -> Iterator[tuple[Yard, str, str]]:
    with open_yard(shared_valkey, "isolation") as yard:
        yard.start_replica("r0")
        yard.start_gateway()
        mine, other = yard.add_tenant("acme"), yard.add_tenant(f"{MARK}-corp")
        yard.add_adapter("acme", "support")
        yard.add_adapter(f"{MARK}-corp", f"{MARK}-sales", seed=1)
        yard.add_adapter(f"{MARK}-corp", "support", seed=2)
        yield yard, mine, other


def seen_by(answer: httpx.Response, *asked: str) -> str:
    """Everything in an answer but an echo of what was asked."""
    text = answer.text + json.dumps(list(answer.headers.items()))
    for echo in sorted(asked, key=len, reverse=True):
        text = text.replace(echo, "")
    return text


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=st.sampled_from(PATHS), method=st.sampled_from(["GET", "POST", "PUT", "DELETE"]),
       name=st.sampled_from(NAMES), stream=st.booleans(), broken=st.booleans())
def test_no_answer_speaks_of_the_other_tenant(
    two: tuple[Yard, str, str], path: str, method: str, name: str, stream: bool, broken: bool
) -> None:
    yard, mine, other = two
    theirs = yard.caller(other).post("/v1/chat", json={"adapter_name": f"{MARK}-sales", "prompt": "hi"})
    assert theirs.status_code == 200
    body: dict[str, Any] = {"model": name, "adapter_name": name, "messages": [], "prompt": "hi", "stream": stream}
    if path == "/v1/chat":
        body = {"adapter_name": name, "prompt": "hi", "stream": stream}
    yard.fakes["r0"].behave(error_rate=1.0 if broken else 0.0)
    answer = yard.caller(mine).request(method, path, content=json.dumps(body), headers={"x-tenant": f"{MARK}-corp"})
    yard.fakes["r0"].behave(error_rate=0.0)
    assert answer.status_code < 500 or broken
    assert MARK not in seen_by(answer, name, path, path.removeprefix("/v1/models/"))
    assert theirs.json()["text"].split()[0] not in answer.text


@pytest.mark.parametrize("path", sorted(ENDPOINTS))
def test_anothers_adapter_is_refused_as_one_that_does_not_exist(two: tuple[Yard, str, str], path: str) -> None:
    yard, mine, _ = two
    said = []
    for name in (f"{MARK}-sales", "unknown-ad"):
        answer = yard.caller(mine).post(path, json={"model": name, "messages": [], "prompt": "hi", "input": "hi"})
        said.append((answer.status_code, answer.text.replace(name, "NAME"),
                     sorted(k for k in answer.headers)))
    assert said[0] == said[1]
    assert said[0][0] == 404


def test_the_same_adapter_name_reaches_each_tenants_own_version(two: tuple[Yard, str, str]) -> None:
    yard, mine, other = two
    texts = {key: yard.caller(key).post("/v1/chat", json={"adapter_name": "support", "prompt": "hi"}).json()["text"]
             for key in (mine, other)}
    assert texts[mine] != texts[other]


def test_no_name_that_the_registry_does_not_know_reaches_a_replica(two: tuple[Yard, str, str]) -> None:
    yard, mine, _ = two
    for name in NAMES:
        yard.caller(mine).post("/v1/completions", json={"model": name, "prompt": "hi"})
    adapters = (("acme", "support"), (f"{MARK}-corp", f"{MARK}-sales"), (f"{MARK}-corp", "support"))
    known = {v["served_name"] for t, a in adapters
             for v in yard.admin("GET", f"/tenants/{t}/adapters/{a}/versions")["data"]}
    assert set(yard.fakes["r0"].seen.by_served_name) <= known | {"base"}
