"""A teacher tries again where that helps, keeps to its budget, and says clearly why it gives up."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

from adapters.teacher import Budget, BudgetReached, RequestRefused, Teacher, TeacherError, TeacherSettings, Usage
from tests.fakes.serving import serving
from tests.fakes.teacher import FakeTeacher

HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture
def fake() -> FakeTeacher:
    return FakeTeacher(lambda body: "hi")


@pytest.fixture
def settings(fake: FakeTeacher, tmp_path: Path) -> Iterator[TeacherSettings]:
    with serving(fake.app(), tmp_path / "teacher.sock") as url:
        yield TeacherSettings(url=url, model="big", backoff=0.001, prompt_price=2.0, completion_price=10.0)


@asynccontextmanager
async def _teacher(settings: TeacherSettings, budget: Budget | None = None, **changes: Any) -> AsyncIterator[Teacher]:
    async with Teacher(replace(settings, **changes), budget) as teacher:
        yield teacher


def _fail(fake: FakeTeacher, *statuses: int, headers: dict[str, str] | None = None, code: str = "busy") -> None:
    fake.failures.extend(
        (status, headers or {}, {"error": {"message": "Not now.", "code": code}}) for status in statuses)


async def test_an_answer_comes_with_what_it_used(settings: TeacherSettings, fake: FakeTeacher) -> None:
    async with _teacher(settings) as teacher:
        reply = await teacher.ask(HELLO, max_tokens=7, temperature=0.5, seed=3)
        assert (reply.text, reply.model, reply.finish_reason) == ("hi", "big-2026", "stop")
        assert reply.usage == Usage(1, 10, 5, 70e-6)
        assert teacher.usage == reply.usage
    assert fake.seen == [{"model": "big", "messages": HELLO, "max_tokens": 7, "temperature": 0.5, "seed": 3}]


async def test_a_model_that_thinks_is_asked_in_its_own_words(settings: TeacherSettings, fake: FakeTeacher) -> None:
    async with _teacher(settings, reasoning=True) as teacher:
        await teacher.ask(HELLO, max_tokens=7, temperature=0.5)
    assert fake.seen == [{"model": "big", "messages": HELLO, "max_completion_tokens": 7}]


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
async def test_a_passing_failure_is_tried_again(settings: TeacherSettings, fake: FakeTeacher, status: int) -> None:
    _fail(fake, status, status)
    async with _teacher(settings) as teacher:
        assert (await teacher.ask(HELLO)).text == "hi"
        assert teacher.usage.calls == 1
    assert len(fake.seen) == 3


async def test_attempts_end(settings: TeacherSettings, fake: FakeTeacher) -> None:
    _fail(fake, *[503] * 9)
    async with _teacher(settings, attempts=3) as teacher:
        with pytest.raises(TeacherError, match=r"gave no answer in 3 attempts: 503: Not now\."):
            await teacher.ask(HELLO)
    assert len(fake.seen) == 3


@pytest.mark.parametrize(("status", "said"), [
    (400, r"answered 400: Not now\."), (413, "answered 413"), (422, "answered 422"),
])
async def test_a_refused_request_is_not_tried_again(
    settings: TeacherSettings, fake: FakeTeacher, status: int, said: str,
) -> None:
    _fail(fake, status)
    async with _teacher(settings) as teacher:
        with pytest.raises(RequestRefused, match=said):
            await teacher.ask(HELLO)
        assert (await teacher.ask(HELLO)).text == "hi"
    assert len(fake.seen) == 2


@pytest.mark.parametrize(("status", "code", "advice"), [
    (401, "x", "Give a key that may use 'big'"), (403, "x", "Give a key"), (404, "x", "Check the base URL"),
    (308, "x", "Check the base URL"),
    (429, "insufficient_quota", "top it up"),
])
async def test_what_every_call_would_meet_is_no_refusal_of_one(
    settings: TeacherSettings, fake: FakeTeacher, status: int, code: str, advice: str,
) -> None:
    _fail(fake, status, code=code)
    async with _teacher(settings) as teacher:
        with pytest.raises(TeacherError, match=advice) as raised:
            await teacher.ask(HELLO)
    assert not isinstance(raised.value, RequestRefused)
    assert len(fake.seen) == 1


async def test_retry_after_is_waited_for(settings: TeacherSettings, fake: FakeTeacher) -> None:
    _fail(fake, 429, headers={"Retry-After": "1"})
    async with _teacher(settings) as teacher:
        started = time.monotonic()
        await teacher.ask(HELLO)
        assert time.monotonic() - started >= 1.0


@pytest.mark.parametrize("form", ["seconds", "date"])
async def test_a_wait_that_is_too_long_is_not_begun(
    settings: TeacherSettings, fake: FakeTeacher, form: str,
) -> None:
    moment = datetime.now(UTC) + timedelta(seconds=30_000)
    _fail(fake, 429, headers={"Retry-After": "30000" if form == "seconds" else format_datetime(moment, usegmt=True)})
    async with _teacher(settings, longest_wait=10.0) as teacher:
        with pytest.raises(TeacherError, match=r"asks to wait (29\d\d\d|30000) s, longer than our 10 s"):
            await teacher.ask(HELLO)
    assert len(fake.seen) == 1


@pytest.mark.parametrize("words", ["soon", "", "Mon, 99 Foo"])
async def test_a_wait_that_is_neither_is_passed_over(
    settings: TeacherSettings, fake: FakeTeacher, words: str,
) -> None:
    _fail(fake, 429, headers={"Retry-After": words})
    async with _teacher(settings) as teacher:
        assert (await teacher.ask(HELLO)).text == "hi"


async def test_no_more_calls_are_under_way_than_allowed(settings: TeacherSettings, fake: FakeTeacher) -> None:
    fake.delay = 0.02
    async with _teacher(settings, concurrency=3) as teacher:
        await asyncio.gather(*(teacher.ask(HELLO) for _ in range(9)))
    assert (len(fake.seen), fake.busiest) == (9, 3)


async def test_a_lost_answer_counts_as_the_most_that_it_can_cost(settings: TeacherSettings, fake: FakeTeacher) -> None:
    fake.delay = 0.5
    async with _teacher(settings, timeout=0.05, attempts=2) as teacher:
        worst = teacher.worst_case(HELLO, 100)
        with pytest.raises(TeacherError, match=r"no answer within 0\.05 s"):
            await teacher.ask(HELLO, max_tokens=100)
        assert teacher.usage == worst + worst


async def test_an_answer_without_usage_counts_as_the_most(settings: TeacherSettings, fake: FakeTeacher) -> None:
    fake.usage = None
    async with _teacher(settings) as teacher:
        assert (await teacher.ask(HELLO, max_tokens=9)).usage == teacher.worst_case(HELLO, 9)


async def test_the_worst_case_bounds_any_tokenizer(settings: TeacherSettings) -> None:
    async with _teacher(settings) as teacher:
        worst = teacher.worst_case([{"role": "user", "content": "ß" * 50}], 20)
        assert worst.prompt_tokens >= 100
        assert worst.completion_tokens == 20
        assert worst.cost == pytest.approx((worst.prompt_tokens * 2 + 20 * 10) / 1e6)


async def test_the_budget_is_never_exceeded_however_many_ask(settings: TeacherSettings, fake: FakeTeacher) -> None:
    fake.delay, fake.usage = 0.005, (40, 60)
    async with _teacher(settings, Budget(tokens=1000)) as teacher:
        results = await asyncio.gather(
            *(teacher.ask(HELLO, max_tokens=60) for _ in range(30)), return_exceptions=True)
        reached = [result for result in results if isinstance(result, BudgetReached)]
        assert 30 - len(reached) == len(fake.seen) >= 5
        assert teacher.usage.tokens == 100 * len(fake.seen) <= 1000
        # and it was used up: the next worst case would have gone beyond
        assert teacher.usage.tokens + teacher.worst_case(HELLO, 60).tokens > 1000


async def test_money_is_a_budget_too_and_earlier_runs_count(settings: TeacherSettings, fake: FakeTeacher) -> None:
    budget = Budget(cost=0.002, spent=Usage(3, 100, 100, 0.0018))
    async with _teacher(settings, budget) as teacher:
        with pytest.raises(BudgetReached, match=r"The budget of 0\.002 is reached: 0\.0018 is spent"):
            await teacher.ask(HELLO, max_tokens=100)
        assert (await teacher.ask(HELLO, max_tokens=1)).text == "hi"
    assert len(fake.seen) == 1


async def test_a_call_given_up_by_its_caller_leaves_no_reservation(
    settings: TeacherSettings, fake: FakeTeacher,
) -> None:
    fake.delay = 0.2
    async with _teacher(settings, Budget(tokens=1000)) as teacher:
        call = asyncio.create_task(teacher.ask(HELLO, max_tokens=400))
        await asyncio.to_thread(fake.came.wait)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert teacher.usage == teacher.worst_case(HELLO, 400)
        fake.delay = 0.0
        assert (await teacher.ask(HELLO, max_tokens=100)).text == "hi"


async def test_the_key_is_sent_and_never_shown(settings: TeacherSettings, fake: FakeTeacher) -> None:
    fake.key = "secret-1"
    async with _teacher(settings, key="secret-1") as teacher:
        assert (await teacher.ask(HELLO)).text == "hi"
        assert "secret-1" not in repr(teacher.settings)


async def test_a_server_that_is_not_there_is_named(tmp_path: Path) -> None:
    settings = TeacherSettings(url=f"unix:{tmp_path}/none.sock", model="big", backoff=0.001, attempts=2)
    async with Teacher(settings) as teacher:
        with pytest.raises(TeacherError, match=r"none\.sock gave no answer in 2 attempts: nobody answers there"):
            await teacher.ask(HELLO)
        assert teacher.usage == Usage()


@pytest.mark.parametrize("document", [[], {"choices": []}, {"choices": [{"message": None}]}])
async def test_a_server_of_another_kind_is_named(
    settings: TeacherSettings, fake: FakeTeacher, document: Any,
) -> None:
    fake.failures = deque([(200, {}, document)])
    async with _teacher(settings) as teacher:
        with pytest.raises(TeacherError, match="is it the base URL of an OpenAI-compatible server"):
            await teacher.ask(HELLO)


@pytest.mark.parametrize(("key", "value"), [
    ("url", "localhost:8080"), ("model", ""), ("concurrency", 0), ("attempts", 0), ("timeout", 0.0),
    ("prompt_price", -1.0),
])
def test_a_bad_setting_is_named(key: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"teacher: {key} is"):
        TeacherSettings(**{"url": "http://x/v1", "model": "m", key: value})


@pytest.mark.parametrize("limits", [{"tokens": 0}, {"cost": 0.0}])
def test_a_budget_of_nothing_is_a_mistake(limits: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="make it more than 0"):
        Budget(**limits)
