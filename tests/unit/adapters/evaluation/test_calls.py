"""A call tells what came, how long it took, and who answered; whatever breaks is an error of its own."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from adapters.evaluation import golden
from adapters.evaluation.calls import Answer, Caller, Contender, Sampling, request_body
from adapters.gateway_client import Door, GatewayRefused, GatewayUnreachable
from tests.fakes.serving import serving

ITEM = golden.from_document({
    "id": "a", "messages": [{"role": "user", "content": "?"}], "expected": "x", "scorer": "exact",
    "tools": [{"type": "function", "function": {"name": "f"}}]})
FOUR = Contender("version", "support@4", "d" * 64, {"x-switchyard-version": "4"})
DONE = "[DONE]"


def _delta(finish: str | None = None, **delta: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}


WHOLE = [_delta(role="assistant", content=""), _delta(content="on "), _delta("stop", content="time"),
         {"choices": [], "usage": {"completion_tokens": 2}}, DONE]


class Door4:
    """Answers one request after the other as it was told: (status, body or events, headers)."""

    def __init__(self, *answers: tuple[int, Any, dict[str, str]]) -> None:
        self.answers = list(answers)
        self.bodies: list[Any] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            for kind in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{kind}.complete"})
            return
        message = await receive()
        self.bodies.append(json.loads(message["body"]))
        status, body, headers = self.answers.pop(0)
        lines = [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": status, "headers": lines})
        chunks = [json.dumps(body)] if isinstance(body, dict) else [
            f"data: {event if isinstance(event, str) else json.dumps(event)}\n\n" for event in body]
        for chunk in chunks:
            await send({"type": "http.response.body", "body": chunk.encode(), "more_body": True})
        await send({"type": "http.response.body", "body": b""})


class Clock:
    """Is a second later at each look."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


@contextmanager
def _open(folder: Path, *answers: tuple[int, Any, dict[str, str]]) -> Iterator[tuple[Door4, Door]]:
    app = Door4(*answers)
    with serving(app, folder / "gate.sock") as url:
        yield app, Door(url)


async def _ask(door: Door, sampling: Sampling | None = None, repeat: int = 0) -> Answer:
    caller = Caller(door, "sk", at_once=1, clock=Clock())
    try:
        return await caller.ask(FOUR, ITEM, sampling or Sampling(), repeat)
    finally:
        await caller.close()


def _good(events: Any = None) -> tuple[int, Any, dict[str, str]]:
    return 200, WHOLE if events is None else events, {"x-switchyard-version": "4"}


def _refusal(status: int, code: str, **headers: str) -> tuple[int, Any, dict[str, str]]:
    return status, {"error": {"message": f"It is {code}.", "type": "x", "param": None, "code": code}}, headers


async def test_an_answer_is_read_whole_and_timed_from_the_first_word(tmp_path: Path) -> None:
    with _open(tmp_path, _good()) as (app, door):
        answer = await _ask(door, Sampling(temperature=0.5, max_tokens=9, seed=7), repeat=2)
    # Looks at the clock: the start (1), the first word (2), the end (3).
    assert answer == Answer(text="on time", first_token=1.0, latency=2.0, tokens=2, finish_reason="stop")
    assert app.bodies == [{
        "model": "support@4", "messages": [{"role": "user", "content": "?"}], "stream": True,
        "stream_options": {"include_usage": True}, "temperature": 0.5, "top_p": 1.0, "max_tokens": 9, "seed": 9,
        "tools": [{"type": "function", "function": {"name": "f"}}]}]


async def test_tool_calls_are_the_answer_when_there_is_no_text(tmp_path: Path) -> None:
    parts = [{"index": 0, "function": {"name": "f", "arguments": '{"a"'}},
             {"index": 0, "function": {"arguments": ":1}"}}]
    events = [*(_delta(tool_calls=[part]) for part in parts), _delta("tool_calls"), DONE]
    with _open(tmp_path, _good(events)) as (_, door):
        answer = await _ask(door)
    assert json.loads(answer.text) == {"name": "f", "arguments": {"a": 1}}
    assert (answer.error, answer.first_token) == ("", 1.0)


@pytest.mark.parametrize(("events", "said"), [
    ([_delta(content="on")], "ended before the answer did"),
    ([_delta(content="on"), DONE], "ended before the answer did"),
    ([_delta(content="on"), {"error": {"message": "the replica died"}}], "the replica died"),
    (["{", DONE], "no stream of chat completions"),
    (["[1]", DONE], "no stream of chat completions"),
])
async def test_a_broken_stream_is_an_error_with_what_came(tmp_path: Path, events: Any, said: str) -> None:
    with _open(tmp_path, _good(events)) as (_, door):
        answer = await _ask(door)
    assert said in answer.error
    assert answer.text in ("", "on")


async def test_an_answer_of_another_version_is_an_error(tmp_path: Path) -> None:
    with _open(tmp_path, (200, WHOLE, {"x-switchyard-version": "3"})) as (_, door):
        assert "another one answered: x-switchyard-version is '3', not '4'" in (await _ask(door)).error


async def test_a_busy_gateway_is_asked_again_and_the_attempts_are_counted(tmp_path: Path) -> None:
    busy = _refusal(503, "no_healthy_replica", **{"retry-after": "0"})
    with _open(tmp_path, busy, busy, _good()) as (app, door):
        answer = await _ask(door)
    assert (answer.text, answer.attempts, len(app.bodies)) == ("on time", 3, 3)


async def test_a_gateway_that_stays_busy_is_an_error(tmp_path: Path) -> None:
    busy = _refusal(503, "no_healthy_replica", **{"retry-after": "0"})
    with _open(tmp_path, busy, busy, busy) as (_, door):
        assert (await _ask(door)).error == "503 no_healthy_replica: It is no_healthy_replica."


async def test_a_question_that_is_refused_is_an_error_at_once(tmp_path: Path) -> None:
    with _open(tmp_path, _refusal(400, "too_long")) as (app, door):
        assert (await _ask(door)).error == "400 too_long: It is too_long."
    assert len(app.bodies) == 1


@pytest.mark.parametrize("status", [401, 403, 404])
async def test_what_refuses_every_call_ends_the_run(tmp_path: Path, status: int) -> None:
    with _open(tmp_path, _refusal(status, "no")) as (_, door), pytest.raises(GatewayRefused, match="is no") as refused:
        await _ask(door)
    assert (refused.value.status, refused.value.code) == (status, "no")


async def test_nobody_at_the_address_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(GatewayUnreachable, match="No gateway answers at"):
        await _ask(Door(f"unix:{tmp_path}/none.sock"))


def test_a_request_differs_with_its_repeat_but_a_greedy_one_only_in_the_seed() -> None:
    first, second = (request_body(FOUR, ITEM, Sampling(), repeat) for repeat in (0, 1))
    assert {**first, "seed": None} == {**second, "seed": None}
    assert first != second


@pytest.mark.parametrize("wrong", [{"temperature": -1}, {"top_p": 0}, {"max_tokens": 0}, {"seed": -1}])
def test_sampling_that_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^sampling: "):
        Sampling(**wrong)


