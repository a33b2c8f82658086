"""The registry as requests read it: the last good snapshot in memory, followed in Redis and kept on disk."""

import asyncio
import json
import os
import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any, Final, Protocol

from gateway.domain.errors import SwitchyardError
from gateway.domain.kinds import entity_from
from gateway.domain.model import Entity, Snapshot
from gateway.system import System

SCHEMA: Final = "switchyard.snapshot/1"

_FIRST_PAUSE_SECONDS: Final = 0.1
_LONGEST_PAUSE_SECONDS: Final = 5.0
_SECONDS_BETWEEN_COPIES: Final = 1.0


class Feed(Protocol):
    """What the snapshots need of the registry."""

    def follow(self) -> AsyncGenerator[tuple[Snapshot, str], None]:
        """The registry now, after every change, and at least once a second as a sign of life.

        The text, if not empty, says why the whole was read again. Raises SwitchyardError when the registry is lost.
        """
        ...


class Logger(Protocol):
    """A structlog logger, as far as it is used here."""

    def info(self, event: str, **values: Any) -> Any: ...
    def warning(self, event: str, **values: Any) -> Any: ...
    def error(self, event: str, **values: Any) -> Any: ...


class DiskCopy:
    """A snapshot as a file that only this user may read: what a gateway serves that starts while Redis is down."""

    def __init__(self, path: Path, registry_name: str, log: Logger) -> None:
        self._path = path
        self._registry_name = registry_name
        self._log = log
        # Entities never change, so each is put into JSON once, and a change costs what it changes.
        self._lines: dict[str, tuple[Entity, str]] = {}
        self._writing = threading.Lock()

    def read(self) -> Snapshot | None:
        """The snapshot kept, or None when there is none, or none that can be read (the log says why)."""
        try:
            kept = json.loads(self._path.read_bytes())
            if (kept["schema"], kept["registry"]) != (SCHEMA, self._registry_name):
                self._log.warning("snapshot_copy_foreign", path=str(self._path), schema=kept["schema"],
                                  registry=kept["registry"])
                return None
            entities = {
                path: entity for path, (revision, document) in kept["entities"].items()
                if (entity := entity_from(path, document, revision))
            }
            return Snapshot.of(int(kept["revision"]), entities)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            self._log.warning("snapshot_copy_unreadable", path=str(self._path), error=repr(error))
            return None

    def write(self, snapshot: Snapshot) -> None:
        """Replace the file in one step; a failure is logged, and the file stays what it was."""
        with self._writing:
            part = self._path.with_name(f"{self._path.name}.{os.getpid()}.part")
            try:
                part.unlink(missing_ok=True)
                with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
                    file.write(self._text(snapshot))
                    file.flush()
                    os.fsync(file.fileno())
                part.replace(self._path)
            except OSError as error:
                self._log.error("snapshot_copy_not_written", path=str(self._path), error=repr(error))

    def set_aside(self, revision: int) -> None:
        """Keep the file under another name, so that what Redis has lost can be looked up."""
        with self._writing, suppress(FileNotFoundError):
            self._path.replace(self._path.with_name(f"{self._path.stem}-{revision}{self._path.suffix}"))

    def _text(self, snapshot: Snapshot) -> str:
        self._lines = {path: self._line(path, entity) for path, entity in snapshot.entities.items()}
        head = json.dumps({"schema": SCHEMA, "registry": self._registry_name, "revision": snapshot.revision})
        return f'{head[:-1]}, "entities": {{\n' + ",\n".join(line for _, line in self._lines.values()) + "\n}}\n"

    def _line(self, path: str, entity: Entity) -> tuple[Entity, str]:
        known = self._lines.get(path)
        if known and known[0] is entity:
            return known
        return entity, f"{json.dumps(path)}: {json.dumps([entity.revision, entity.to_document()])}"


class Snapshots:
    """The current snapshot, kept current by `run`.

    `current` is never None and costs nothing to read; `loaded` is False while it is empty because nothing could be read
    yet. While Redis is away it stays what it was, `connected` is False, and `run` goes on asking.
    """

    def __init__(self, feed: Feed, copy: DiskCopy, *, system: System, log: Logger) -> None:
        self.current = Snapshot.empty()
        self.connected = False
        self.loaded = False
        self._feed = feed
        self._copy = copy
        self._system = system
        self._log = log
        self._missed = False  # its loss has been logged
        self._answered_at = system.monotonic()
        self._callbacks: list[Callable[[Snapshot], None]] = []
        self._moved = asyncio.Event()
        self._copy_due = asyncio.Event()

    @property
    def lag_seconds(self) -> float:
        """Since the registry last answered (or since the start): at most some 1 s while all is well."""
        return self._system.monotonic() - self._answered_at

    def subscribe(self, callback: Callable[[Snapshot], None]) -> None:
        """Call back with each new snapshot, at once and in order; the callback must be quick and must not raise."""
        self._callbacks.append(callback)

    async def wait_for(self, revision: int, timeout: float = 5.0) -> Snapshot:
        """The current snapshot once it is at `revision` or later, or as it is after `timeout` seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while self.current.revision < revision:
                    await self._moved.wait()
        return self.current

    async def wait_loaded(self, timeout: float = 5.0) -> bool:
        """Has a snapshot been read, from Redis or disk? Waits until both have been tried, or `timeout` seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while not (self.loaded or self._missed):
                    await self._moved.wait()
        return self.loaded

    def load_disk(self) -> bool:
        """Serve the snapshot kept on disk; False when there is none that can be read. `run` does this by itself."""
        kept = self._copy.read()
        if kept is None:
            return False
        self._log.info("snapshot_from_disk", revision=kept.revision)
        self._publish(kept)
        return True

    async def run(self) -> None:
        """Follow the registry for ever and keep the copy on disk; ends only by cancellation."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._keep_copy())
            tasks.create_task(self._follow_for_ever())

    async def _follow_for_ever(self) -> None:
        pause = _FIRST_PAUSE_SECONDS
        while True:
            try:
                await self._follow()
            except SwitchyardError as error:
                if self.connected:
                    pause = _FIRST_PAUSE_SECONDS
                self._lost(error)
            # Jitter, so that the gateways of one registry do not all come back in the same instant.
            await asyncio.sleep(pause * (0.5 + int(self._system.hex(1), 16) / 512))
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    async def _follow(self) -> None:
        async with aclosing(self._feed.follow()) as feed:
            async for snapshot, reason in feed:
                self._answered_at = self._system.monotonic()
                self.connected, self._missed = True, False
                if reason:
                    self._read_again(snapshot, reason)
                if snapshot is not self.current:
                    self._publish(snapshot)
                    self._copy_due.set()

    def _read_again(self, snapshot: Snapshot, reason: str) -> None:
        had = self.current.revision
        self._log.info("registry_read", reason=reason, revision=snapshot.revision, had=had)
        if snapshot.revision < had:
            self._log.warning("registry_went_back", revision=snapshot.revision, had=had)
            self._copy.set_aside(had)

    def _lost(self, error: SwitchyardError) -> None:
        if not self._missed:
            self._log.warning("registry_lost", error=error.message, revision=self.current.revision)
            if not self.loaded:
                self.load_disk()
        self.connected, self._missed = False, True
        self._wake()

    def _publish(self, snapshot: Snapshot) -> None:
        self.current = snapshot
        self.loaded = True
        self._wake()
        for callback in self._callbacks:
            callback(snapshot)

    def _wake(self) -> None:
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()

    async def _keep_copy(self) -> None:
        try:
            while True:
                await self._copy_due.wait()
                await self._write_copy()
                await asyncio.sleep(_SECONDS_BETWEEN_COPIES)
        finally:
            if self._copy_due.is_set():
                self._copy.write(self.current)

    async def _write_copy(self) -> None:
        self._copy_due.clear()
        try:
            await asyncio.to_thread(self._copy.write, self.current)
        except asyncio.CancelledError:
            self._copy_due.set()  # the thread may not have begun
            raise
