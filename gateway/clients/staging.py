"""Folders for unfinished work, swept when the process that made them is gone."""

import contextlib
import fcntl
import os
import shutil
import tempfile
from pathlib import Path


class Staging:
    """One process's folder under `parent`. What dead processes left under `parent` is removed when one is made.

    A process is known to live by the lock that it holds on `<its folder>.lock`. Locks, unlike process numbers, mean the
    same in two containers that share a disk.
    """

    def __init__(self, parent: Path) -> None:
        parent.mkdir(parents=True, exist_ok=True)
        _sweep(parent)
        self._lock, path = _claim(parent)
        self._lock_path = path
        self._folder = path.with_suffix("")
        self._folder.mkdir()

    def new(self) -> Path:
        """A new empty folder."""
        return Path(tempfile.mkdtemp(dir=self._folder))

    def bury(self, folder: Path) -> None:
        """Remove a folder of the same disk so that it is gone at once, whole; nothing happens if it is gone already."""
        grave = self.new()
        with contextlib.suppress(FileNotFoundError):
            folder.rename(grave / folder.name)
        shutil.rmtree(grave)

    def close(self) -> None:
        """Remove the folder and let go of the lock."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._lock_path.unlink(missing_ok=True)
        os.close(self._lock)


def _claim(parent: Path) -> tuple[int, Path]:
    """A locked file of a new name. A sweeper may take it between its making and its locking: then try another."""
    while True:
        lock, name = tempfile.mkstemp(dir=parent, suffix=".lock")
        if _is_locked(lock) and _is_still(lock, name):
            return lock, Path(name)
        os.close(lock)


def _is_locked(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_still(lock: int, name: str) -> bool:
    try:
        return os.path.samestat(os.fstat(lock), os.stat(name))
    except FileNotFoundError:
        return False


def _sweep(parent: Path) -> None:
    for path in parent.glob("*.lock"):
        try:
            lock = os.open(path, os.O_RDWR)
        except (FileNotFoundError, PermissionError):  # gone meanwhile, or another user's
            continue
        try:
            if _is_locked(lock):
                shutil.rmtree(path.with_suffix(""), ignore_errors=True)
                path.unlink(missing_ok=True)
        finally:
            os.close(lock)
