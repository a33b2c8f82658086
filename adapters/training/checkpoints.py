"""Checkpoints that are whole or not there: written aside, forced to the disk, then renamed."""

import os
import re
import shutil
from collections.abc import Collection
from pathlib import Path

STAGING = ".staging"
_NAME = re.compile(r"checkpoint-(\d+)")


def staging(work: Path) -> Path:
    """The folder in which a checkpoint is written."""
    return work / STAGING


def folder_of(work: Path, step: int) -> Path:
    """Where the checkpoint after so many steps is, or would be."""
    return work / f"checkpoint-{step}"


def publish(work: Path, step: int) -> Path:
    """Make the checkpoint written in the staging folder one that counts."""
    written, final = folder_of(staging(work), step), folder_of(work, step)
    for path in sorted(written.rglob("*"), reverse=True):
        _to_disk(path)
    _to_disk(written)
    shutil.rmtree(final, ignore_errors=True)
    written.rename(final)
    _to_disk(work)
    shutil.rmtree(staging(work), ignore_errors=True)
    return final


def steps(work: Path) -> list[int]:
    """After how many steps there are checkpoints, ascending; what was never finished is not among them."""
    if not work.is_dir():
        return []
    return sorted(int(found[1]) for path in work.iterdir() if (found := _NAME.fullmatch(path.name)) and path.is_dir())


def prune(work: Path, keep: int, also: Collection[int] = ()) -> None:
    """Remove all but the newest `keep` checkpoints and those after the steps in `also`."""
    for step in steps(work)[:-keep]:
        if step not in also:
            _remove(work, step)


def remove_after(work: Path, step: int) -> None:
    """Remove the checkpoints after later steps."""
    for later in steps(work):
        if later > step:
            _remove(work, later)


def _remove(work: Path, step: int) -> None:
    """Renamed first: a folder that is half removed must not count."""
    doomed = work / f".removed-{step}"
    shutil.rmtree(doomed, ignore_errors=True)
    folder_of(work, step).rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
