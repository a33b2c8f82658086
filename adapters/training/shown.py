"""Shows a run to whom it may concern: bars on a terminal, plain lines elsewhere, metrics.jsonl always, TensorBoard."""

import contextlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from adapters.training.progress import PlainLines, Progress, RunPlan, StepLine, Summary
from adapters.training.work import METRICS

TENSORBOARD = ".tensorboard"
Kind = Literal["start", "step", "note", "end"]


@contextlib.contextmanager
def listening(
    work: Path, *, tensorboard: bool = False, report: Callable[[str], None] = print, console: Console | None = None,
) -> Iterator[Progress]:
    """All who listen to the run in the folder `work`, as one; the terminal is itself again however the run ends.

    Bars where `console` (by default the process's own) is a terminal, else plain lines through `report`. TensorBoard's
    event files are beside the work folder, which they outlive: `<output>.tensorboard`.
    """
    console = console or Console()
    with contextlib.ExitStack() as stack:
        listeners: list[Progress] = [stack.enter_context(JsonlMetrics(work / METRICS))]
        listeners.append(stack.enter_context(RichBars(console)) if console.is_terminal else PlainLines(report))
        everyone = Several(listeners)
        if tensorboard:
            writer = _tensorboard_writer()
            if writer is None:
                everyone.note("report.tensorboard: the package tensorboard is not installed; the run goes on without")
            else:
                listeners.append(stack.enter_context(TensorBoard(work.with_suffix(TENSORBOARD), writer)))
        yield everyone


class Several:
    """Passes on what is told to several listeners, in their order."""

    def __init__(self, listeners: Sequence[Progress]) -> None:
        self._listeners = listeners

    def start(self, plan: RunPlan) -> None:
        for listener in self._listeners:
            listener.start(plan)

    def step(self, line: StepLine) -> None:
        for listener in self._listeners:
            listener.step(line)

    def note(self, text: str) -> None:
        for listener in self._listeners:
            listener.note(text)

    def end(self, summary: Summary) -> None:
        for listener in self._listeners:
            listener.end(summary)


class RichBars:
    """One bar that moves, with loss, speed, memory and time left; notes scroll by above it."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = Bars(
            TextColumn("[bold]{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"), TimeElapsedColumn(), TextColumn("[cyan]{task.fields[left]}"),
            console=console)
        self._task = self._bars.add_task("waiting", total=None, visible=False, figures="", left="")

    def __enter__(self) -> "RichBars":
        self._bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bars.stop()

    def start(self, plan: RunPlan) -> None:
        self._console.print(
            f"[bold]{escape(plan.base_model)}[/], {plan.quantization} on {plan.device}: {plan.trained_weights:,} of "
            f"{plan.all_weights:,} weights are trained on {plan.rows:,} rows, {plan.learned_tokens:,} of "
            f"{plan.tokens:,} tokens learned", highlight=False)
        self._bars.update(self._task, description="training", total=plan.steps, completed=plan.first_step,
                          visible=True, figures="", left="")

    def step(self, line: StepLine) -> None:
        validation = "" if line.validation_loss is None else f" [magenta]validation {line.validation_loss:.4f}[/]"
        self._bars.update(
            self._task, completed=line.step, left=f"{clock(line.seconds_left)} left" if line.seconds_left else "",
            figures=f"loss [green]{line.loss:.4f}[/]{validation} · {line.tokens_per_second:,.0f} tokens/s · "
                    f"{line.memory_bytes / 2**30:.1f} GiB")
        if line.validation_loss is not None:
            self.note(f"step {line.step}: validation loss {line.validation_loss:.4f}")

    def note(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False)

    def end(self, summary: Summary) -> None:
        self._bars.update(self._task, description=summary.outcome.replace("_", " "), left="")
        self._console.print(
            f"{summary.outcome}: {summary.reason}; {summary.steps} steps in {clock(summary.seconds)}, loss "
            f"{summary.first_loss:.4f} → {summary.last_loss:.4f}, {summary.tokens_per_second:,.0f} tokens/s, at most "
            f"{summary.peak_memory_bytes / 2**30:.1f} GiB", markup=False, highlight=False)


class JsonlMetrics:
    """Everything that is told, one JSON object a line with its `kind`; on the disk's way after every line.

    The file only grows: a run that begins again, after a kill or from a checkpoint, says so in a `start` line, from
    which on earlier steps beyond its `first_step` count no longer (`read_metrics` leaves them out).
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        _drop_torn_line(path)
        self._file = path.open("a", encoding="utf-8")

    def __enter__(self) -> "JsonlMetrics":
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def start(self, plan: RunPlan) -> None:
        self._write("start", {**asdict(plan), "output": str(plan.output), "work": str(plan.work)})

    def step(self, line: StepLine) -> None:
        self._write("step", line.to_document())

    def note(self, text: str) -> None:
        self._write("note", {"text": text})

    def end(self, summary: Summary) -> None:
        self._write("end", asdict(summary))

    def _write(self, kind: Kind, document: Mapping[str, Any]) -> None:
        finite = {name: value if not isinstance(value, float) or math.isfinite(value) else None
                  for name, value in document.items()}  # JSON knows no NaN
        self._file.write(json.dumps({"kind": kind, **finite}, ensure_ascii=False, allow_nan=False) + "\n")
        self._file.flush()


class TensorBoard:
    """The curves as TensorBoard's event files; a run that begins again purges the steps it does again."""

    def __init__(self, folder: Path, writer: Callable[..., Any]) -> None:
        self._folder = folder
        self._open = writer
        self._writer: Any = None

    def __enter__(self) -> "TensorBoard":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._writer is not None:
            self._writer.close()

    def start(self, plan: RunPlan) -> None:
        if self._writer is not None:
            self._writer.close()
        self._writer = self._open(str(self._folder), purge_step=plan.first_step + 1)

    def step(self, line: StepLine) -> None:
        values = {"loss/training": line.loss, "loss/validation": line.validation_loss, "grad_norm": line.grad_norm,
                  "learning_rate": line.learning_rate, "tokens_per_second": line.tokens_per_second,
                  "memory_bytes": line.memory_bytes}
        for name, value in values.items():
            if value is not None:
                self._writer.add_scalar(name, value, line.step)

    def note(self, text: str) -> None:
        """TensorBoard shows curves; notes are in metrics.jsonl."""

    def end(self, summary: Summary) -> None:
        self._writer.flush()


@dataclass(frozen=True, slots=True)
class Metrics:
    """What a metrics.jsonl tells: the steps that count, and all notes with the step after which each was made."""

    steps: tuple[StepLine, ...]
    notes: tuple[tuple[int, str], ...]


def read_metrics(path: Path) -> Metrics:
    """The steps and notes of a run, over all its beginnings. OSError or ValueError when they cannot be read."""
    steps: list[StepLine] = []
    notes: list[tuple[int, str]] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        document = json.loads(line)
        if document["kind"] == "start":
            steps = [step for step in steps if step.step <= document["first_step"]]
        elif document["kind"] == "step":
            steps.append(_step_line(document))
        elif document["kind"] == "note":
            notes.append((steps[-1].step if steps else 0, document["text"]))
    return Metrics(tuple(steps), tuple(notes))


def _step_line(document: Mapping[str, Any]) -> StepLine:
    """A loss or norm that was no finite number was written as null, and is NaN again."""
    optional = ("seconds_left", "validation_loss")
    values: dict[str, Any] = {}
    for field in fields(StepLine):
        value = document[field.name]
        values[field.name] = math.nan if value is None and field.name not in optional else value
    return StepLine(**values)


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss, or m:ss below an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _drop_torn_line(path: Path) -> None:
    """A process that was killed may have left half a line."""
    with contextlib.suppress(FileNotFoundError), path.open("rb+") as file:
        content = file.read()
        os.truncate(path, content.rfind(b"\n") + 1)


def _tensorboard_writer() -> Callable[..., Any] | None:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    writer: Callable[..., Any] = SummaryWriter
    return writer
