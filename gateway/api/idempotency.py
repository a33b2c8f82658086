"""`Idempotency-Key`: a write that is sent again is done once, and answered as it was the first time.

The first request with a key is done; the same one again within a day, on any gateway, gets its status and body, with
`Idempotent-Replayed: true`. While the first still runs the others get 409, and another request under the same key 422.
The keys of two operator keys have nothing to do with each other.

An answer below 500 is kept, but for refusals of what was sent (400, 403, 413) and answers that hold a secret (those
that say `Cache-Control: no-store`): a secret is kept nowhere, so that a repetition gets 409 and is told what to revoke.
After another failure the key is free again, unless nobody knows whether the change was made: then it stays taken,
since "done once" is what the caller asked for.

Only digests of requests are kept, keyed with the operator's key, so that nobody can guess at a secret in a body.
"""

import asyncio
import hmac
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from hashlib import sha256
from typing import Final, TypeAlias

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive

from gateway.api.auth import presented
from gateway.api.errors import response_to
from gateway.clients.replays import Answer, Found, Replays, State
from gateway.domain.errors import (
    IdempotencyKeyReused,
    InvalidRequest,
    NotReplayed,
    OutcomeUnknown,
    RegistryUnavailable,
    SwitchyardError,
)
from gateway.system import System

HEADER: Final = "Idempotency-Key"
REPLAYED: Final = "Idempotent-Replayed"
WRITES: Final = frozenset({"POST", "PUT", "PATCH", "DELETE"})
MAX_KEY: Final = 255  # characters
PARAMETER: Final = {
    "name": HEADER, "in": "header", "required": False,
    "description": "Any text of your own: the same request with the same key is done once and answered alike for 24 h.",
    "schema": {"type": "string", "minLength": 1, "maxLength": MAX_KEY, "pattern": "^[!-~]+$"}}
_KEPT_HEADERS: Final = ("content-type", "etag", "x-switchyard-revision", "location")
_INTERNAL: Final = 500
_NOT_BEGUN: Final = (400, 403, 413)

Handle: TypeAlias = Callable[[Request], Awaitable[Response]]


class Once:
    """Does a request with a key once; one without a key is passed on."""

    def __init__(self, replays: Replays, system: System) -> None:
        self._replays = replays
        self._system = system

    async def answer(self, request: Request, body: bytes | None, handle: Handle) -> Response:
        """The answer of `handle`, or that of the first request with the key; `body` None: the route reads it itself.

        IdempotencyKeyReused, NotReplayed; RegistryUnavailable before anything is done; what `handle` raises.
        """
        key = request.headers.get(HEADER)
        if key is None or request.method not in WRITES:
            return await handle(request)
        asked = _Asked(request, _checked(key), body)
        holder = self._system.hex(16)
        found = await self._replays.begin(asked.name, holder, asked.request, asked.content)
        if found.state is State.NEW:
            return await self._first(request, asked, holder, handle)
        if asked.request != found.request or not await asked.is_of(found.content):
            raise IdempotencyKeyReused(
                f"This {HEADER} was sent with another request before: another method, path, query, If-Match or body. "
                "Give every request a key of its own.", param=HEADER)
        return _again(found)

    async def _first(self, request: Request, asked: "_Asked", holder: str, handle: Handle) -> Response:
        is_known = False
        try:
            async with self._alive(asked.name, holder):
                response = await handle(Request(request.scope, asked.receive))
            is_known = True
        except SwitchyardError as error:
            response = response_to(error)
            is_known = not isinstance(error, OutcomeUnknown) and response.status_code != _INTERNAL
        except (RequestValidationError, HTTPException, ClientDisconnect):
            await self._forget(asked, holder)
            is_known = True
            raise
        finally:
            if not is_known:
                await self._end(asked, holder, State.UNKNOWN, Answer(0, {}, ""))
        if is_known:
            await self._keep(asked, holder, response)
        return response

    async def _keep(self, asked: "_Asked", holder: str, response: Response) -> None:
        status = response.status_code
        if status >= _INTERNAL or status in _NOT_BEGUN:
            await self._forget(asked, holder)
            return
        headers = {name: response.headers[name] for name in _KEPT_HEADERS if name in response.headers}
        if "no-store" in response.headers.get("cache-control", ""):
            await self._end(asked, holder, State.SECRET, Answer(status, headers, ""))
        else:
            await self._end(asked, holder, State.DONE, Answer(status, headers, bytes(response.body).decode()))

    @asynccontextmanager
    async def _alive(self, name: str, holder: str) -> AsyncIterator[None]:
        """Say now and then that the request still runs."""
        async def renew() -> None:
            while True:
                await asyncio.sleep(self._replays.renew_every)
                with suppress(RegistryUnavailable):  # it may be back at the next turn
                    await self._replays.renew(name, holder)

        task = asyncio.create_task(renew())
        try:
            yield
        finally:
            task.cancel()

    async def _end(self, asked: "_Asked", holder: str, state: State, answer: Answer) -> None:
        # The change was made or not; the caller must hear of it also when Redis went away just now. Then the record
        # stays that of a request that runs, and soon of one that nobody knows the end of.
        with suppress(RegistryUnavailable):
            await self._replays.end(asked.name, holder, state, asked.content, answer)

    async def _forget(self, asked: "_Asked", holder: str) -> None:
        with suppress(RegistryUnavailable):
            await self._replays.forget(asked.name, holder)


class _Asked:
    """What a request asks, as digests: its `name` (of key and operator), its head as `request`, its body as `content`.

    The content of a body that the route reads itself is known once it was read to the end, through `receive`.
    """

    def __init__(self, request: Request, key: str, body: bytes | None) -> None:
        self._secret = presented(request.headers.raw)
        self._request = request
        self._hash = hmac.new(self._secret, b"content\0", sha256)
        self.name = self._digest("name", key)
        query = sorted(request.query_params.multi_items())
        self.request = self._digest(
            "request", request.method, request.url.path, repr(query), request.headers.get("if-match", ""))
        self.content = ""
        self.receive: Receive = request.receive if body is not None else self._hashed
        if body is not None:
            self._take(body, more=False)

    async def is_of(self, content: str) -> bool:
        """Is this the body of that digest ('': of any)? Reads a body that was not read yet."""
        if not content:
            return True
        if not self.content:
            async for _ in Request(self._request.scope, self.receive).stream():
                pass
        return hmac.compare_digest(self.content, content)

    async def _hashed(self) -> Message:
        message = await self._request.receive()
        if message["type"] == "http.request":
            self._take(message.get("body", b""), more=message.get("more_body", False))
        return message

    def _take(self, chunk: bytes, *, more: bool) -> None:
        self._hash.update(chunk)
        if not more:
            self.content = self._hash.hexdigest()

    def _digest(self, *parts: str) -> str:
        return hmac.new(self._secret, "\0".join(parts).encode(), sha256).hexdigest()


def _checked(key: str) -> str:
    if not 1 <= len(key) <= MAX_KEY or not key.isascii() or not key.isprintable() or " " in key:
        raise InvalidRequest(f"{HEADER} must be 1 to {MAX_KEY} visible ASCII characters, such as a UUID.", param=HEADER)
    return key


def _again(found: Found) -> Response:
    answer = found.answer
    match found.state:
        case State.DONE:
            response = Response(answer.body.encode(), answer.status, answer.headers)
            response.headers[REPLAYED] = "true"
            return response
        case State.RUNNING:
            raise NotReplayed(f"The first request with this {HEADER} still runs. Send it again soon for its answer.",
                              param=HEADER)
        case State.SECRET:
            raise NotReplayed(
                f"The first request with this {HEADER} was done, at revision "
                f"{answer.headers.get('x-switchyard-revision', '?')}, but its answer held a secret, which is kept "
                f"nowhere. If you lost it, DELETE {answer.headers.get('location', 'what was made')} and send the "
                f"request with another {HEADER}.", param=HEADER)
    raise NotReplayed(
        f"Nobody knows whether the first request with this {HEADER} was done: the gateway failed while it ran. Read "
        f"what it was about, and if it was not done send it with another {HEADER}.", param=HEADER)
