"""Everything in order: embedded Valkey, replicas, gateway; stopped the other way round."""

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import httpx

from gateway.clients.valkey import EmbeddedValkey
from gateway.domain.errors import SwitchyardError
from gateway.launch.engines import Engine, Engines, Waiting
from gateway.launch.processes import Announce, LaunchFailed
from gateway.launch.supervisor import APP, Supervisor
from gateway.settings import Settings

VALKEY_WATCH_SECONDS = 1.0
SEEN_SECONDS, SEEN_PAUSE_SECONDS = 60.0, 0.1


class Stack:
    """One Switchyard on this machine. Whatever of it dies is started again; if we die, so does all of it."""

    def __init__(
        self, settings: Settings, announce: Announce, *, engines: Sequence[Engine] = (), log: Path | None = None,
        app: str = APP,
    ) -> None:
        local = ",".join(f"{engine.name}={engine.url}" for engine in engines)
        replicas = ",".join(filter(None, (settings.replicas, local)))
        self.valkey = EmbeddedValkey(settings.state_path) if settings.redis_url is None else None
        url = self.valkey.url if self.valkey else settings.redis_url
        self.settings = settings.model_copy(update={"redis_url": url, "replicas": replicas})
        self.gateway = Supervisor(self.settings, announce, app=app, log=log)
        self.engines = Engines(engines, announce)
        self._announce = announce
        self._watch: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        """Where the gateway listens."""
        return self.gateway.url

    async def start(self, waiting: Waiting = lambda seconds: None) -> None:
        """Start all; returns when the gateway serves and every replica answers. LaunchFailed says what did not."""
        self.settings.state_path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.gateway.bind()
        if self.valkey is not None:
            try:
                self.valkey.start()
            except SwitchyardError as error:
                raise LaunchFailed(error.message) from error
            self._watch = asyncio.create_task(self._keep_valkey(self.valkey))
        await self.engines.start()
        await self.gateway.start()
        if self.engines.engines:
            await self.engines.wait_until_healthy(waiting)
            await self._wait_until_seen()

    async def stop(self, hurry: asyncio.Event) -> None:
        """The gateway drains, the replicas stop, Valkey goes last; `hurry` cuts the draining short."""
        await self.gateway.stop(hurry)
        await self.engines.stop()
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
        if self.valkey is not None:
            self.valkey.stop()

    async def _wait_until_seen(self) -> None:
        """The gateway looks at its replicas every so often: wait until it has seen that ours are up."""
        deadline = time.monotonic() + SEEN_SECONDS
        async with httpx.AsyncClient(trust_env=False) as client:
            while time.monotonic() < deadline:
                answer = (await client.get(f"{self.url}/readyz")).json()
                if answer["replicas"]["healthy"] >= len(self.engines.engines):
                    return
                await asyncio.sleep(SEEN_PAUSE_SECONDS)
        raise LaunchFailed(f"The gateway does not reach the replicas that were started: {answer}")

    async def _keep_valkey(self, valkey: EmbeddedValkey) -> None:
        while True:
            await asyncio.sleep(VALKEY_WATCH_SECONDS)
            if valkey.pid is not None:
                continue
            self._announce("The embedded Valkey ended; starting it again. Requests go on meanwhile.")
            try:
                valkey.start()
            except SwitchyardError as error:
                self._announce(error.message)


async def run(stack: Stack, body: Callable[[], Awaitable[None]], waiting: Waiting = lambda seconds: None) -> None:
    """Start the stack, run `body`, stop the stack; SIGTERM or SIGINT ends `body`, another one hurries the stop."""
    stop, hurry = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for sig in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(sig, lambda: hurry.set() if stop.is_set() else stop.set())

    async def work() -> None:
        await stack.start(waiting)
        await body()

    working = asyncio.create_task(work())
    asked = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({working, asked}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            await working
    finally:
        stop.set()
        asked.cancel()
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
        await stack.stop(hurry)


async def forever() -> None:
    """The body of a stack that runs until it is told to stop."""
    await asyncio.Event().wait()
