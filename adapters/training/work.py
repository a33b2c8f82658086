"""The work folder of a run, `<output>.work`: what a run that was killed needs to go on exactly where it stood.

    run.json        which run this is: another recipe or other data must not go on with it
    attempt.json    what the run has learned about itself: how much fits into memory, how fast it may learn
    data/ tokens/   the rows, checked; the same as tokens
    checkpoint-N/   weights, optimiser, schedule and random numbers after N steps
    metrics.jsonl   every line that was told
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from adapters.recipe import Recipe
from adapters.training import checkpoints
from adapters.training.errors import StartAgain, TrainingError
from adapters.training.ladder import Shape

SCHEMA = "switchyard.run/1"
METRICS = "metrics.jsonl"
REJECTS = "data.rejects.jsonl"
"""Where the preparation of the data lists bad rows when it gives up."""
_MAY_CHANGE = ("output", "guards", "report")
_MAY_CHANGE_IN_TRAINING = ("log_every", "keep_checkpoints", "keep_work")


@dataclass(frozen=True, slots=True)
class Attempt:
    """How the run goes on: in which shape and at what share of the recipe's learning rate.

    `divergences` counts how often its loss went astray; the last time it went back to step `went_back_to`.
    """

    shape: Shape
    rate: float = 1.0
    divergences: int = 0
    went_back_to: int | None = None


@dataclass(frozen=True, slots=True)
class Work:
    """A run's folder. The first process alone makes and removes it."""

    folder: Path

    @property
    def metrics(self) -> Path:
        """Where the lines are."""
        return self.folder / METRICS

    def attempt(self) -> Attempt | None:
        """What `remember` was last given."""
        try:
            document = json.loads((self.folder / "attempt.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return Attempt(**{**document, "shape": Shape(**document["shape"])})

    def remember(self, attempt: Attempt) -> None:
        """Go on like this also after a kill."""
        _write(self.folder / "attempt.json", asdict(attempt))

    def remove(self) -> None:
        """The run is done."""
        shutil.rmtree(self.folder, ignore_errors=True)


@contextmanager
def opened(recipe: Recipe, processes: int, *, fresh: bool) -> Iterator[Work]:
    """The recipe's work folder, held by this process alone; what was there is gone on with, unless `fresh`.

    TrainingError when it belongs to another run or another process has it. A run that fails before its first
    checkpoint leaves nothing but the rows that were rejected, unless it is to StartAgain.
    """
    folder = folder_of(recipe.output)
    identity = json.loads(json.dumps({"schema": SCHEMA, "processes": processes, **_identity(recipe)}))
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise TrainingError(f"Another process trains {recipe.output} right now; wait for it, or choose another "
                                "output.") from error
        if fresh:
            _clear(folder, but="lock")
        _check(folder, identity)
        _write(folder / "run.json", identity)
        is_to_go_on = False
        try:
            yield Work(folder)
        except StartAgain:
            is_to_go_on = True
            raise
        finally:
            if not is_to_go_on and not checkpoints.steps(folder):
                _clear(folder, but=REJECTS)


def folder_of(output: Path) -> Path:
    """Where the work for an output is done."""
    return output.with_name(output.name + ".work")


def _identity(recipe: Recipe) -> Mapping[str, Any]:
    """What must be the same for a run to go on, the data's size and time of change included."""
    document = {key: value for key, value in recipe.to_document().items() if key not in _MAY_CHANGE}
    training = document["training"]
    document["training"] = {key: value for key, value in training.items() if key not in _MAY_CHANGE_IN_TRAINING}
    source = recipe.data.source
    files = sorted(path for path in source.rglob("*") if path.is_file()) if source.is_dir() else [source]
    document["source"] = [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in files if path.exists()]
    return document


def _check(folder: Path, identity: Mapping[str, Any]) -> None:
    try:
        before = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return
    except ValueError as error:
        raise TrainingError(f"{folder / 'run.json'} is not JSON; start anew with --fresh.") from error
    changed = sorted(key for key in {*before, *identity} if before.get(key) != identity.get(key))
    if changed:
        raise TrainingError(f"{folder} holds a run that is not done, and {' and '.join(changed)} changed since it "
                            "began; change it back to go on with that run, or start anew with --fresh.")


def _clear(folder: Path, *, but: str) -> None:
    """Remove all but one file, and the folder too when it is empty then."""
    for path in folder.iterdir() if folder.exists() else ():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != but:
            path.unlink()
    with suppress(OSError):
        folder.rmdir()


def _write(path: Path, document: Mapping[str, Any]) -> None:
    """In one step: a reader sees the old file or the new one."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with partial.open("w", encoding="utf-8") as file:
        json.dump(document, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
