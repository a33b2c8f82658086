"""A caller stays on its track; the canary's share is its weight; another salt puts other callers first."""

import subprocess
import sys
from math import sqrt

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.domain.errors import InvalidRequest
from gateway.domain.split import BUCKETS, bucket, check_percent, is_canary, is_sampled

SUBJECTS = [f"user-{n}" for n in range(100_000)]
SALTS = st.text("0123456789abcdef", min_size=1, max_size=32)
WEIGHTS = st.integers(0, BUCKETS).map(lambda parts: parts / 100)


def bound(count: int, share: float) -> float:
    """Five standard deviations of how many of `count` fall into `share`, and 5 more for the skew of a small share:
    chance exceeds it less than once in a million."""
    return 5 * sqrt(count * share * (1 - share)) + 5


@settings(max_examples=12, deadline=None)
@given(SALTS, WEIGHTS)
@example("salt", 0.01)
@example("salt", 5.0)
@example("salt", 50.0)
def test_the_canarys_share_of_100_000_subjects_is_its_weight(salt: str, weight: float) -> None:
    canaries = sum(is_canary(salt, subject, weight) for subject in SUBJECTS)
    assert abs(canaries - len(SUBJECTS) * weight / 100) <= bound(len(SUBJECTS), weight / 100)


@settings(max_examples=6, deadline=None)
@given(SALTS, st.lists(WEIGHTS, min_size=2, max_size=4, unique=True).map(sorted))
def test_raising_the_weight_takes_no_subject_of_100_000_off_the_canary(salt: str, weights: list[float]) -> None:
    before: set[str] = set()
    for weight in weights:
        now = {subject for subject in SUBJECTS if is_canary(salt, subject, weight)}
        assert before <= now
        before = now


@given(SALTS, st.text(), WEIGHTS, WEIGHTS)
def test_a_subject_on_the_canary_stays_there_at_every_higher_weight(
    salt: str, subject: str, a: float, b: float,
) -> None:
    low, high = sorted((a, b))
    assert is_canary(salt, subject, high) or not is_canary(salt, subject, low)


@given(SALTS, st.text())
def test_no_subject_is_on_the_canary_at_0_and_every_one_at_100(salt: str, subject: str) -> None:
    assert not is_canary(salt, subject, 0)
    assert is_canary(salt, subject, 100)


@settings(max_examples=6, deadline=None)
@given(st.lists(SALTS, min_size=2, max_size=2, unique=True))
def test_who_comes_first_under_one_salt_does_not_come_first_under_another(salts: list[str]) -> None:
    one, other = ({s for s in SUBJECTS if is_canary(salt, s, 10)} for salt in salts)
    both = len(one & other)
    assert abs(both - len(SUBJECTS) * 0.01) <= bound(len(SUBJECTS), 0.01)


def test_the_shadows_sample_does_not_follow_the_canarys_split() -> None:
    canaries = [s for s in SUBJECTS if is_canary("salt", s, 20)]
    sampled = sum(is_sampled("salt", s, 25) for s in canaries)
    assert abs(sampled - len(canaries) * 0.25) <= bound(len(canaries), 0.25)


@settings(max_examples=6, deadline=None)
@given(SALTS, WEIGHTS)
def test_the_shadows_share_of_100_000_requests_is_what_was_asked(salt: str, share: float) -> None:
    sampled = sum(is_sampled(salt, request, share) for request in SUBJECTS)
    assert abs(sampled - len(SUBJECTS) * share / 100) <= bound(len(SUBJECTS), share / 100)


def test_buckets_are_the_same_in_every_release() -> None:
    assert [bucket("5f", subject) for subject in ("", "a", "user-1", "Zoë")] == [5112, 6731, 2784, 149]


def test_another_process_with_another_hash_seed_puts_subjects_into_the_same_buckets() -> None:
    code = "from gateway.domain.split import bucket; print([bucket('s', f'u{n}') for n in range(50)])"
    done = subprocess.run([sys.executable, "-c", code], env={"PYTHONHASHSEED": "7", "PYTHONPATH": "."},
                          capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str([bucket("s", f"u{n}") for n in range(50)])


def test_a_subject_that_is_no_unicode_has_a_bucket() -> None:
    assert 0 <= bucket("salt", "\ud800") < BUCKETS


@given(WEIGHTS)
def test_every_hundredth_of_a_percent_is_a_percentage(weight: float) -> None:
    assert check_percent(weight, "weight") == weight


@pytest.mark.parametrize("value", [-0.01, 100.01, 1.234, float("nan"), float("inf"), True, "5", None, 10**400])
def test_what_is_no_percentage_is_refused_by_name(value: object) -> None:
    with pytest.raises(InvalidRequest, match=r"weight .* is no percentage") as refused:
        check_percent(value, "weight")
    assert refused.value.param == "weight"
