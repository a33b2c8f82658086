"""The request path's door, as raw ASGI: dispatched ahead of the web framework, so that a request pays for nothing else.

Authenticates, reads the bytes, makes a Call, hands it to `dataplane.serving`, and watches whether the caller is still
there. Every call ends in exactly one record.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias

import msgspec

from gateway.api import errors
from gateway.api.auth import Callers
from gateway.api.chat import ChatShape, parse_chat
from gateway.dataplane import body as bodies
from gateway.dataplane.serving import ENDPOINTS, Call, Endpoint, Headers, Serving
from gateway.domain.errors import BodyTooLarge, ModelNotFound, SwitchyardError
from gateway.domain.model import ApiKey, Snapshot
from gateway.domain.routing import may_use_base, usable_adapters
from gateway.system import System
from gateway.telemetry import Record, Telemetry

Message: TypeAlias = MutableMapping[str, Any]
Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
Asgi: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

CHAT = Endpoint("/v1/chat", "chat")
MODELS = Endpoint("/v1/models", "models")
CALLER_GONE = 499
_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")


class _CallerGone(Exception):
    """The caller hung up before its body was complete."""


class Outlet:
    """The way back over ASGI; adds what every answer carries."""

    __slots__ = ("_close", "_request_id", "_send", "started")

    def __init__(self, send: Send, request_id: str, *, close: bool) -> None:
        self._send = send
        self._request_id = request_id.encode()
        self._close = close
        self.started = False

    async def start(self, status: int, headers: Headers) -> None:
        """Send status and headers."""
        self.started = True
        headers.append((b"x-request-id", self._request_id))
        if self._close:
            headers.append((b"connection", b"close"))
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def send(self, data: bytes, *, more: bool) -> None:
        """Send body bytes; the last when not `more`."""
        await self._send({"type": "http.response.body", "body": data, "more_body": more})

    async def whole(self, status: int, headers: Headers, data: bytes) -> None:
        """Send a whole answer."""
        await self.start(status, [*headers, (b"content-length", b"%d" % len(data))])
        await self.send(data, more=False)


class Door:
    """The ASGI app of the request path; what is not on it goes to `elsewhere`."""

    def __init__(
        self, serving: Serving, callers: Callers, snapshot: Callable[[], Snapshot],
        base_models: Callable[[], frozenset[str]], telemetry: Telemetry, log: Any, system: System, *,
        max_body_bytes: int, allow_prompt_logprobs: bool, is_draining: Callable[[], bool], elsewhere: Asgi,
    ) -> None:
        self._serving = serving
        self._callers = callers
        self._snapshot = snapshot
        self._base_models = base_models
        self._telemetry = telemetry
        self._log = log
        self._system = system
        self._max_body_bytes = max_body_bytes
        self._allow_prompt_logprobs = allow_prompt_logprobs
        self._is_draining = is_draining
        self._elsewhere = elsewhere

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path, method = scope["path"], scope["method"]
            if method == "POST":
                endpoint = ENDPOINTS.get(path) or (CHAT if path == CHAT.path else None)
                if endpoint is not None:
                    await self._one(endpoint, scope, receive, send)
                    return
            elif method == "GET" and (path == MODELS.path or path.startswith("/v1/models/")):
                await self._one(MODELS, scope, receive, send)
                return
        await self._elsewhere(scope, receive, send)

    async def _one(self, endpoint: Endpoint, scope: Scope, receive: Receive, send: Send) -> None:
        """One call from first byte to record."""
        record = Record(self._request_id(scope["headers"]), endpoint.name, self._system.monotonic())
        out = Outlet(send, record.request_id, close=self._is_draining())
        try:
            await self._answer(endpoint, scope, receive, record, out)
        except SwitchyardError as error:
            await self._refuse(error, record, out)
        except _CallerGone:
            record.status, record.error = CALLER_GONE, "caller_gone"
        except Exception:
            self._log.exception("unexpected", request_id=record.request_id)
            record.error = SwitchyardError.code
            if out.started:
                raise  # the server cuts the connection: the only way left to say that the answer is not whole
            fault = SwitchyardError(f"Something went wrong here. The log says what, under {record.request_id}.")
            await self._refuse(fault, record, out)
        finally:
            record.ended = self._system.monotonic()
            self._telemetry.close(record)

    async def _answer(
        self, endpoint: Endpoint, scope: Scope, receive: Receive, record: Record, out: Outlet
    ) -> None:
        key = self._callers.identify(scope["headers"])
        record.tenant, record.key = key.tenant, key.id
        if endpoint is MODELS:
            await self._models(key, scope["path"], record, out)
            return
        data = await self._read(scope["headers"], receive)
        record.received = self._system.monotonic()
        session = _session(scope["headers"])
        if endpoint is CHAT:
            call = Call(ENDPOINTS["/v1/chat/completions"], key, parse_chat(data), ChatShape(), session)
        else:
            body = bodies.parse(data, allow_prompt_logprobs=self._allow_prompt_logprobs)
            call = Call(endpoint, key, body, session=session)
        task = asyncio.current_task()
        assert task is not None  # the server runs every request in one
        watch = asyncio.create_task(_watch(receive, task))
        try:
            await self._serving.answer(call, record, out)
        except asyncio.CancelledError:
            if not watch.done():
                raise  # the server is being stopped in a hurry
            task.uncancel()
            raise _CallerGone from None
        finally:
            watch.cancel()

    async def _read(self, headers: list[tuple[bytes, bytes]], receive: Receive) -> bytes:
        limit = self._max_body_bytes
        length = next((value for name, value in headers if name == b"content-length"), b"0")
        if int(length) > limit:
            raise _too_large(limit)
        parts: list[bytes] = []
        size, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _CallerGone
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > limit:
                raise _too_large(limit)
            more = message.get("more_body", False)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def _models(self, key: ApiKey, path: str, record: Record, out: Outlet) -> None:
        """OpenAI's list of models, or one of them: the adapters that the key may use, and the base models."""
        snapshot = self._snapshot()
        listed = {a.name: _model(a.name, a.created_at, key.tenant) for a in usable_adapters(snapshot, key)}
        if may_use_base(snapshot, key):
            for name in sorted(self._base_models() - listed.keys()):
                listed[name] = _model(name, 0, "switchyard")
        if path == MODELS.path:
            answer: object = {"object": "list", "data": list(listed.values())}
        else:
            name = path.removeprefix("/v1/models/")
            answer = listed.get(name.removeprefix(f"{key.tenant}/")) or listed.get(name)
            if answer is None:
                raise ModelNotFound(
                    f"The model {name[:200]!r} does not exist, or this key may not use it.", param="model")
        record.status = 200
        await out.whole(200, [(b"content-type", b"application/json")], msgspec.json.encode(answer))

    async def _refuse(self, error: SwitchyardError, record: Record, out: Outlet) -> None:
        reply = errors.reply_to(error)
        record.status, record.error = reply.status, error.code
        await out.start(reply.status, list(reply.headers))
        await out.send(reply.body, more=False)

    def _request_id(self, headers: list[tuple[bytes, bytes]]) -> str:
        for name, value in headers:
            if name == b"x-request-id" and _REQUEST_ID.fullmatch(value):
                return value.decode()
        return self._system.hex(16)


async def _watch(receive: Receive, task: "asyncio.Task[None]") -> None:
    """Cancel the call's task when its caller hangs up; the server itself would drop what we send and say nothing."""
    while (await receive())["type"] != "http.disconnect":
        pass
    task.cancel()


def _session(headers: list[tuple[bytes, bytes]]) -> str:
    for name, value in headers:
        if name == b"x-switchyard-session":
            return value.decode("latin-1")
    return ""


def _model(name: str, created: float, owner: str) -> dict[str, object]:
    return {"id": name, "object": "model", "created": int(created), "owned_by": owner}


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(
        f"The body is larger than {limit} bytes. Send less, or raise SWITCHYARD_MAX_BODY_BYTES.")
