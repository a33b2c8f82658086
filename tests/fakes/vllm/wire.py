"""ASGI in small: read a body, send an answer, cut a connection, notice a caller that hangs up."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeAlias

Scope: TypeAlias = dict[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[dict[str, Any]]]
Send: TypeAlias = Callable[[dict[str, Any]], Awaitable[None]]

JSON = b"application/json"
EVENTS = b"text/event-stream; charset=utf-8"


class HungUp(Exception):
    """The caller closed the connection before its answer was complete."""


class Cut(Exception):
    """The fake is to close this connection without another byte."""


async def read_body(receive: Receive) -> bytes:
    """The whole body; HungUp when the caller leaves before it is complete."""
    parts = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise HungUp
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)


async def send_head(send: Send, status: int, content_type: bytes, length: int | None = None) -> None:
    """The status line and headers; without a length the body goes in chunks."""
    headers = [(b"content-type", content_type)] if content_type else []
    if length is not None:
        headers.insert(0, (b"content-length", str(length).encode()))
    headers.append((b"vary", b"Origin"))
    await send({"type": "http.response.start", "status": status, "headers": headers})


async def reply(send: Send, status: int, body: bytes, content_type: bytes = JSON) -> None:
    """A whole answer."""
    await send_head(send, status, content_type, len(body))
    await send({"type": "http.response.body", "body": body})


async def cut(receive: Receive) -> None:
    """Close the connection without another byte, which ASGI has no word for: reach for uvicorn's transport."""
    transport = getattr(getattr(receive, "__self__", None), "transport", None)
    if transport is None:
        raise ConnectionResetError("The fake cuts this connection.")
    transport.abort()
    while (await receive())["type"] != "http.disconnect":
        pass


async def unless_hung_up(receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Do the work, but stop it at once and raise HungUp when the caller closes the connection."""
    working, listening = asyncio.create_task(work), asyncio.ensure_future(receive())
    try:
        await asyncio.wait((working, listening), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise HungUp
        working.result()
    finally:
        for task in (working, listening):
            task.cancel()
        await asyncio.gather(working, listening, return_exceptions=True)
