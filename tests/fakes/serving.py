"""Serves an ASGI app on a unix socket from a thread, with uvicorn as in production."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn


class Served(uvicorn.Server):
    """A server that leaves the process' signals alone and says when it listens."""

    def __init__(self, app: Any, socket: Path) -> None:
        super().__init__(uvicorn.Config(
            app, uds=str(socket), loop="uvloop", http="httptools", ws="none", access_log=False, log_level="warning",
            timeout_graceful_shutdown=1))

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextmanager
def serving(app: Any, socket: Path) -> Iterator[str]:
    """Serve `app` while the block runs; gives its URL, `unix:/path`."""
    server = Served(app, socket)
    thread = threading.Thread(target=server.run, name=f"serving {socket.name}", daemon=True)
    thread.start()
    try:
        while not server.started:
            if not thread.is_alive():
                raise RuntimeError(f"The server for {socket} did not start.")
            time.sleep(0.005)
        yield f"unix:{socket}"
    finally:
        server.should_exit = True
        thread.join(10)
        socket.unlink(missing_ok=True)
