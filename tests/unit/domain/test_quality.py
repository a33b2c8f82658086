"""What an answer must be, whose answers are sampled, and when a version counts as below its floor."""

from dataclasses import replace
from typing import Any

import pytest

from gateway.domain.errors import InvalidRequest
from gateway.domain.kinds import entity_from
from gateway.domain.model import Adapter, Snapshot, Tenant
from gateway.domain.quality import (
    Answer,
    OptIn,
    QualityPolicy,
    Rolling,
    Rule,
    broken,
    is_below,
    is_sampled,
    reviewed,
    watched,
)

POLICY = QualityPolicy(tenant="acme", adapter="support", floor=0.9, min_samples=10)
OPT_IN = OptIn(tenant="acme", id="salt", by="alice", at=1.0)


def contains(pattern: str, text: str) -> bool:
    return pattern in text


def of(samples: int, mean: float) -> Rolling:
    return Rolling(samples, round(samples * mean * 1000), 0)


@pytest.mark.parametrize(("kind", "value", "good", "bad"), [
    ("not_empty", None, "x", " \n"), ("max_chars", 3, "abc", "abcd"), ("contains", "Yes", "Yes.", "yes."),
    ("regex", "a", "cat", "dog"), ("forbidden", "a", "dog", "cat"), ("json", None, "[1]", "[1"),
    ("json", ["a", "b"], '{"a":1,"b":2}', '{"a":1}'), ("json", ["a"], '{"a":null}', '["a"]'),
    ("json", [], "1", "Sure! 1"), ("json", [], "[]", "[" * 100_000),
])
def test_a_rule_holds_or_is_broken(kind: str, value: Any, good: str, bad: str) -> None:
    rule = Rule.of(kind, value)
    assert broken([rule], Answer(good), contains) is None
    assert broken([rule], Answer(bad), contains) == rule


def test_an_answer_must_end_for_a_reason_that_is_named() -> None:
    rule = Rule.of("finish_reason", ["stop", "tool_calls"])
    assert broken([rule], Answer("x", "stop"), contains) is None
    assert broken([rule], Answer("x", "length"), contains) == rule


def test_a_tool_call_without_text_is_spared_the_rules_of_text_and_no_others() -> None:
    call = Answer("", "tool_calls", other=True)
    spared = [Rule.of("not_empty", None), Rule.of("contains", "x"), Rule.of("regex", "x"), Rule.of("json", None)]
    assert broken(spared, call, contains) is None
    assert broken([Rule.of("finish_reason", ["stop"])], call, contains) is not None
    assert broken(spared, replace(call, text="Well."), contains) is not None


def test_the_first_rule_that_is_broken_is_named() -> None:
    first, second = Rule.of("contains", "x"), Rule.of("max_chars", 1)
    assert broken([first, second], Answer("abc"), contains) == first


@pytest.mark.parametrize(("kind", "value"), [
    ("not_empty", 1), ("max_chars", 0), ("max_chars", True), ("max_chars", "3"), ("max_chars", None), ("contains", ""),
    ("contains", None), ("regex", 3), ("forbidden", "x" * 1001), ("json", "a"), ("json", [1]), ("json", ["a"] * 51),
    ("finish_reason", []), ("finish_reason", None), ("finish_reason", "stop"), ("eclipse", None),
])
def test_a_rule_whose_value_is_not_its_own_is_refused(kind: str, value: Any) -> None:
    with pytest.raises(InvalidRequest, match="give"):
        Rule.of(kind, value)


def test_the_registry_gives_entities_back_as_they_were_and_unknown_rules_are_passed_over() -> None:
    policy = replace(POLICY, rules=(Rule.of("json", ["a"]), Rule.of("max_chars", 5)))
    for entity in (policy, OPT_IN, reviewed(Snapshot.empty(), "acme", "support", approved=2)):
        assert entity_from(entity.path, entity.to_document(), 0) == entity
    document = policy.to_document()
    document["rules"].append({"kind": "eclipse", "value": 3})
    assert entity_from(policy.path, document, 0) == policy


def test_only_adapters_of_tenants_that_opted_in_are_watched() -> None:
    entities = [Tenant(name=name, created_at=0.0) for name in ("acme", "beta")] + [
        Adapter(tenant=tenant, name="support", created_at=0.0) for tenant in ("acme", "beta")] + [POLICY, OPT_IN]
    snapshot = Snapshot.of(1, {entity.path: entity for entity in entities})
    [(who, found)] = watched(snapshot, 1.0).items()
    assert (who, found.share, found.policy) == (("acme", "support"), 1.0, POLICY)
    assert watched(snapshot.with_writes(2, {OPT_IN.path: replace(OPT_IN, share=0.0)}), 1.0)[who].share == 0.0
    assert watched(snapshot.with_writes(2, {OPT_IN.path: None}), 1.0) == {}


@pytest.mark.parametrize("share", [0.0, 1.0, 12.5, 100.0])
def test_a_share_of_the_requests_is_sampled_and_the_same_ones_by_every_gateway(share: float) -> None:
    found = [is_sampled("salt", f"request-{n}", share) for n in range(20_000)]
    assert abs(sum(found) / 200 - share) < 0.5
    assert found == [is_sampled("salt", f"request-{n}", share) for n in range(20_000)]
    assert share in (0.0, 100.0) or found != [is_sampled("other", f"request-{n}", share) for n in range(20_000)]
    is_sampled("salt", "\ud800", share)


def test_a_quality_is_below_its_floor_once_and_well_again_only_some_way_above() -> None:
    means = [0.95, 0.90, 0.89, 0.905, 0.89, 0.92, 0.905, 0.89]
    below, seen = False, []
    for mean in means:
        below = is_below(below, of(100, mean), POLICY)
        seen.append(below)
    assert seen == [False, False, True, True, True, False, False, True]


def test_a_floor_near_one_can_be_come_back_to() -> None:
    policy = replace(POLICY, floor=0.99)
    assert not is_below(True, of(100, 1.0), policy)
    assert not is_below(True, of(100, 1.0), replace(POLICY, floor=1.0))


@pytest.mark.parametrize("was", [False, True])
def test_too_few_samples_change_nothing_and_without_a_floor_nothing_is_below(was: bool) -> None:
    assert is_below(was, of(9, 0.0), POLICY) is was and is_below(was, Rolling(), POLICY) is was
    assert is_below(was, of(10, 0.0), POLICY)
    assert not is_below(was, of(100, 0.0), replace(POLICY, floor=None))
