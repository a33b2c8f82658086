"""One gateway process: uvicorn around the app, on a socket that its parent listens on.

    python -m gateway worker --app gateway.app:build --fd 5 --ready-fd 6 --index 0 --parent 4711
"""

import argparse
import asyncio
import contextlib
import importlib
import math
import os
import signal
import socket
import sys
from collections.abc import Generator, Sequence
from typing import Any, Protocol

import uvicorn

from gateway import settings as settings_module
from gateway.domain.errors import SwitchyardError
from gateway.launch.guardian import die_with_parent
from gateway.settings import SettingsError


class App(Protocol):
    """What a worker needs of the app besides ASGI."""

    def begin_drain(self) -> None:
        """From now on say 'not ready' and ask clients to close their connections."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None: ...


class Server(uvicorn.Server):
    """Uvicorn that says when it is up, and on SIGTERM goes on accepting for `drain_seconds` before it stops.

    A second SIGTERM or SIGINT stops at once. Always leaves with exit status 0 after a stop.
    """

    def __init__(self, config: uvicorn.Config, app: App, *, drain_seconds: float, ready_fd: int, index: int) -> None:
        super().__init__(config)
        self._app = app
        self._drain_seconds = drain_seconds
        self._ready_fd = ready_fd
        self._index = index
        self._is_draining = False

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        loop = asyncio.get_running_loop()
        for sig in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(sig, self._asked_to_stop)
        await super().startup(sockets)
        os.write(self._ready_fd, f"{self._index}\n".encode())

    def _asked_to_stop(self) -> None:
        if self._is_draining:
            self.should_exit = self.force_exit = True
            return
        self._is_draining = True
        self._app.begin_drain()
        asyncio.get_running_loop().call_later(self._drain_seconds, setattr, self, "should_exit", True)


def main(arguments: Sequence[str]) -> int:
    """Serve until told to stop; 0, or 1 when the app cannot be built or the parent is gone already."""
    parser = argparse.ArgumentParser(prog="gateway worker")
    parser.add_argument("--app", required=True)
    for name in ("--fd", "--ready-fd", "--index", "--parent"):
        parser.add_argument(name, type=int, required=True)
    given = parser.parse_args(arguments)
    if not die_with_parent(given.parent, signal.SIGKILL):
        return 1
    module, _, attribute = given.app.partition(":")
    try:
        settings = settings_module.load()
        app: App = getattr(importlib.import_module(module), attribute)(settings)
    except (SettingsError, SwitchyardError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    config = uvicorn.Config(
        app, loop="uvloop", http="httptools", ws="none", lifespan="on", log_config=None, access_log=False,
        server_header=False, proxy_headers=False, timeout_keep_alive=75,
        timeout_graceful_shutdown=math.ceil(settings.shutdown_seconds))
    server = Server(config, app, drain_seconds=settings.drain_seconds, ready_fd=given.ready_fd, index=given.index)
    server.run(sockets=[socket.socket(fileno=given.fd)])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
