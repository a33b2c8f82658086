"""A share of the answers is scored in the background, for tenants that opted in, and nobody who asks can tell."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from redis import Redis

from adapters.evaluation import golden
from tests.fakes.vllm.weights import Weights
from tests.fixtures.judge import FakeJudge, judging
from tests.fixtures.yard import Yard, open_yard

CHAT = {"model": "support", "messages": [{"role": "user", "content": "hi"}]}
OPT_IN = "/tenants/acme/quality"
QUALITY = "/tenants/acme/adapters/support/quality"
CANDIDATES = f"{QUALITY}/candidates"
EMAIL, CARD = "erika.mustermann@example.org", "4111 1111 1111 1111"
STRICT: dict[str, Any] = {"rules": [{"kind": "max_chars", "value": 3}]}


class Indiscreet(Weights):
    """Weights that tell what nobody should know."""

    def words(self, prompt: str, count: int) -> list[str]:
        return [f"Your card {CARD}", f" and mail {EMAIL}", " are known."]


@pytest.fixture
def judge() -> Iterator[FakeJudge]:
    with judging() as made:
        yield made


def start(yard: Yard, judge: FakeJudge | None = None, **settings: Any) -> Yard:
    """A gateway with one adapter, acme's support."""
    judged = {"judge_url": judge.url, "judge_model": "judge", "judge_api_key": "jk"} if judge else {}
    yard.start_replica("r0")
    yard.start_gateway(**{"quality_samples_a_second": 1000, "log_level": "debug", **judged, **settings})
    yard.key = yard.add_tenant("acme")
    yard.add_adapter("acme", "support", seed=1)
    return yard


@pytest.fixture
def yard(empty_yard: Yard) -> Yard:
    return start(empty_yard)


def opt_in(yard: Yard, share: float = 100, **policy: Any) -> None:
    yard.admin("PUT", OPT_IN, json={"share": share})
    if policy:
        yard.admin("PUT", QUALITY, json=policy)


def ask(yard: Yard, content: str = "hi", **more: Any) -> Any:
    messages = [{"role": "user", "content": content}]
    answer = yard.caller(yard.key).post("/v1/chat/completions", json={**CHAT, "messages": messages, **more})
    assert answer.status_code == 200, answer.text
    return answer


def series(yard: Yard, name: str) -> dict[str, float]:
    """The metric's series, by their labels."""
    lines = yard.operator.get("/metrics").text.splitlines()
    found = [line.removeprefix(f"switchyard_{name}").rsplit(" ", 1) for line in lines
             if line.startswith(f"switchyard_{name}{{")]
    return {labels: float(value) for labels, value in found}


def samples(yard: Yard, result: str) -> float:
    return series(yard, "quality_samples_total").get(f'{{result="{result}"}}', 0.0)


def wait_samples(yard: Yard, result: str, count: float) -> None:
    yard.wait_until(lambda: samples(yard, result) >= count)


def candidates(yard: Yard, **params: Any) -> list[dict[str, Any]]:
    return list(yard.admin("GET", CANDIDATES, params=params)["data"])


def stored(yard: Yard) -> str:
    """All that Redis holds of the registry."""
    redis = Redis.from_url(yard.valkey.url, decode_responses=True)
    read: dict[str, Callable[[str], Any]] = {
        "hash": redis.hgetall, "string": redis.get, "stream": redis.xrange,
        "zset": lambda key: redis.zrange(key, 0, -1)}
    keys = [str(key) for key in redis.scan_iter(f"switchyard:{{{yard.registry}}}:*")]
    found = [(key, read[str(redis.type(key))](key)) for key in keys if redis.exists(key)]
    redis.close()
    return str(found)


def test_without_an_opt_in_nothing_is_copied_or_kept(yard: Yard) -> None:
    yard.admin("PUT", QUALITY, json=STRICT)
    other = yard.add_tenant("beta")
    yard.add_adapter("beta", "support", seed=2)
    yard.admin("PUT", "/tenants/beta/quality", json={"share": 100})
    for _ in range(5):
        ask(yard, EMAIL)
    yard.key = other
    ask(yard)
    wait_samples(yard, "passed", 1)
    assert series(yard, "quality_samples_total") == {'{result="passed"}': 1.0, '{result="failed"}': 0.0}
    assert yard.operator.get(f"/admin/v1{CANDIDATES}").status_code == 404
    assert EMAIL not in stored(yard) and ":quality:acme" not in stored(yard)


@pytest.mark.parametrize("stream", [False, True])
def test_an_opted_in_tenants_answers_are_the_same_bytes_in_the_same_order(yard: Yard, stream: bool) -> None:
    def answered() -> bytes:
        data = ask(yard, stream=stream).content
        return re.sub(rb'"(id|created)":("[^"]*"|[0-9]+)', rb'"\1":_', data)

    before = answered()
    opt_in(yard, **STRICT)
    assert answered() == before
    wait_samples(yard, "failed", 1)


@pytest.mark.parametrize(("path", "body"), [
    ("/v1/chat/completions", CHAT), ("/v1/chat/completions", {**CHAT, "stream": True}),
    ("/v1/chat", {"adapter_name": "support", "prompt": "hi"}),
    ("/v1/chat", {"adapter_name": "support", "prompt": "hi", "stream": True}),
    ("/v1/completions", {"model": "support", "prompt": "hi"}),
    ("/v1/completions", {"model": "support", "prompt": "hi", "stream": True}),
])
def test_a_failure_becomes_one_candidate_with_what_was_asked_and_answered(
    yard: Yard, path: str, body: dict[str, Any],
) -> None:
    opt_in(yard, **STRICT)
    for _ in range(2):
        assert yard.caller(yard.key).post(path, json=body).status_code == 200
    wait_samples(yard, "failed", 2)
    [found] = candidates(yard)
    assert (found["messages"], found["rule"], found["version"]) == ([{"role": "user", "content": "hi"}], "max_chars", 1)
    assert len(found["answer"]) > 3 and found["state"] == "pending"
    shown = yard.admin("GET", QUALITY)["versions"]
    assert shown == [{"version": 1, "quality": 0.0, "samples": 2, "failures": 2, "below": False}]


@pytest.mark.parametrize("stream", [False, True])
def test_an_email_and_a_card_number_reach_neither_judge_nor_redis_nor_log(
    empty_yard: Yard, judge: FakeJudge, stream: bool,
) -> None:
    judge.score, judge.reason = 0.0, f"It told {EMAIL} of {CARD}."
    yard = start(empty_yard, judge)
    opt_in(yard, judge="It must be polite.", rules=[])
    loaded = yard.fakes["r0"].engine.adapters
    [served] = loaded
    loaded[served] = replace(loaded[served], weights=Indiscreet(loaded[served].weights.fingerprint))
    tools = [{"type": "function", "function": {"name": "f", "description": f"asks {EMAIL}", "parameters": {
        "type": "object", "properties": {"n": {"type": "integer", "default": int(CARD.replace(" ", ""))}}}}}]
    answer = ask(yard, f"I am {EMAIL}, my card is {CARD}", stream=stream, tools=tools)
    assert CARD in answer.text and EMAIL in answer.text
    wait_samples(yard, "failed", 1)
    [found] = candidates(yard)
    assert found["messages"] == [{"role": "user", "content": "I am [EMAIL], my card is [CARD]"}]
    assert found["answer"] == "Your card [CARD] and mail [EMAIL] are known."
    assert found["reason"] == "It told [EMAIL] of [CARD]."
    told = json.dumps(judge.asked) + stored(yard) + yard.log.getvalue().decode() + json.dumps(candidates(yard))
    for secret in (EMAIL, CARD, CARD.replace(" ", ""), "mustermann"):
        assert secret not in told


def test_the_judge_scores_what_breaks_no_rule_and_is_told_the_criteria(empty_yard: Yard, judge: FakeJudge) -> None:
    yard = start(empty_yard, judge)
    opt_in(yard, judge="It must be polite.", rules=[{"kind": "not_empty"}])
    judge.score = 0.75
    ask(yard)
    wait_samples(yard, "passed", 1)
    assert judge.documents[0]["criteria"] == "It must be polite."
    assert judge.headers[0]["authorization"] == "Bearer jk"
    judge.score = 0.25
    ask(yard, "again")
    wait_samples(yard, "failed", 1)
    assert yard.admin("GET", QUALITY)["versions"][0]["quality"] == 0.5
    [found] = candidates(yard)
    assert (found["rule"], found["score"]) == ("judge", 0.25)
    assert found["proposal"] == {"scorer": "judge", "expected": None, "options": {"criteria": "It must be polite."}}


def test_while_the_judge_gives_no_score_bad_samples_do_not_count_alone(empty_yard: Yard, judge: FakeJudge) -> None:
    yard = start(empty_yard, judge)
    opt_in(yard, judge="It must be polite.", rules=[{"kind": "forbidden", "value": "."}])
    judge.statuses = [400]
    yard.admin("PUT", QUALITY, json={"judge": "It must be polite.", "rules": []})
    ask(yard)
    wait_samples(yard, "unjudged", 1)
    yard.admin("PUT", QUALITY, json={"judge": "It must be polite.", "rules": [{"kind": "forbidden", "value": "."}]})
    ask(yard)
    wait_samples(yard, "unjudged", 2)
    assert yard.admin("GET", QUALITY)["versions"] == []


def test_a_policy_that_asks_for_a_judge_is_refused_where_there_is_none(yard: Yard) -> None:
    refused = yard.operator.put(f"/admin/v1{QUALITY}", json={"judge": "It must be polite."})
    assert (refused.status_code, refused.json()["error"]["param"]) == (409, "judge")


@pytest.mark.parametrize("pattern", ["(", "(?=a)b", "(a{1000}){1000}"])
def test_an_expression_that_cannot_be_used_is_refused(yard: Yard, pattern: str) -> None:
    refused = yard.operator.put(f"/admin/v1{QUALITY}", json={"rules": [{"kind": "regex", "value": pattern}]})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "rules")


def test_an_approved_candidate_is_a_golden_item_and_the_audit_knows_its_digest_and_not_its_words(yard: Yard) -> None:
    opt_in(yard, **STRICT)
    ask(yard, "Where is my parcel?")
    wait_samples(yard, "failed", 1)
    [found] = candidates(yard)
    path = f"{CANDIDATES}/{found['id']}"
    lacking = yard.operator.post(f"/admin/v1{path}/approve", json={})
    assert (lacking.status_code, lacking.json()["error"]["param"]) == (400, "expected")
    tried = yard.admin("POST", f"{path}/approve", json={"expected": "On its way."}, params={"dry_run": "true"})
    assert tried["state"] == "approved" and len(candidates(yard)) == 1
    yard.admin("POST", f"{path}/approve", json={"expected": "On its way.", "reason": "it is lost"})
    assert candidates(yard) == [] and candidates(yard, approved=True)[0]["state"] == "approved"
    [item] = yard.admin("GET", f"{QUALITY}/golden")["data"]
    assert golden.from_document(item) == golden.Item(
        id=f"drift-{found['id']}", messages=({"role": "user", "content": "Where is my parcel?"},),
        expected="On its way.", scorer="normalised", slice="drift")
    change = yard.admin("GET", "/changes", params={"target": "review/acme/support"})["data"]
    assert [(c["action"], c["detail"]["candidate"], c["detail"]["reason"]) for c in change] == [
        ("quality.approve", found["id"], "it is lost")]
    assert "parcel" not in json.dumps(change) and len(change[0]["detail"]["item_sha256"]) == 64
    ask(yard, "Where is my parcel?")
    wait_samples(yard, "failed", 2)
    assert candidates(yard) == []
    yard.admin("POST", f"{path}/reject", json={})
    assert yard.admin("GET", f"{QUALITY}/golden")["data"] == []
    assert (yard.admin("GET", QUALITY)["approved"], yard.admin("GET", QUALITY)["rejected"]) == (0, 1)


def test_a_rejected_question_does_not_come_back(yard: Yard) -> None:
    opt_in(yard, **STRICT)
    ask(yard)
    wait_samples(yard, "failed", 1)
    [found] = candidates(yard)
    yard.admin("POST", f"{CANDIDATES}/{found['id']}/reject", json={"reason": "no question"})
    ask(yard)
    wait_samples(yard, "failed", 2)
    assert candidates(yard) == []
    gone = yard.operator.post(f"/admin/v1{CANDIDATES}/{found['id']}/approve", json={"expected": "x"})
    assert gone.status_code == 404


def test_opting_out_ends_the_sampling_and_deletes_what_was_kept(yard: Yard) -> None:
    opt_in(yard, **STRICT)
    ask(yard, "a question that is kept")
    wait_samples(yard, "failed", 1)
    assert "a question that is kept" in stored(yard)
    yard.admin("DELETE", OPT_IN)
    assert "a question that is kept" not in stored(yard)
    ask(yard, "a question that is not kept")
    yard.admin("PUT", OPT_IN, json={"share": 100})
    ask(yard, "another")
    wait_samples(yard, "failed", 2)
    assert [c["messages"][0]["content"] for c in candidates(yard)] == ["another"]


def test_viewers_may_see_the_quality_but_not_the_answers(yard: Yard) -> None:
    opt_in(yard, **STRICT)
    key = yard.admin("POST", "/operators", json={"name": "eve", "role": "viewer"})["key"]
    viewer = yard.caller(key)
    assert viewer.get(f"/admin/v1{QUALITY}").status_code == 200
    assert viewer.get(f"/admin/v1{CANDIDATES}").status_code == 403
    operator = yard.caller(yard.admin("POST", "/operators", json={"name": "bob", "role": "operator"})["key"])
    assert operator.get(f"/admin/v1{CANDIDATES}").status_code == 200
    assert operator.put(f"/admin/v1{OPT_IN}", json={}).status_code == 403


def test_two_gateways_show_one_quality_and_tell_of_a_crossing_once(yard: Yard) -> None:
    with open_yard(yard.valkey, yard.registry) as other:
        other.urls = yard.urls
        other.start_gateway(quality_samples_a_second=1000, log_level="info")
        other.key = yard.key
        opt_in(yard, rules=STRICT["rules"], floor=0.5, min_samples=4)
        other.wait_until(lambda: other.admin("GET", OPT_IN)["opted_in"])
        for gateway in (yard, other) * 2:
            ask(gateway)
        labels = '{adapter="support",tenant="acme",version="1"}'
        for gateway in (yard, other):
            gateway.wait_until(lambda g=gateway: series(g, "adapter_quality").get(labels) == 0.0)
            assert series(gateway, "adapter_quality_floor") == {'{adapter="support",tenant="acme"}': 0.5}
        yard.wait_until(lambda: yard.admin("GET", QUALITY)["versions"][0]["below"])
        yard.wait_until(lambda: len(told(yard) + told(other)) == 1)
        yard.admin("PUT", QUALITY, json={"rules": [], "floor": 0.5, "min_samples": 4})
        other.wait_until(lambda: other.admin("GET", QUALITY)["rules"] == [])
        for gateway in (yard, other) * 3:
            ask(gateway)
        yard.wait_until(lambda: not yard.admin("GET", QUALITY)["versions"][0]["below"])
        yard.wait_until(lambda: len(told(yard) + told(other)) == 2)
        reasons = sorted(line["reason"] for line in told(yard) + told(other))
    assert reasons[0].startswith("Version 1's quality is 0.000 over 4 sampled answers, and is below its floor 0.5")
    assert reasons[1].endswith("and is above its floor 0.5 again.")


def told(yard: Yard) -> list[dict[str, Any]]:
    return [line for line in yard.logged("release") if line["kind"] == "quality"]
