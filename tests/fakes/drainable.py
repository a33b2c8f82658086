"""A small ASGI app to start, drain and stop: what the supervisor needs of an app, and nothing more.

`/pid` answers the worker's process id, `/slow?SECONDS` takes its time, `/die` ends the process, anything else says
whether it is draining.
"""

import asyncio
import os
import signal
from typing import Any

from gateway.settings import Settings


class DrainableApp:
    """Answers in plain text; 503 while it drains."""

    def __init__(self) -> None:
        self.is_draining = False

    def begin_drain(self) -> None:
        self.is_draining = True

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await _live(receive, send)
            return
        status, text = 200, "ready"
        match scope["path"]:
            case "/pid":
                text = str(os.getpid())
            case "/slow":
                await asyncio.sleep(float(scope["query_string"]))
                text = "done"
            case "/die":
                os.kill(os.getpid(), signal.SIGKILL)
            case _ if self.is_draining:
                status, text = 503, "draining"
        headers = [(b"content-length", str(len(text)).encode())]
        if self.is_draining:
            headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": text.encode()})


async def _live(receive: Any, send: Any) -> None:
    while (await receive())["type"] == "lifespan.startup":
        await send({"type": "lifespan.startup.complete"})
    await send({"type": "lifespan.shutdown.complete"})


def build(settings: Settings) -> DrainableApp:
    """The app as a worker builds it; refuses a registry named `broken`."""
    if settings.registry == "broken":
        raise RuntimeError("this registry is broken")
    return DrainableApp()
