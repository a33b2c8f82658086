"""Golden sets are read whole or not at all, every fault is named, and their digest means their content."""

import json
import random
import subprocess
import sys
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.evaluation import golden

ROOT = Path(__file__).parents[4]
ASKED = [{"role": "user", "content": "When?"}]
GOOD: Mapping[str, Any] = {"id": "a", "messages": ASKED, "expected": "now", "scorer": "exact"}


def _write(folder: Path, *documents: Mapping[str, Any] | str) -> Path:
    path = folder / "trains.jsonl"
    path.write_text("".join((each if isinstance(each, str) else json.dumps(each)) + "\n" for each in documents))
    return path


def test_a_set_is_read_with_its_name_and_its_items_ordered_by_id(tmp_path: Path) -> None:
    full = {"id": "b", "messages": ASKED, "tools": [{"type": "function"}], "expected": 3, "scorer": "numeric",
            "options": {"absolute": 0.5}, "slice": "hard", "weight": 2}
    found = golden.read(_write(tmp_path, full, "", GOOD))
    assert found.name == "trains"
    assert [item.id for item in found.items] == ["a", "b"]
    assert (found.items[0].slice, found.items[0].weight, found.items[0].tools) == ("all", 1.0, ())
    assert (found.items[1].slice, found.items[1].weight, found.items[1].options) == ("hard", 2.0, {"absolute": 0.5})


@pytest.mark.parametrize(("change", "said"), [
    ({"id": ""}, "line 1, id: must be text"),
    ({"messages": []}, "messages: must be a list with at least one"),
    ({"messages": ["hi"]}, "messages[0]: must be an object"),
    ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role: must be one of system, developer"),
    ({"messages": [{"role": "user", "content": ""}]}, "messages[0].content: must be text"),
    ({"messages": [*ASKED, {"role": "assistant", "content": "now"}]}, "messages[1].role: is 'assistant'; the answer"),
    ({"expected": 3}, "expected: must be text"),
    ({"expected": []}, "expected: must be text"),
    ({"scorer": "vibes"}, "scorer: 'vibes' is not known; use exact, normalised"),
    ({"scorer": "regex", "expected": "("}, "expected: must be a regular expression: missing )"),
    ({"scorer": "numeric"}, "expected: must be a number"),
    ({"scorer": "numeric", "expected": True}, "expected: must be a number"),
    ({"scorer": "numeric", "expected": 10**400}, "expected: must be a number below 1e300"),
    ({"scorer": "json_schema"}, "expected: must be a JSON schema"),
    ({"scorer": "json_fields", "expected": {}}, "expected: must be an object with at least one field"),
    ({"scorer": "label", "options": {"labels": ["then"]}}, "options.labels: must be a list of texts, with"),
    ({"scorer": "contains", "options": {"any": 1}}, "options.any: must be true or false"),
    ({"scorer": "numeric", "expected": 1, "options": {"absolute": -1}}, "options.absolute: must be a number that"),
    ({"options": {"any": True}}, "options.any: is not known; 'exact' has no options"),
    ({"options": []}, "options: must be an object"),
    ({"tools": "all"}, "tools: must be a list of objects"),
    ({"slice": 3}, "slice: must be text"),
    ({"weight": 0}, "weight: must be a number above 0, not 0"),
    ({"weight": True}, "weight: must be a number above 0"),
    ({"answer": "now"}, "answer: is not known; use id, messages"),
])
def test_a_bad_item_is_refused_by_line_and_field(tmp_path: Path, change: Mapping[str, Any], said: str) -> None:
    with pytest.raises(golden.GoldenError) as refused:
        golden.read(_write(tmp_path, {**GOOD, **change}))
    assert said in str(refused.value)


def test_every_bad_line_is_told_at_once(tmp_path: Path) -> None:
    lines: list[Mapping[str, Any] | str] = [
        GOOD, "{", {**GOOD, "id": "b", "weight": "x"}, GOOD, '{"id": "\\ud800"}', '{"weight": NaN}', "[]"]
    with pytest.raises(golden.GoldenError) as refused:
        golden.read(_write(tmp_path, *lines))
    said = str(refused.value)
    for words in ("line 2, item: is not JSON", "line 3, weight", "line 4, id: 'a' comes twice", "line 5, item: is not",
                  "line 6, item: holds NaN", "line 7, item: must be a JSON object"):
        assert words in said
    assert "line 1" not in said


def test_an_expected_null_is_a_judges_but_a_missing_one_nobodys(tmp_path: Path) -> None:
    assert golden.read(_write(tmp_path, {**GOOD, "scorer": "judge", "expected": None})).items[0].expected is None
    with pytest.raises(golden.GoldenError, match="expected: is missing"):
        golden.read(_write(tmp_path, {"id": "a", "messages": ASKED, "scorer": "judge"}))


def test_a_set_without_items_or_without_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(golden.GoldenError, match="has no items"):
        golden.read(_write(tmp_path, ""))
    with pytest.raises(golden.GoldenError, match="cannot be read: No such file"):
        golden.read(tmp_path / "none.jsonl")


def test_a_line_without_end_is_refused_before_it_fills_memory(tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    path.write_bytes(b" " * (golden.MAX_LINE_BYTES + 1))
    with pytest.raises(golden.GoldenError, match="line 1 is longer"):
        golden.read(path)


def test_the_digest_is_the_hash_that_the_words_say() -> None:
    items = [golden.from_document({**GOOD, "id": name, "weight": 1, "options": {}}) for name in ("b", "a")]
    lines = [b'{"expected":"now","id":"%s","messages":[{"content":"When?","role":"user"}],"scorer":"exact"}\n' % name
             for name in (b"a", b"b")]
    assert golden.digest(items) == sha256(b"".join(lines)).hexdigest()


TEXT = st.text(st.characters(codec="utf-8"), min_size=1).filter(str.strip)


@given(st.lists(TEXT, min_size=1, max_size=5, unique=True), TEXT, st.randoms(use_true_random=False))
def test_the_digest_stays_in_any_order_and_changes_with_any_content(
    ids: list[str], expected: str, chance: random.Random,
) -> None:
    items = [golden.from_document({**GOOD, "id": name, "expected": expected}) for name in ids]
    shuffled = chance.sample(items, len(items))
    digest = golden.make("x", items).digest
    assert golden.make("y", shuffled).digest == digest
    assert golden.digest(golden.from_json(golden.to_json(item).encode()) for item in shuffled) == digest
    changed = golden.from_document({**items[0].to_document(), "weight": 2})
    assert golden.digest([changed, *items[1:]]) != digest


def test_reading_golden_sets_needs_only_the_standard_library() -> None:
    code = ("import sys, adapters.evaluation.golden; names = {name.split('.')[0] for name in sys.modules}; "
            "print(sorted(names - set(sys.stdlib_module_names) - {'adapters', '__main__'}))")
    done = subprocess.run(
        [sys.executable, "-S", "-E", "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
