"""Simulated plans: identical canaries are spared, harmful ones are caught where `REQUESTS_NEEDED` says, at any pace.

Seeds are fixed. A bound p over n runs is held when the count does not exceed the binomial's 99th percentile.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pytest

from gateway.domain.analysis import REQUESTS_NEEDED, Metric, Verdict, analyse
from gateway.domain.counts import LATENCY_EDGES, SUBJECT_GROUPS, TrackCounts

STEPS = 4


@dataclass(frozen=True)
class Calls:
    """A step's calls in the order of arrival: is it the canary's, did it fail, seconds, group of its subject."""

    canary: np.ndarray
    failed: np.ndarray
    seconds: np.ndarray | None = None
    groups: np.ndarray | None = None

    def looks(self, ends: np.ndarray) -> Iterator[tuple[TrackCounts, TrackCounts]]:
        """The counts of both tracks after so many calls."""
        stable = canary = TrackCounts()
        begin = 0
        for end in ends.tolist():
            window = slice(begin, end)
            stable += self._counts(window, ~self.canary[window])
            canary += self._counts(window, self.canary[window])
            begin = end
            yield stable, canary

    def _counts(self, window: slice, chosen: np.ndarray) -> TrackCounts:
        found = TrackCounts(requests=int(chosen.sum()), server_errors=int(self.failed[window][chosen].sum()))
        if self.seconds is not None:
            edge = np.searchsorted(LATENCY_EDGES, self.seconds[window][chosen], side="left")
            found = replace(found, time_to_first_token=_tally(edge, len(LATENCY_EDGES) + 1))
        if self.groups is not None:
            found = replace(found, subject_groups=_tally(self.groups[window][chosen], SUBJECT_GROUPS))
        return found


def _tally(indexes: np.ndarray, size: int) -> tuple[int, ...]:
    return tuple(np.bincount(indexes, minlength=size).tolist())


def evenly(calls: int, looks: int) -> np.ndarray:
    return np.unique(np.linspace(calls / looks, calls, looks).astype(int))


def alike(rng: np.random.Generator, calls: int, weight: float, wave: float = 0.0) -> Calls:
    """Two tracks that do the same: 2 % errors and heavy-tailed latencies, both with the tides of the day."""
    day = np.sin(np.linspace(0, 12, calls)) * wave
    return Calls(
        rng.random(calls) < weight / 100,
        rng.random(calls) < 0.02 * np.exp(2 * day),
        0.3 * np.exp(day + rng.standard_normal(calls)))


def doubled_errors(rng: np.random.Generator, calls: int, weight: float, rate: float) -> Calls:
    canary = rng.random(calls) < weight / 100
    return Calls(canary, rng.random(calls) < np.where(canary, 2 * rate, rate))


def slower(rng: np.random.Generator, calls: int, weight: float, sigma: float) -> Calls:
    canary = rng.random(calls) < weight / 100
    seconds = 0.3 * np.exp(sigma * rng.standard_normal(calls)) * np.where(canary, 1.3, 1.0)
    return Calls(canary, np.zeros(calls, bool), seconds)


def in_clusters(rng: np.random.Generator, calls: int, weight: float, subjects: int) -> Calls:
    """Sticky subjects of unequal size (Zipf), each with its own error rate and its own pace; both tracks alike."""
    sizes = 1 / np.arange(1, subjects + 1)
    subject = rng.choice(subjects, calls, p=sizes / sizes.sum())
    def own(spread: float) -> np.ndarray:
        return np.asarray(np.exp(spread * rng.standard_normal(subjects)))[subject]

    return Calls(
        (rng.random(subjects) < weight / 100)[subject],
        rng.random(calls) < np.minimum(0.5, 0.015 * own(0.5)),
        0.3 * own(0.5) * np.exp(0.8 * rng.standard_normal(calls)),
        rng.integers(0, SUBJECT_GROUPS, subjects)[subject])


def decided(calls: Calls, weight: float, ends: np.ndarray, least: int | None = None) -> tuple[Verdict, int]:
    """The first pass or fail, and after how many canary requests; `least`: the step's minimum, None for no passing."""
    verdict, asked = Verdict.INCONCLUSIVE, 0
    for stable, canary in calls.looks(ends):
        asked = canary.requests
        is_final = least is not None and asked >= least
        verdict = analyse(stable, canary, weight=weight, steps=STEPS, is_final=is_final).verdict
        if verdict is Verdict.FAIL or (verdict is Verdict.PASS and least is not None):
            break
    return verdict, asked


def at_most(bound: float, runs: int) -> int:
    """The 99th percentile of how often something of probability `bound` happens."""
    total, count = 0.0, -1
    while total < 0.99:
        count += 1
        total += math.comb(runs, count) * bound**count * (1 - bound) ** (runs - count)
    return count


@pytest.mark.parametrize("wave", [0.0, 0.5])
def test_an_identical_canary_is_failed_in_at_most_one_plan_of_twenty_over_200_looks(wave: float) -> None:
    runs, failed = 50, 0
    for run in range(runs):
        rng = np.random.default_rng([1, run])
        failed += any(
            decided(alike(rng, calls, weight, wave), weight, evenly(calls, 50))[0] is Verdict.FAIL
            for weight, calls in ((5, 20_000), (25, 6_000), (50, 4_000), (75, 4_000)))
    assert failed <= at_most(0.05, runs)


@pytest.mark.parametrize("looks", [5, 50, 300])
def test_looking_more_often_does_not_raise_false_alarms_beyond_the_bound(looks: int) -> None:
    runs, calls = 40, 5_000
    failed = 0
    for run in range(runs):
        identical = replace(alike(np.random.default_rng([2, run]), calls, 20), seconds=None)
        failed += decided(identical, 20, evenly(calls, looks))[0] is Verdict.FAIL
    assert failed <= at_most(0.05 / STEPS, runs)


HARMS = {
    "errors 1 % → 2 %": partial(doubled_errors, rate=0.01),
    "errors 2 % → 4 %": partial(doubled_errors, rate=0.02),
    "errors 5 % → 10 %": partial(doubled_errors, rate=0.05),
    "p95 × 1.3, where it is 2.3 times the median": partial(slower, sigma=0.5),
    "p95 × 1.3, where it is 5 times the median": partial(slower, sigma=1.0),
    "p95 × 1.3, where it is 12 times the median": partial(slower, sigma=1.5),
}


@pytest.mark.parametrize(("harm", "weight", "needed"), [
    (harm, weight, needed) for harm, weights in REQUESTS_NEEDED.items() for weight, needed in weights.items()])
def test_harm_is_caught_by_the_documented_number_of_requests(harm: str, weight: int, needed: int) -> None:
    runs, calls = 30, needed * 100 // weight
    caught = sum(
        decided(HARMS[harm](np.random.default_rng([3, run]), calls, weight), weight, evenly(calls, 15))[0]
        is Verdict.FAIL for run in range(runs))
    assert caught >= runs - at_most(0.1, runs)


@pytest.mark.parametrize("weight", [5, 50])
def test_harm_passes_at_most_one_time_in_ten_and_no_harm_passes_mostly(weight: int) -> None:
    runs = 40
    calls = 2 * REQUESTS_NEEDED["errors 2 % → 4 %"][weight] * 100 // weight
    harmful = [decided(doubled_errors(np.random.default_rng([5, run]), calls, weight, 0.02), weight,
                       evenly(calls, 50), least=200)[0] for run in range(runs)]
    assert harmful.count(Verdict.PASS) <= at_most(0.1, runs)
    harmless = [decided(replace(alike(np.random.default_rng([6, run]), calls, weight), seconds=None), weight,
                        evenly(calls, 50), least=200)[0] for run in range(runs)]
    assert harmless.count(Verdict.PASS) >= 0.9 * runs


@pytest.mark.parametrize("weight", [5, 50])
def test_unequal_subjects_that_stay_on_their_track_do_not_fail_an_identical_canary(weight: int) -> None:
    runs, calls = 50, 10_000
    failed = sum(
        decided(in_clusters(np.random.default_rng([7, run]), calls, weight, 1_000), weight, evenly(calls, 12))[0]
        is Verdict.FAIL for run in range(runs))
    assert failed <= at_most(0.05, runs)


@pytest.mark.parametrize(("weight", "true", "calls"), [(5, 7.5, 20_000), (25, 32, 10_000), (50, 57, 10_000)])
def test_a_wrong_split_is_caught_and_a_right_one_is_not(weight: float, true: float, calls: int) -> None:
    runs = 50

    def off(run: int, share: float) -> bool:
        rng = np.random.default_rng([8, run])
        grouped = replace(
            alike(rng, calls, share), seconds=None, groups=rng.integers(0, SUBJECT_GROUPS, calls))
        return any(
            finding.metric is Metric.SPLIT and finding.verdict is Verdict.FAIL
            for stable, canary in grouped.looks(evenly(calls, 10))
            for finding in analyse(stable, canary, weight=weight, steps=STEPS).findings)

    assert sum(off(run, true) for run in range(runs)) >= 0.9 * runs
    assert sum(off(run, weight) for run in range(runs)) <= 1
