"""The gate opens only when nothing speaks against it, and says everything that does."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.evaluation.decide import Decision, Failures, Findings, Gate, GateError, Slice, decide, least_value
from adapters.evaluation.statistics import Comparison

SURE = Comparison(0.05, 0.02, 0.08, 0.95, 0.0, "paired BCa bootstrap", 200, True)
UNSURE = replace(SURE, low=-0.01, sure=False)
GOOD = Findings(
    metric="macro_f1", value=0.9, baseline_name="the stable version", baseline=0.85, comparison=SURE,
    slices=[Slice("hard", 30, 0.8, 0.82), Slice("rare", 3, 0.1, 0.9)],
    failures=[Failures("support@4", 0, 200), Failures("base", 1, 200)], latency_p99_ms=120.0)


def _decide(findings: Findings = GOOD, **gate: Any) -> Decision:
    return decide(findings, Gate(**gate))


def _against(decision: Decision) -> list[str]:
    return [check.name for check in decision.checks if check.passed is False]


def test_a_good_version_passes_with_every_reason() -> None:
    decision = _decide(floor=0.9, latency_p99_ms=120)
    assert decision.passed
    assert decision.reasons == [
        "macro_f1 0.9000 reaches the floor 0.9.",
        "macro_f1 0.9000 reaches the stable version's 0.8500.",
        "The difference from the stable version is +0.0500, 95% interval +0.0200 to +0.0800 over 200 items (paired BCa "
        "bootstrap): surely more than 0.",
        "macro_f1 0.8000 of the slice 'hard' is not more than 0.05 below 0.8200 of the stable version.",
        "The slice 'rare' has 3 items, too few to decide (0.1000).",
        "1 of 200 calls of base failed (0.5%, within the 1.0% allowed); each counts as a wrong answer.",
        "The p99 latency 120.0 ms is within the limit of 120 ms.",
    ]
    assert decision.message.startswith("Passed. macro_f1 0.9000 reaches the floor")


@pytest.mark.parametrize(("findings", "gate", "against", "said"), [
    ({}, {"floor": 0.91}, "floor", "macro_f1 0.9000 is below the floor 0.91."),
    ({}, {"threshold": 0.06}, "baseline", "is below the stable version's 0.8500 +0.06."),
    ({"value": 0.8}, {"threshold": -0.02}, "baseline", "is below the stable version's 0.8500 -0.02."),
    ({"comparison": UNSURE}, {}, "test", "not surely more than 0. Take more items"),
    ({}, {"slice_drop": 0.01}, "slice", "of the slice 'hard' is more than 0.01 below 0.8200"),
    ({}, {"slice_floor": 0.81}, "slice", "of the slice 'hard' is below its floor 0.81."),
    ({}, {"max_errors": 0.004}, "errors", "1 of 200 calls of base failed (0.5%, more than the 0.4% allowed)"),
    ({"failures": [Failures("support@4", 3, 200)]}, {}, "errors", "3 of 200 calls of support@4 failed (1.5%"),
    ({}, {"latency_p99_ms": 119.9}, "latency", "The p99 latency 120.0 ms is over the limit of 119.9 ms."),
    ({"latency_p99_ms": None}, {"latency_p99_ms": 1000}, "latency", "No call was answered"),
])
def test_each_condition_alone_closes_the_gate(
    findings: dict[str, Any], gate: dict[str, Any], against: str, said: str,
) -> None:
    decision = _decide(replace(GOOD, **findings), **gate)
    assert not decision.passed
    assert _against(decision) == [against]
    assert said in decision.message
    assert said in decision.reasons[0]


def test_all_that_speaks_against_a_version_is_said_at_once() -> None:
    bad = replace(GOOD, value=0.5, comparison=UNSURE, failures=[Failures("support@4", 20, 200)])
    decision = _decide(bad, floor=0.8, latency_p99_ms=1)
    assert _against(decision) == ["floor", "baseline", "test", "errors", "latency"]
    assert decision.message.count(".") >= 5


def test_a_test_that_is_switched_off_is_shown_but_does_not_decide() -> None:
    decision = _decide(replace(GOOD, comparison=UNSURE), confidence=None)
    assert decision.passed
    assert any("it does not decide" in reason for reason in decision.reasons)


def test_a_given_number_is_compared_without_a_test() -> None:
    given = replace(GOOD, baseline_name="the given baseline", baseline=0.88, comparison=None)
    assert decide(given, Gate(baseline=0.88, threshold=0.02)).passed
    assert _against(decide(given, Gate(baseline=0.88, threshold=0.03))) == ["baseline"]


def test_a_floor_alone_can_decide_but_nothing_at_all_cannot() -> None:
    alone = replace(GOOD, baseline_name=None, baseline=None, comparison=None)
    assert decide(alone, Gate(floor=0.9)).passed
    with pytest.raises(GateError, match="nothing to decide by"):
        decide(alone, Gate())


def test_the_least_value_is_the_highest_of_what_is_asked() -> None:
    assert least_value(GOOD, Gate(floor=0.86)) == 0.86
    assert least_value(GOOD, Gate(floor=0.84, threshold=0.02)) == pytest.approx(0.87)
    assert least_value(replace(GOOD, baseline=None), Gate(floor=0.84)) == 0.84


@given(st.floats(0, 1), st.floats(0, 1), st.floats(-0.2, 0.2), st.booleans())
def test_a_version_below_what_is_asked_never_passes(
    value: float, baseline: float, threshold: float, sure: bool,
) -> None:
    found = replace(GOOD, value=value, baseline=baseline, comparison=replace(SURE, sure=sure))
    passed = decide(found, Gate(threshold=threshold, slice_drop=None)).passed
    assert passed == (sure and value >= baseline + threshold - 1e-9)


@pytest.mark.parametrize("gate", [
    {"confidence": 0.4}, {"confidence": 1.0}, {"slice_drop": -0.1}, {"slice_least": 0}, {"latency_p99_ms": 0},
    {"max_errors": 1.1},
])
def test_a_gate_that_makes_no_sense_is_refused(gate: dict[str, Any]) -> None:
    with pytest.raises(GateError, match="make it"):
        Gate(**gate)
