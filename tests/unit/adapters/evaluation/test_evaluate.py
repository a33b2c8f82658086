"""What the gateway is told agrees with the decision, and leaves out what is not known for sure."""

from pathlib import Path
from typing import Any

from adapters.evaluation import golden
from adapters.evaluation.decide import Findings, Gate, decide
from adapters.evaluation.evaluate import record_body
from adapters.evaluation.plan import Plan, Target

PLAN = Plan(
    target=Target("acme", "support", 4), state=Path("state"), gate=Gate(threshold=0.2),
    golden=golden.make("trains", [golden.from_document(
        {"id": "a", "messages": [{"role": "user", "content": "?"}], "expected": "x", "scorer": "exact"})]))
FOUND = Findings(metric="score", value=0.3, baseline_name="the base model", baseline=0.1)


def _body(engines: list[str], passed: bool) -> dict[str, Any]:
    document = {
        "version": {"number": 4, "digest": "d" * 64, "base_model": "llama", "engine_versions": engines,
                    "chat_template_sha256": None},
        "golden_set": {}, "contenders": {"version": {"slices": {}, "labels": None} | dict.fromkeys((
            "model", "metrics", "calls", "failed", "cut_short", "latency_ms", "first_token_ms"))},
        "decision": {"passed": passed, "checks": [], "comparison": None}}
    return record_body(PLAN, document, FOUND)


def test_a_value_that_is_just_enough_is_not_recorded_as_below_its_floor() -> None:
    assert FOUND.value < 0.1 + 0.2  # as floating point has it
    assert decide(FOUND, PLAN.gate).passed
    body = _body(["0.32.0"], passed=True)
    assert (body["passed"], body["floor"], body["value"]) == (True, 0.3, 0.3)


def test_only_a_single_engine_version_is_named_and_nothing_that_is_unknown() -> None:
    assert _body(["0.32.0"], passed=False)["engine_version"] == "0.32.0"
    body = _body(["0.32.0", "0.33.0"], passed=False)
    assert {"engine_version", "chat_template_sha256", "latency_ms_p99"}.isdisjoint(body)
    assert (body["golden_set"], body["sampling"]["repeats"]) == (PLAN.golden.digest, 1)
