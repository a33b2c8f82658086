"""The figures are right where they can be counted by hand, and as sure as they say where they cannot."""

import math
from collections.abc import Iterable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.evaluation import golden
from adapters.evaluation.scorers import Mark
from adapters.evaluation.statistics import (
    LEAST_PAIRS,
    Board,
    board_of,
    compare,
    compare_binary,
    f1_scores,
    quantile,
    tango_interval,
)

LABELS = ("a", "b", "c")
TRIALS = 200


def _item(number: int, expected: str = "x", scorer: str = "rouge_l", weight: float = 1.0) -> golden.Item:
    return golden.from_document({
        "id": str(number), "messages": [{"role": "user", "content": "?"}], "expected": expected, "scorer": scorer,
        "weight": weight})


def _labelled(
    expected: Iterable[str], answered: Sequence[Sequence[str | None]], weights: Sequence[float] = (),
) -> Board:
    items = [_item(number, label, "label", weights[number] if weights else 1.0)
             for number, label in enumerate(expected)]
    marks = [[Mark(float(given == label), given) for given in row]
             for label, row in zip(expected, answered, strict=True)]
    return board_of(items, LABELS, marks)


def _scored(scores: Iterable[float]) -> Board:
    marks = [[Mark(float(score))] for score in scores]
    return board_of([_item(number) for number in range(len(marks))], (), marks)


def _value(board: Board, metric: str) -> float:
    return float(board.value(metric, board.rows(metric)))


def test_f1_is_counted_as_by_hand() -> None:
    board = _labelled("aaabbc", [["a"], ["a"], ["b"], ["b"], [None], ["a"]])
    # a: 2 of 3 answers right, 2 of 3 found; b: 1 of 2, 1 of 2; c: nothing.
    assert _value(board, "macro_f1") == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    assert _value(board, "accuracy") == pytest.approx(3 / 6)
    f1, support = f1_scores(board.confusion(board.rows("accuracy")))
    assert f1 == pytest.approx([2 / 3, 1 / 2, 0.0])
    assert support == pytest.approx([3, 2, 1])


def test_weights_and_repeats_count() -> None:
    weighted = _labelled("ab", [["a"], ["a"]], [3, 1])
    assert _value(weighted, "accuracy") == pytest.approx(3 / 4)
    assert _value(weighted, "macro_f1") == pytest.approx((6 / 7 + 0) / 2)
    repeated = _labelled("ab", [["a", None], ["b", "b"]])
    assert _value(repeated, "accuracy") == pytest.approx(3 / 4)
    assert _value(repeated, "macro_f1") == pytest.approx((2 / 3 + 1) / 2)


def test_a_label_that_nothing_expects_is_no_part_of_macro_f1() -> None:
    assert _value(_labelled("aabb", [["a"], ["a"], ["b"], ["c"]]), "macro_f1") == pytest.approx((1 + 2 / 3) / 2)


def test_a_metric_is_about_its_scorers_items() -> None:
    items = [_item(0, "a", "label"), _item(1), _item(2)]
    board = board_of(items, ("a",), [[Mark(1.0, "a")], [Mark(0.5)], [Mark(0.0)]])
    assert _value(board, "score") == pytest.approx(0.5)
    assert _value(board, "rouge_l") == pytest.approx(0.25)
    assert _value(board, "accuracy") == _value(board, "macro_f1") == 1.0


@given(st.lists(st.sampled_from(LABELS), min_size=1, max_size=30), st.data())
def test_macro_f1_agrees_with_its_definition(expected: list[str], data: st.DataObject) -> None:
    answered = data.draw(st.lists(
        st.sampled_from((*LABELS, None)), min_size=len(expected), max_size=len(expected)))
    wanted = []
    for label in sorted(set(expected)):
        right = sum(e == a == label for e, a in zip(expected, answered, strict=True))
        wanted.append(2 * right / (expected.count(label) + answered.count(label)))
    assert _value(_labelled(expected, [[a] for a in answered]), "macro_f1") == pytest.approx(sum(wanted) / len(wanted))


@pytest.mark.parametrize(("values", "share", "found"), [
    ([], 0.99, None), ([3.0], 0.5, 3.0), ([1, 2, 3, 4], 0.5, 2), ([4, 1, 3, 2], 0.51, 3), (range(1, 101), 0.99, 99),
    (range(1, 102), 0.99, 100), ([1, 2], 0.99, 2), (range(1, 101), 0.95, 95),
])
def test_a_quantile_is_the_least_value_that_so_many_do_not_exceed(
    values: Sequence[float], share: float, found: float | None,
) -> None:
    assert quantile(values, share) == found


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0.01, 1))
def test_a_quantile_is_reached_by_its_share_and_by_no_smaller_value(values: list[float], share: float) -> None:
    found = quantile(values, share)
    assert found is not None
    assert sum(value <= found for value in values) >= share * len(values) - 1e-6
    assert sum(value < found for value in values) < share * len(values) + 1e-6


def test_mcnemar_is_exact() -> None:
    found = compare_binary(9, 1, 50, threshold=0, confidence=0.95)
    assert found.p == pytest.approx((1 + 10) / 2**10)
    assert found.sure
    assert not compare_binary(7, 1, 50, threshold=0, confidence=0.95).sure  # (1 + 8) / 2**8 = 0.035
    assert compare_binary(0, 0, 50, threshold=0, confidence=0.95).p == 1.0
    assert found.difference == pytest.approx(0.16)
    assert found.low < found.difference < found.high


@given(st.integers(0, 60), st.integers(0, 60), st.integers(1, 60), st.sampled_from((0.8, 0.95, 0.99)))
def test_tangos_interval_holds_the_difference_and_mirrors(
    better: int, worse: int, same: int, confidence: float,
) -> None:
    pairs = better + worse + same
    low, high = tango_interval(better, worse, pairs, confidence)
    assert -1 <= low < (better - worse) / pairs < high <= 1
    assert tango_interval(worse, better, pairs, confidence) == pytest.approx((-high, -low), abs=1e-6)


def test_tangos_interval_without_any_difference_has_its_known_form() -> None:
    z = 1.959964
    low, high = tango_interval(0, 0, 100, 0.95)
    assert (low, high) == pytest.approx((-z**2 / (100 + z**2), z**2 / (100 + z**2)), abs=1e-5)


def test_the_more_confidence_the_wider_the_interval() -> None:
    narrow, wide = tango_interval(12, 5, 100, 0.8), tango_interval(12, 5, 100, 0.99)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


@pytest.mark.parametrize("threshold", [0.0, 0.1, -0.1])
def test_versions_no_better_than_the_threshold_seldom_seem_so_by_right_and_wrong(threshold: float) -> None:
    random, pairs = np.random.default_rng(7), 80
    sure = covered = 0
    for _ in range(TRIALS):
        hard = random.random(pairs)
        one = random.random(pairs) < 0.3 + 0.4 * hard + threshold
        other = random.random(pairs) < 0.3 + 0.4 * hard
        found = compare_binary(int((one & ~other).sum()), int((other & ~one).sum()), pairs, threshold=threshold,
                               confidence=0.95)
        sure += found.sure
        covered += found.low <= threshold <= found.high
    assert sure <= _most(TRIALS, 0.025)
    assert covered >= TRIALS - _most(TRIALS, 0.05)


def test_versions_no_better_seldom_seem_so_by_rouge() -> None:
    random, pairs = np.random.default_rng(8), 60
    sure = covered = 0
    for trial in range(TRIALS):
        hard = random.random(pairs) * 0.4
        one, other = (np.clip(hard + random.random(pairs) * 0.5, 0, 1) for _ in range(2))
        found = compare(_scored(one), _scored(other), "score", threshold=0, confidence=0.95, seed=trial)
        sure += found.sure
        covered += found.low <= 0 <= found.high
    assert sure <= _most(TRIALS, 0.035)  # the bootstrap's level is only nearly what it says
    assert covered >= TRIALS - _most(TRIALS, 0.07)


def test_versions_no_better_seldom_seem_so_by_macro_f1() -> None:
    random, pairs = np.random.default_rng(9), 60
    sure = 0
    for trial in range(TRIALS):
        expected = random.choice(LABELS, pairs, p=(0.6, 0.3, 0.1))
        one, other = (np.where(random.random(pairs) < 0.8, expected, random.choice(LABELS, pairs)) for _ in range(2))
        found = compare(_labelled(expected, [[a] for a in one]), _labelled(expected, [[a] for a in other]), "macro_f1",
                        threshold=0, confidence=0.95, seed=trial)
        sure += found.sure
    assert sure <= _most(TRIALS, 0.035)


def test_a_version_that_is_much_better_is_found_out() -> None:
    random = np.random.default_rng(10)
    expected = random.choice(LABELS, 100)
    good = np.where(random.random(100) < 0.9, expected, "a")
    bad = np.where(random.random(100) < 0.5, expected, "a")
    one, other = (_labelled(expected, [[a] for a in answers]) for answers in (good, bad))
    assert compare(one, other, "macro_f1", threshold=0.1, confidence=0.95).sure
    assert not compare(one, other, "macro_f1", threshold=0.6, confidence=0.95).sure
    assert not compare(other, one, "macro_f1", threshold=0, confidence=0.95).sure
    by_accuracy = compare(one, other, "accuracy", threshold=0, confidence=0.95)
    assert by_accuracy.sure
    assert by_accuracy.method.startswith("McNemar")


def test_the_test_follows_from_the_scores() -> None:
    binary, other = _scored([1.0, 0.0] * 15), _scored([0.0] * 30)
    assert compare(binary, other, "score", threshold=0, confidence=0.95).method.startswith("McNemar")
    assert compare(binary, other, "score", threshold=0.1, confidence=0.95).method.startswith("Tango")
    rougher = _scored([1.0, 0.5] * 15)
    assert "BCa bootstrap" in compare(rougher, other, "score", threshold=0, confidence=0.95).method
    weighted = board_of([_item(number, weight=1 + number) for number in range(30)], (), [[Mark(1.0)]] * 30)
    assert "BCa bootstrap" in compare(weighted, other, "score", threshold=0, confidence=0.95).method
    repeated = board_of([_item(number) for number in range(30)], (), [[Mark(1.0), Mark(0.0)]] * 30)
    assert "BCa bootstrap" in compare(repeated, repeated, "score", threshold=0, confidence=0.95).method


def test_the_same_seed_gives_the_same_interval() -> None:
    one, other = _scored(np.linspace(0, 1, 40)), _scored(np.linspace(1, 0.1, 40))
    assert compare(one, other, "score", threshold=0, confidence=0.9) == compare(
        one, other, "score", threshold=0, confidence=0.9)


def test_scores_that_all_differ_alike_give_an_interval_of_no_width() -> None:
    found = compare(_scored([0.75] * 30), _scored([0.5] * 30), "score", threshold=0.1, confidence=0.95)
    assert (found.low, found.high, found.sure) == (0.25, 0.25, True)


def test_too_few_items_prove_nothing() -> None:
    few = LEAST_PAIRS - 1
    found = compare(_scored([0.9] * few), _scored([0.1] * few), "score", threshold=0, confidence=0.95)
    assert not found.sure
    assert "needs 20 items" in found.method


def _most(trials: int, share: float) -> int:
    """So many events at most, but for one experiment in ten thousand."""
    return math.ceil(trials * share + 3.7 * math.sqrt(trials * share * (1 - share)))
