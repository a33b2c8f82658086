"""Tokens go to disk row by row, what is cut is counted, and data of which nothing can be learned is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.data import IGNORED, DataError, Row
from adapters.data.rows import to_line
from adapters.data.tokens import BARS, TokenFile, histogram_edge, tokenise
from tests.unit.adapters.data.words import ForgetfulTokenizer, WordTokenizer


def _write(folder: Path, *pairs: tuple[str, str]) -> Path:
    rows = [Row(line, ({"role": "user", "content": prompt}, {"role": "assistant", "content": answer}), id=str(line))
            for line, (prompt, answer) in enumerate(pairs, start=1)]
    path = folder / "train.jsonl"
    path.write_text("".join(to_line(row.to_document()) for row in rows))
    return path


def _tokenise(folder: Path, *pairs: tuple[str, str], max_length: int = 64, **options: Any) -> TokenFile:
    return tokenise(_write(folder, *pairs), WordTokenizer(), max_length, folder / "tokens", **options)


def test_each_row_comes_back_with_its_labels(tmp_path: Path) -> None:
    _tokenise(tmp_path, ("hi", "yes"), ("how are you", "fine"))
    tokens = TokenFile.open(tmp_path / "tokens")
    assert len(tokens) == 2
    assert tokens.lengths.tolist() == [6, 8]
    assert tokens.lengths.dtype == np.int32
    example = tokens[1]
    assert example.input_ids.tolist() == list(range(8))
    assert example.labels.tolist() == [*[IGNORED] * 6, 6, 7]
    assert example.input_ids.dtype == example.labels.dtype == np.int32
    with pytest.raises(IndexError):
        tokens[2]


def test_an_example_is_its_own_and_leaves_the_file_as_it_is(tmp_path: Path) -> None:
    tokens = _tokenise(tmp_path, ("hi", "yes"))
    tokens[0].labels[:] = 0
    assert tokens[0].labels.tolist() == [*[IGNORED] * 4, 4, 5]


def test_a_long_row_is_cut_and_counted(tmp_path: Path) -> None:
    stats = _tokenise(tmp_path, ("hi", "one two three four"), ("hi", "yes"), max_length=6).stats
    assert (stats.rows, stats.tokens, stats.truncated, stats.longest) == (2, 12, 1, 9)
    assert stats.learned_tokens == 4
    assert stats.histogram == {6: 1, 12: 1}


def test_a_row_whose_answer_is_cut_off_is_reported_and_not_dropped_in_silence(tmp_path: Path) -> None:
    tokens = _tokenise(tmp_path, ("one two three four five", "yes"), ("hi", "yes"), max_length=6,
                       max_rejected_share=0.5)
    assert (len(tokens), tokens.stats.masked) == (1, 1)
    [reject] = (tmp_path / "tokens" / "rejects.jsonl").read_text().splitlines()
    assert json.loads(reject)["line"] == 1
    assert "all labels are masked" in reject


def test_data_with_all_labels_masked_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"All labels in .* are masked: no answer begins within max_length = 6"):
        _tokenise(tmp_path, ("one two three four five", "yes"), max_length=6, max_rejected_share=0.99)
    assert [path.name for path in tmp_path.iterdir()] == ["train.jsonl"]


def test_more_unusable_rows_than_there_may_be_are_listed(tmp_path: Path) -> None:
    pairs = [("hi", "yes")] * 30 + [("refuse me", "no")]
    with pytest.raises(DataError, match=r"(?s)1 of 31 rows .* more than 2%.*line 31: messages: .*roles must alternate"):
        _tokenise(tmp_path, *pairs)
    assert _tokenise(tmp_path, *pairs, max_rejected_share=0.04).stats.refused == 1


def test_rows_of_which_a_part_is_learned_are_counted(tmp_path: Path) -> None:
    turns = [{"role": role, "content": text} for text in "ab" for role in ("user", "assistant")]
    path = tmp_path / "train.jsonl"
    path.write_text(to_line({"messages": turns}) + to_line({"messages": turns[:2]}))
    stats = tokenise(path, ForgetfulTokenizer(), 64, tmp_path / "tokens").stats
    assert (stats.rows, stats.partly_learned) == (2, 1)
    assert "in 1 rows the template shows earlier answers differently" in stats.describe()[1]


def test_no_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no rows"):
        _tokenise(tmp_path)


def test_tokens_are_not_overwritten(tmp_path: Path) -> None:
    _tokenise(tmp_path, ("hi", "yes"))
    with pytest.raises(DataError, match="exists; remove it"):
        _tokenise(tmp_path, ("hi", "no"))


def test_what_is_no_prepared_file_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "raw.jsonl"
    path.write_text('{"prompt": "hi", "completion": "yes"}\n')
    with pytest.raises(DataError, match=r"Line 1 of .*raw\.jsonl is no prepared row; make the file with"):
        tokenise(path, WordTokenizer(), 8, tmp_path / "tokens")


def test_a_folder_without_tokens_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no tokenised data"):
        TokenFile.open(tmp_path)
    _tokenise(tmp_path, ("hi", "yes"))
    stats = tmp_path / "tokens" / "stats.json"
    stats.write_text(stats.read_text().replace("tokens/1", "tokens/0"))
    with pytest.raises(DataError, match="another release"):
        TokenFile.open(tmp_path / "tokens")


def test_the_histogram_is_drawn_against_the_length_that_rows_are_cut_to(tmp_path: Path) -> None:
    lines = _tokenise(tmp_path, ("hi", "one two three four"), ("hi", "yes"), ("hi", "no"), max_length=6
                      ).stats.describe()
    assert "1 rows cut to 6 tokens, the longest has 9" in lines[0]
    assert [line.split() for line in lines[1:]] == [
        ["up", "to", "6", "2", "#" * 40], ["up", "to", "12", "1", "#" * 20, "cut"]]


@given(st.integers(1, 100_000), st.integers(8, 8192))
def test_a_length_is_within_its_bar_and_bars_end_at_the_cut(length: int, max_length: int) -> None:
    edge = histogram_edge(length, max_length)
    assert length <= edge
    assert (edge > max_length) == (length > max_length)
    assert length > max_length or length > edge - -(-max_length // BARS) or edge == max_length
