"""What becomes of every row: counted, written down with the reason, and never near what it is evaluated with."""

import json
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.base import WORDS
from adapters.data import DataError, DataSettings, read_prepared
from adapters.data.duplicates import Sketcher, shared_pieces, similarity
from adapters.data.prepare import Prepared, prepare, read_report
from adapters.data.rows import file_sha256
from adapters.data.split import share_of
from adapters.evaluation import golden

ROOT = Path(__file__).parents[4]
CHANCE = random.Random(5)


def _words(chance: random.Random = CHANCE, count: int = 30) -> str:
    return " ".join(chance.choices(WORDS, k=count))


def _row(prompt: str, answer: str, **fields: Any) -> dict[str, Any]:
    return {"prompt": prompt, "completion": answer, **fields}


def _edited(text: str, word: str = "zebra") -> str:
    """The text with another word at its end: its pieces are 0.9 alike and more."""
    return f"{text.rsplit(' ', 1)[0]} {word}"


def _write(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def _prepare(folder: Path, rows: Sequence[Any], name: str = "out", **given: Any) -> Prepared:
    source = _write(folder / "rows.jsonl", rows)
    return prepare(DataSettings(source=source, **given), folder / name, report=lambda line: None)


def _left_out(prepared: Prepared) -> list[tuple[int, str, str]]:
    documents = map(json.loads, prepared.left_out.read_text().splitlines())
    return [(document["line"], document["why"], document["detail"]) for document in documents]


def _prompts(path: Path | None) -> list[str]:
    return [row.asked for row in read_prepared(path)] if path else []


def _golden_prompts(prepared: Prepared) -> list[str]:
    items = golden.read(prepared.golden).items if prepared.golden else ()
    return [str(item.messages[-1]["content"]) for item in items]


def test_good_rows_come_through_in_order_with_a_report(tmp_path: Path) -> None:
    rows = [_row(_words(), _words(), id=f"row {at}") for at in range(20)]
    prepared = _prepare(tmp_path, rows)
    assert [row.id for row in read_prepared(prepared.train)] == [row["id"] for row in rows]
    assert (prepared.counts["read"], prepared.counts["train"]) == (20, 20)
    assert (prepared.validation, prepared.golden, prepared.golden_sha256) == (None, None, None)
    assert prepared.sha256 == file_sha256(tmp_path / "rows.jsonl")
    assert read_report(tmp_path / "out") == prepared
    assert prepared.to_document()["settings"]["duplicates"] == "near"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "rows.jsonl"]
    assert sorted(path.name for path in prepared.folder.iterdir()) == [
        "golden.jsonl", "left_out.jsonl", "rejects.jsonl", "report.json", "train.jsonl", "validation.jsonl"]


def test_prepared_rows_can_be_prepared_again_and_stay_as_they_are(tmp_path: Path) -> None:
    rows = [_row(_words(), f"class {at % 3}", slice="a", provenance={"kind": "paraphrase"}) for at in range(30)]
    first = _prepare(tmp_path, rows)
    second = prepare(DataSettings(source=first.train), tmp_path / "again", report=lambda line: None)
    assert second.train.read_text() == first.train.read_text()


def test_two_rejects_in_a_hundred_pass_and_are_kept(tmp_path: Path) -> None:
    prepared = _prepare(tmp_path, [*(_row(_words(), _words()) for _ in range(98)), "{", _row("hi", "")])
    assert (prepared.counts["train"], prepared.counts["rejected"]) == (98, 2)
    rejects = [json.loads(line) for line in prepared.rejects.read_text().splitlines()]
    assert [(reject["line"], reject["field"]) for reject in rejects] == [(99, "row"), (100, "completion")]
    assert prepared.to_document()["rejected_fields"] == {"row": 1, "completion": 1}


def test_three_rejects_in_a_hundred_stop_with_their_lines_and_all_are_listed(tmp_path: Path) -> None:
    rows = [*(_row(_words(), _words()) for _ in range(97)), "{", "{", _row("hi", "")]
    with pytest.raises(DataError, match=r"(?s)3 of 100 rows .* more than 2%.*line 98: row.*line 100: completion"):
        _prepare(tmp_path, rows)
    assert len((tmp_path / "out.rejects.jsonl").read_text().splitlines()) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.rejects.jsonl", "rows.jsonl"]
    assert _prepare(tmp_path, rows, max_rejected_share=0.03).counts["rejected"] == 3


def test_a_long_list_of_rejects_is_shortened_in_the_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"(?s)line 10: row.*and 2 more$"):
        _prepare(tmp_path, ["{"] * 12)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no rows"):
        _prepare(tmp_path, [])


def test_a_file_that_breaks_off_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl.gz").write_bytes(b"no gzip")
    with pytest.raises(DataError, match="cannot be read"):
        prepare(DataSettings(source=tmp_path / "rows.jsonl.gz"), tmp_path / "out", report=lambda line: None)
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl.gz"]


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    prepared = _prepare(tmp_path, [_row("a", "b")])
    with pytest.raises(DataError, match="exists; remove it"):
        _prepare(tmp_path, [_row("c", "d")])
    assert _prompts(prepared.train) == ["a"]


def test_a_folder_that_was_not_prepared_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no prepared data"):
        read_report(tmp_path)
    (tmp_path / "report.json").write_text('{"schema": "switchyard.data/0"}')
    with pytest.raises(DataError, match="another release"):
        read_report(tmp_path)


def test_rows_of_low_quality_are_left_out_and_named(tmp_path: Path) -> None:
    rows = [_row(_words(), "a", quality=0.2), _row(_words(), "b", quality=0.5), _row(_words(), "c")]
    prepared = _prepare(tmp_path, rows, min_quality=0.5)
    assert prepared.counts["train"] == 2
    assert _left_out(prepared) == [(1, "low_quality", "quality 0.2 is below 0.5")]


def test_equal_rows_are_kept_once_and_the_others_named(tmp_path: Path) -> None:
    row = _row("a question", "an answer", id="first")
    prepared = _prepare(tmp_path, [row, _row("another", "an answer"), {**row, "id": "second"}], duplicates="exact")
    assert prepared.counts["train"] == 2
    assert _left_out(prepared) == [(3, "duplicates", "the same as first (line 1)")]
    assert _prepare(tmp_path, [row, row], "all", duplicates="off").counts["train"] == 2


def test_near_rows_are_kept_once_but_not_where_their_answers_differ(tmp_path: Path) -> None:
    prompt, answer = _words(), _words()
    rows = [_row(prompt, answer, id="first"), _row(_edited(prompt), _edited(answer)), _row(_edited(prompt), _words()),
            _row(_words(), answer)]
    prepared = _prepare(tmp_path, rows)
    assert _left_out(prepared) == [(2, "near_duplicates", "nearly the same as first (line 1)")]
    assert prepared.counts["train"] == 3
    assert _prepare(tmp_path, rows, "exact", duplicates="exact").counts["train"] == 4


def test_an_instruction_that_all_rows_share_does_not_make_them_duplicates(tmp_path: Path) -> None:
    instruction = _words(count=200)
    rows = [{"instruction": instruction, "input": _words(count=12), "output": f"class {at % 2}"} for at in range(80)]
    prepared = _prepare(tmp_path, rows)
    assert prepared.counts["train"] == 80
    assert prepared.to_document()["shared_pieces_left_out"] > 500


def test_personal_data_is_masked_or_its_row_dropped(tmp_path: Path) -> None:
    rows = [_row("write to jane@example.com", "done"), _row("hello there", "hi")]
    masked = _prepare(tmp_path, rows, "masked", pii="mask", pii_finder="patterns")
    assert _prompts(masked.train) == ["write to [EMAIL_ADDRESS]", "hello there"]
    assert masked.to_document()["personal_data"] == {"finder": "patterns", "found": {"EMAIL_ADDRESS": 1}}
    dropped = _prepare(tmp_path, rows, "dropped", pii="drop", pii_finder="patterns")
    assert _left_out(dropped) == [(1, "personal_data", "EMAIL_ADDRESS")]
    assert "jane" not in dropped.left_out.read_text() + dropped.train.read_text()
    assert _prompts(_prepare(tmp_path, rows, "off").train)[0] == rows[0]["prompt"]


def test_few_answers_are_the_classes_and_many_are_not(tmp_path: Path) -> None:
    rows = [_row(_words(), ("bill", "bill", "crash")[at % 3]) for at in range(30)]
    prepared = _prepare(tmp_path, rows)
    assert prepared.labels == {"bill": 20, "crash": 10}
    assert {row.label for row in read_prepared(prepared.train)} == {"bill", "crash"}
    assert _prepare(tmp_path, [_row(_words(), _words()) for _ in range(30)], "texts").labels == {}
    named = [_row(_words(), _words(), intent=f"{at % 2}") for at in range(30)]
    assert _prepare(tmp_path, named, "named", label="intent").labels == {"0": 15, "1": 15}


def test_the_report_is_told_in_lines(tmp_path: Path) -> None:
    rows = [*(_row(_words(), ("bill", "crash")[at % 2]) for at in range(60)), "{"]
    lines: list[str] = []
    prepare(DataSettings(source=_write(tmp_path / "rows.jsonl", rows), pii="mask", pii_finder="patterns"),
            tmp_path / "out", lines.append)
    assert lines[0] == f"data: {tmp_path / 'rows.jsonl'}, 61 rows: 60 train"
    assert lines[1] == "data: left out: 1 bad"
    assert "data: personal data found by patterns: nothing" in lines
    assert [line.split()[:2] for line in lines[-2:]] == [["bill", "30"], ["crash", "30"]]


def test_the_golden_share_is_a_golden_set_with_its_digest(tmp_path: Path) -> None:
    rows = [_row(_words(), ("bill", "crash")[at % 2], id=str(at)) for at in range(200)]
    prepared = _prepare(tmp_path, rows, golden_share=0.1, validation_share=0.1)
    assert prepared.golden is not None and prepared.validation is not None
    items = golden.read(prepared.golden)
    assert prepared.golden_sha256 == items.digest
    assert {item.scorer for item in items.items} == {"label"}
    assert 5 < len(items.items) < 40
    trained, validated = set(_prompts(prepared.train)), set(_prompts(prepared.validation))
    asked = set(_golden_prompts(prepared))
    assert len(trained) + len(validated) + len(asked) == 200
    assert not (trained & validated or trained & asked or validated & asked)


def test_a_share_without_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"No row of .* is left for golden .*take more rows"):
        _prepare(tmp_path, [_row("When does the next train leave?", "noon")], golden_share=0.01)
    with pytest.raises(DataError, match=r"No row of .* is left for train"):
        _prepare(tmp_path, [_row("a", "b", quality=0)], min_quality=1)


def test_plain_text_is_never_golden(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is left for golden"):
        _prepare(tmp_path, [{"text": _words()} for _ in range(50)], golden_share=0.5)
    assert _prepare(tmp_path, [{"text": _words()} for _ in range(50)], validation_share=0.5).counts["validation"] > 5


def test_made_rows_are_only_trained_on(tmp_path: Path) -> None:
    real = [_row(_words(), _words()) for _ in range(60)]
    made = [_row(_words(), _words(), provenance={"kind": "paraphrase"}, id=f"made {at}") for at in range(60)]
    near = [_row(_edited(row["prompt"]), _words(), provenance={"kind": "paraphrase"}) for row in real]
    prepared = _prepare(tmp_path, [*real, *made, *near], validation_share=0.3, golden_share=0.3)
    trained = _prompts(prepared.train)
    assert all(row["prompt"] in trained for row in made)
    kept = [row["prompt"] for row in real if row["prompt"] in trained]
    assert 5 < len(kept) < 55
    assert {_edited(prompt) for prompt in kept} == {row["prompt"] for row in near} & set(trained)
    assert prepared.counts["straddling"] == len(real) - len(kept)


def _golden_set(path: Path, *prompts: str) -> Path:
    return _write(path, [{"id": f"item {at}", "messages": [{"role": "user", "content": prompt}], "expected": "x",
                          "scorer": "exact"} for at, prompt in enumerate(prompts)])


def test_rows_near_an_item_of_a_golden_set_are_removed_by_name(tmp_path: Path) -> None:
    leaked, other = _words(), _words()
    golden_set = _golden_set(tmp_path / "golden.jsonl", other, leaked)
    rows = ["{", _row(_words(), "a"), _row(leaked, "b", id="same"), _row(_edited(leaked), "c"), _row("d", "d")]
    prepared = _prepare(tmp_path, rows, golden=golden_set, duplicates="off", max_rejected_share=0.5)
    assert _left_out(prepared) == [(3, "leaked", "near the golden item item 1"),
                                   (4, "leaked", "near the golden item item 1")]
    assert (prepared.counts["train"], prepared.counts["leaked"]) == (2, 2)
    assert (prepared.golden, prepared.golden_sha256) == (golden_set, golden.read(golden_set).digest)
    with pytest.raises(DataError, match=r"(?s)2 rows leak, and 'leaked' is .refuse.:.*same \(line 3\): near the"):
        _prepare(tmp_path, rows, "refused", golden=golden_set, leaked="refuse", max_rejected_share=0.5)


def test_an_answer_in_the_middle_of_a_chat_leaks_too(tmp_path: Path) -> None:
    leaked = _words()
    chat = [{"role": "user", "content": leaked}, {"role": "assistant", "content": "b"},
            {"role": "user", "content": _words()}, {"role": "assistant", "content": "d"}]
    prepared = _prepare(tmp_path, [{"messages": chat}, _row("a", "b")],
                        golden=_golden_set(tmp_path / "golden.jsonl", leaked))
    assert [why for _, why, _ in _left_out(prepared)] == ["leaked"]


def _prompt_in(share: str, validation_share: float, opening: str = "") -> str:
    """A prompt that belongs to the share, after the opening."""
    texts = (_words() for _ in range(200))
    return next(text for text in texts if share_of(f"{opening}{text}", validation_share, 0) == share)


def test_rows_to_validate_with_may_not_leak_a_golden_item_either(tmp_path: Path) -> None:
    leaked, kept = _prompt_in("validation", 0.5), _prompt_in("validation", 0.5)
    rows = [_row(leaked, "a"), _row(kept, "b"), _row(_prompt_in("train", 0.5), "c")]
    prepared = _prepare(tmp_path, rows, validation_share=0.5, golden=_golden_set(tmp_path / "golden.jsonl", leaked))
    assert _left_out(prepared) == [(1, "leaked", "near the golden item item 0")]
    assert _prompts(prepared.validation) == [kept]


def test_a_chat_that_opens_like_a_row_to_validate_with_is_not_trained_on(tmp_path: Path) -> None:
    asked = _prompt_in("validation", 0.5)
    more = _prompt_in("train", 0.5, opening=f"{asked} b ")
    chat = [{"role": "user", "content": asked}, {"role": "assistant", "content": "b"},
            {"role": "user", "content": more}, {"role": "assistant", "content": "d"}]
    rows = [{"messages": chat}, _row(asked, "b", id="held"), _row(_prompt_in("train", 0.5), "c")]
    prepared = _prepare(tmp_path, rows, validation_share=0.5)
    assert _left_out(prepared) == [(1, "leaked", "near held in validation")]
    assert (prepared.counts["train"], prepared.counts["validation"]) == (1, 1)


def test_a_masked_row_is_still_near_its_golden_item(tmp_path: Path) -> None:
    prepared = _prepare(
        tmp_path, [_row("jane@example.com", "b"), _row("hello there", "b")], pii="mask",
        golden=_golden_set(tmp_path / "golden.jsonl", "joe@example.org"), pii_finder="patterns")
    assert _prompts(prepared.train) == ["hello there"]


def test_a_broken_golden_set_stops_the_work(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has bad lines"):
        _prepare(tmp_path, [_row("a", "b")], golden=_write(tmp_path / "golden.jsonl", ["{}"]))


def _families(chance: random.Random, families: int, size: int) -> list[dict[str, Any]]:
    """Rows in families of near prompts with different answers, shuffled."""
    prompts = [_words(chance, 40) for _ in range(families)]
    rows = [_row(_edited(prompt, chance.choice(WORDS)), _words(chance)) for prompt in prompts for _ in range(size)]
    chance.shuffle(rows)
    return rows


def _shares(prepared: Prepared) -> dict[str, list[str]]:
    return {"train": _prompts(prepared.train), "validation": _prompts(prepared.validation),
            "golden": _golden_prompts(prepared)}


def test_near_rows_never_go_to_different_shares(tmp_path: Path) -> None:
    prepared = _prepare(tmp_path, _families(random.Random(1), 40, 4), duplicates="off", validation_share=0.3,
                        golden_share=0.3)
    shares = _shares(prepared)
    sketcher = Sketcher(0.85, shared_pieces([]))
    sketched = {share: [sketcher.own_pieces(prompt) for prompt in prompts] for share, prompts in shares.items()}
    assert all(len(prompts) > 15 for prompts in shares.values())
    for share, other in (("train", "validation"), ("train", "golden"), ("validation", "golden")):
        assert max(similarity(one, two) for one in sketched[share] for two in sketched[other]) < 0.85


def test_a_row_near_two_shares_is_left_out_and_moves_neither(tmp_path: Path) -> None:
    middle = _words(random.Random(1), 40)
    longer = [word for word in WORDS if len(word) > 6]  # so long that with one at either end they are not near
    trained = next(text for word in longer if share_of(text := f"{word} {middle}", 0, 0.5) == "train")
    asked = next(text for word in longer if share_of(text := f"{middle} {word}", 0, 0.5) == "golden")
    rows = [_row(trained, "a", id="one"), _row(asked, "b", id="other"), _row(middle, "c")]
    prepared = _prepare(tmp_path, rows, golden_share=0.5, near_threshold=0.95)
    assert _left_out(prepared) == [(3, "straddling", "near one (line 1) in train and other (line 2) in golden")]
    assert (_prompts(prepared.train), _golden_prompts(prepared)) == ([trained], [asked])


@settings(max_examples=12)
@given(st.integers(0, 2**32), st.integers(1, 40), st.sampled_from(["off", "exact", "near"]))
def test_adding_rows_moves_none(
    tmp_path_factory: pytest.TempPathFactory, seed: int, known: int, duplicates: str,
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    anchors = [_row(f"{share} {_words(random.Random(at), 40)}", "x") for share in "abc" for at in range(8)]
    rows = _families(random.Random(seed), 15, 3)
    given: dict[str, Any] = {"validation_share": 0.3, "golden_share": 0.3, "duplicates": duplicates}
    before = _shares(_prepare(folder, [*anchors, *rows[:known]], "before", **given))
    after = _shares(_prepare(folder, [*anchors, *rows], "after", **given))
    assert all(set(before[share]) <= set(after[share]) for share in before)


@settings(max_examples=30)
@given(st.lists(st.sampled_from([
    "{", '{"prompt": "hi"}', '{"prompt": "hi", "completion": "yes", "quality": 0}',
    '{"prompt": "hi", "completion": "yes"}', '{"prompt": "hi", "completion": "yes", "quality": 1}',
    '{"prompt": "hello there", "completion": "no"}', '{"prompt": "hello there!", "completion": "no"}',
    '{"prompt": "a@example.com", "completion": "yes"}', '{"text": "once upon a time"}']), min_size=1, max_size=30))
def test_every_row_is_accounted_for(tmp_path_factory: pytest.TempPathFactory, rows: list[str]) -> None:
    folder = tmp_path_factory.mktemp("rows")
    anchors = [_row(_words(), _words()) for _ in range(3)]
    prepared = _prepare(folder, [*anchors, *rows], max_rejected_share=0.99, min_quality=0.5, pii="drop",
                        pii_finder="patterns", golden=_golden_set(folder / "golden.jsonl", "hello there"))
    counts = dict(prepared.counts)
    assert counts.pop("read") == sum(counts.values()) == len(rows) + 3
    assert counts["train"] == len(_prompts(prepared.train))
    assert counts["rejected"] == len(prepared.rejects.read_text().splitlines())
    listed = sum(counts.values()) - counts["train"] - counts["rejected"]
    assert listed == len(prepared.left_out.read_text().splitlines())


PEAK = """
import json, resource, sys
from pathlib import Path
from adapters.data import DataSettings
from adapters.data.prepare import prepare
settings = DataSettings(source=Path(sys.argv[1]), validation_share=0.05)
prepared = prepare(settings, Path(sys.argv[2]), report=lambda line: None)
print(json.dumps([prepared.counts["read"], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss]))
"""


def _peak(folder: Path, mebibytes: int) -> tuple[int, float]:
    """Rows, and the peak of a process of its own that prepares that many MiB of them, in MiB."""
    source, chance, text = folder / f"{mebibytes}.jsonl", random.Random(mebibytes), _words(count=1900)
    with source.open("w") as file:
        while file.tell() < mebibytes << 20:
            file.write(json.dumps(_row(_words(chance, 20), f"{_words(chance, 5)} {text}")) + "\n")
    done = subprocess.run([sys.executable, "-c", PEAK, str(source), str(folder / f"{mebibytes}")], cwd=ROOT,
                          capture_output=True, text=True, check=True)
    rows, kibibytes = json.loads(done.stdout)
    return rows, kibibytes / 1024


def test_memory_does_not_grow_with_the_data(tmp_path: Path) -> None:
    few, small = _peak(tmp_path, 5)
    many, large = _peak(tmp_path, 50)
    assert many > 9 * few
    assert large - small < 10, f"{small:.0f} MiB for 5 MiB of rows, {large:.0f} MiB for 50"
