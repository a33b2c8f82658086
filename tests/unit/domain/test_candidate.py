"""A candidate becomes a golden item as evaluations read it, or a person is told what it lacks."""

from typing import Any

import pytest

from adapters.evaluation import golden
from gateway.domain.candidate import EXPECTED, MAX_BYTES, Approval, Candidate, proposal, question_id
from gateway.domain.errors import InvalidRequest
from gateway.domain.quality import QualityPolicy, Rule

ASKED = [{"role": "user", "content": "Where is it?"}]
POLICY = QualityPolicy(tenant="acme", adapter="support", judge="It must be polite.")


def candidate(rule: Rule | None = None, **more: Any) -> Candidate:
    known: dict[str, Any] = {
        "id": question_id(ASKED, []), "tenant": "acme", "adapter": "support", "version": 3, "at": 1.0,
        "messages": ASKED, "answer": "", "finish_reason": "stop", "score": 0.0, "rule": rule.kind if rule else "judge",
        "reason": "", "proposal": proposal(rule, POLICY)}
    return Candidate(**{**known, **more})


@pytest.mark.parametrize("rule", [
    Rule.of("not_empty", None), Rule.of("contains", "x"), Rule.of("regex", "^x"), Rule.of("json", ["a"]),
    Rule.of("json", None), None])
def test_what_a_broken_rule_says_is_a_golden_item_by_itself(rule: Rule | None) -> None:
    item = candidate(rule).approved(Approval()).item
    assert item is not None
    read = golden.from_document(item)
    assert (read.scorer, read.slice, list(read.messages)) == (item["scorer"], "drift", ASKED)


@pytest.mark.parametrize("rule", [
    Rule.of("max_chars", 3), Rule.of("forbidden", "x"), Rule.of("finish_reason", ["stop"])])
def test_a_rule_that_only_says_what_was_wrong_needs_an_expected_answer(rule: Rule) -> None:
    with pytest.raises(InvalidRequest, match="expected"):
        candidate(rule).approved(Approval())
    item = candidate(rule).approved(Approval(expected="At home.")).item
    assert item is not None and golden.from_document(item).scorer == "normalised"


GOOD: dict[str, Any] = {
    "exact": "a", "normalised": ["a", "b"], "contains": "a", "rouge_l": "a", "label": "a", "regex": "^a",
    "json_schema": {"type": "object"}, "json_fields": {"a": 1}, "numeric": 1.5, "judge": None}
BAD: dict[str, Any] = {
    "exact": "", "normalised": [], "contains": 3, "rouge_l": {"a": 1}, "label": ["a"], "regex": "(",
    "json_schema": "object", "json_fields": {}, "numeric": True}


@pytest.mark.parametrize("scorer", list(golden.EXPECTED))
def test_every_scorer_of_golden_sets_is_known_and_takes_and_refuses_the_same(scorer: str) -> None:
    assert EXPECTED.keys() == golden.EXPECTED.keys()
    item = candidate(Rule.of("max_chars", 3)).approved(Approval(expected=GOOD[scorer], scorer=scorer)).item
    assert item is not None
    assert golden.from_document(item).expected == GOOD[scorer]
    if scorer in BAD:
        with pytest.raises(golden.GoldenError):
            golden.from_document({**item, "expected": BAD[scorer]})
        with pytest.raises(InvalidRequest):
            candidate(None).approved(Approval(expected=BAD[scorer], scorer=scorer))


def test_a_scorer_that_nobody_knows_and_an_item_that_is_too_long_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="scorer"):
        candidate().approved(Approval(expected="x", scorer="magic"))
    with pytest.raises(InvalidRequest, match="bytes"):
        candidate().approved(Approval(expected="x" * MAX_BYTES))
    with pytest.raises(InvalidRequest, match="weight"):
        candidate().approved(Approval(weight=float("nan")))


def test_naming_the_scorer_that_is_proposed_keeps_its_criteria() -> None:
    item = candidate(None).approved(Approval(scorer="judge")).item
    assert item is not None and item["options"] == {"criteria": "It must be polite."}


def test_a_candidate_is_kept_as_it_was() -> None:
    made = candidate(None, tools=[{"a": 1}]).approved(Approval(expected="x"))
    assert Candidate.from_json(made.to_json()) == made and made.state == "approved"


def test_one_question_has_one_name_whatever_was_answered() -> None:
    assert question_id(ASKED, []) == question_id([dict(reversed(ASKED[0].items()))], [])
    assert question_id(ASKED, []) != question_id([{"role": "user", "content": "Where was it?"}], [])
    assert question_id(ASKED, []) != question_id(ASKED, [{"type": "function"}])
