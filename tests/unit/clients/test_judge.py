"""A judge's score is read strictly, asked for again where that may help, and never beyond its budget."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from gateway.clients.judge import ATTEMPTS, MAX_IN_FLIGHT, PROMPT, Grade, Judge
from gateway.domain.errors import Unavailable
from gateway.system import System
from tests.fixtures.judge import FakeJudge, judging

ASKED = [{"role": "user", "content": "hi"}]


@dataclass(frozen=True, slots=True)
class Clock(System):
    """A clock that stands where `at[0]` says, in seconds."""

    at: list[float]

    def monotonic(self) -> float:
        return self.at[0]


@pytest.fixture
def fake() -> Iterator[FakeJudge]:
    with judging() as made:
        yield made


@pytest.fixture
def clock() -> Clock:
    return Clock([0.0])


@pytest.fixture
async def judge(fake: FakeJudge, clock: Clock) -> AsyncIterator[Judge]:
    made = Judge(fake.url + "/", "m", clock, api_key="jk", calls_a_minute=20, first_pause=0.001, attempt_seconds=5)
    yield made
    await made.close()


async def test_it_is_told_criteria_conversation_and_answer_as_data(fake: FakeJudge, judge: Judge) -> None:
    assert await judge.grade("be kind", ASKED, "Hello.") == Grade(1.0, "It does what was asked.")
    [body] = fake.asked
    assert (body["model"], body["temperature"]) == ("m", 0)
    assert body["messages"][0] == {"role": "system", "content": PROMPT}
    assert fake.documents == [{"criteria": "be kind", "conversation": ASKED, "answer": "Hello."}]
    assert fake.headers[0]["authorization"] == "Bearer jk"


@pytest.mark.parametrize(("says", "score"), [
    ('{"score": 0.5}', 0.5), ('Well. ```json\n{"reason": "so", "score": 0}\n```', 0.0),
    ('{"thoughts": {"a": 1}} {"score": 1}', 1.0), ('{{{ {"score": 0.25}', 0.25),
])
async def test_the_first_object_with_a_score_is_read(fake: FakeJudge, judge: Judge, says: str, score: float) -> None:
    fake.says = says
    assert (await judge.grade("x", ASKED, "y")).score == score


@pytest.mark.parametrize("says", [
    "", "0.5", '{"score": "1"}', '{"score": 1.5}', '{"score": -1}', '{"score": true}', '{"score": NaN}', "{" * 5000,
    "[" * 5000 + '{"a":' * 5000])
async def test_anything_else_is_no_score_and_is_asked_for_again(fake: FakeJudge, judge: Judge, says: str) -> None:
    fake.says = says
    with pytest.raises(Unavailable, match="has no score"):
        await judge.grade("x", ASKED, "y")
    assert len(fake.asked) == ATTEMPTS and not judge.is_well


@pytest.mark.parametrize(("statuses", "asked"), [([500], 2), ([429, 503], 3), ([400], 1), ([302], 1), ([401], 1)])
async def test_only_what_may_pass_is_asked_for_again(
    fake: FakeJudge, judge: Judge, statuses: list[int], asked: int,
) -> None:
    fake.statuses = list(statuses)
    if asked > len(statuses):
        assert (await judge.grade("x", ASKED, "y")).score == 1.0
    else:
        with pytest.raises(Unavailable, match=f"status {statuses[0]}"):
            await judge.grade("x", ASKED, "y")
    assert len(fake.asked) == asked


async def test_a_judge_that_hangs_up_or_is_not_there_gives_no_score(
    fake: FakeJudge, judge: Judge, clock: Clock,
) -> None:
    fake.hangs.set()
    with pytest.raises(Unavailable) as error:
        await judge.grade("secret criteria", ASKED, "secret answer")
    assert "secret" not in error.value.message
    nobody = Judge("http://127.0.0.1:9/v1", "m", clock, first_pause=0.001)
    with pytest.raises(Unavailable):
        await nobody.grade("x", ASKED, "y")
    await nobody.close()


async def test_it_is_well_again_with_the_next_score(fake: FakeJudge, judge: Judge) -> None:
    seen = [judge.is_well]
    fake.statuses = [400]
    with pytest.raises(Unavailable):
        await judge.grade("x", ASKED, "y")
    seen.append(judge.is_well)
    await judge.grade("x", ASKED, "y")
    assert [*seen, judge.is_well] == [True, False, True]


async def test_the_budget_counts_every_attempt_and_fills_again(fake: FakeJudge, judge: Judge, clock: Clock) -> None:
    fake.statuses = [500, 500]
    for _ in range(18):
        await judge.grade("x", ASKED, "y")
    assert (len(fake.asked), judge.has_room) == (20, False)
    with pytest.raises(Unavailable, match="enough to do"):
        await judge.grade("x", ASKED, "y")
    clock.at[0] += 3.0
    await judge.grade("x", ASKED, "y")
    assert (len(fake.asked), judge.has_room) == (21, False)
    clock.at[0] += 3600.0
    for _ in range(20):
        await judge.grade("x", ASKED, "y")
    assert not judge.has_room


async def test_so_many_are_asked_at_once_and_no_more(judge: Judge) -> None:
    tasks = [asyncio.create_task(judge.grade("x", ASKED, "y")) for _ in range(MAX_IN_FLIGHT + 2)]
    found: list[Any] = await asyncio.gather(*tasks, return_exceptions=True)
    assert [isinstance(each, Grade) for each in found] == [True] * MAX_IN_FLIGHT + [False] * 2
    assert judge.has_room
