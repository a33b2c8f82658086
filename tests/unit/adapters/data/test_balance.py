"""Few answers are classes and many are not, and rare classes are named."""

from collections.abc import Sequence

import pytest

from adapters.data import Row
from adapters.data.balance import MAX_CLASSES, OTHERS, Answers, count, describe


def _row(answer: str, label: str | None = None) -> Row:
    return Row(1, ({"role": "user", "content": "hi"}, {"role": "assistant", "content": answer}), label=label)


@pytest.mark.parametrize(("answers", "are_classes"), [
    (["yes", "no "] * 5, True), (["yes", "no"] * 4, False), (["yes"] * 50, False),
    ([f"label {number % 200}" for number in range(1000)], True),
    ([f"label {number % 201}" for number in range(2000)], False),
    (["a", "b" * 81] * 50, False), (["a", "b" * 80] * 50, True), ([], False),
])
def test_answers_are_classes_where_they_are_few_and_short(answers: Sequence[str], are_classes: bool) -> None:
    counted = Answers()
    for answer in answers:
        counted.add(_row(answer))
    assert counted.are_classes == are_classes


def test_plain_texts_and_calls_are_no_classes() -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    for odd in (Row(1, text="yes"), Row(1, ({"role": "user", "content": "hi"}, call))):
        counted = Answers()
        for row in [*[_row("yes"), _row("no")] * 20, odd]:
            counted.add(row)
        assert not counted.are_classes


def test_classes_are_counted_the_largest_first() -> None:
    rows = [_row("x", label) for label in ("b", "a", "b", None, "c")]
    assert list(count(rows).items()) == [("b", 2), ("a", 1), ("c", 1)]


def test_labels_beyond_the_limit_are_counted_together() -> None:
    counts = count(_row("x", str(number)) for number in range(MAX_CLASSES + 5))
    assert counts[OTHERS] == 5


def test_rare_classes_are_named() -> None:
    head, *lines = describe({"bill": 100, "crash": 10, "praise": 9})
    assert head == "classes: 3, 11.1 rows in the largest for one in the smallest"
    assert [line.split() for line in lines] == [
        ["bill", "100", "84.0%"], ["crash", "10", "8.4%"], ["praise", "9", "7.6%", "rare"]]
    assert describe({}) == []
