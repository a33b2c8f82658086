"""Only a passing evaluation of the very bytes opens the gate, and the newest word of each golden set counts."""

from dataclasses import replace
from itertools import count
from typing import Any

import pytest

from gateway.domain.errors import Conflict, InvalidRequest
from gateway.domain.evaluation import (
    RECORDS_KEPT,
    REPORT_BYTES,
    Evaluation,
    check_report,
    gate,
    gate_of,
    records_of,
    surplus,
)
from gateway.domain.kinds import entity_from
from gateway.domain.model import Adapter, EvaluationPolicy, Snapshot
from tests.unit.domain.test_reconcile import DIGESTS, version

ADAPTER = Adapter(tenant="acme", name="support", created_at=0.0, evaluation=EvaluationPolicy.REQUIRED)
VERSION = version()
_ids = count()


def record(passed: bool = True, **fields: Any) -> Evaluation:
    values: dict[str, Any] = {
        "tenant": "acme", "adapter": "support", "digest": DIGESTS[0], "id": f"{next(_ids):016x}",
        "golden_set": "d" * 64, "metric": "exact_match", "value": 0.9 if passed else 0.7, "floor": 0.8,
        "passed": passed, "by": "ann", "at": 1.0, **fields}
    return Evaluation(**values)


def test_without_a_record_the_gate_says_which_version_and_where_to_post_one() -> None:
    closed = gate(ADAPTER, VERSION, [])
    assert not closed.is_open
    with pytest.raises(Conflict, match=r"Version 1 of acme/support has no evaluation record .* POST the result to "
                                       r"/admin/v1/tenants/acme/adapters/support/evaluations.*'required'"):
        closed.check()


def test_one_passing_record_opens_it() -> None:
    found = gate(ADAPTER, VERSION, [record()])
    assert found.is_open
    assert found.warning == ""
    found.check()


def test_the_newest_record_of_a_golden_set_and_metric_counts() -> None:
    assert gate(ADAPTER, VERSION, [record(at=2.0), record(False, at=1.0)]).is_open
    assert not gate(ADAPTER, VERSION, [record(False, at=2.0), record(at=1.0)]).is_open


def test_every_golden_set_and_metric_must_be_passed() -> None:
    other = record(False, metric="rouge", golden_set="e" * 64)
    with pytest.raises(Conflict, match=r"rouge 0\.7 on golden set eeeeeeeeeeee is below 0\.8"):
        gate(ADAPTER, VERSION, [record(), other]).check()


def test_an_evaluators_own_no_above_the_floor_closes_it() -> None:
    with pytest.raises(Conflict, match=r"exact_match 0\.9 on golden set dddddddddddd was not passed by its evaluator"):
        gate(ADAPTER, VERSION, [record(False, value=0.9)]).check()


def test_to_warn_lets_through_and_says_what_is_missing_and_off_says_nothing() -> None:
    warned = gate(replace(ADAPTER, evaluation=EvaluationPolicy.WARN), VERSION, [])
    off = gate(replace(ADAPTER, evaluation=EvaluationPolicy.OFF), VERSION, [])
    assert warned.is_open
    assert "no evaluation record" in warned.warning
    assert off.is_open
    assert off.warning == ""


def test_a_record_of_other_bytes_of_another_adapter_or_tenant_does_not_count() -> None:
    strangers = [record(digest=DIGESTS[1]), record(adapter="sales"), record(tenant="beta")]
    twin = record(digest=DIGESTS[0][:12] + "b" * 52)  # under the same folder of the registry
    known = Snapshot.of(1, {e.path: e for e in (ADAPTER, VERSION, *strangers, twin)})
    assert not gate_of(known, VERSION).is_open
    mine = record()
    assert gate_of(known.with_writes(2, {mine.path: mine}), VERSION).paths == (ADAPTER.path, mine.path)


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
    one = record(report={"rows": [1, 2], "more": {"a": None}})
    assert entity_from(one.path, one.to_document(), 0) == one
    assert entity_from(ADAPTER.path, ADAPTER.to_document(), 0) == ADAPTER
    assert entity_from(ADAPTER.path, {"tenant": "a", "name": "b", "created_at": 0}, 0) == Adapter(
        tenant="a", name="b", created_at=0, evaluation=EvaluationPolicy.WARN)
