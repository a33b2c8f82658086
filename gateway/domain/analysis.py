"""Is the canary worse than the stable version over the same time? A verdict with its evidence.

`analyse` compares the counts of one step of a rollout, in which the weight did not change. It keeps no state and may be
asked as often as one likes: the statistics (`sequential.py` states them and their sources) hold over any number of
looks. What is promised, and by what:

- A canary that does what the stable does is failed with probability at most `Thresholds.false_alarm` over the *whole
  plan*: that budget is split evenly over the plan's steps, and in a step over the metrics as `ALPHA_SHARES` says.
- A canary with twice the error rate, or 1.3 times the p95, is failed with probability at least 0.9 by the number of
  requests in `REQUESTS_NEEDED`, and passes with probability at most 0.1. All by simulation, in the tests.
- `fail`: the evidence that the canary is worse is beyond what chance explains, **and** it is worse by more than is
  tolerated (with a million requests every difference is significant, and few matter).
- `pass`: every required metric is either shown to be better than the harm that we look for (evidence against "twice
  the errors", "1.3 times the p95"), or, once the step's minimum is reached (`is_final`), shows no sign of harm in
  counts that would have shown such harm nine times in ten.
- `inconclusive`: neither, as yet. `no_traffic`: the canary was not asked, and nothing can be told.

Calls of one subject resemble each other, and a subject stays on its track: a thousand calls of ten subjects tell less
than those of a thousand. How much so is measured (`TrackCounts.calls_per_subject`) and dilutes the evidence; without
`subject_groups` calls count as independent.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import partial
from types import MappingProxyType
from typing import Any

from gateway.domain.counts import TrackCounts
from gateway.domain.sequential import Events, Tails, evidence_above, evidence_below, needed


class Verdict(StrEnum):
    """What the evidence says: of one metric, or of the canary."""

    PASS = "pass"
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"
    NO_TRAFFIC = "no_traffic"


class Metric(StrEnum):
    """What is compared."""

    ERROR_RATE = "error_rate"
    TIME_TO_FIRST_TOKEN = "time_to_first_token"
    INTER_TOKEN_LATENCY = "inter_token_latency"
    SECONDS_PER_OUTPUT_TOKEN = "seconds_per_output_token"
    OUTPUT_TOKENS = "output_tokens"
    EMPTY_OUTPUTS = "empty_outputs"
    LENGTH_FINISHES = "length_finishes"
    JSON_INVALID = "json_invalid"
    SPLIT = "split"


ALPHA_SHARES: Mapping[Metric, float] = MappingProxyType({
    Metric.ERROR_RATE: 0.30,
    Metric.TIME_TO_FIRST_TOKEN: 0.15,
    Metric.INTER_TOKEN_LATENCY: 0.15,
    Metric.SECONDS_PER_OUTPUT_TOKEN: 0.15,
    Metric.OUTPUT_TOKENS: 0.08,
    Metric.EMPTY_OUTPUTS: 0.05,
    Metric.LENGTH_FINISHES: 0.04,
    Metric.JSON_INVALID: 0.05,
    Metric.SPLIT: 0.03,
})
"""Each metric's part of a step's false alarms; they sum to 1 (Bonferroni: the metrics depend on each other)."""
REQUIRED = frozenset({
    Metric.ERROR_RATE, Metric.TIME_TO_FIRST_TOKEN, Metric.INTER_TOKEN_LATENCY, Metric.SECONDS_PER_OUTPUT_TOKEN})
"""What must pass for the canary to pass, if enough calls have it; the rest can fail it, but not hold it."""
REQUESTS_NEEDED: Mapping[str, Mapping[int, int]] = MappingProxyType({
    "errors 1 % → 2 %": MappingProxyType({5: 3_900, 25: 5_000, 50: 7_800}),
    "errors 2 % → 4 %": MappingProxyType({5: 2_200, 25: 2_500, 50: 3_900}),
    "errors 5 % → 10 %": MappingProxyType({5: 850, 25: 1_000, 50: 1_600}),
    "p95 × 1.3, where it is 2.3 times the median": MappingProxyType({5: 500, 25: 950, 50: 1_500}),
    "p95 × 1.3, where it is 5 times the median": MappingProxyType({5: 2_200, 25: 3_000, 50: 4_800}),
    "p95 × 1.3, where it is 12 times the median": MappingProxyType({5: 5_400, 25: 7_000, 50: 11_000}),
})
"""Harm → weight (percent) → canary requests by which it is failed with probability 0.9 or more.

By simulation: a plan of four steps, the default thresholds, independent calls, stable traffic as the weight leaves it,
log-normal latencies (sigma 0.5, 1 and 1.5), one metric harmed. Subjects that ask m times need 1 + (m - 1)/10 times as
many. The weights differ because at 5 % the stable's rate is known twenty times as well.
"""
BAD_LUCK = 1.2816
"""Standard deviations that are exceeded one time in ten: power 0.9."""
P95 = 0.05
MEDIAN = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """What counts as harm, and what is tolerated. Ratios are canary over stable; shares are 0 to 1.

    Harm is what an analysis must be able to catch before it passes; less than the tolerance is never failed. Between
    the two either may happen. Rates are those of errors, empty outputs, finishes by `length` and invalid JSON.
    """

    false_alarm: float = 0.05
    """The probability that a whole plan fails a canary that does what the stable does."""
    false_pass: float = 0.05
    """The probability, per metric, that harm is taken for shown absent, in one step."""
    min_requests: int = 200
    """No pass before the canary has answered so many."""
    coverage: float = 0.5
    """A latency is required only if so much of the canary's completed calls have it (streams have the first two)."""
    rate_ratio: float = 2.0
    """Harm: a rate of so many times the stable's,"""
    rate_difference: float = 0.01
    """and at least so much above it."""
    rate_tolerance: float = 0.005
    """A rate is not failed for less than so much above the stable's."""
    latency_ratio: float = 1.3
    """Harm: a p95 of so many times the stable's."""
    latency_tolerance: float = 1.1
    length_ratio: float = 1.5
    """Harm: a median output so many times as long, or as short."""
    length_tolerance: float = 1.2
    split_tolerance: float = 1.1
    """The odds of canary over stable may be off by this factor."""
    requests_per_subject: float = 50.0
    """How many requests tell of the split what one subject does, where it is not measured."""
    subject_correlation: float = 0.1
    """How alike the calls of one subject are (intraclass correlation of being bad or slow)."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What is known of one metric.

    `stable` and `canary` are the rate, the p95 in seconds, the median in tokens, or the share of the split; None
    without samples. `statistic` is the evidence of harm (natural logarithm of betting odds), which fails the metric
    at `threshold`. `required`: must it pass for the canary to pass?
    """

    metric: Metric
    stable: float | None
    canary: float | None
    stable_samples: int
    canary_samples: int
    statistic: float
    threshold: float
    verdict: Verdict
    required: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Analysis:
    """A verdict and all it rests on. `alpha` is this step's part of the false alarms; `looks` is the caller's count."""

    verdict: Verdict
    reason: str
    findings: tuple[Finding, ...]
    weight: float
    alpha: float
    looks: int
    is_final: bool

    def to_document(self) -> dict[str, Any]:
        """JSON-ready."""
        document = asdict(self)
        document["findings"] = list(document["findings"])
        return document


DEFAULTS = Thresholds()


def analyse(
    stable: TrackCounts, canary: TrackCounts, *, weight: float, thresholds: Thresholds = DEFAULTS, steps: int = 1,
    is_final: bool = False, looks: int = 1,
) -> Analysis:
    """Compare the tracks' counts of the same time, in which `weight` (percent) was one.

    `steps`: how many steps of the plan are analysed. `is_final`: has the step lasted as long, and seen as many
    requests, as the plan asks for? `looks`: how often the step was looked at, kept for the record alone.
    """
    alpha = thresholds.false_alarm / max(steps, 1)
    if canary.requests == 0:
        findings: tuple[Finding, ...] = ()
    else:
        bench = _Bench(thresholds, alpha, is_final, _dilution(stable, canary, thresholds.subject_correlation))
        cases = [*_rates(bench, stable, canary), *_latencies(bench, stable, canary), _lengths(bench, stable, canary)]
        findings = (*(bench.judge(case) for case in cases), _split(bench, stable, canary, weight))
    verdict, reason = _overall(findings, canary.requests, thresholds)
    return Analysis(verdict, reason, findings, weight, alpha, looks, is_final)


@dataclass(frozen=True, slots=True)
class _Case:
    """One metric before it is judged. Evidence in nats: of harm as seen, of none, and of harm as it would be seen."""

    metric: Metric
    stable: float | None
    canary: float | None
    stable_samples: int
    canary_samples: int
    worse: float
    within: float
    at_harm: Callable[[], float]
    matters: bool
    required: bool
    text: str
    harm: str


@dataclass(frozen=True, slots=True)
class _Bench:
    thresholds: Thresholds
    alpha: float
    is_final: bool
    dilution: float

    def alpha_of(self, metric: Metric) -> float:
        return self.alpha * ALPHA_SHARES[metric]

    def judge(self, case: _Case) -> Finding:
        limit = needed(self.alpha_of(case.metric))
        verdict, why = self._verdict(case, limit)
        return Finding(
            case.metric, case.stable, case.canary, case.stable_samples, case.canary_samples,
            case.worse, limit, verdict, case.required, f"{case.text}: {why}.")

    def _verdict(self, case: _Case, limit: float) -> tuple[Verdict, str]:
        if not case.canary_samples:
            return Verdict.NO_TRAFFIC, "the canary has no such calls"
        if not case.stable_samples:
            return Verdict.INCONCLUSIVE, "the stable version has no such calls to compare with"
        if case.worse >= limit and case.matters:
            return Verdict.FAIL, f"worse, at odds of {_odds(case.worse)} where {_odds(limit)} are asked for"
        if case.within >= needed(self.thresholds.false_pass):
            return Verdict.PASS, f"shown to be less than {case.harm}, at odds of {_odds(case.within)}"
        if not self.is_final:
            return Verdict.INCONCLUSIVE, "nothing shown yet"
        if case.worse >= needed(self.thresholds.false_pass):
            return Verdict.INCONCLUSIVE, f"a sign of harm, at odds of {_odds(case.worse)}, that may be chance"
        if case.at_harm() >= limit:
            return Verdict.PASS, f"no sign of harm, where {case.harm} would have been seen"
        return Verdict.INCONCLUSIVE, f"too few calls to have seen {case.harm}"


def _rates(bench: _Bench, stable: TrackCounts, canary: TrackCounts) -> Iterator[_Case]:
    def rate(metric: Metric, of_stable: tuple[int, int], of_canary: tuple[int, int]) -> _Case:
        return _rate(bench, metric, Events(*of_stable, *of_canary))

    yield rate(Metric.ERROR_RATE, (stable.errors, stable.attempts), (canary.errors, canary.attempts))
    yield rate(Metric.EMPTY_OUTPUTS, (stable.empty_outputs, stable.completed), (canary.empty_outputs, canary.completed))
    yield rate(
        Metric.LENGTH_FINISHES, (stable.length_finishes, stable.completed), (canary.length_finishes, canary.completed))
    yield rate(Metric.JSON_INVALID, (stable.json_invalid, stable.json_asked), (canary.json_invalid, canary.json_asked))


def _rate(bench: _Bench, metric: Metric, events: Events) -> _Case:
    limits = bench.thresholds
    stable = events.stable / events.stable_samples if events.stable_samples else None
    canary = events.canary / events.canary_samples if events.canary_samples else None
    harm = min(1.0, max((stable or 0.0) * limits.rate_ratio, (stable or 0.0) + limits.rate_difference))
    return _Case(
        metric, stable, canary, int(events.stable_samples), int(events.canary_samples),
        worse=events.evidence_worse(bench.dilution),
        within=events.evidence_within(limits.rate_ratio, bench.dilution),
        at_harm=lambda: events.at_harm(harm, BAD_LUCK, bench.dilution).evidence_worse(bench.dilution),
        matters=(canary or 0.0) - (stable or 0.0) >= limits.rate_tolerance,
        required=metric in REQUIRED,
        text=f"{metric} {_percent(canary)} of {events.canary_samples:,} (stable {_percent(stable)} "
             f"of {events.stable_samples:,})",
        harm=f"a rate of {_percent(harm)}")


def _latencies(bench: _Bench, stable: TrackCounts, canary: TrackCounts) -> Iterator[_Case]:
    limits = bench.thresholds
    for metric in (Metric.TIME_TO_FIRST_TOKEN, Metric.INTER_TOKEN_LATENCY, Metric.SECONDS_PER_OUTPUT_TOKEN):
        of_stable, of_canary = stable.histogram(metric), canary.histogram(metric)
        alpha = bench.alpha_of(metric)
        tails = Tails.of(of_stable, of_canary, P95, alpha, bench.dilution)
        slow, slower = of_stable.quantile(1 - P95), of_canary.quantile(1 - P95)
        yield _Case(
            metric, slow, slower, int(of_stable.samples), int(of_canary.samples),
            worse=tails.evidence_worse(), within=tails.evidence_within(limits.latency_ratio),
            at_harm=partial(tails.evidence_at_harm, limits.latency_ratio, BAD_LUCK),
            matters=_ratio(slower, slow) >= limits.latency_tolerance,
            required=of_canary.samples >= limits.coverage * canary.completed,
            text=f"{metric} p95 {_seconds(slower)} of {of_canary.samples:,} (stable {_seconds(slow)} "
                 f"of {of_stable.samples:,})",
            harm=f"{limits.latency_ratio} times the stable's")


def _lengths(bench: _Bench, stable: TrackCounts, canary: TrackCounts) -> _Case:
    """Longer or shorter: the stronger of two bets, each with half of the stake."""
    limits = bench.thresholds
    metric = Metric.OUTPUT_TOKENS
    of_stable, of_canary = stable.histogram(metric), canary.histogram(metric)
    alpha = bench.alpha_of(metric) / 2
    longer = Tails.of(of_stable, of_canary, MEDIAN, alpha, bench.dilution)
    shorter = Tails.of(of_stable.mirrored(), of_canary.mirrored(), MEDIAN, alpha, bench.dilution)
    usual, seen = of_stable.quantile(MEDIAN), of_canary.quantile(MEDIAN)
    up, down = longer.evidence_worse(), shorter.evidence_worse()
    return _Case(
        metric, usual, seen, int(of_stable.samples), int(of_canary.samples),
        worse=max(up, down) - math.log(2),
        within=min(longer.evidence_within(limits.length_ratio), shorter.evidence_within(limits.length_ratio)),
        at_harm=lambda: min(tails.evidence_at_harm(limits.length_ratio, BAD_LUCK) for tails in (longer, shorter)),
        matters=(_ratio(seen, usual) if up > down else _ratio(usual, seen)) >= limits.length_tolerance,
        required=False,
        text=f"{metric} median {_tokens(seen)} of {of_canary.samples:,} (stable {_tokens(usual)} "
             f"of {of_stable.samples:,})",
        harm=f"{limits.length_ratio} times as long or as short")


def _split(bench: _Bench, stable: TrackCounts, canary: TrackCounts, weight: float) -> Finding:
    """Is the canary's share what the weight says?

    The hash throws subjects onto the tracks, each with all its calls. So the share of the calls scatters as many times
    more than the binomial as `calls_per_subject` of both tracks together, and is diluted by it.
    """
    limits = bench.thresholds
    limit = needed(bench.alpha_of(Metric.SPLIT))
    total = stable.requests + canary.requests
    if not 0 < weight < 100:
        return Finding(
            Metric.SPLIT, None, None, stable.requests, canary.requests, 0.0, limit, Verdict.INCONCLUSIVE, False,
            f"split: a weight of {weight:g} % splits nothing.")
    dilution = (stable + canary).calls_per_subject or limits.requests_per_subject
    odds = weight / (100 - weight)
    high, low = odds * limits.split_tolerance, odds / limits.split_tolerance
    evidence = max(
        evidence_above(canary.requests, total, high / (1 + high), dilution),
        evidence_below(canary.requests, total, low / (1 + low), dilution)) - math.log(2)
    is_off = evidence >= limit
    why = f"not what the weight says, at odds of {_odds(evidence)}" if is_off else "as the weight says"
    return Finding(
        Metric.SPLIT, stable.requests / total, canary.requests / total, stable.requests, canary.requests,
        evidence, limit, Verdict.FAIL if is_off else Verdict.PASS, False,
        f"split {_percent(canary.requests / total)} of {total:,} requests on the canary (weight {weight:g} %): {why}.")


def _dilution(stable: TrackCounts, canary: TrackCounts, correlation: float) -> float:
    """Kish's design effect of comparing the two: each track's own, weighted by what it adds to the variance."""
    def effect(counts: TrackCounts) -> float:
        return 1 + ((counts.calls_per_subject or 1.0) - 1) * correlation

    total = stable.requests + canary.requests
    return (effect(canary) * stable.requests + effect(stable) * canary.requests) / total


def _overall(findings: tuple[Finding, ...], requests: int, thresholds: Thresholds) -> tuple[Verdict, str]:
    if not requests:
        return Verdict.NO_TRAFFIC, "The canary has had no requests."
    failed = [finding.reason for finding in findings if finding.verdict is Verdict.FAIL]
    if failed:
        return Verdict.FAIL, " ".join(failed)
    if requests < thresholds.min_requests:
        wanted = thresholds.min_requests
        return Verdict.INCONCLUSIVE, f"The canary has had {requests:,} of at least {wanted:,} requests."
    open_ends = [f.reason for f in findings if f.required and f.verdict is Verdict.INCONCLUSIVE]
    if open_ends:
        return Verdict.INCONCLUSIVE, " ".join(open_ends)
    return Verdict.PASS, "The canary is no worse than the stable version in " + ", ".join(
        finding.metric for finding in findings if finding.verdict is Verdict.PASS) + "."


def _ratio(one: float | None, other: float | None) -> float:
    return one / other if one is not None and other else 1.0


def _odds(evidence: float) -> str:
    return f"{math.exp(evidence):,.0f} to 1" if evidence < math.log(1e6) else "over 1,000,000 to 1"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.2f} %"


def _seconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g} s"


def _tokens(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f}"
