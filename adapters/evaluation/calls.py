"""One question through the gateway: streamed, timed, and answered by whom it was meant for."""

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import httpx

from adapters.evaluation.golden import Item
from adapters.gateway_client import Door, refusal

ATTEMPTS = 3
LONGEST_WAIT = 10.0
RETRIED = frozenset({httpx.codes.TOO_MANY_REQUESTS, httpx.codes.BAD_GATEWAY, httpx.codes.SERVICE_UNAVAILABLE})
ENDS_THE_RUN = frozenset({httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN, httpx.codes.NOT_FOUND})
"""Refusals that every other call of the contender would meet too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How answers are drawn; greedy by default. `seed` is raised by one for each repeat, `max_tokens` an answer's most.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        for name, good, wanted in (
            ("temperature", 0 <= self.temperature <= 2, "0 to 2"), ("top_p", 0 < self.top_p <= 1, "above 0 to 1"),
            ("max_tokens", self.max_tokens >= 1, "1 or more"), ("seed", 0 <= self.seed < 2**31, "0 to 2147483647"),
        ):
            if not good:
                raise ValueError(f"sampling: {name} is {getattr(self, name)!r}; make it {wanted}.")

    def to_document(self) -> dict[str, Any]:
        """As JSON-ready data."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Contender:
    """Who is asked. `role`: version, stable or base; `model`: the name that requests carry.

    `identity` names what answers for good: the artifact's digest, or the base model; `headers` are those of the
    gateway's answers that show it.
    """

    role: str
    model: str
    identity: str
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came back. `error` is empty, or says why there is no whole answer.

    `first_token` and `latency` are seconds since the call was sent: to the first text, and to the end.
    """

    text: str = ""
    error: str = ""
    first_token: float | None = None
    latency: float | None = None
    tokens: int = 0
    finish_reason: str = ""
    attempts: int = 1


class Caller:
    """Asks contenders through the gateway's OpenAI door, on `at_once` connections; `close` it."""

    def __init__(self, door: Door, key: str, *, at_once: int, timeout: float = 300.0,
                 clock: Callable[[], float] = time.perf_counter) -> None:
        self._door = door
        self._client = door.client(key, timeout=httpx.Timeout(timeout, connect=5.0), at_once=at_once)
        self._clock = clock

    async def close(self) -> None:
        """Let go of the connections."""
        await self._client.aclose()

    async def ask(self, contender: Contender, item: Item, sampling: Sampling, repeat: int = 0) -> Answer:
        """The contender's answer. A failed call is an answer with `error`, after three attempts where that may help.

        GatewayUnreachable when nobody answers; GatewayRefused when all of this contender's calls would be.
        """
        body = request_body(contender, item, sampling, repeat)
        for attempt in range(1, ATTEMPTS + 1):
            started = self._clock()
            reading = _Reading(started)
            try:
                async with self._client.stream("POST", "/v1/chat/completions", json=body) as answer:
                    if answer.is_success:
                        await self._read(answer, reading)
                        return reading.answer(attempt, self._clock(), contender, answer.headers)
                    await answer.aread()
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                raise self._door.lost(error) from error
            except httpx.HTTPError as error:
                return Answer(text=reading.text, error=f"the answer broke off: {str(error) or type(error).__name__}",
                              attempts=attempt)
            except ValueError as error:
                return Answer(text=reading.text, error=f"the answer is no stream of chat completions: {error}",
                              attempts=attempt)
            failure = refusal(answer)
            if failure.status in ENDS_THE_RUN:
                raise failure
            if failure.status not in RETRIED or attempt == ATTEMPTS:
                break
            await asyncio.sleep(_wait(answer, attempt))
        return Answer(error=f"{failure.status} {failure.code}: {failure}", attempts=attempt)

    async def _read(self, answer: httpx.Response, reading: "_Reading") -> None:
        async for line in answer.aiter_lines():
            if line.startswith("data:"):
                reading.take(line.removeprefix("data:").strip(), self._clock)


def request_body(contender: Contender, item: Item, sampling: Sampling, repeat: int) -> dict[str, Any]:
    """The chat completion that is asked for."""
    body: dict[str, Any] = {
        "model": contender.model, "messages": list(item.messages), "stream": True,
        "stream_options": {"include_usage": True}, **sampling.to_document(), "seed": sampling.seed + repeat}
    if item.tools:
        body["tools"] = list(item.tools)
    return body


@dataclass(slots=True)
class _Reading:
    """A stream as it comes in."""

    started: float
    text: str = ""
    first_token: float | None = None
    tokens: int = 0
    finish_reason: str = ""
    error: str = ""
    is_done: bool = False
    calls: dict[int, dict[str, str]] = field(default_factory=dict)

    def take(self, data: str, clock: Callable[[], float]) -> None:
        """One event; ValueError when it is none of a chat completion."""
        if data == "[DONE]":
            self.is_done = True
            return
        event = json.loads(data)
        if not isinstance(event, dict):
            raise ValueError(f"an event is {data[:80]!r}")
        if event.get("error"):
            self.error = f"the gateway reported in the stream: {event['error']}"
        self.tokens = (event.get("usage") or {}).get("completion_tokens") or self.tokens
        for choice in event.get("choices") or ():
            if self._take_delta(choice.get("delta") or {}) and self.first_token is None:
                self.first_token = clock() - self.started
            self.finish_reason = choice.get("finish_reason") or self.finish_reason

    def answer(
        self, attempts: int, now: float, contender: Contender, headers: Mapping[str, str],
    ) -> Answer:
        """What came, when all of it has."""
        error = self.error or ("" if self.is_done and self.finish_reason else "the stream ended before the answer did")
        for name, wanted in contender.headers.items():
            if headers.get(name) != wanted:
                error = f"another one answered: {name} is {headers.get(name)!r}, not {wanted!r}"
        return Answer(
            text=self.text or self._called(), error=error, first_token=self.first_token, latency=now - self.started,
            tokens=self.tokens, finish_reason=self.finish_reason, attempts=attempts)

    def _take_delta(self, delta: Mapping[str, Any]) -> bool:
        """Has it anything that the model said?"""
        self.text += delta.get("content") or ""
        for call in delta.get("tool_calls") or ():
            known = self.calls.setdefault(call.get("index") or 0, {"name": "", "arguments": ""})
            for part in known:
                known[part] += (call.get("function") or {}).get(part) or ""
        return any(delta.get(part) for part in ("content", "tool_calls", "reasoning", "reasoning_content"))

    def _called(self) -> str:
        """Tool calls as JSON: one object of name and arguments, or a list of them; empty when there are none."""
        calls = []
        for _, call in sorted(self.calls.items()):
            try:
                calls.append({"name": call["name"], "arguments": json.loads(call["arguments"] or "{}")})
            except ValueError:
                calls.append({"name": call["name"], "arguments": call["arguments"]})
        return json.dumps(calls[0] if len(calls) == 1 else calls, ensure_ascii=False) if calls else ""


def _wait(answer: httpx.Response, attempt: int) -> float:
    """Seconds until the next attempt: as asked for, within reason."""
    asked = answer.headers.get("retry-after", "")
    return min(float(asked) if asked.isdecimal() else 0.5 * 2.0**attempt, LONGEST_WAIT)


