"""Watches the library's loop: says when a line, a validation and a checkpoint are due, and lets the guards judge."""

import resource
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import transformers
from accelerate.utils import broadcast_object_list

from adapters.recipe import Guards
from adapters.training import guards
from adapters.training.batches import Course
from adapters.training.guards import Stop
from adapters.training.progress import Progress, StepLine
from adapters.training.trainer import Cadence


class Diverged(Exception):
    """The loss has gone astray; `stop` says how."""

    def __init__(self, stop: Stop) -> None:
        super().__init__(stop.reason)
        self.stop = stop


class Watch(transformers.TrainerCallback):  # type: ignore[misc]
    """Collects the run's `lines`, those from before included; `stop` is why the run ended early, if it did."""

    def __init__(
        self, lines: Sequence[StepLine], limits: Guards, cadence: Cadence, course: Course, progress: Progress,
    ) -> None:
        self.lines = list(lines)
        self.stop: Stop | None = None
        self._limits = limits
        self._cadence = cadence
        self._course = course
        self._progress = progress
        self._seconds_before = lines[-1].seconds if lines else 0.0
        self._started = time.monotonic()
        self._last_seconds = 0.0
        self._first_step = lines[-1].step if lines else 0
        self._last_tokens = course.tokens_after(self._first_step)
        self._held: StepLine | None = None

    def best_step(self) -> int | None:
        """After which step the validation loss was lowest; None without validations."""
        best = guards.best_validation(self.lines)
        return None if best is None else best.step

    def on_train_begin(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        """Time before the first step is not training's."""
        self._started = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        """Say what is due."""
        control.should_log = self._cadence.logs(state.global_step)
        control.should_evaluate = self._cadence.validates(state.global_step)
        control.should_save = self._cadence.checkpoints(state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **rest: Any) -> None:
        """Judge before anything is saved; a line that waits for its validation loss is told after it."""
        if not logs or "grad_norm" not in logs:
            return  # the library's own last words
        line = self._line(state.global_step, logs)
        verdict = guards.judge([*self.lines, line], self._limits)
        if control.should_evaluate and not (verdict and verdict.outcome == "diverged"):
            self._held = line
        else:
            self._tell(line, verdict, control)

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Mapping[str, float], **rest: Any) -> None:
        """Complete the line; the best model so far is worth a checkpoint."""
        assert self._held is not None, "a line is due with every validation"
        line = replace(self._held, validation_loss=metrics["eval_loss"])
        self._tell(line, guards.judge([*self.lines, line], self._limits), control)
        control.should_save = control.should_save or self.best_step() == state.global_step

    def _tell(self, line: StepLine, verdict: Stop | None, control: Any) -> None:
        self.lines.append(line)
        self._progress.step(line)
        if verdict and verdict.outcome == "diverged":
            raise Diverged(verdict)
        if verdict and line.step < self._cadence.steps:
            self.stop = verdict
            control.should_training_stop = control.should_save = True

    def _line(self, step: int, logs: Mapping[str, Any]) -> StepLine:
        seconds = _agreed(time.monotonic() - self._started)
        tokens = self._course.tokens_after(step)
        speed = (tokens - self._last_tokens) / max(seconds - self._last_seconds, 1e-9)
        self._last_seconds, self._last_tokens = seconds, tokens
        left = seconds / (step - self._first_step) * (self._cadence.steps - step)
        return StepLine(
            step=step, steps=self._cadence.steps, loss=logs["loss"], learning_rate=logs["learning_rate"],
            grad_norm=logs["grad_norm"], tokens=tokens, tokens_per_second=round(speed, 1),
            memory_bytes=peak_memory(), seconds=round(self._seconds_before + seconds, 3), seconds_left=round(left, 1))


def peak_memory() -> int:
    """The most memory that was held, in bytes: the GPU's, or, without one, this process's."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_reserved())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _agreed(seconds: float) -> float:
    """The first process's seconds: all must come to the same verdict."""
    return float(broadcast_object_list([seconds])[0])
