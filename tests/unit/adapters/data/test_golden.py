"""A row held back becomes an item that its own answer would score full marks on."""

from pathlib import Path
from typing import Any

import pytest

from adapters.data import DataError, Row
from adapters.data.golden import GoldenWriter, item_of, prompts_of, read_golden
from adapters.evaluation.golden import Item, make
from adapters.evaluation.scorers import Scorers


def _row(answer: str, **fields: Any) -> Row:
    prompt = ({"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"})
    return Row(1, (*prompt, {"role": "assistant", "content": answer}), id="1", **fields)


@pytest.mark.parametrize(("answer", "label", "scorer", "expected"), [
    ("billing", "billing", "label", "billing"),
    (" billing\n", "billing", "label", "billing"),
    ("The class is billing.", "billing", "rouge_l", "The class is billing."),
    ('{"total": 3}', None, "json_fields", {"total": 3}),
    ("{}", None, "rouge_l", "{}"),
    ("{not json}", None, "rouge_l", "{not json}"),
    ("-1,234.5", None, "numeric", -1234.5),
    ("42", None, "numeric", 42.0),
    ("42 trains", None, "rouge_l", "42 trains"),
])
def test_the_answer_tells_the_scorer_and_scores_full_marks(
    answer: str, label: str | None, scorer: str, expected: Any,
) -> None:
    item = item_of(_row(answer, label=label), "1")
    assert (item.scorer, item.expected) == (scorer, expected)
    if scorer != "rouge_l":
        assert Scorers(make("own", [item])).mark(item, answer).score == 1.0


def test_the_prompt_the_tools_and_the_slice_are_kept() -> None:
    item = item_of(_row("yes", tools=({"name": "find"},), slice="night"), "a")
    assert [message["role"] for message in item.messages] == ["system", "user"]
    assert (item.id, item.tools, item.slice) == ("a", ({"name": "find"},), "night")


def test_rows_of_one_id_become_items_of_their_own(tmp_path: Path) -> None:
    writer = GoldenWriter(tmp_path / "golden.jsonl")
    for answer in ("a", "b", "c"):
        writer.write(_row(answer))
    writer.close()
    assert [item.id for item in read_golden(tmp_path / "golden.jsonl").items] == ["1", "1-2", "1-3"]


def test_a_golden_set_that_cannot_be_used_is_an_error_of_the_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"golden\.jsonl cannot be read"):
        read_golden(tmp_path / "golden.jsonl")


def test_a_prompt_in_parts_is_compared_by_its_words() -> None:
    parts = [{"type": "text", "text": "When "}, {"type": "text", "text": "does it leave?"}]
    item = Item(id="1", messages=({"role": "system", "content": "be brief"}, {"role": "user", "content": parts}),
                expected="x", scorer="exact")
    assert list(prompts_of([item])) == [("1", "When does it leave?")]
