"""Rows made through a real socket: paid for once, checked as real ones are, and true about where they come from."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import adapters
from adapters.augment import Augmented, AugmentSettings, augment
from adapters.augment.settings import PROMPTS
from adapters.data import DataError, DataSettings
from adapters.data.prepare import prepare
from adapters.demo import TICKET_QUESTION, write_tickets
from adapters.teacher import Budget, Teacher, TeacherError, TeacherSettings, Usage
from tests.fakes.serving import serving
from tests.fakes.teacher import FakeTeacher, asked, obliging
from tests.fixtures.yard import Yard

ROOT = Path(adapters.__file__).parents[1]
LARGE, SMALL = "billing", "praise"
SETTINGS = AugmentSettings(edge_cases=0.1, per_call=2)
COMMAND = "import typer; from adapters.commands.augment import augment; typer.run(augment)"


class Room:
    """Prepared tickets with a class that lacks rows, and a teacher behind a socket."""

    def __init__(self, folder: Path, fake: FakeTeacher, url: str) -> None:
        self.folder = folder
        self.fake = fake
        self.teacher = TeacherSettings(url=url, model="big", backoff=0.001, attempts=2, prompt_price=1.0,
                                       completion_price=2.0)
        self.lines: list[str] = []

    @property
    def source(self) -> Path:
        return self.folder / "prepared"

    @property
    def golden_text(self) -> str:
        line = (self.folder / "tickets-golden.jsonl").read_text().splitlines()[0]
        return str(json.loads(line)["messages"][-1]["content"])

    def make(self, out: str = "augmented", settings: AugmentSettings = SETTINGS, **options: Any) -> Augmented:
        """Augment into the folder `out`."""
        return asyncio.run(augment(self.source, self.folder / out, self.teacher, settings, report=self.lines.append,
                                   **options))

    def questions(self) -> Counter[str]:
        """How often each question was asked."""
        return Counter(json.dumps(body, sort_keys=True) for body in self.fake.seen)


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Room]:
    written = write_tickets(tmp_path, rows=300, golden=20)
    kept = Counter[str]()
    with (tmp_path / "rows.jsonl").open("w") as file:
        for line in written.rows.read_text().splitlines():
            label = json.loads(line)["label"]
            kept[label] += 1
            if label in (LARGE, SMALL) and kept[label] <= (30 if label == LARGE else 6):
                file.write(line + "\n")
    prepare(DataSettings(source=tmp_path / "rows.jsonl", golden=written.golden), tmp_path / "prepared",
            report=lambda line: None)
    fake = FakeTeacher(obliging)
    with serving(fake.app(), tmp_path / "teacher.sock") as url:
        yield Room(tmp_path, fake, url)


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _kinds(rows: list[dict[str, Any]]) -> dict[str, int]:
    return dict(Counter(row["provenance"]["kind"] for row in rows))


def test_a_class_that_lacks_rows_has_as_many_as_the_largest_and_real_rows_stay(room: Room) -> None:
    done = room.make(settings=replace(SETTINGS, edge_cases=0))
    rows = _rows(done.train)
    assert Counter(row["label"] for row in rows) == {LARGE: 30, SMALL: 30}
    assert rows[:36] == _rows(room.source / "train.jsonl")
    assert rows[36:] == _rows(done.made)
    assert _kinds(rows[36:]) == {"paraphrase": 12, "hard_negative": 12}


def test_made_rows_answer_with_their_own_class_in_the_chat_of_their_source(room: Room) -> None:
    real = {row["id"]: row for row in _rows(room.source / "train.jsonl")}
    for row in _rows(room.make().made):
        assert row["messages"][0] == {"role": "system", "content": TICKET_QUESTION}
        assert row["messages"][-1] == {"role": "assistant", "content": row["label"]}
        source_label = real[row["provenance"]["source"]]["label"]
        assert (source_label == row["label"]) == (row["provenance"]["kind"] != "hard_negative")


def test_every_made_row_says_who_made_it_and_how(room: Room) -> None:
    done = room.make(settings=replace(SETTINGS, seed=5))
    rows = _rows(done.made)
    assert len({row["id"] for row in rows}) == len(rows) > 0
    for row in rows:
        provenance = row["provenance"]
        prompt = PROMPTS / provenance["prompt"]
        assert prompt.stem == provenance["kind"]
        assert provenance["prompt_sha256"] == sha256(prompt.read_bytes()).hexdigest()
        assert (provenance["teacher"], provenance["answered_by"]) == ("big", "big-2026")
        assert (provenance["temperature"], provenance["max_tokens"]) == (0.9, 1024)
        assert provenance["verified"] == (provenance["kind"] != "paraphrase")
        assert provenance["seed"] >= 5
        assert len(provenance["request_sha256"]) == 64


def test_a_prompt_of_ones_own_replaces_ours_and_is_named_by_its_digest(room: Room, tmp_path: Path) -> None:
    own = tmp_path / "prompts"
    own.mkdir()
    (own / "paraphrase.md").write_text("Say it like a sailor.")
    done = room.make(settings=replace(SETTINGS, prompts=own))
    digests = {row["provenance"]["prompt_sha256"] for row in _rows(done.made)
               if row["provenance"]["kind"] == "paraphrase"}
    assert digests == {sha256(b"Say it like a sailor.").hexdigest()}
    assert "Say it like a sailor." in {body["messages"][0]["content"] for body in room.fake.seen}


def _teach(room: Room, text: str, kind: str = "paraphrase.md") -> None:
    """Let the first text of the first reply to this kind of question be this one."""
    prompt = (PROMPTS / kind).read_text()
    said: list[str] = []

    def answer(body: Mapping[str, Any]) -> str:
        reply = json.loads(obliging(body))
        if body["messages"][0]["content"] == prompt and not said:
            said.append(text)
            reply["texts"][0] = text
        return json.dumps(reply)

    room.fake.answer = answer


@pytest.mark.parametrize(("text", "reason"), [
    ("golden", "tickets-golden.jsonl ticket-1"), ("real", "the same as"), ("", "must be text that is not empty"),
    ("x" * 100_001, "more than max_chars = 100,000"),
])
def test_a_made_row_passes_the_same_checks_as_a_real_one(room: Room, text: str, reason: str) -> None:
    real = next(row for row in _rows(room.source / "train.jsonl") if row["label"] == SMALL)
    text = {"golden": room.golden_text, "real": real["messages"][1]["content"]}.get(text, text)
    _teach(room, text)
    done = room.make()
    [fault] = _rows(done.rejects)
    assert (fault["kind"], fault["text"]) == ("paraphrase", text)
    assert reason in fault["reason"]
    assert text not in [row["messages"][1]["content"] for row in _rows(done.made)]
    assert done.document["counts"]["paraphrase"] == {"accepted": 11, "rejected": 1}


def test_a_hard_negative_that_is_sorted_elsewhere_is_rejected(room: Room) -> None:
    _teach(room, f"this is about {LARGE}", "hard_negative.md")
    done = room.make()
    [fault] = _rows(done.rejects)
    assert fault["reason"] == f"meant for '{SMALL}', but sorted into '{LARGE}'"


def test_without_a_second_look_nothing_is_sorted(room: Room) -> None:
    done = room.make(settings=replace(SETTINGS, verify=False))
    assert all("count" in asked(body) for body in room.fake.seen)
    assert not any(row["provenance"]["verified"] for row in _rows(done.made))


@pytest.mark.parametrize("reply", [
    "Sure! Here you are.", '{"texts": "one"}', '{"texts": []}', '{"texts": ["a"], "n": 1}',
])
def test_a_reply_that_cannot_be_read_is_listed_and_not_paid_for_again(room: Room, reply: str) -> None:
    room.fake.answer = lambda body: reply if "answer" in asked(body) else obliging(body)
    done = room.make(settings=replace(SETTINGS, edge_cases=0))
    faults = _rows(done.rejects)
    assert len(faults) == 6
    assert all("the reply" in fault["reason"] for fault in faults)
    before = len(room.fake.seen)
    assert room.make(settings=replace(SETTINGS, edge_cases=0)).document == done.document
    assert len(room.fake.seen) == before


def test_a_refused_request_is_listed_and_the_others_go_on(room: Room) -> None:
    room.fake.failures.append((400, {}, {"error": {"message": "Against our rules.", "code": "content"}}))
    done = room.make()
    [fault] = _rows(done.rejects)
    assert "answered 400: Against our rules." in fault["reason"]
    assert done.document["stopped"] is None


def test_a_reply_that_was_cut_off_says_so(room: Room) -> None:
    room.fake.finish_reason = "length"
    room.fake.answer = lambda body: '{"texts": ["half of'
    assert "(cut off at max_tokens = 1024)" in _rows(room.make().rejects)[0]["reason"]


def test_where_everything_is_refused_the_settings_are_blamed(room: Room) -> None:
    room.teacher = replace(room.teacher, concurrency=2)
    room.fake.failures.extend([(400, {}, {"error": {"message": "No response_format.", "code": "x"}})] * 99)
    with pytest.raises(TeacherError, match=r"first 8 requests were all refused: .*No response_format\. Where .*off"):
        room.make()
    assert len(room.fake.seen) <= 9
    room.fake.failures.clear()
    assert room.make(settings=replace(SETTINGS, structured=False)).document["stopped"] is None


def test_equal_texts_are_sorted_once(room: Room) -> None:
    text = f"the same {SMALL} each time"

    def answer(body: Mapping[str, Any]) -> str:
        return obliging(body) if "count" not in asked(body) else json.dumps({"texts": [text] * asked(body)["count"]})

    room.fake.answer = answer
    room.fake.delay = 0.01
    done = room.make(settings=replace(SETTINGS, hard_negatives=1.0, edge_cases=0))
    assert sum("count" not in asked(body) for body in room.fake.seen) == 1
    assert len(_rows(done.made)) == 1
    assert "the same as" in _rows(done.rejects)[0]["reason"]


def test_what_is_masked_in_real_rows_is_masked_in_made_ones(room: Room) -> None:
    prepare(DataSettings(source=room.folder / "rows.jsonl", pii="mask", pii_finder="patterns"), room.folder / "masked",
            report=room.lines.append)
    _teach(room, f"{SMALL} for you, write to jo.smith@example.com")
    done = asyncio.run(augment(room.folder / "masked", room.folder / "augmented", room.teacher, SETTINGS,
                               report=room.lines.append))
    assert "jo.smith" not in done.train.read_text()
    assert f"{SMALL} for you, write to " in done.made.read_text()


def test_the_budget_stops_cleanly_and_a_larger_one_goes_on_without_asking_twice(room: Room) -> None:
    room.fake.usage = (400, 100)
    done = room.make(settings=replace(SETTINGS, max_tokens=100), budget=Budget(tokens=12_000))
    some = len(_rows(done.made))
    assert "The budget of 12,000 tokens is reached" in done.document["stopped"]
    assert "goes on from here" in room.lines[-1]
    assert done.document["usage"]["calls"] == len(room.fake.seen)
    done = room.make(settings=replace(SETTINGS, max_tokens=100), budget=Budget(tokens=10_000_000))
    assert done.document["stopped"] is None
    assert 0 < some < len(_rows(done.made)) == 28
    assert set(room.questions().values()) == {1}
    calls = len(room.fake.seen)
    assert done.document["usage"] == {"calls": calls, "prompt_tokens": 400 * calls, "completion_tokens": 100 * calls,
                                      "cost": pytest.approx(600e-6 * calls)}


def test_what_earlier_runs_spent_counts_against_the_budget(room: Room) -> None:
    room.make()
    spent = Usage(**_rows(room.folder / "augmented" / "journal.jsonl")[-1]["spent"])
    before = len(room.fake.seen)
    more = room.make(settings=replace(SETTINGS, edge_cases=0.5), budget=Budget(tokens=spent.tokens + 1))
    assert more.document["stopped"]
    assert len(room.fake.seen) == before


def test_a_server_that_fails_loses_no_answer(room: Room) -> None:
    room.teacher = replace(room.teacher, concurrency=1)
    answered = 4

    def answer(body: Mapping[str, Any]) -> str:
        if len(room.fake.seen) == answered:
            room.fake.failures.extend([(503, {}, {})] * 2)
        return obliging(body)

    room.fake.answer = answer
    with pytest.raises(TeacherError, match="gave no answer in 2 attempts: 503"):
        room.make()
    done = room.make()
    assert done.document["stopped"] is None
    assert sorted(room.questions().values())[-2:] == [1, 3]  # only the one that failed twice came again


def test_after_a_failure_nothing_new_is_begun_and_what_is_under_way_is_kept(room: Room) -> None:
    room.teacher = replace(room.teacher, concurrency=2)
    room.fake.delay = 0.05
    room.fake.failures.append((401, {}, {"error": {"message": "Expired.", "code": "invalid_api_key"}}))
    with pytest.raises(TeacherError, match="Expired"):
        room.make()
    assert len(room.fake.seen) == 2
    assert _answers(room.folder / "augmented" / "journal.jsonl") == 1


def test_a_killed_run_goes_on_with_what_was_answered(room: Room) -> None:
    whole = room.make("whole")
    room.fake.seen.clear()
    room.fake.delay = 0.03
    command = [sys.executable, "-c", COMMAND, str(room.source), "--out", str(room.folder / "augmented"), "--url",
               room.teacher.url, "--model", "big", "--edge-cases", "0.1", "--per-call", "2", "--concurrency", "2",
               "--prompt-price", "1", "--completion-price", "2"]
    journal = room.folder / "augmented" / "journal.jsonl"
    answered: dict[str, int] = {}
    for kills in (8, 16):
        process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
                                   stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        while len(room.fake.seen) < kills and process.poll() is None:
            time.sleep(0.005)
        assert process.poll() is None
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        answered[str(kills)] = _answers(journal)
    assert all(earlier < later for earlier, later in pairwise([0, *answered.values()]))
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True,
                          text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (room.folder / "augmented" / "made.jsonl").read_bytes() == whole.made.read_bytes()
    repeated = [number - 1 for number in room.questions().values() if number > 1]
    assert sum(repeated) <= 2 * 2  # no more than was under way at each of the two kills
    assert _answers(journal) == len(room.questions())


def _answers(journal: Path) -> int:
    lines = journal.read_text().splitlines()
    return sum('"text"' in line for line in lines)


def test_a_folder_that_is_not_ours_is_left_alone(room: Room, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "train.jsonl").write_text("mine")
    with pytest.raises(DataError, match=r"is not empty and holds no journal\.jsonl"):
        room.make("other")
    with pytest.raises(DataError, match="holds no journal"):
        room.make("prepared")
    assert (tmp_path / "other" / "train.jsonl").read_text() == "mine"


def test_the_key_is_in_no_file(room: Room) -> None:
    room.fake.key = "secret-key"
    room.teacher = replace(room.teacher, key="secret-key")
    room.make()
    assert not [path for path in (room.folder / "augmented").iterdir() if b"secret-key" in path.read_bytes()]
    assert "secret-key" not in "".join(room.lines)


async def test_our_own_gateway_is_a_teacher(yard: Yard) -> None:
    key = yard.add_tenant("acme")
    yard.add_adapter("acme", "writer")
    settings = TeacherSettings(url=f"unix:{yard.socket}", model="writer", key=key)
    async with Teacher(settings) as teacher:
        reply = await teacher.ask([{"role": "user", "content": "hello"}], max_tokens=12)
    assert reply.text
    assert reply.model == "writer"
    assert reply.usage.completion_tokens == 12
    async with Teacher(replace(settings, key="sy-wrong")) as teacher:
        with pytest.raises(TeacherError, match=r"answered 401: .* Give a key that may use 'writer'"):
            await teacher.ask([{"role": "user", "content": "hello"}])
