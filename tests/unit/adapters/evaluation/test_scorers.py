"""Each scorer tells right from wrong, and from what merely looks like it."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.evaluation import golden
from adapters.evaluation.scorers import Mark, Scorers, last_number, normalise, parse_json

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


def _item(scorer: str, expected: Any, name: str = "a", **options: Any) -> golden.Item:
    return golden.from_document({
        "id": name, "messages": [{"role": "user", "content": "?"}], "expected": expected, "scorer": scorer,
        "options": options})


def _score(scorer: str, expected: Any, answer: str, **options: Any) -> float:
    item = _item(scorer, expected, **options)
    return Scorers(golden.make("set", [item])).mark(item, answer).score


@pytest.mark.parametrize(("scorer", "expected", "answer", "options", "score"), [
    ("exact", "Track 3", " Track 3\n", {}, 1.0),
    ("exact", "Track 3", "track 3", {}, 0.0),
    ("exact", ["3", "three"], "three", {}, 1.0),
    ("normalised", "Track 3!", "  track\n3 ", {}, 1.0),
    ("normalised", "Track 3", "track 33", {}, 0.0),
    ("normalised", "\ufb01ne", "FINE", {}, 1.0),
    ("contains", ["left", "right"], "first left, then right", {}, 1.0),
    ("contains", ["left", "right"], "first left", {}, 0.0),
    ("contains", ["left", "right"], "first left", {"any": True}, 1.0),
    ("contains", "Left", "first left", {}, 0.0),
    ("contains", "Left", "first left", {"ignore_case": True}, 1.0),
    ("regex", r"track \d+", "on track 12.", {}, 1.0),
    ("regex", r"track \d+", "on track 12.", {"whole": True}, 0.0),
    ("regex", r"TRACK \d+", " track 12 ", {"whole": True, "ignore_case": True}, 1.0),
    ("json_schema", SCHEMA, '{"n": 3}', {}, 1.0),
    ("json_schema", SCHEMA, '```json\n{"n": 3}\n```', {}, 1.0),
    ("json_schema", SCHEMA, '{"n": "3"}', {}, 0.0),
    ("json_schema", SCHEMA, 'Here: {"n": 3}', {}, 0.0),
    ("json_schema", False, "{}", {}, 0.0),
    ("json_fields", {"a": 1, "b": {"c": "x", "d": [2]}}, '{"b": {"c": "x", "d": [2], "e": 0}, "a": 1.0}', {}, 1.0),
    ("json_fields", {"a": 1, "b": {"c": "x"}}, '{"a": true, "b": {"c": "x"}}', {}, 0.5),
    ("json_fields", {"a": 1, "b": 2}, '{"a": 1}', {"all": True}, 0.0),
    ("json_fields", {"a": None}, "{}", {}, 0.0),
    ("json_fields", {"a": [True]}, '{"a": [1]}', {}, 0.0),
    ("json_fields", {"a": {"b": 1}}, "[1]", {}, 0.0),
    ("numeric", 1200, "That is 1,200 km.", {}, 1.0),
    ("numeric", -3.5, "from 2 to \u22123.5", {}, 1.0),
    ("numeric", 10, "10.4", {"absolute": 0.5}, 1.0),
    ("numeric", 100, "106", {"relative": 0.05}, 0.0),
    ("numeric", 100, "105", {"relative": 0.05}, 1.0),
    ("numeric", 0, "none", {}, 0.0),
    ("rouge_l", "the train leaves at nine", "the train leaves at nine", {}, 1.0),
    ("rouge_l", ["no", "the train"], "the bus", {}, 0.5),
])
def test_an_answer_gets_its_score(
    scorer: str, expected: Any, answer: str, options: dict[str, Any], score: float,
) -> None:
    assert _score(scorer, expected, answer, **options) == pytest.approx(score)


def test_rouge_takes_word_stems_only_when_asked() -> None:
    assert _score("rouge_l", "trains leaving", "train leaves") == 0.0
    assert _score("rouge_l", "trains leaving", "train leave", stem=True) == 1.0


def test_an_answer_that_is_no_label_has_none_and_is_wrong() -> None:
    items = [_item("label", "billing", "a"), _item("label", "Lost property", "b")]
    scorers = Scorers(golden.make("set", items))
    assert scorers.labels == ("Lost property", "billing")
    assert scorers.mark(items[0], " Billing.\n") == Mark(1.0, "billing")
    assert scorers.mark(items[0], "lost-property") == Mark(0.0, "Lost property")
    assert scorers.mark(items[0], "billing, I think") == Mark(0.0, None)
    assert scorers.mark(items[0], "") == Mark(0.0, None)


def test_an_items_own_labels_are_the_only_ones_that_it_knows() -> None:
    items = [_item("label", "yes", "a", labels=["yes", "no"]), _item("label", "red", "b")]
    scorers = Scorers(golden.make("set", items))
    assert scorers.mark(items[0], "red").label is None
    assert scorers.mark(items[0], "NO").label == "no"
    assert scorers.labels == ("no", "red", "yes")


def test_labels_that_look_alike_are_refused() -> None:
    with pytest.raises(golden.GoldenError, match="'Billing' and 'billing'"):
        Scorers(golden.make("set", [_item("label", "billing", "a"), _item("label", "Billing", "b")]))


def test_what_is_no_json_schema_is_refused_with_its_item() -> None:
    with pytest.raises(golden.GoldenError, match="item 'a', expected: is no JSON schema: 'thing' is not valid"):
        Scorers(golden.make("set", [_item("json_schema", {"type": "thing"})]))


def test_only_a_judge_can_score_a_judges_item() -> None:
    item = _item("judge", None)
    with pytest.raises(ValueError, match="is for a judge"):
        Scorers(golden.make("set", [item])).mark(item, "x")


@pytest.mark.parametrize(("text", "number"), [
    ("1e3", 1000.0), (".5", 0.5), ("a1b", 1.0), ("no", None), ("-", None), ("1,234,567.5 m", 1234567.5), ("7.", 7.0),
    ("3-4", 4.0), ("x = -4", -4.0), ("12,34", 34.0),
])
def test_the_last_number_is_found(text: str, number: float | None) -> None:
    assert last_number(text) == number


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_any_number_that_is_written_is_read(number: float) -> None:
    assert last_number(f"It is {number!r} km") == number


@given(st.text())
def test_normalising_twice_changes_nothing_more(text: str) -> None:
    assert normalise(normalise(text)) == normalise(text)


@given(st.text())
def test_any_answer_can_be_scored(answer: str) -> None:
    for scorer, expected in (("exact", "a"), ("normalised", "a"), ("label", "a"), ("contains", "a"), ("regex", "a"),
                             ("json_fields", {"a": 1}), ("json_schema", SCHEMA), ("numeric", 1), ("rouge_l", "a")):
        assert 0.0 <= _score(scorer, expected, answer) <= 1.0


def test_json_that_is_nested_too_deeply_is_no_json() -> None:
    with pytest.raises(ValueError, match="nested"):
        parse_json("[" * 200_000)
