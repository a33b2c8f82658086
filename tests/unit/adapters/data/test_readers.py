"""Every format gives the same records, a bad record is named, and a broken file is an error that names it."""

import bz2
import csv
import gzip
import json
import lzma
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.data import DataError, Reject
from adapters.data.readers import MAX_LINE_BYTES, Record, read_records

ROWS: Sequence[dict[str, Any]] = [
    {"instruction": f"What is {number}, in words?", "output": f'"{number}",\nyes – ja', "input": "x" * number}
    for number in range(1, 40)]


def _write_csv(path: Path, rows: Sequence[dict[str, Any]], delimiter: str = ",") -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


def _write_arrow(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    table = pyarrow.Table.from_pylist(list(rows))
    with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table, max_chunksize=10)


def _write_parquet(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path, row_group_size=10)


def _jsonl(rows: Sequence[Any]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


WRITERS: dict[str, Callable[[Path, Sequence[dict[str, Any]]], Any]] = {
    ".jsonl": lambda path, rows: path.write_text(_jsonl(rows), encoding="utf-8"),
    ".json": lambda path, rows: path.write_text(" \n" + json.dumps(rows, indent=1), encoding="utf-8"),
    ".csv": _write_csv,
    ".tsv": lambda path, rows: _write_csv(path, rows, "\t"),
    ".parquet": _write_parquet,
    ".arrow": _write_arrow,
}
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "": lambda raw: raw, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress,
    ".zst": lambda raw: bytes(pyarrow.compress(raw, "zstd")),
}


def _values(source: Path, subset: str | None = None) -> list[Any]:
    records = list(read_records(source, subset))
    assert all(isinstance(record, Record) for record in records), records
    return [record.value for record in records if isinstance(record, Record)]


@pytest.mark.parametrize("packing", PACKERS)
@pytest.mark.parametrize("form", [".jsonl", ".json", ".csv", ".tsv", ".parquet"])
def test_every_format_gives_the_same_records_packed_or_not(tmp_path: Path, form: str, packing: str) -> None:
    plain = tmp_path / f"plain{form}"
    WRITERS[form](plain, ROWS)
    packed = tmp_path / f"rows{form}{packing}"
    packed.write_bytes(PACKERS[packing](plain.read_bytes()))
    assert _values(packed) == ROWS


def test_a_json_file_of_lines_is_read_as_lines(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text("\ufeff" + _jsonl(ROWS), encoding="utf-8")
    assert _values(path) == ROWS


def test_the_files_of_a_folder_are_read_in_the_order_of_their_names_and_name_their_rows(tmp_path: Path) -> None:
    for name, rows in (("b.jsonl", ROWS[20:]), ("a.jsonl", ROWS[:20])):
        WRITERS[".jsonl"](tmp_path / name, rows)
    (tmp_path / "README.md").write_text("not rows")
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(b"{\n"))
    records = list(read_records(tmp_path))
    assert [record.value for record in records if isinstance(record, Record)] == ROWS
    assert str(records[-1]).startswith("c.jsonl.gz, line 1: row: is not JSON")


def _save_to_disk(folder: Path, *shards: Sequence[dict[str, Any]]) -> None:
    """The layout of Hugging Face's `save_to_disk`."""
    folder.mkdir(parents=True)
    names = [f"data-{at:05}-of-{len(shards):05}.arrow" for at in range(len(shards))]
    for name, rows in zip(names, shards, strict=True):
        _write_arrow(folder / name, rows)
    state = {"_data_files": [{"filename": name} for name in names], "_split": None}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text("{}")


def test_a_dataset_on_disk_is_read_in_the_order_of_its_shards(tmp_path: Path) -> None:
    _save_to_disk(tmp_path / "set", ROWS[:5], ROWS[5:])
    assert _values(tmp_path / "set") == ROWS


def test_a_split_is_named_where_there_are_several(tmp_path: Path) -> None:
    _save_to_disk(tmp_path / "set" / "train", ROWS[:30])
    _save_to_disk(tmp_path / "set" / "test", ROWS[30:])
    (tmp_path / "set" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert _values(tmp_path / "set", "test") == ROWS[30:]
    for subset in (None, "dev"):
        with pytest.raises(DataError, match="has the splits train, test; name one of them as 'subset'"):
            list(read_records(tmp_path / "set", subset))


def test_a_subset_of_what_has_none_is_refused(tmp_path: Path) -> None:
    WRITERS[".jsonl"](tmp_path / "rows.jsonl", ROWS)
    for source in (tmp_path / "rows.jsonl", tmp_path):
        with pytest.raises(DataError, match="leave it out"):
            list(read_records(source, "train"))


def test_fields_that_arrow_fills_with_null_are_absent(tmp_path: Path) -> None:
    _write_parquet(tmp_path / "rows.parquet", [
        {"messages": [{"role": "user", "content": "hi", "tool_calls": None}], "label": None},
        {"messages": [{"role": "user", "content": "ho", "tool_calls": [{"id": "1"}]}], "label": "x"}])
    assert _values(tmp_path / "rows.parquet") == [
        {"messages": [{"role": "user", "content": "hi"}]},
        {"messages": [{"role": "user", "content": "ho", "tool_calls": [{"id": "1"}]}], "label": "x"}]


def test_objects_that_hugging_face_keeps_as_json_are_objects_again(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": None}, {"role": "assistant", "content": "x", "weight": 1}]
    texts = pyarrow.array([json.dumps(message) for message in messages])
    objects = pyarrow.ExtensionArray.from_storage(pyarrow.json_(), texts)
    table = pyarrow.table({"messages": pyarrow.ListArray.from_arrays([0, 2], objects)})
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    assert _values(tmp_path / "rows.parquet") == [{"messages": messages}]


def test_a_csv_cell_may_hold_messages_as_json(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    _write_csv(path, [{"messages": json.dumps([{"role": "user"}]), "label": ""}, {"messages": "[{", "label": "x"}])
    first, second = read_records(path)
    assert first == Record(2, {"messages": [{"role": "user"}]})
    assert isinstance(second, Reject)
    assert (second.line, second.field) == (3, "messages")


def test_a_csv_record_is_named_by_the_line_that_it_begins_on(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('prompt,completion\n"a\nb",c\nd,e\nf\n')
    records = list(read_records(path))
    assert [record.line for record in records] == [2, 4, 5]
    assert str(records[2]) == "line 5: row: has 1 fields, and the header 2"


@pytest.mark.parametrize(("line", "reason"), [
    (b"{", "is not JSON"), (b"[1]", "must be a JSON object, not list"), (b'{"a": "\xff"}', "is not JSON"),
    (b'{"a": NaN}', "NaN is no JSON value"), (b"[" * 200_000, "is nested too deeply"),
    (b'{"a": ' + b"1" * 5000 + b"}", "is not JSON"),
])
def test_a_bad_line_is_named_and_the_next_one_read(tmp_path: Path, line: bytes, reason: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n\n' + line + b'\n{"a": 2}')
    first, bad, last = read_records(path)
    assert (first, last) == (Record(1, {"a": 1}), Record(4, {"a": 2}))
    assert isinstance(bad, Reject)
    assert (bad.line, bad.field) == (3, "row")
    assert reason in bad.reason


def test_a_line_that_would_fill_the_memory_is_a_bad_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with path.open("wb") as file:
        file.write(b'{"a": "' + b"x" * (2 * MAX_LINE_BYTES + 5) + b'"}\n{"a": 2}\n')
    long, last = read_records(path)
    assert str(long) == "line 1: row: is longer than 16 MiB"
    assert last == Record(2, {"a": 2})


@pytest.mark.parametrize(("name", "content"), [
    ("rows.jsonl.gz", gzip.compress(_jsonl(ROWS).encode())[:-20]), ("rows.jsonl.gz", b"no gzip"),
    ("rows.jsonl.bz2", bz2.compress(_jsonl(ROWS).encode())[:-20]), ("rows.jsonl.xz", b"no xz"),
    ("rows.jsonl.zst", b"no zstandard"), ("rows.jsonl.zst", PACKERS[".zst"](_jsonl(ROWS).encode())[:-20]),
    ("rows.json", b'[{"a": 1}, {'), ("rows.parquet", b"PAR1 no parquet"),
    ("rows.arrow", b"no arrow"), ("rows.csv", b'a,b\n"open'), ("rows.csv", b"a,b\n\xff,1\n"),
])
def test_a_file_that_breaks_off_is_an_error_that_names_it(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"{name} cannot be read"):
        list(read_records(tmp_path / name))


def test_what_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.jsonl cannot be read: No such file"):
        list(read_records(tmp_path / "none.jsonl"))
    (tmp_path / "rows.xml").write_text("<a/>")
    with pytest.raises(DataError, match=r"rows\.xml is of no known format; its name must end in \.jsonl"):
        list(read_records(tmp_path / "rows.xml"))
    with pytest.raises(DataError, match=r"has no \.jsonl"):
        list(read_records(tmp_path))


_texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))


@given(st.lists(st.fixed_dictionaries({"text": _texts.filter(bool), "other": _texts.filter(bool)}), min_size=1))
def test_any_text_comes_back_from_csv_and_json_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, str]],
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    for form in (".csv", ".json", ".jsonl"):
        WRITERS[form](folder / f"rows{form}", rows)
        assert _values(folder / f"rows{form}") == rows
