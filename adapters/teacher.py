"""Asks any OpenAI-compatible server: a few calls at a time, again where that helps, and never beyond a budget."""

import asyncio
import random
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import httpx
import tenacity

PER_MILLION = 1_000_000
TEMPLATE_TOKENS = 64
MESSAGE_TOKENS = 16
"""What a chat template adds, at most, to a conversation and to each of its messages."""
RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})


class TeacherError(RuntimeError):
    """The server cannot be worked with; the message says why and what to do."""


class RequestRefused(TeacherError):
    """The server refuses this one request (too long, against its rules …); others may pass."""


class BudgetReached(TeacherError):
    """The next call could go beyond the budget, so it was not made."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What calls have used: answered calls, tokens, and money in the currency of the prices."""

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0

    @property
    def tokens(self) -> int:
        """Tokens read and written together."""
        return self.prompt_tokens + self.completion_tokens

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(self.calls + other.calls, self.prompt_tokens + other.prompt_tokens,
                     self.completion_tokens + other.completion_tokens, self.cost + other.cost)

    def __sub__(self, other: "Usage") -> "Usage":
        return Usage(self.calls - other.calls, self.prompt_tokens - other.prompt_tokens,
                     self.completion_tokens - other.completion_tokens, self.cost - other.cost)


@dataclass(frozen=True, slots=True)
class Budget:
    """The most that may be spent, None for no limit. `spent`: what earlier runs have used of it."""

    tokens: int | None = None
    cost: float | None = None
    spent: Usage = Usage()

    def __post_init__(self) -> None:
        for name, limit in (("tokens", self.tokens), ("cost", self.cost)):
            if limit is not None and limit <= 0:
                raise ValueError(f"budget: {name} is {limit!r}; make it more than 0, or leave it out for no limit.")


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherSettings:
    """Which server, and how to treat it.

    `url` is what OpenAI clients call the base URL (`http://127.0.0.1:8080/v1`; `/v1` is added to a bare host) or
    `unix:/path/to.sock`. `timeout` and `longest_wait` in seconds: for one answer, and between two attempts. `backoff`:
    seconds before the second attempt, doubled for each further one. Prices are for a million tokens. `reasoning`: the
    model thinks before it answers, as OpenAI's do that take `max_completion_tokens` and no temperature of ours.
    """

    url: str
    model: str
    key: str | None = field(default=None, repr=False)
    concurrency: int = 8
    attempts: int = 6
    timeout: float = 120.0
    backoff: float = 0.5
    longest_wait: float = 120.0
    prompt_price: float = 0.0
    completion_price: float = 0.0
    reasoning: bool = False

    def __post_init__(self) -> None:
        _require(self.url.startswith("unix:/") or urlsplit(self.url).scheme in ("http", "https"), "url", self.url,
                 "an http or https address such as http://127.0.0.1:8080/v1")
        _require(bool(self.model), "model", self.model, "the name of a model that the server has")
        for name in ("concurrency", "attempts"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        for name in ("timeout", "backoff", "longest_wait"):
            _require(getattr(self, name) > 0, name, getattr(self, name), "more than 0 seconds")
        for name in ("prompt_price", "completion_price"):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer: its text, why it ended, the model's name as the server gives it, and what it used."""

    text: str
    finish_reason: str | None
    model: str
    usage: Usage


class Teacher:
    """A client of one model on one server; use it as an async context manager.

    Every call first reserves the most that it can cost: a token for each byte of the prompt, and `max_tokens`. So the
    budget holds as long as the server keeps to `max_tokens`, whatever happens at the same time; `usage` counts what the
    server reported. A call whose answer never came, or came without usage, counts as what was reserved for it.
    """

    def __init__(self, settings: TeacherSettings, budget: Budget | None = None) -> None:
        self.settings = settings
        self._ledger = _Ledger(budget or Budget())
        self._slots = asyncio.Semaphore(settings.concurrency)
        self._jitter = random.Random()
        self._resources = AsyncExitStack()
        self._client = _client(settings)

    async def __aenter__(self) -> Self:
        await self._resources.enter_async_context(self._client)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None,
    ) -> None:
        await self._resources.aclose()

    @property
    def usage(self) -> Usage:
        """What this teacher's calls have used, without what the budget says earlier runs have spent."""
        return self._ledger.used

    def worst_case(self, messages: Sequence[Mapping[str, Any]], max_tokens: int) -> Usage:
        """The most that one such call can use."""
        prompt = TEMPLATE_TOKENS + sum(
            MESSAGE_TOKENS + len(str(message.get("content") or "").encode()) for message in messages)
        return self._priced(prompt, max_tokens)

    async def ask(
        self, messages: Sequence[Mapping[str, Any]], *, max_tokens: int = 1024, temperature: float = 0.0,
        seed: int | None = None, response_format: Mapping[str, Any] | None = None,
    ) -> Reply:
        """The model's answer to a chat of plain texts.

        Tried again after 429, 5xx, timeouts and broken connections, as the server's Retry-After asks or with growing
        waits. BudgetReached before the call, RequestRefused for this request alone, TeacherError for all that would
        befall every other call too.
        """
        limits = {"max_completion_tokens": max_tokens} if self.settings.reasoning else {
            "max_tokens": max_tokens, "temperature": temperature}
        body: dict[str, Any] = {"model": self.settings.model, "messages": list(messages), **limits, "seed": seed,
                                "response_format": response_format}
        document = {key: value for key, value in body.items() if value is not None}
        worst = self.worst_case(messages, max_tokens)
        async with self._slots:
            attempts = tenacity.AsyncRetrying(
                retry=tenacity.retry_if_exception_type(_Transient), wait=self._wait, reraise=True,
                stop=tenacity.stop_after_attempt(self.settings.attempts) | _waits_too_long(self.settings.longest_wait))
            try:
                return await attempts(self._attempt, document, worst)
            except _Transient as last:
                raise TeacherError(self._gave_up(last)) from last

    async def _attempt(self, document: Mapping[str, Any], worst: Usage) -> Reply:
        """One request within the budget, or _Transient when another may fare better."""
        await self._ledger.reserve(worst)
        spent = worst  # the server may do the work, and charge for it, although its answer never comes
        try:
            answer = await self._post(document)
            if not answer.is_success:
                spent = Usage()
                raise _refusal(answer, self.settings)
            reply = self._reply(answer, worst)
            spent = reply.usage
            return reply
        except _Unsent:
            spent = Usage()
            raise
        finally:
            self._ledger.settle(worst, spent)

    async def _post(self, document: Mapping[str, Any]) -> httpx.Response:
        try:
            async with asyncio.timeout(self.settings.timeout):
                return await self._client.post("chat/completions", json=document)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise _Unsent(f"nobody answers there ({error})") from error
        except (TimeoutError, httpx.TimeoutException) as error:
            raise _Transient(f"no answer within {self.settings.timeout:g} s") from error
        except httpx.TransportError as error:
            raise _Transient(f"the connection broke: {str(error) or type(error).__name__}") from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise TeacherError(f"{self.settings.url} could not be asked: {error}.") from error

    def _reply(self, answer: httpx.Response, worst: Usage) -> Reply:
        try:
            document = answer.json()
            choice = document["choices"][0]
            text = choice["message"]["content"]
            model = str(document.get("model") or self.settings.model)
            usage = self._reported(document.get("usage"), worst)
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise TeacherError(f"{self.settings.url} answered with what is no chat completion; is it the base URL of "
                               "an OpenAI-compatible server, /v1 included?") from error
        return Reply(text if isinstance(text, str) else "", choice.get("finish_reason"), model, usage)

    def _reported(self, usage: Any, worst: Usage) -> Usage:
        if not isinstance(usage, dict) or not isinstance(usage.get("prompt_tokens"), int):
            return worst
        return self._priced(usage["prompt_tokens"], int(usage.get("completion_tokens") or 0))

    def _priced(self, prompt_tokens: int, completion_tokens: int) -> Usage:
        cost = (prompt_tokens * self.settings.prompt_price + completion_tokens * self.settings.completion_price)
        return Usage(1, prompt_tokens, completion_tokens, cost / PER_MILLION)

    def _wait(self, state: tenacity.RetryCallState) -> float:
        """Seconds to the next attempt: what the server asks for, or a doubling wait of which half is chance."""
        asked = _asked_wait(state)
        if asked is not None:
            return asked
        doubled: float = self.settings.backoff * 2 ** (state.attempt_number - 1)
        return min(doubled, self.settings.longest_wait) * self._jitter.uniform(0.5, 1.0)

    def _gave_up(self, last: "_Transient") -> str:
        url, longest = self.settings.url, self.settings.longest_wait
        if last.wait is not None and last.wait > longest:
            return f"{url} asks to wait {last.wait:.0f} s, longer than our {longest:g} s ({last}); go on later."
        return (f"{url} gave no answer in {self.settings.attempts} attempts: {last}. Check that it runs, ask less at "
                "once, or go on later.")


class _Transient(Exception):
    """A failure that another attempt may not meet; `wait`: seconds that the server asks for."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


class _Unsent(_Transient):
    """The request never went out, so that it cost nothing."""


class _Ledger:
    """What is spent and what is reserved by calls under way, against a budget."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._reserved = Usage()
        self._settled = asyncio.Event()
        self.used = Usage()

    async def reserve(self, worst: Usage) -> None:
        """Return when `worst` fits, or BudgetReached when it does not fit even after the calls under way."""
        while reason := self._over(worst):
            if not self._reserved.calls:
                raise BudgetReached(reason)
            self._settled.clear()
            await self._settled.wait()
        self._reserved += worst

    def settle(self, worst: Usage, spent: Usage) -> None:
        """Replace a reservation by what was spent."""
        self._reserved -= worst
        self.used += spent
        self._settled.set()

    def _over(self, worst: Usage) -> str | None:
        """Why one more such call could go beyond the budget, or None."""
        budget, spent = self._budget, self._budget.spent + self.used
        total = spent + self._reserved + worst
        if budget.tokens is not None and total.tokens > budget.tokens:
            return (f"The budget of {budget.tokens:,} tokens is reached: {spent.tokens:,} are spent and the next call "
                    f"may take {worst.tokens:,}.")
        if budget.cost is not None and total.cost > budget.cost:
            return (f"The budget of {budget.cost:g} is reached: {spent.cost:.4f} is spent and the next call may cost "
                    f"{worst.cost:.4f}.")
        return None


def _client(settings: TeacherSettings) -> httpx.AsyncClient:
    headers = {"Authorization": f"Bearer {settings.key}"} if settings.key else {}
    limits = httpx.Limits(max_connections=settings.concurrency, max_keepalive_connections=settings.concurrency)
    socket = settings.url.removeprefix("unix:") if settings.url.startswith("unix:") else None
    url = "http://localhost" if socket else settings.url.rstrip("/")
    if not urlsplit(url).path:
        url += "/v1"
    return httpx.AsyncClient(
        base_url=url + "/", headers=headers, timeout=httpx.Timeout(settings.timeout, connect=10.0, pool=None),
        transport=httpx.AsyncHTTPTransport(uds=socket, limits=limits))


def _refusal(answer: httpx.Response, settings: TeacherSettings) -> Exception:
    """What an answer that is no success means for this call and for others."""
    message, code = _stated_error(answer)
    said = f"{settings.url} answered {answer.status_code}: {message}"
    if answer.status_code == 429 and code == "insufficient_quota":
        return TeacherError(f"{said} The account has no money left; top it up.")
    if answer.status_code in RETRIED:
        return _Transient(f"{answer.status_code}: {message}", _retry_after(answer))
    if answer.status_code in (401, 403):
        return TeacherError(f"{said} Give a key that may use {settings.model!r}.")
    if answer.status_code in (404, 405) or answer.status_code < 400:
        return TeacherError(f"{said} Check the base URL (it ends in /v1) and the model's name {settings.model!r}.")
    return RequestRefused(said)


def _stated_error(answer: httpx.Response) -> tuple[str, str | None]:
    """The server's own message and code; its text, cut, where it does not speak as OpenAI does."""
    try:
        error = answer.json()["error"]
        return str(error["message"]), error.get("code")
    except (ValueError, KeyError, TypeError, AttributeError):
        return answer.text[:200].strip() or answer.reason_phrase, None


def _retry_after(answer: httpx.Response) -> float | None:
    """Seconds from the Retry-After header, a number or a date (RFC 9110, 10.2.3); None when it says neither."""
    value = answer.headers.get("retry-after", "").strip()
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        moment = parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, (moment - datetime.now(UTC)).total_seconds()) if moment.tzinfo else None


def _asked_wait(state: tenacity.RetryCallState) -> float | None:
    error = state.outcome.exception() if state.outcome else None
    return error.wait if isinstance(error, _Transient) else None


def _waits_too_long(longest: float) -> Any:
    return lambda state: (_asked_wait(state) or 0.0) > longest


def _require(good: bool, name: str, value: object, wanted: str) -> None:
    if not good:
        raise ValueError(f"teacher: {name} is {value!r}; make it {wanted}.")
