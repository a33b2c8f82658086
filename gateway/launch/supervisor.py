"""The gateway's processes: one listening socket, N workers that share it, kept running until told to stop."""

import asyncio
import os
import shutil
import signal
import socket
import sys
from pathlib import Path
from typing import Any

from gateway.launch.processes import Announce, Keeper, LaunchFailed, Program, describe, end_of
from gateway.settings import Settings

APP = "gateway.app:build"
MARGIN = 5.0  # seconds that a worker gets for its own clean-up beyond what the settings allow requests


class Supervisor:
    """Runs the gateway's workers.

    The socket is ours and outlives any worker: while one is started again, connections wait or go to another.
    """

    def __init__(self, settings: Settings, announce: Announce, *, app: str = APP, log: Path | None = None) -> None:
        self._settings = settings
        self._announce = announce
        self._app = app
        self._log = log
        self._socket: socket.socket | None = None
        self._metrics: Path | None = None
        self._keepers: list[Keeper] = []
        self._up: set[int] = set()
        self._all_up = asyncio.Event()
        self._ready_pipe: tuple[int, int] | None = None

    @property
    def url(self) -> str:
        """Where the gateway listens; the port that was taken when the settings say 0."""
        assert self._socket is not None
        host, port = self._socket.getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def bind(self) -> None:
        """Take the port; LaunchFailed when another process has it."""
        host, port = self._settings.host, self._settings.port
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self._socket = socket.create_server((host, port), family=family, backlog=2048)
        except OSError as error:
            raise LaunchFailed(
                f"Cannot listen on {host}:{port}: {error.strerror or error}. Stop what uses it, or choose another "
                "with --port or SWITCHYARD_PORT.") from None

    async def start(self) -> None:
        """Start every worker; returns when all of them serve. LaunchFailed when one ends instead."""
        if self._socket is None:
            self.bind()
        self._settings.state_path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self._settings.workers > 1:
            self._metrics = fresh_metrics_folder(self._settings.state_path)
        self._ready_pipe = os.pipe()
        asyncio.get_running_loop().add_reader(self._ready_pipe[0], self._on_ready)
        for index in range(self._settings.workers):
            keeper = Keeper(self._program(index), self._announce, on_exit=self._forget_metrics)
            self._keepers.append(keeper)
            await keeper.start()
        await self._wait_until_up()

    async def stop(self, hurry: asyncio.Event) -> None:
        """Drain: workers accept for `drain_seconds` more, then finish what is in flight; `hurry` cuts that short."""
        if self._socket is not None:
            self._socket.close()
        grace = self._settings.drain_seconds + self._settings.shutdown_seconds + MARGIN
        hurrying = asyncio.create_task(self._hurry(hurry))
        await asyncio.gather(*(keeper.stop(grace) for keeper in self._keepers))
        hurrying.cancel()
        if self._ready_pipe is not None:
            asyncio.get_running_loop().remove_reader(self._ready_pipe[0])
            for fd in self._ready_pipe:
                os.close(fd)
            self._ready_pipe = None
        if self._metrics is not None:
            shutil.rmtree(self._metrics, ignore_errors=True)

    def _program(self, index: int) -> Program:
        assert self._socket is not None and self._ready_pipe is not None
        fds = self._socket.fileno(), self._ready_pipe[1]
        name = "the gateway" if self._settings.workers == 1 else f"gateway worker {index}"
        return Program(
            name=name, log=self._log, pass_fds=fds,
            command=(sys.executable, "-m", "gateway", "worker", "--app", self._app, "--fd", str(fds[0]),
                     "--ready-fd", str(fds[1]), "--index", str(index), "--parent", str(os.getpid())),
            environment={**self._settings.to_environment(), "PROMETHEUS_MULTIPROC_DIR": str(self._metrics)}
            if self._metrics else self._settings.to_environment())

    def _on_ready(self) -> None:
        assert self._ready_pipe is not None
        for line in os.read(self._ready_pipe[0], 4096).split():
            self._keepers[int(line)].is_ready = True
            self._up.add(int(line))
        if len(self._up) == self._settings.workers:
            self._all_up.set()

    async def _wait_until_up(self) -> None:
        all_up = asyncio.create_task(self._all_up.wait())
        waited_for: list[asyncio.Future[Any]] = [all_up, *(keeper.failed for keeper in self._keepers)]
        try:
            await asyncio.wait(waited_for, return_when=asyncio.FIRST_COMPLETED)
        finally:
            all_up.cancel()
        for keeper in self._keepers:
            if keeper.failed.done():
                where = f"The end of its log, {self._log}:\n{end_of(self._log)}" if self._log else "It says why above."
                raise LaunchFailed(
                    f"{keeper.program.name} ended before it served ({describe(keeper.failed.result())}). {where}")

    async def _hurry(self, hurry: asyncio.Event) -> None:
        await hurry.wait()
        for keeper in self._keepers:
            keeper.send(signal.SIGTERM)

    def _forget_metrics(self, pid: int) -> None:
        """Take a dead worker's gauges out of what /metrics adds up."""
        if self._metrics is not None:
            from prometheus_client.multiprocess import mark_process_dead

            mark_process_dead(pid, str(self._metrics))  # type: ignore[no-untyped-call]


def fresh_metrics_folder(state_path: Path) -> Path:
    """An empty folder for this process's workers to share metrics in; those that dead processes left are removed."""
    folder = state_path / "metrics"
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        if not Path(f"/proc/{old.name}").exists() or old.name == str(os.getpid()):
            shutil.rmtree(old, ignore_errors=True)
    mine = folder / str(os.getpid())
    mine.mkdir()
    return mine
