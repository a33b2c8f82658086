"""The answers of a run that is not over: one JSON line each, so that a run that was stopped goes on where it was."""

import fcntl
import json
import os
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self


class JournalError(RuntimeError):
    """The journal cannot be used; the message says why and what to do."""


class Journal:
    """An append-only file of documents by key, for one process at a time; use it as a context manager.

    `fresh` forgets what an earlier run left. A last line that a crash cut off is dropped; an older broken line is a
    JournalError, because a file that was changed elsewhere is not to be trusted.
    """

    def __init__(self, path: Path, *, fresh: bool = False) -> None:
        self.path = path
        self._fresh = fresh
        self._known: dict[str, Mapping[str, Any]] = {}
        self._file: BinaryIO | None = None

    def __enter__(self) -> Self:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a+b")
        except OSError as error:
            raise JournalError(f"The journal {self.path} cannot be written: {error.strerror}.") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            raise JournalError(f"Another process evaluates the same just now ({self.path} is locked); wait for "
                               "it.") from error
        if self._fresh:
            self._file.truncate(0)
        self._load()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None,
    ) -> None:
        if self._file is not None:
            self._file.close()

    def __len__(self) -> int:
        return len(self._known)

    def get(self, key: str) -> Mapping[str, Any] | None:
        """The document under the key, None when there is none."""
        return self._known.get(key)

    def add(self, key: str, document: Mapping[str, Any]) -> None:
        """Keep a document; it is in the file when this returns, but for what a crash of the machine may take."""
        line = json.dumps({"key": key, **document}, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"
        file = self._opened()
        file.write(line)
        file.flush()
        self._known[key] = document

    def finish(self, path: Path) -> None:
        """The run is over: its answers move to `path`, and the next run begins with none."""
        os.fsync(self._opened().fileno())
        self.path.replace(path)

    def _opened(self) -> BinaryIO:
        if self._file is None:
            raise JournalError(f"The journal {self.path} is not open.")
        return self._file

    def _load(self) -> None:
        file = self._opened()
        file.seek(0)
        whole = 0
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                file.truncate(whole)
                break
            whole += len(line)
            try:
                document = json.loads(line.decode("utf-8", "surrogatepass"))
                self._known[document.pop("key")] = document
            except (ValueError, KeyError, AttributeError, TypeError) as error:
                self._opened().close()
                raise JournalError(f"The journal {self.path} is broken at line {number}; begin anew with "
                                   "--fresh.") from error
        file.seek(0, os.SEEK_END)


def key_of(*parts: Any) -> str:
    """A key that differs when any of the JSON-ready parts does."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return sha256(text.encode()).hexdigest()
