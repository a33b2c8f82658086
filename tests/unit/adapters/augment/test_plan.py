"""The plan brings small classes up, from rows that can be used, the same for the same rows."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.augment.plan import EXAMPLES, Task, plan, text_of
from adapters.augment.settings import AugmentSettings
from adapters.data import Row


def _row(number: int, label: str | None, answer: str | None = None, **changes: Any) -> Row:
    messages = ({"role": "user", "content": f"text {number}"},
                {"role": "assistant", "content": answer or label or f"answer {number}"})
    return Row(**{"line": number, "messages": messages, "id": f"r{number}", "label": label, **changes})


def _rows(**classes: int) -> list[Row]:
    labels = [label for label, number in classes.items() for _ in range(number)]
    return [_row(number, label) for number, label in enumerate(labels, start=1)]


def _tasks(rows: Sequence[Row], **settings: Any) -> list[Task]:
    return plan(lambda: iter(rows), AugmentSettings(**settings))[0]


def _numbers(tasks: Iterable[Task]) -> dict[tuple[str, str | None], int]:
    numbers = Counter[tuple[str, str | None]]()
    for task in tasks:
        numbers[task.kind, task.label] += task.count
    return dict(numbers)


def test_a_small_class_is_brought_up_by_hard_negatives_and_paraphrases() -> None:
    assert _numbers(_tasks(_rows(big=40, small=10), edge_cases=0)) == {
        ("paraphrase", "small"): 15, ("hard_negative", "small"): 15}


def test_balance_is_a_share_of_the_largest_class() -> None:
    numbers = _numbers(_tasks(_rows(big=40, small=10), balance=0.5, hard_negatives=0.2, edge_cases=0))
    assert numbers == {("paraphrase", "small"): 8, ("hard_negative", "small"): 2}


def test_every_class_gets_its_edge_cases() -> None:
    numbers = _numbers(_tasks(_rows(big=40, small=10), balance=0, edge_cases=0.1))
    assert numbers == {("edge_case", "big"): 4, ("edge_case", "small"): 1}


def test_rows_without_classes_get_what_needs_none() -> None:
    rows = [_row(number, None) for number in range(20)]
    assert _numbers(_tasks(rows, paraphrases=0.5, edge_cases=0.1)) == {("paraphrase", None): 10, ("edge_case", None): 2}


def test_a_hard_negative_comes_from_another_class_and_answers_as_its_own() -> None:
    tasks = [task for task in _tasks(_rows(big=40, small=10)) if task.kind == "hard_negative"]
    assert {task.source.label for task in tasks} == {"big"}
    assert {(task.label, task.answer) for task in tasks} == {("small", "small")}


def test_where_answers_of_a_class_differ_there_are_no_hard_negatives() -> None:
    rows = [*_rows(big=40), *(_row(100 + number, "small", f"answer {number}") for number in range(10))]
    assert _numbers(_tasks(rows, edge_cases=0)) == {("paraphrase", "small"): 30}


def test_one_row_gives_no_more_than_it_may() -> None:
    tasks = _tasks(_rows(big=100, small=2), hard_negatives=0, edge_cases=0, max_per_source=6, per_call=4)
    given = Counter[str]()
    for task in tasks:
        given[task.source.id] += task.count
    assert set(given.values()) == {6}
    assert len({(task.source.id, task.variant) for task in tasks}) == len(tasks)


@pytest.mark.parametrize("row", [
    Row(1, text="plain", label="a"),
    Row(1, ({"role": "assistant", "content": "a"},), label="a"),
    Row(1, ({"role": "assistant", "content": "b"}, {"role": "assistant", "content": "a"}), label="a"),
    Row(1, ({"role": "user", "content": None}, {"role": "assistant", "content": "a"}), label="a"),
    Row(1, ({"role": "user", "content": "x"},
            {"role": "assistant", "content": "a", "tool_calls": [{"id": "1"}]}), label="a"),
])
def test_a_row_that_is_no_question_in_words_is_no_source_and_is_counted(row: Row) -> None:
    tasks, census = plan(lambda: iter([row, *_rows(a=3)]), AugmentSettings(edge_cases=1))
    assert text_of(row) is None
    assert census.unusable == 1
    assert census.classes == {"a": 3}
    assert row not in [task.source for task in tasks]


def test_the_census_keeps_a_few_examples_of_each_class() -> None:
    _, census = plan(lambda: iter(_rows(a=9, b=1)), AugmentSettings())
    assert [len(census.examples[label]) for label in ("a", "b")] == [EXAMPLES, 1]


def test_the_order_of_the_rows_does_not_choose_the_sources() -> None:
    rows = _rows(big=60, small=30)
    one, other = (_tasks(order, balance=0.6) for order in (rows, rows[::-1]))
    assert [(task.kind, task.source.id, task.count) for task in one] == [
        (task.kind, task.source.id, task.count) for task in other]
    assert {task.source.id for task in one} != {task.source.id for task in _tasks(rows, balance=0.6, seed=1)}


@given(st.dictionaries(st.sampled_from("abcd"), st.integers(1, 12), min_size=1), st.floats(0, 1), st.floats(0, 1),
       st.floats(0, 2), st.integers(1, 5), st.integers(1, 9))
def test_no_plan_asks_for_more_than_wanted_or_leaves_a_class_above_the_largest(
    classes: dict[str, int], balance: float, hard: float, edge: float, per_call: int, per_source: int,
) -> None:
    tasks = _tasks(_rows(**classes), balance=balance, hard_negatives=hard, edge_cases=edge, per_call=per_call,
                   max_per_source=per_source)
    numbers = _numbers(tasks)
    for label, rows in classes.items():
        made = numbers.get(("paraphrase", label), 0) + numbers.get(("hard_negative", label), 0)
        assert rows + made <= max(classes.values())
        assert numbers.get(("edge_case", label), 0) <= per_source * rows
    assert all(1 <= task.count <= min(per_call, per_source) for task in tasks)


@pytest.mark.parametrize("setting", [{"balance": 1.5}, {"hard_negatives": -0.1}, {"edge_cases": -1}, {"per_call": 0}])
def test_a_bad_setting_is_named(setting: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"'{next(iter(setting))}' is"):
        AugmentSettings(**setting)
