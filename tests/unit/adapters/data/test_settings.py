"""What is asked of the data is checked before anything is read."""

from pathlib import Path
from typing import Any

import pytest

from adapters.data import DataSettings


@pytest.mark.parametrize(("key", "value"), [
    ("shape", "xml"), ("duplicates", "some"), ("pii", "hide"), ("pii_finder", "guess"), ("leaked", "keep"),
    ("max_rejected_share", 1.0), ("max_rejected_share", -0.1), ("max_chars", 0), ("near_threshold", 0.4),
    ("near_threshold", 1.1), ("validation_share", 1.0), ("golden_share", -0.5),
])
def test_a_bad_value_is_refused_by_its_key(key: str, value: Any) -> None:
    given: dict[str, Any] = {"source": Path("rows.jsonl"), key: value}
    with pytest.raises(ValueError, match=f"'{key}' is {value!r}; make it"):
        DataSettings(**given)


def test_shares_that_leave_nothing_to_train_on_are_refused() -> None:
    with pytest.raises(ValueError, match="validation_share"):
        DataSettings(source=Path("rows.jsonl"), validation_share=0.6, golden_share=0.4)


def test_a_golden_set_is_given_or_made_but_not_both() -> None:
    with pytest.raises(ValueError, match="golden_share"):
        DataSettings(source=Path("rows.jsonl"), golden=Path("golden.jsonl"), golden_share=0.1)


def test_settings_are_json_ready() -> None:
    document = DataSettings(source=Path("rows.jsonl"), golden=Path("golden.jsonl")).to_document()
    assert (document["source"], document["golden"], document["max_rejected_share"]) == (
        "rows.jsonl", "golden.jsonl", 0.02)
