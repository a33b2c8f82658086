"""The journal forgets no answer and no money, however its writer ended."""

from pathlib import Path

import pytest

from adapters.augment.journal import Answer, Journal, JournalError
from adapters.teacher import Usage

WORST = Usage(1, 100, 50, 0.5)
REAL = Usage(1, 10, 5, 0.05)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.jsonl"


def test_an_answer_is_there_again(path: Path) -> None:
    with Journal(path) as journal:
        journal.begin("a", WORST)
        journal.end("a", Answer("hé", "big"), REAL)
    with Journal(path) as journal:
        assert journal.answers == {"a": Answer("hé", "big")}
        assert journal.spent == REAL


def test_a_call_without_an_answer_is_none_and_its_money_is_spent(path: Path) -> None:
    with Journal(path) as journal:
        journal.begin("a", WORST)
        journal.end("a", None, REAL)
    with Journal(path) as journal:
        assert (journal.answers, journal.spent) == ({}, REAL)


def test_a_call_that_a_kill_interrupted_counts_at_its_most_and_once(path: Path) -> None:
    with Journal(path) as journal:
        journal.begin("a", WORST)
        journal.begin("b", WORST)
        journal.end("b", Answer("x", "big"), REAL)
    for _ in range(3):
        with Journal(path) as journal:
            assert journal.spent == REAL + WORST


def test_an_interrupted_call_that_is_asked_again_is_counted_both_times(path: Path) -> None:
    with Journal(path) as journal:
        journal.begin("a", WORST)
    with Journal(path) as journal:
        journal.begin("a", WORST)
        journal.end("a", Answer("x", "big"), WORST + REAL)
    with Journal(path) as journal:
        assert journal.spent == WORST + REAL


def test_what_a_kill_interrupted_is_counted_once_when_others_went_on(path: Path) -> None:
    with Journal(path) as journal:
        journal.begin("a", WORST)
    with Journal(path) as journal:
        journal.begin("b", WORST)
        journal.end("b", Answer("x", "big"), journal.spent - WORST + REAL)
    with Journal(path) as journal:
        assert journal.spent == WORST + REAL


@pytest.mark.parametrize("cut", [1, 10, 40])
def test_a_line_that_a_kill_cut_short_is_removed(path: Path, cut: int) -> None:
    with Journal(path) as journal:
        journal.begin("a", WORST)
        journal.end("a", Answer("x", "big"), REAL)
        journal.begin("b", WORST)
        journal.end("b", Answer("y", "big"), REAL + REAL)
    path.write_bytes(path.read_bytes()[:-cut])
    with Journal(path) as journal:
        assert journal.answers == {"a": Answer("x", "big")}
        assert journal.spent == REAL + WORST
        journal.begin("b", WORST)
        journal.end("b", Answer("z", "big"), REAL + WORST + REAL)
    with Journal(path) as journal:
        assert journal.answers["b"] == Answer("z", "big")


def test_two_writers_at_once_are_one_too_many(path: Path) -> None:
    with Journal(path), pytest.raises(JournalError, match="is in use by another process"), Journal(path):
        pass


@pytest.mark.parametrize("line", ["{}", "[]", "no", '{"begun": "a"}', '{"ended": "a", "spent": {"money": 1}}'])
def test_a_file_of_another_kind_is_not_touched(path: Path, line: str) -> None:
    path.write_text(line + "\n")
    with pytest.raises(JournalError, match=r"Line 1 of .*journal\.jsonl is no line of a journal"), Journal(path):
        pass
    assert path.read_text() == line + "\n"


def test_a_journal_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="cannot be written: Is a directory"), Journal(tmp_path):
        pass
