"""A journal gives back what was kept, however the run ended, and belongs to one process."""

import json
from pathlib import Path

import pytest

from adapters.evaluation.journal import Journal, JournalError, key_of


def _path(folder: Path) -> Path:
    return folder / "runs" / "journal.jsonl"


def test_what_was_kept_is_there_for_the_next_run(tmp_path: Path) -> None:
    with Journal(_path(tmp_path)) as journal:
        journal.add("a", {"text": "é \ud800"})
        assert journal.get("a") == {"text": "é \ud800"}
    with Journal(_path(tmp_path)) as again:
        assert (len(again), again.get("a"), again.get("b")) == (1, {"text": "é \ud800"}, None)
        again.add("b", {"n": 1})
    with Journal(_path(tmp_path)) as last:
        assert len(last) == 2


def test_a_line_that_a_crash_cut_off_is_dropped_and_the_run_goes_on(tmp_path: Path) -> None:
    with Journal(_path(tmp_path)) as journal:
        journal.add("a", {"n": 1})
        journal.add("b", {"n": 2})
    whole = _path(tmp_path).read_bytes()
    for cut in range(whole.index(b"\n") + 1, len(whole)):
        _path(tmp_path).write_bytes(whole[:cut])
        with Journal(_path(tmp_path)) as journal:
            assert (journal.get("a"), journal.get("b")) == ({"n": 1}, None)
            journal.add("b", {"n": 3})
        with Journal(_path(tmp_path)) as journal:
            assert journal.get("b") == {"n": 3}


@pytest.mark.parametrize("line", [b"{\n", b"[]\n", b'{"n": 1}\n', b"\xff\n"])
def test_a_line_that_no_crash_explains_is_refused(tmp_path: Path, line: bytes) -> None:
    with Journal(_path(tmp_path)) as journal:
        journal.add("a", {"n": 1})
    with _path(tmp_path).open("ab") as file:
        file.write(line)
    with pytest.raises(JournalError, match=r"broken at line 2; begin anew with --fresh"):
        Journal(_path(tmp_path)).__enter__()
    with Journal(_path(tmp_path), fresh=True) as journal:
        assert len(journal) == 0


def test_only_one_process_at_a_time_has_it(tmp_path: Path) -> None:
    with Journal(_path(tmp_path)), pytest.raises(JournalError, match="Another process evaluates the same"):
        Journal(_path(tmp_path)).__enter__()
    with Journal(_path(tmp_path)):
        pass


def test_a_fresh_run_does_not_forget_what_another_one_is_writing(tmp_path: Path) -> None:
    with Journal(_path(tmp_path)) as journal:
        journal.add("a", {"n": 1})
        with pytest.raises(JournalError):
            Journal(_path(tmp_path), fresh=True).__enter__()
    with Journal(_path(tmp_path)) as journal:
        assert journal.get("a") == {"n": 1}


def test_a_finished_run_leaves_its_answers_and_no_journal(tmp_path: Path) -> None:
    with Journal(_path(tmp_path)) as journal:
        journal.add("a", {"n": 1})
        journal.finish(tmp_path / "answers.jsonl")
    assert json.loads((tmp_path / "answers.jsonl").read_text()) == {"key": "a", "n": 1}
    assert not _path(tmp_path).exists()


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(JournalError, match="cannot be written"):
        Journal(_path(tmp_path)).__enter__()


def test_a_key_depends_on_every_part_and_on_no_order_of_fields() -> None:
    assert key_of({"a": 1, "b": 2}, 3) == key_of({"b": 2, "a": 1}, 3)
    assert len({key_of("a", 1), key_of("a", 2), key_of("b", 1), key_of("a", "1"), key_of(["a", 1])}) == 5
