"""What a run tells while it goes: its plan, a line every few steps, notes and a summary; shown.py has who listens."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

Outcome = Literal["finished", "early_stop", "max_minutes", "max_cost", "diverged"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlan:
    """What is about to be done. `work` is the run's folder: data, tokens, checkpoints, metrics.

    `steps` are optimiser steps, of which `first_step` are done already when a run is resumed. `batch` counts rows, or
    packs when rows are packed, at once on each of `processes`; `tokens` and `learned_tokens` are those of one epoch.
    """

    base_model: str
    quantization: str
    device: str
    backend: str
    output: Path
    work: Path
    rows: int
    validation_rows: int
    tokens: int
    learned_tokens: int
    truncated: int
    steps: int
    first_step: int
    epochs: float
    batch: int
    accumulation: int
    processes: int
    trained_weights: int
    all_weights: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StepLine:
    """Where the run stands after `step` of `steps` optimiser steps.

    `loss` is the mean over the learned tokens since the last line, in nats a token; `tokens` all tokens seen so far,
    padding left out; `memory_bytes` the highest so far, of the device or, on a CPU, of the process;
    `seconds_left` None until it can be told; `validation_loss` only on the lines that end a validation.
    """

    step: int
    steps: int
    loss: float
    learning_rate: float
    grad_norm: float
    tokens: int
    tokens_per_second: float
    memory_bytes: int
    seconds: float
    seconds_left: float | None
    validation_loss: float | None = None

    def to_document(self) -> dict[str, Any]:
        """The line as JSON-ready data."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """How the run ended; `reason` says in words why. Losses in nats a token; `cost` in the recipe's currency."""

    outcome: Outcome
    reason: str
    steps: int
    first_loss: float
    last_loss: float
    best_validation_loss: float | None
    tokens: int
    seconds: float
    tokens_per_second: float
    peak_memory_bytes: int
    cost: float | None


class Progress(Protocol):
    """Listens to a run, on the first process alone; it must not fail and not take long."""

    def start(self, plan: RunPlan) -> None:
        """The run begins, or begins again after it ran out of memory or its loss went astray."""

    def step(self, line: StepLine) -> None:
        """Some steps are done."""

    def note(self, text: str) -> None:
        """Something that is worth a line: a rejected row, a halved batch, a checkpoint gone back to."""

    def end(self, summary: Summary) -> None:
        """The run is over, whether it finished or stopped early."""


class PlainLines:
    """One plain line of text for each thing that is told."""

    def __init__(self, report: Callable[[str], None] = print) -> None:
        self._report = report

    def start(self, plan: RunPlan) -> None:
        self._report(
            f"model: {plan.base_model}, {plan.quantization} on {plan.device}; "
            f"{plan.trained_weights:,} of {plan.all_weights:,} weights are trained")

    def step(self, line: StepLine) -> None:
        validation = "" if line.validation_loss is None else f" validation {line.validation_loss:.4f}"
        self._report(f"step {line.step}/{line.steps} loss {line.loss:.4f}{validation} "
                     f"{line.tokens_per_second:,.0f} tokens/s {line.memory_bytes / 2**30:.1f} GiB")

    def note(self, text: str) -> None:
        self._report(text)

    def end(self, summary: Summary) -> None:
        self._report(f"{summary.outcome}: {summary.reason}; {summary.steps} steps, loss {summary.first_loss:.4f} → "
                     f"{summary.last_loss:.4f}, {summary.tokens:,} tokens in {summary.seconds:.0f} s")
