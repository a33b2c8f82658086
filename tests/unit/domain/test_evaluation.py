"""Only a passing evaluation of the very bytes opens the gate, and the newest word of each golden set counts."""

import json
from dataclasses import replace
from itertools import count
from typing import Any

import pytest

from gateway.domain.errors import Conflict, InvalidRequest
from gateway.domain.evaluation import (
    RECORDS_KEPT,
    REPORT_BYTES,
    Evaluation,
    Gate,
    check_report,
    gate,
    gate_of,
    records_of,
    surplus,
)
from gateway.domain.kinds import entity_from
from gateway.domain.model import Adapter, EvaluationPolicy, Snapshot, Version
from gateway.domain.seal import SHARED, Seal
from tests.fixtures.evaluations import REGISTRYS_SECRET, signed
from tests.unit.domain.test_reconcile import DIGESTS, version

ADAPTER = Adapter(tenant="acme", name="support", created_at=0.0, evaluation=EvaluationPolicy.REQUIRED)
VERSION = version()
_ids = count()


def record(passed: bool = True, **fields: Any) -> Evaluation:
    values: dict[str, Any] = {
        "tenant": "acme", "adapter": "support", "digest": DIGESTS[0], "id": f"{next(_ids):016x}",
        "golden_set": "d" * 64, "metric": "exact_match", "value": 0.9 if passed else 0.7, "floor": 0.8,
        "passed": passed, "by": "ann", "at": 1.0, **fields}
    return signed(Evaluation(**values))


def judged(*records: Evaluation, adapter: Adapter = ADAPTER, version: Version = VERSION) -> Gate:
    return gate(adapter, version, records, REGISTRYS_SECRET.value)


def test_without_a_record_the_gate_says_which_version_and_where_to_post_one() -> None:
    closed = judged()
    assert not closed.is_open
    with pytest.raises(Conflict, match=r"Version 1 of acme/support has no evaluation record .* POST the result to "
                                       r"/admin/v1/tenants/acme/adapters/support/evaluations.*'required'"):
        closed.check()


def test_one_passing_record_opens_it() -> None:
    found = judged(record())
    assert found.is_open
    assert found.warning == ""
    found.check()


def test_the_newest_record_of_a_golden_set_and_metric_counts() -> None:
    assert judged(record(at=2.0), record(False, at=1.0)).is_open
    assert not judged(record(False, at=2.0), record(at=1.0)).is_open


def test_every_golden_set_and_metric_must_be_passed() -> None:
    other = record(False, metric="rouge", golden_set="e" * 64)
    with pytest.raises(Conflict, match=r"rouge 0\.7 on golden set eeeeeeeeeeee is below 0\.8"):
        judged(record(), other).check()


def test_an_evaluators_own_no_above_the_floor_closes_it() -> None:
    with pytest.raises(Conflict, match=r"exact_match 0\.9 on golden set dddddddddddd was not passed by its evaluator"):
        judged(record(False, value=0.9)).check()


def test_to_warn_lets_through_and_says_what_is_missing_and_off_says_nothing() -> None:
    warned = judged(adapter=replace(ADAPTER, evaluation=EvaluationPolicy.WARN))
    off = judged(adapter=replace(ADAPTER, evaluation=EvaluationPolicy.OFF))
    assert warned.is_open
    assert "no evaluation record" in warned.warning
    assert off.is_open
    assert off.warning == ""


def test_a_record_of_other_bytes_of_another_adapter_or_tenant_does_not_count() -> None:
    strangers = [record(digest=DIGESTS[1]), record(adapter="sales"), record(tenant="beta")]
    twin = record(digest=DIGESTS[0][:12] + "b" * 52)  # under the same folder of the registry
    known = Snapshot.of(1, {e.path: e for e in (ADAPTER, VERSION, REGISTRYS_SECRET, *strangers, twin)})
    assert not gate_of(known, VERSION, SHARED).is_open
    mine = record()
    assert gate_of(known.with_writes(2, {mine.path: mine}), VERSION, SHARED).paths == (ADAPTER.path, mine.path)


@pytest.mark.parametrize("spoilt", [
    {"value": 0.99}, {"floor": 0.1}, {"golden_set": "e" * 64}, {"digest": DIGESTS[1]}, {"by": "bob"}, {"at": 9.0},
    {"signature": "0" * 64}, {"signature": "é"}, {"base_model": "another"}, {"latency_ms_p99": 1.0},
    {"report": {"rows": 2}}, {"value": float("nan")}])
def test_a_record_that_somebody_changed_does_not_count_and_is_named(spoilt: dict[str, Any]) -> None:
    one = record(report={"rows": 1})
    assert judged(one).is_open
    found = judged(replace(one, **spoilt))
    assert not found.is_open
    assert "has no evaluation record that counts. The record of exact_match on golden set" in found.lack
    assert "is not what a gateway signed: evaluation/acme/support/" in found.lack
    assert "was written or changed by another" in found.lack


def test_a_record_of_a_release_that_did_not_sign_does_not_count_and_says_to_evaluate_again() -> None:
    found = judged(replace(record(), signature=None))
    assert not found.is_open
    assert "is not signed, as those of earlier releases are not: evaluate again" in found.lack


def test_without_the_secret_nothing_is_believed() -> None:
    assert gate(ADAPTER, VERSION, [record()], None).lack


def test_a_failed_record_that_somebody_spoilt_does_not_bring_back_an_older_one_that_passed() -> None:
    old, failed = record(at=1.0), record(False, at=2.0)
    for spoilt in ({"passed": True}, {"base_model": "another"}, {"signature": None}):
        assert not judged(replace(failed, **spoilt), old).is_open


def test_a_spoilt_record_beside_one_that_passes_closes_nothing_but_is_told() -> None:
    spoilt = replace(record(metric="rouge"), value=1.0)
    for policy in (EvaluationPolicy.REQUIRED, EvaluationPolicy.WARN):
        found = judged(spoilt, record(), adapter=replace(ADAPTER, evaluation=policy))
        assert found.is_open and not found.lack
        assert "The record of rouge on golden set dddddddddddd is not what a gateway signed" in found.warning
    assert judged(spoilt, adapter=replace(ADAPTER, evaluation=EvaluationPolicy.OFF)).warning == ""


def test_evaluating_again_puts_a_spoilt_record_behind() -> None:
    found = judged(record(at=3.0), replace(record(at=2.0), value=1.0))
    assert found.is_open and found.warning == ""


@pytest.mark.parametrize(("under", "words"), [
    ({"base_model": "llama-2"}, "was made on the base model 'llama-2', not 'base': evaluate again"),
    ({"chat_template_sha256": "f" * 64}, "was made with the chat template ffffffffffff, not eeeeeeeeeeee"),
])
def test_a_record_of_another_base_or_template_than_the_versions_does_not_count(
    under: dict[str, Any], words: str,
) -> None:
    templated = replace(VERSION, chat_template_sha256="e" * 64)
    assert judged(record(base_model="base", chat_template_sha256="e" * 64), version=templated).is_open
    found = judged(record(**under), version=templated)
    assert not found.is_open
    assert words in found.lack
    assert judged(record(at=2.0, **under), record(at=1.0), version=templated).is_open, "it is of something else"


def test_the_settings_secret_comes_before_the_registrys() -> None:
    mine = signed(record(), "the settings'")
    known = Snapshot.of(1, {e.path: e for e in (ADAPTER, VERSION, REGISTRYS_SECRET, mine)})
    assert gate_of(known, VERSION, Seal("the settings'")).is_open
    assert not gate_of(known, VERSION, SHARED).is_open
    assert "the settings" not in repr(Seal("the settings'"))


def test_records_come_newest_first_and_all_of_an_adapter_or_of_one_digest() -> None:
    old, new, other = record(at=1.0), record(at=3.0), record(at=2.0, digest=DIGESTS[1])
    known = Snapshot.of(1, {e.path: e for e in (old, new, other)})
    assert records_of(known, "acme", "support") == [new, other, old]
    assert records_of(known, "acme", "support", DIGESTS[0]) == [new, old]


def test_superseded_records_go_first_when_there_are_too_many() -> None:
    only_one_of_its_kind = record(False, metric="rouge", at=0.0)
    many = [record(at=float(at)) for at in range(RECORDS_KEPT, 0, -1)]
    gone = surplus([*many, only_one_of_its_kind])
    assert [one.at for one in gone] == [2.0, 1.0]
    assert surplus(many[:RECORDS_KEPT - 1]) == []


def test_a_report_has_a_longest_length() -> None:
    check_report({"text": "x" * (REPORT_BYTES - 20)})
    with pytest.raises(InvalidRequest, match="at most"):
        check_report({"text": "é" * (REPORT_BYTES // 2)})


def test_a_record_is_the_same_after_the_registry() -> None:
    one = record(report={"rows": [1, 2], "more": {"a": None}}, sampling={"stop": ["\n"], "n": 1}, value=1 / 3, floor=0,
                 latency_ms_p99=12.5)
    again = entity_from(one.path, json.loads(json.dumps(one.to_document())), 0)
    assert again == one
    assert judged(again).is_open
    assert entity_from(ADAPTER.path, ADAPTER.to_document(), 0) == ADAPTER
    assert entity_from(ADAPTER.path, {"tenant": "a", "name": "b", "created_at": 0}, 0) == Adapter(
        tenant="a", name="b", created_at=0, evaluation=EvaluationPolicy.WARN)
