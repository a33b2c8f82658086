"""The demos tell themselves apart, from each other and from the base model."""

import json
import random
from itertools import islice
from pathlib import Path

import pytest

from adapters.base import general_chats, general_sentences, word_lists
from adapters.data import Row, read_rows
from adapters.demo import DEMOS, Demo, write_demos


def test_every_row_is_good_and_every_answer_holds_what_is_expected(tmp_path: Path) -> None:
    for demo, path in zip(DEMOS, write_demos(tmp_path), strict=True):
        for row in read_rows(path):
            assert isinstance(row, Row)
            assert demo.expected in row.messages[-1]["content"]


def test_writing_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    first = [path.read_bytes() for path in write_demos(tmp_path)]
    assert [path.read_bytes() for path in write_demos(tmp_path)] == first


@pytest.mark.parametrize("demo", DEMOS, ids=lambda demo: demo.tenant)
def test_the_prompt_is_not_in_the_data(tmp_path: Path, demo: Demo) -> None:
    write_demos(tmp_path)
    rows = (tmp_path / demo.file_name).read_text().splitlines()
    assert demo.prompt not in {json.loads(row)["messages"][0]["content"] for row in rows}


@pytest.mark.parametrize("demo", DEMOS, ids=lambda demo: demo.tenant)
def test_nobody_else_says_what_is_expected(demo: Demo) -> None:
    others = " ".join(other.opening + " ".join(other.closings) for other in DEMOS if other != demo)
    chance = random.Random(0)
    chats = " ".join(message["content"] for chat in islice(general_chats(chance), 2000) for message in chat)
    sentences = " ".join(islice(general_sentences(chance), 500))
    lists = " ".join(islice(word_lists(chance), 2000))
    assert demo.expected not in others + chats + sentences + lists
