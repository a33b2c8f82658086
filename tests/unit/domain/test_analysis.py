"""Verdicts: what fails, what passes, what holds; each with its numbers, and none changed by the order of counting."""

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.domain.analysis import (
    ALPHA_SHARES,
    Analysis,
    Finding,
    Metric,
    Thresholds,
    Verdict,
    analyse,
)
from gateway.domain.counts import LATENCY_EDGES, LENGTH_EDGES, TrackCounts, bucket_of

LATENCIES = ("time_to_first_token", "inter_token_latency", "seconds_per_output_token")


def spread(edges: tuple[float, ...], middle: float, samples: int) -> tuple[int, ...]:
    """`samples` values, evenly in logarithm from a quarter of `middle` to four times it."""
    counts = [0] * (len(edges) + 1)
    for index in range(samples):
        counts[bucket_of(edges, middle * 4 ** (2 * (index + 0.5) / samples - 1))] += 1
    return tuple(counts)


def counts(
    completed: int, *, errors: int = 0, slower: float = 1.0, tokens: float = 200.0, **others: Any
) -> TrackCounts:
    latencies: Any = {name: spread(LATENCY_EDGES, 0.2 * slower, completed) for name in LATENCIES}
    values = {"output_tokens": spread(LENGTH_EDGES, tokens, completed), **latencies, **others}
    return TrackCounts(requests=completed + errors, server_errors=errors, **values)


def finding(analysis: Analysis, metric: Metric) -> Finding:
    return next(f for f in analysis.findings if f.metric is metric)


def verdict_of(metric: Metric, stable: TrackCounts, canary: TrackCounts, **options: Any) -> Verdict:
    return finding(analyse(stable, canary, weight=20, **options), metric).verdict


STABLE = counts(16_000, errors=320)


def test_a_canary_that_does_as_the_stable_passes_once_the_counts_suffice() -> None:
    analysis = analyse(STABLE, counts(4_000, errors=80), weight=20, is_final=True)
    assert analysis.verdict is Verdict.PASS
    assert "error_rate" in analysis.reason


def test_a_better_canary_passes_and_never_fails() -> None:
    better = counts(4_000, errors=8, slower=0.5)
    assert analyse(STABLE, better, weight=20).verdict is Verdict.PASS
    assert all(f.verdict is not Verdict.FAIL for f in analyse(STABLE, better, weight=20).findings)


def test_no_requests_of_the_canary_are_no_traffic() -> None:
    analysis = analyse(STABLE, TrackCounts(), weight=20, is_final=True)
    assert (analysis.verdict, analysis.findings) == (Verdict.NO_TRAFFIC, ())


def test_no_requests_of_the_stable_leave_the_canary_inconclusive() -> None:
    analysis = analyse(TrackCounts(), counts(5_000), weight=100, is_final=True)
    assert analysis.verdict is Verdict.INCONCLUSIVE
    assert "nothing" in finding(analysis, Metric.SPLIT).reason


def test_a_few_good_requests_prove_nothing() -> None:
    analysis = analyse(counts(800, errors=16), counts(200, errors=4), weight=20, is_final=True)
    assert analysis.verdict is Verdict.INCONCLUSIVE
    assert "too few" in analysis.reason


def test_nothing_passes_before_the_minimum_of_requests_but_gross_harm_fails() -> None:
    limits = Thresholds(min_requests=5_000)
    assert analyse(STABLE, counts(4_000, errors=8), weight=20, thresholds=limits).verdict is Verdict.INCONCLUSIVE
    assert analyse(counts(400), counts(60, errors=40), weight=20, thresholds=limits).verdict is Verdict.FAIL


def test_an_equal_canary_holds_until_the_step_has_lasted() -> None:
    stable, canary = counts(16_000, errors=16), counts(4_000, errors=4)
    assert analyse(stable, canary, weight=20).verdict is Verdict.INCONCLUSIVE
    assert analyse(stable, canary, weight=20, is_final=True).verdict is Verdict.PASS


def test_doubled_errors_fail_and_the_reason_tells_both_rates() -> None:
    analysis = analyse(STABLE, counts(4_000, errors=164), weight=20)
    assert analysis.verdict is Verdict.FAIL
    assert "3.94 %" in analysis.reason
    assert "1.96 %" in analysis.reason


@pytest.mark.parametrize("kind", ["server_errors", "upstream_failures", "timeouts"])
def test_every_class_of_error_counts(kind: str) -> None:
    failed: Any = {kind: 300}
    canary = replace(counts(4_000), requests=4_300, **failed)
    assert verdict_of(Metric.ERROR_RATE, STABLE, canary) is Verdict.FAIL


def test_client_errors_are_not_the_canarys_fault() -> None:
    canary = replace(counts(4_000, errors=80), requests=8_000, client_errors=3_920)
    assert verdict_of(Metric.ERROR_RATE, STABLE, canary, is_final=True) is Verdict.PASS


def test_a_stable_without_errors_can_be_compared_with() -> None:
    stable = counts(16_000)
    assert verdict_of(Metric.ERROR_RATE, stable, counts(4_000, errors=80)) is Verdict.FAIL
    assert verdict_of(Metric.ERROR_RATE, stable, counts(4_000), is_final=True) is Verdict.PASS


def test_a_difference_too_small_to_matter_is_never_failed_however_sure() -> None:
    stable = TrackCounts(requests=10_000_000, server_errors=10_000)
    canary = TrackCounts(requests=1_000_000, server_errors=4_000)
    seen = finding(analyse(stable, canary, weight=10), Metric.ERROR_RATE)
    assert seen.statistic > seen.threshold
    assert seen.verdict is not Verdict.FAIL


@pytest.mark.parametrize("metric", LATENCIES)
def test_a_slower_tail_fails_its_metric_alone(metric: str) -> None:
    tail: Any = {metric: spread(LATENCY_EDGES, 0.26, 4_000)}
    slow = replace(counts(4_000, errors=80), **tail)
    analysis = analyse(STABLE, slow, weight=20)
    assert [f.metric for f in analysis.findings if f.verdict is Verdict.FAIL] == [metric]
    seen = finding(analysis, Metric(metric))
    assert seen.stable is not None
    assert seen.canary is not None
    assert seen.canary / seen.stable == pytest.approx(1.3, rel=0.05)


@pytest.mark.parametrize("tokens", [300.0, 133.0])
def test_longer_and_shorter_outputs_fail(tokens: float) -> None:
    assert verdict_of(Metric.OUTPUT_TOKENS, STABLE, counts(4_000, errors=80, tokens=tokens)) is Verdict.FAIL


@pytest.mark.parametrize(("metric", "fields"), [
    (Metric.EMPTY_OUTPUTS, {"empty_outputs": 200}),
    (Metric.LENGTH_FINISHES, {"length_finishes": 200}),
    (Metric.JSON_INVALID, {"json_asked": 1_000, "json_invalid": 200}),
])
def test_worse_answers_fail(metric: Metric, fields: dict[str, int]) -> None:
    stable = replace(STABLE, json_asked=4_000, json_invalid=40)
    assert verdict_of(metric, stable, counts(4_000, errors=80, **fields)) is Verdict.FAIL


def test_what_no_call_had_does_not_hold_the_canary() -> None:
    def whole(track: TrackCounts) -> TrackCounts:
        none = TrackCounts().time_to_first_token
        return replace(track, time_to_first_token=none, inter_token_latency=none)

    analysis = analyse(whole(STABLE), whole(counts(4_000, errors=80)), weight=20, is_final=True)
    assert analysis.verdict is Verdict.PASS
    assert finding(analysis, Metric.TIME_TO_FIRST_TOKEN).verdict is Verdict.NO_TRAFFIC
    assert not finding(analysis, Metric.TIME_TO_FIRST_TOKEN).required


def test_a_sign_of_harm_holds_a_canary_that_would_else_pass() -> None:
    analysis = analyse(STABLE, counts(4_000, errors=122), weight=20, steps=4, is_final=True)
    assert analysis.verdict is Verdict.INCONCLUSIVE
    assert "sign of harm" in analysis.reason


def test_a_split_that_is_not_the_weights_fails() -> None:
    assert verdict_of(Metric.SPLIT, counts(60_000), counts(40_000)) is Verdict.FAIL
    assert verdict_of(Metric.SPLIT, counts(92_000), counts(8_000)) is Verdict.FAIL
    assert verdict_of(Metric.SPLIT, counts(80_500), counts(19_500)) is Verdict.PASS


def test_a_busy_subject_excuses_a_split() -> None:
    alone = (0,) * 63 + (20_000,)
    stable = replace(counts(60_000), subject_groups=(60_000 // 64,) * 64)
    canary = replace(counts(40_000), subject_groups=tuple(a + 20_000 // 64 for a in alone))
    assert verdict_of(Metric.SPLIT, stable, canary) is Verdict.PASS


def test_few_subjects_with_many_calls_tell_less_than_many_with_one() -> None:
    crowd = tuple(62 + index % 2 for index in range(64))
    few = (*(0,) * 60, 1000, 1000, 1000, 1000)
    stable = replace(STABLE, subject_groups=tuple(4 * one for one in crowd))
    canary = counts(4_000, errors=164)
    assert verdict_of(Metric.ERROR_RATE, stable, replace(canary, subject_groups=crowd)) is Verdict.FAIL
    assert verdict_of(Metric.ERROR_RATE, stable, replace(canary, subject_groups=few)) is Verdict.INCONCLUSIVE


def test_more_steps_ask_for_more_evidence() -> None:
    one, four = (analyse(STABLE, counts(4_000), weight=20, steps=steps) for steps in (1, 4))
    assert four.alpha == one.alpha / 4
    assert all(f.threshold > o.threshold for f, o in zip(four.findings, one.findings, strict=True))


def test_the_metrics_share_all_of_the_false_alarms_and_no_more() -> None:
    assert set(ALPHA_SHARES) == set(Metric)
    assert sum(ALPHA_SHARES.values()) == pytest.approx(1)


def test_an_analysis_is_json_and_holds_its_numbers() -> None:
    analysis = analyse(STABLE, counts(4_000, errors=164), weight=20, looks=7)
    document = json.loads(json.dumps(analysis.to_document(), allow_nan=False))
    assert document["verdict"] == "fail"
    assert document["looks"] == 7
    first = document["findings"][0]
    assert (first["metric"], first["verdict"], first["canary_samples"]) == ("error_rate", "fail", 4_164)
    assert first["statistic"] >= first["threshold"]


SMALL = st.builds(
    lambda completed, errors, slower, tokens, empty: counts(
        completed, errors=errors, slower=slower, tokens=tokens, empty_outputs=min(empty, completed)),
    st.integers(0, 300), st.integers(0, 200), st.floats(0.2, 20), st.floats(1, 5_000), st.integers(0, 99))


def times(one: TrackCounts, factor: int) -> TrackCounts:
    return TrackCounts.from_fields({name: value * factor for name, value in one.to_fields().items()})


@settings(deadline=None, max_examples=60)
@given(SMALL, SMALL, st.integers(2, 20), st.booleans())
def test_more_of_the_same_evidence_never_takes_a_fail_back(
    stable: TrackCounts, canary: TrackCounts, factor: int, is_final: bool
) -> None:
    before = analyse(stable, canary, weight=20, is_final=is_final)
    after = analyse(times(stable, factor), times(canary, factor), weight=20, is_final=is_final)
    failed = {f.metric for f in before.findings if f.verdict is Verdict.FAIL}
    assert failed <= {f.metric for f in after.findings if f.verdict is Verdict.FAIL}


@settings(deadline=None, max_examples=60)
@given(SMALL, SMALL, st.floats(0, 100), st.booleans())
def test_any_counts_get_a_verdict_with_finite_numbers(
    stable: TrackCounts, canary: TrackCounts, weight: float, is_final: bool
) -> None:
    analysis = analyse(stable, canary, weight=weight, is_final=is_final)
    json.dumps(analysis.to_document(), allow_nan=False)
    assert (analysis.verdict is Verdict.NO_TRAFFIC) == (canary.requests == 0)
    if analysis.verdict is Verdict.PASS:
        assert all(f.verdict in (Verdict.PASS, Verdict.NO_TRAFFIC) for f in analysis.findings if f.required)


@settings(deadline=None, max_examples=30)
@given(st.lists(SMALL, min_size=1, max_size=4))
def test_the_order_in_which_gateways_report_does_not_matter(parts: list[TrackCounts]) -> None:
    one, other = TrackCounts(), TrackCounts()
    for forward, backward in zip(parts, reversed(parts), strict=True):
        one, other = one + forward, other + backward
    assert analyse(STABLE, one, weight=20) == analyse(STABLE, other, weight=20)
