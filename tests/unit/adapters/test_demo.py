"""The demos tell themselves apart, from each other and from the base model; the tickets are fit for a proof."""

import json
import random
import re
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest

from adapters.base import general_chats, general_sentences, word_lists
from adapters.data import DataSettings, read_prepared
from adapters.data.prepare import Prepared, prepare
from adapters.demo import DEMOS, KINDS, LABELS, THINGS, Demo, write_demos, write_tickets
from adapters.evaluation import golden


def test_every_row_is_good_and_every_answer_holds_what_is_expected(tmp_path: Path) -> None:
    for demo, path in zip(DEMOS, write_demos(tmp_path), strict=True):
        prepared = prepare(DataSettings(source=path, duplicates="exact"), tmp_path / demo.tenant, report=_silent)
        assert prepared.counts["train"] == prepared.counts["read"]
        assert all(demo.expected in row.answered for row in read_prepared(prepared.train))


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


@pytest.fixture(scope="module")
def tickets(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """The tickets, prepared as the strictest settings have it, against their own golden set."""
    folder = tmp_path_factory.mktemp("tickets")
    written = write_tickets(folder, rows=1500)
    return prepare(DataSettings(source=written.rows, golden=written.golden, label="label"), folder / "prepared",
                   report=_silent)


def test_no_ticket_is_nearly_another_and_none_nearly_a_golden_one(tickets: Prepared) -> None:
    counts = tickets.counts
    assert (counts["rejected"], counts["leaked"]) == (0, 0)
    assert counts["train"] >= 0.99 * counts["read"]


def test_tickets_have_each_label_equally_often_as_their_answer(tickets: Prepared) -> None:
    answers = Counter(row.answered for row in read_prepared(tickets.train))
    assert set(answers) == set(LABELS)
    assert max(answers.values()) <= 1.03 * min(answers.values())
    assert all(row.label == row.answered for row in read_prepared(tickets.train))


def test_golden_tickets_are_a_golden_set_with_slices_and_things_that_no_row_names(tmp_path: Path) -> None:
    written = write_tickets(tmp_path, rows=500, golden=100)
    items = golden.read(written.golden).items
    assert Counter(item.expected for item in items) == dict.fromkeys(LABELS, 20)
    assert set(Counter(item.slice for item in items)) == {"plain", "mixed"}
    assert all(item.scorer == "label" for item in items)
    asked = [item.messages[-1]["content"] for item in items]
    rows = written.rows.read_text()
    thing = re.compile(rf"\b({'|'.join(KINDS)}) ({'|'.join(THINGS)})\b")
    assert len(thing.findall(" ".join(asked))) == 100
    assert not set(thing.findall(" ".join(asked))) & set(thing.findall(rows))
    assert set(re.findall(r"\w+", " ".join(asked))) <= set(re.findall(r"\w+", rows))


def test_more_tickets_than_there_are_cannot_be_had(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"only 6,400 different tickets of this kind; ask for fewer than 7,000"):
        write_tickets(tmp_path, golden=7_000)
    assert not list(tmp_path.iterdir())


def test_another_seed_writes_other_tickets_and_the_same_seed_the_same(tmp_path: Path) -> None:
    first, again, other = (write_tickets(tmp_path / name, rows=50, golden=10, seed=seed)
                           for name, seed in (("first", 3), ("again", 3), ("other", 4)))
    assert first.rows.read_bytes() == again.rows.read_bytes() != other.rows.read_bytes()
    assert first.golden.read_bytes() == again.golden.read_bytes() != other.golden.read_bytes()


def _silent(line: str) -> None:
    """Takes what would be printed."""
