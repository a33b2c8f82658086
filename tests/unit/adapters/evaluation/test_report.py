"""The record's summary fits into what the gateway keeps, and loses what matters least."""

import json
from typing import Any

import pytest

from adapters.evaluation.report import summary

KEPT_BY_THE_GATEWAY = 16 << 10


def _document(reasons: list[str], slices: int, classes: int) -> dict[str, Any]:
    contender = {
        "model": "support@4", "metrics": {"score": 0.9}, "calls": 9, "failed": 0, "cut_short": 0,
        "latency_ms": {"p99": 1.0}, "first_token_ms": None, "wrong": ["left out"] * 5000,
        "slices": {f"slice {number}": {"items": 3.0, "score": 0.5} for number in range(slices)},
        "labels": {"classes": [{"label": f"l{number}", "f1": 0.5} for number in range(classes)]}}
    checks = [{"name": "slice", "passed": number % 2 == 0, "reason": reason} for number, reason in enumerate(reasons)]
    return {"golden_set": {"name": "trains", "digest": "d" * 64, "items": 9}, "contenders": {"version": contender},
            "decision": {"checks": checks, "comparison": None}}


def test_a_summary_has_the_reasons_against_first_and_slices_and_classes() -> None:
    found = summary(_document(["good", "bad"], slices=2, classes=3))
    assert found["reasons"] == ["bad", "good"]
    assert (len(found["slices"]), len(found["classes"])) == (2, 3)
    assert "wrong" not in found["contenders"]["version"]


@pytest.mark.parametrize(("reasons", "slices", "classes", "lost"), [
    (["r"], 400, 3, {"slices"}), (["r"], 3, 900, {"classes"}), (["é" * 480] * 200, 3, 3, set()),
    (["é" * 9000], 3, 3, set()),
])
def test_a_summary_never_outgrows_what_the_gateway_keeps(
    reasons: list[str], slices: int, classes: int, lost: set[str],
) -> None:
    found = summary(_document(reasons, slices, classes))
    assert len(json.dumps(found, ensure_ascii=False).encode()) <= KEPT_BY_THE_GATEWAY
    assert {"slices", "classes"} - set(found) == lost
    assert found["reasons"]
