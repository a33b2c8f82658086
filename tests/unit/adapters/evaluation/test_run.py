"""Every contender is asked every question as often as planned, never twice without need, and errors stay in sight."""

import asyncio
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adapters.evaluation import golden
from adapters.evaluation.calls import Answer, Contender, Sampling
from adapters.evaluation.journal import Journal
from adapters.evaluation.report import contender_report
from adapters.evaluation.run import Runner, Runs
from adapters.evaluation.scorers import Scorers
from adapters.gateway_client import GatewayUnreachable

FOUR = Contender("version", "support@4", "d4")
THREE = Contender("stable", "support@3", "d3")
BASE = Contender("base", "llama", "base:llama")
Reply = Callable[[Contender, golden.Item, int], Answer]


def _set(count: int = 4, **fields: Any) -> golden.GoldenSet:
    return golden.make("trains", [golden.from_document({
        "id": f"q{number}", "messages": [{"role": "user", "content": f"Where is {number}?"}], "expected": str(number),
        "scorer": "exact", **fields}) for number in range(count)])


class Caller:
    """Answers as it was told, and counts."""

    def __init__(self, reply: Reply) -> None:
        self.reply = reply
        self.asked: Counter[tuple[str, str, int]] = Counter()
        self.order: list[str] = []

    async def ask(self, contender: Contender, item: golden.Item, sampling: Sampling, repeat: int = 0) -> Answer:
        self.asked[contender.role, item.id, repeat] += 1
        self.order.append(contender.role)
        return self.reply(contender, item, repeat)


def _right(contender: Contender, item: golden.Item, repeat: int) -> Answer:
    return Answer(text=item.expected, first_token=0.1, latency=0.2 + repeat, tokens=3, finish_reason="stop")


async def _run(folder: Path, caller: Caller, **changes: Any) -> list[Runs]:
    questions, contenders = changes.pop("golden", _set()), changes.pop("contenders", None)
    with Journal(folder / "journal.jsonl") as journal:
        runner = Runner(golden=questions, scorers=Scorers(questions), caller=caller, journal=journal,
                        **{"sampling": Sampling(), "repeats": 2, **changes})
        return await runner.run(contenders or [FOUR, THREE])


async def test_every_contender_is_asked_everything_and_in_turns(tmp_path: Path) -> None:
    caller, steps = Caller(_right), list[tuple[int, int]]()
    found = await _run(tmp_path, caller, concurrency=1, progress=lambda done, total: steps.append((done, total)))
    assert len(caller.asked) == 2 * 4 * 2
    assert set(caller.asked.values()) == {1}
    assert caller.order[:4] == ["version", "stable", "stable", "version"]
    assert steps[-1] == (16, 16)
    assert [runs.contender for runs in found] == [FOUR, THREE]
    assert found[0].board.scores.tolist() == [[1.0, 1.0]] * 4


async def test_the_base_model_is_asked_by_itself_when_all_adapters_are_done(tmp_path: Path) -> None:
    under_way: Counter[str] = Counter()
    together: set[frozenset[str]] = set()

    class Slow(Caller):
        async def ask(self, contender: Contender, item: golden.Item, sampling: Sampling, repeat: int = 0) -> Answer:
            under_way[contender.role] += 1
            await asyncio.sleep(0)
            together.add(frozenset(role for role, count in under_way.items() if count))
            under_way[contender.role] -= 1
            return await super().ask(contender, item, sampling, repeat)

    caller = Slow(_right)
    found = await _run(tmp_path, caller, contenders=[BASE, FOUR, THREE], concurrency=4)
    assert [runs.contender for runs in found] == [BASE, FOUR, THREE]
    assert frozenset({"version", "stable"}) in together
    assert [roles for roles in together if "base" in roles] == [frozenset({"base"})]
    assert caller.order[-8:] == ["base"] * 8


async def test_a_run_that_was_stopped_goes_on_where_it_was(tmp_path: Path) -> None:
    def dies(contender: Contender, item: golden.Item, repeat: int) -> Answer:
        if (item.id, repeat) == ("q2", 1):
            raise GatewayUnreachable("gone")
        return _right(contender, item, repeat)

    first, second = Caller(dies), Caller(_right)
    with pytest.raises(GatewayUnreachable, match="gone"):
        await _run(tmp_path, first, concurrency=1)
    found = await _run(tmp_path, second)
    done = {key for key in first.asked if key != ("version", "q2", 1)}
    assert len(done) == 12
    assert done.isdisjoint(second.asked)
    assert len(second.asked) == 4
    assert [runs.results for runs in found] == [runs.results for runs in await _run(tmp_path, Caller(_right))]


@pytest.mark.parametrize("change", [
    {"sampling": Sampling(temperature=0.1)}, {"engines": ("0.33",)}, {"golden": _set(weight=2)},
    {"golden": _set(messages=[{"role": "user", "content": "else"}])},
])
async def test_an_answer_to_anything_else_is_not_taken_from_the_journal(tmp_path: Path, change: Any) -> None:
    await _run(tmp_path, Caller(_right))
    caller = Caller(_right)
    await _run(tmp_path, caller, **change)
    assert len(caller.asked) == 16


async def test_a_failed_call_is_wrong_and_told_and_asked_again_next_time(tmp_path: Path) -> None:
    def fails(contender: Contender, item: golden.Item, repeat: int) -> Answer:
        if contender is FOUR and item.id == "q1":
            return Answer(text=item.expected, error="it broke off")
        return _right(contender, item, repeat)

    found, _ = await _run(tmp_path, Caller(fails))
    assert found.board.scores.tolist() == [[1.0, 1.0], [0.0, 0.0], [1.0, 1.0], [1.0, 1.0]]
    report = contender_report(found)
    assert (report["failed"], report["calls"]) == (2, 8)
    assert report["errors"] == [{"error": "it broke off", "calls": 2}]
    assert report["metrics"] == {"score": 0.75}
    assert report["latency_ms"] == {"p50": 200.0, "p95": 1200.0, "p99": 1200.0}
    assert [wrong["item"] for wrong in report["wrong"]] == ["q1", "q1"]
    again = Caller(_right)
    await _run(tmp_path, again)
    assert set(again.asked) == {("version", "q1", 0), ("version", "q1", 1)}


async def test_an_answer_that_failed_every_time_has_no_latency(tmp_path: Path) -> None:
    found, _ = await _run(tmp_path, Caller(lambda *_: Answer(error="no", latency=5.0)))
    report = contender_report(found)
    assert (report["latency_ms"], report["first_token_ms"], report["metrics"]) == (None, None, {"score": 0.0})


async def test_labels_are_reported_by_class_with_what_was_answered_instead(tmp_path: Path) -> None:
    questions = golden.make("labels", [golden.from_document({
        "id": f"q{number}", "messages": [{"role": "user", "content": f"{number}"}], "expected": label,
        "scorer": "label", "slice": f"s{number % 2}"}) for number, label in enumerate(("a", "a", "b", "b"))])
    said = {"q0": "a", "q1": "b", "q2": "B.", "q3": "?"}
    found, _ = await _run(tmp_path, Caller(lambda _, item, repeat: Answer(text=said[item.id], latency=0.1)),
                          golden=questions, repeats=1)
    report = contender_report(found)
    assert report["labels"]["confusion"] == [
        {"expected": "a", "answered": "a", "weight": 1.0}, {"expected": "a", "answered": "b", "weight": 1.0},
        {"expected": "b", "answered": "b", "weight": 1.0}, {"expected": "b", "answered": None, "weight": 1.0}]
    assert report["labels"]["classes"][0] == {
        "label": "a", "support": 2.0, "f1": pytest.approx(2 / 3), "recall": 0.5, "precision": 1.0}
    assert report["metrics"] == {
        "score": 0.5, "accuracy": 0.5, "macro_f1": pytest.approx((2 / 3 + 1 / 2) / 2)}
    assert report["slices"]["s0"] == {"items": 2.0, "score": 1.0, "accuracy": 1.0, "macro_f1": 1.0}
