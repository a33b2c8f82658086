"""Near-duplicates are found and nothing else is, however much of an instruction all rows share."""

import random
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from datasketch import MinHash
from hypothesis import given
from hypothesis import strategies as st

from adapters.base import WORDS
from adapters.data.duplicates import (
    MISSED,
    PERMUTATIONS,
    NearIndex,
    Sketcher,
    bands,
    normalise,
    pieces,
    shared_pieces,
    similarity,
)

NOTHING = shared_pieces([])


def _index(texts: list[str], sketcher: Sketcher) -> NearIndex:
    index = NearIndex(sqlite3.connect(":memory:"), "texts", sketcher, texts.__getitem__)
    for number, text in enumerate(texts):
        index.add(number, sketcher.sketch(text))
    return index


def _text(chance: random.Random, words: int = 60) -> str:
    return " ".join(chance.choices(WORDS, k=words))


def test_case_spaces_and_compatible_letters_make_no_difference() -> None:
    assert normalise("  \uff28ello\tWORLD\u00a0 ") == "hello world"


@given(st.text(), st.text())
def test_similarity_is_that_of_the_sets_of_pieces(one: str, other: str) -> None:
    def naive(text: str) -> set[str]:
        return {text[at:at + 5] for at in range(max(1, len(text) - 4))} if text else set()

    one, other = normalise(one).encode("utf-8", "ignore").decode(), normalise(other).encode("utf-8", "ignore").decode()
    common, both = naive(one) & naive(other), naive(one) | naive(other)
    assert similarity(pieces(one), pieces(other)) == pytest.approx(len(common) / len(both) if both else 1.0)


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.85, 0.95, 1.0])
def test_a_pair_at_the_threshold_is_hardly_ever_missed(threshold: float) -> None:
    count, rows = bands(threshold)
    assert (1 - threshold ** rows) ** count <= MISSED


def test_edited_texts_are_found_among_many_others() -> None:
    chance = random.Random(1)
    texts = [_text(chance) for _ in range(300)]
    sketcher = Sketcher(0.85, NOTHING)
    index = _index(texts, sketcher)
    for number, text in enumerate(texts):
        assert index.near(sketcher.sketch(text.upper().replace(" ", "  ") + "!")) == [number]
    assert all(index.near(sketcher.sketch(_text(chance))) == [] for _ in range(300))


def test_what_is_near_is_told_by_a_true_comparison() -> None:
    chance = random.Random(2)
    text = _text(chance, 40)
    sketcher = Sketcher(0.7, NOTHING)
    index = _index([text], sketcher)
    for cut in range(1, 40):
        shorter = " ".join(text.split()[cut:])
        is_near = similarity(sketcher.own_pieces(text), sketcher.own_pieces(shorter)) >= 0.7
        assert index.near(sketcher.sketch(shorter)) == ([0] if is_near else [])


def test_an_instruction_that_all_rows_share_makes_no_near_duplicates() -> None:
    chance = random.Random(3)
    instruction = _text(chance, 200)
    texts = [f"{instruction}\n\n{_text(chance, 12)}" for _ in range(200)]
    plain = Sketcher(0.85, NOTHING)
    assert len(_index(texts, plain).near(plain.sketch(texts[0]))) == 200
    sketcher = Sketcher(0.85, shared_pieces(map(normalise, texts)))
    assert sketcher.shared_count > 100
    index = _index(texts, sketcher)
    assert all(index.near(sketcher.sketch(text)) == [number] for number, text in enumerate(texts))
    assert index.near(sketcher.sketch(f"{texts[7]}!")) == [7]


def test_texts_of_nothing_but_shared_pieces_are_alike_only_when_equal() -> None:
    sketcher = Sketcher(0.85, shared_pieces(["yes please", "no thanks"] * 50))
    index = _index(["yes please", "no thanks"], sketcher)
    assert index.near(sketcher.sketch("Yes  please")) == [0]
    assert index.near(sketcher.sketch("no thanks")) == [1]


def test_in_a_few_rows_nothing_counts_as_shared() -> None:
    assert len(shared_pieces(["the same text"] * 49)) == 0
    assert len(shared_pieces(["the same text"] * 50)) > 0


def test_as_many_are_compared_as_wanted(tmp_path: Path) -> None:
    sketcher = Sketcher(0.85, NOTHING)
    index = _index(["the same words again"] * 20, sketcher)
    assert index.near(sketcher.sketch("the same words again"), 3) == [0, 1, 2]
    assert len(index.near(sketcher.sketch("the same words again"))) == 20


def test_sketches_do_not_change_between_runs() -> None:
    sketch = Sketcher(0.85, NOTHING).sketch("the next train leaves at noon")
    assert np.array_equal(sketch.pieces, np.sort(sketch.pieces))
    assert sketch.keys == Sketcher(0.85, NOTHING).sketch("The next  train leaves at NOON").keys


def test_pieces_handed_over_at_once_are_hashed_like_one_after_another() -> None:
    sketcher = Sketcher(0.85, NOTHING)
    text = _text(random.Random(4))
    minhash = MinHash(PERMUTATIONS, seed=1, hashfunc=int, scheme="affine32")
    minhash.update_batch(sketcher.own_pieces(text).tolist())
    assert sketcher.keys_of(minhash) == sketcher.sketch(text).keys
