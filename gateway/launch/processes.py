"""A child process that is kept running: started again, later each time, when it ends unasked."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

Announce: TypeAlias = Callable[[str], None]

FIRST_DELAY, LONGEST_DELAY, GOOD_LIFE = 0.5, 30.0, 60.0  # seconds
END_OF_LOG, LAST_LINES = 8000, 20  # bytes; lines


class LaunchFailed(Exception):
    """Something could not be started; the message says what, why and where its log is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """What to run. `log`: where its output goes (None: ours). `before_start` clears what a former life left."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    log: Path | None = None
    pass_fds: tuple[int, ...] = ()
    before_start: Callable[[], None] = field(default=lambda: None)


class Keeper:
    """Keeps one program running from `start` to `stop`.

    Until `is_ready` is set, an end is final and resolves `failed`: what never worked is not tried for ever. Children
    get a session of their own, so that Ctrl-C in a terminal reaches only us and the order of stopping is ours.
    """

    def __init__(self, program: Program, announce: Announce, *, on_exit: Callable[[int], None] | None = None) -> None:
        self.program = program
        self.is_ready = False
        self.failed: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.process: asyncio.subprocess.Process | None = None
        self._announce = announce
        self._on_exit = on_exit
        self._is_stopping = False
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start the program; it is watched from now on."""
        await self._spawn()
        self._task = asyncio.create_task(self._keep())

    def send(self, sig: signal.Signals) -> None:
        """Send a signal to the process, if there is one."""
        if self.process is not None and self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(sig)

    async def stop(self, grace: float) -> None:
        """Send SIGTERM, wait for at most `grace` seconds, then SIGKILL; returns when the process is gone."""
        self._is_stopping = True
        self.send(signal.SIGTERM)
        if self.process is not None:
            try:
                await asyncio.wait_for(self.process.wait(), grace)
            except TimeoutError:
                self._announce(f"{self.program.name} did not stop within {grace:.0f} s; killed.")
                self.send(signal.SIGKILL)
                await self.process.wait()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _spawn(self) -> None:
        self.program.before_start()
        with contextlib.ExitStack() as stack:
            output = None
            if self.program.log is not None:
                self.program.log.parent.mkdir(parents=True, exist_ok=True)
                output = stack.enter_context(self.program.log.open("ab"))
            self.process = await asyncio.create_subprocess_exec(
                *self.program.command, stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output,
                env={**os.environ, **self.program.environment}, pass_fds=self.program.pass_fds,
                start_new_session=True)

    async def _keep(self) -> None:
        delay = FIRST_DELAY
        while True:
            assert self.process is not None
            started = time.monotonic()
            status = await self.process.wait()
            if self._on_exit is not None:
                self._on_exit(self.process.pid)
            if self._is_stopping:
                return
            if not self.is_ready:
                self.failed.set_result(status)
                return
            delay = FIRST_DELAY if time.monotonic() - started > GOOD_LIFE else delay
            self._announce(f"{self.program.name} ended ({describe(status)}); starting it again in {delay:g} s."
                           + (f" Its log: {self.program.log}" if self.program.log else ""))
            await asyncio.sleep(delay)
            delay = min(2 * delay, LONGEST_DELAY)
            await self._spawn()


def end_of(log: Path) -> str:
    """The last lines of a log, each indented."""
    lines = log.read_bytes()[-END_OF_LOG:].decode(errors="replace").splitlines()
    return "\n".join(f"  {line}" for line in lines[-LAST_LINES:])


def describe(status: int) -> str:
    """`exit status 3` or `SIGKILL`; a guardian's 128 + n is the same signal."""
    number = -status if status < 0 else status - 128
    if status < 0 or number in set(signal.Signals):
        return signal.Signals(number).name
    return f"exit status {status}"
