"""Counts add up in any order, survive Redis, and tell quantiles and clusters as well as their buckets allow."""

import math
from functools import reduce
from itertools import pairwise
from operator import add

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.domain.counts import (
    LATENCY_EDGES,
    LENGTH_EDGES,
    SUBJECT_GROUPS,
    Histogram,
    TrackCounts,
    bucket_of,
)

LATENCIES = st.floats(0.001, 300)
COUNTERS = ("requests", "client_errors", "server_errors", "upstream_failures", "timeouts", "empty_outputs",
            "length_finishes", "json_asked", "json_invalid", "completion_tokens")


def of(edges: tuple[float, ...], values: list[float]) -> tuple[int, ...]:
    counts = [0] * (len(edges) + 1)
    for value in values:
        counts[bucket_of(edges, value)] += 1
    return tuple(counts)


COUNTS = st.builds(
    TrackCounts,
    **{name: st.integers(0, 10**6) for name in COUNTERS},
    time_to_first_token=st.lists(LATENCIES, max_size=9).map(lambda values: of(LATENCY_EDGES, values)),
    output_tokens=st.lists(st.floats(0, 1e6), max_size=9).map(lambda values: of(LENGTH_EDGES, values)),
    subject_groups=st.lists(st.integers(0, 99), min_size=SUBJECT_GROUPS, max_size=SUBJECT_GROUPS).map(tuple),
)


@given(st.lists(COUNTS, max_size=5), st.randoms(use_true_random=False))
def test_counts_fold_to_the_same_in_any_order(parts: list[TrackCounts], random: object) -> None:
    shuffled = list(parts)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert reduce(add, shuffled, TrackCounts()) == reduce(add, parts, TrackCounts())


@given(COUNTS, COUNTS)
def test_adding_up_fields_is_adding_up_counts(one: TrackCounts, other: TrackCounts) -> None:
    fields = one.to_fields()
    for name, value in other.to_fields().items():
        fields[name] = fields.get(name, 0) + value
    assert TrackCounts.from_fields(fields) == one + other


@given(COUNTS)
def test_fields_leave_zeros_out_and_unknown_ones_are_dropped(counts: TrackCounts) -> None:
    fields = counts.to_fields()
    assert all(fields.values())
    assert TrackCounts.from_fields({**fields, "of_a_later_release": 1, "output_tokens:9999": 1}) == counts


def test_client_errors_are_no_attempts_and_errors_are_not_completed() -> None:
    counts = TrackCounts(requests=20, client_errors=5, server_errors=1, upstream_failures=2, timeouts=3)
    assert (counts.attempts, counts.errors, counts.completed) == (15, 6, 9)


def test_latency_edges_reach_from_a_millisecond_to_five_minutes_in_steps_of_nine_percent() -> None:
    assert LATENCY_EDGES[0] == 0.001
    assert LATENCY_EDGES[-1] > 300
    ratios = [high / low for low, high in pairwise(LATENCY_EDGES)]
    assert max(ratios) < 1.0906
    assert math.prod(ratios[:3]) < 1.3


@pytest.mark.parametrize("value, bucket", [(0.0, 0), (0.001, 0), (0.00101, 1), (1e9, len(LATENCY_EDGES))])
def test_a_value_falls_into_the_bucket_of_the_first_edge_not_below_it(value: float, bucket: int) -> None:
    assert bucket_of(LATENCY_EDGES, value) == bucket


@given(st.lists(LATENCIES, min_size=1, max_size=200), st.floats(0.01, 0.99))
def test_a_quantile_is_within_one_bucket_of_the_true_one(values: list[float], share: float) -> None:
    histogram = Histogram(LATENCY_EDGES, of(LATENCY_EDGES, values))
    true = sorted(values)[max(0, math.ceil(share * len(values)) - 1)]
    found = histogram.quantile(share)
    assert found is not None
    assert true / 1.1 <= found <= true * 1.1


def test_no_samples_have_no_quantile() -> None:
    assert TrackCounts().histogram("output_tokens").quantile(0.5) is None


@given(st.lists(st.integers(1, 100_000), max_size=50))
def test_what_lies_above_an_edge_lies_below_its_mirror(values: list[int]) -> None:
    histogram = Histogram(LENGTH_EDGES, of(LENGTH_EDGES, [float(value) for value in values]))
    mirrored = histogram.mirrored()
    for index, edge in enumerate(LENGTH_EDGES):
        assert histogram.above[index] == sum(value > edge for value in values)
        assert mirrored.above[len(LENGTH_EDGES) - 1 - index] == len(values) - histogram.above[index]


@pytest.mark.parametrize("each, subjects", [(1, 5000), (20, 1000), (200, 300)])
def test_how_often_subjects_ask_is_seen_in_the_groups_they_are_hashed_into(each: int, subjects: int) -> None:
    rng = np.random.default_rng(5)
    groups = np.bincount(rng.integers(0, SUBJECT_GROUPS, subjects), minlength=SUBJECT_GROUPS) * each
    seen = TrackCounts(subject_groups=tuple(groups.tolist())).calls_per_subject
    assert seen is not None
    assert 0.6 * each < seen < 1.6 * each


def test_one_busy_subject_among_many_is_seen() -> None:
    groups = [100] * SUBJECT_GROUPS
    groups[7] += 6_400
    seen = TrackCounts(subject_groups=tuple(groups)).calls_per_subject
    assert seen is not None
    assert seen > 3_000


def test_without_groups_nothing_is_known_of_subjects() -> None:
    assert TrackCounts(requests=10).calls_per_subject is None
