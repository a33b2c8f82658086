"""A bet wins nothing on average when nothing is there, whatever the base rate; tails find the quantile's edge."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.domain.counts import LATENCY_EDGES, Histogram
from gateway.domain.sequential import Events, Tails, evidence_above, evidence_below, needed


def binomial(k: int, n: int, p: float) -> float:
    return math.comb(n, k) * p**k * (1 - p) ** (n - k)


def histogram(values: np.ndarray) -> Histogram:
    buckets = np.searchsorted(LATENCY_EDGES, values, side="left")
    return Histogram(LATENCY_EDGES, tuple(np.bincount(buckets, minlength=len(LATENCY_EDGES) + 1).tolist()))


@given(st.integers(0, 60), st.floats(0.01, 0.99), st.floats(0, 1), st.floats(1, 20))
def test_a_bet_wins_nothing_on_average_where_the_null_holds(
    trials: int, null: float, part: float, dilution: float
) -> None:
    true = null * part
    wealth = sum(binomial(k, trials, true) * math.exp(evidence_above(k, trials, null, dilution))
                 for k in range(trials + 1))
    assert wealth <= 1 + 1e-9
    below = 1 - null
    wealth = sum(binomial(k, trials, 1 - true) * math.exp(evidence_below(k, trials, below, dilution))
                 for k in range(trials + 1))
    assert wealth <= 1 + 1e-9


@given(st.integers(0, 12), st.integers(1, 40), st.integers(1, 40))
def test_two_tracks_that_are_alike_win_nothing_on_average(bad: int, stable: int, canary: int) -> None:
    bad = min(bad, stable + canary)
    ways = math.comb(stable + canary, bad)
    wealth = sum(
        math.comb(canary, k) * math.comb(stable, bad - k) / ways
        * math.exp(Events(bad - k, stable, k, canary).evidence_worse())
        for k in range(bad + 1))
    assert wealth <= 1 + 1e-9


@given(st.integers(0, 50), st.integers(0, 50), st.floats(0, 1))
def test_evidence_is_always_a_number(hits: int, misses: int, null: float) -> None:
    assert math.isfinite(evidence_above(hits, hits + misses, null))
    assert math.isfinite(evidence_below(hits, hits + misses, null))


def test_no_trials_are_no_evidence() -> None:
    assert evidence_above(0, 0, 0.5) == 0
    assert Events(0, 0, 5, 5).evidence_worse() == 0
    assert Events(5, 5, 0, 0).evidence_worse() == 0


@given(st.integers(0, 30), st.integers(0, 30), st.floats(0.05, 0.95), st.floats(1, 20))
def test_dilution_never_adds_evidence(hits: int, misses: int, null: float, dilution: float) -> None:
    evidence = evidence_above(hits, hits + misses, null)
    assert evidence_above(hits, hits + misses, null, dilution) <= max(evidence, 0) + 1e-9


@given(st.integers(0, 40), st.integers(0, 400), st.floats(0.01, 0.99))
def test_one_more_hit_in_place_of_a_miss_adds_evidence(hits: int, misses: int, null: float) -> None:
    total = hits + misses + 1
    assert evidence_above(hits + 1, total, null) > evidence_above(hits, total, null)


@pytest.mark.parametrize("sigma", [0.3, 1.0, 2.5])
def test_the_edge_of_the_p95_is_among_the_plausible_ones_at_every_look(sigma: float) -> None:
    rng = np.random.default_rng(11)
    true = 0.3 * math.exp(sigma * 1.6449)
    edge = sum(e < true for e in LATENCY_EDGES)
    missed = 0
    for _ in range(40):
        values = 0.3 * np.exp(sigma * rng.standard_normal(3000))
        looks = [Tails.of(histogram(values[:n]), histogram(values[:0]), 0.05, 0.05) for n in range(50, 3001, 150)]
        missed += any(edge not in tails.span for tails in looks)
        assert len(looks[-1].span) < 25
    assert missed <= 3


def test_latencies_beyond_the_last_edge_are_no_evidence_and_no_error() -> None:
    values = np.full(500, 10_000.0)
    tails = Tails.of(histogram(values), histogram(values), 0.05, 0.01)
    assert tails.evidence_worse() == 0
    assert tails.evidence_within(1.3) == 0


def test_evidence_needed_is_the_logarithm_of_the_odds() -> None:
    assert needed(0.01) == pytest.approx(math.log(100))
