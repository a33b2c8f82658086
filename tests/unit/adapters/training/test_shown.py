"""Everyone who listens to a run hears all of it: bars on a terminal, lines elsewhere, metrics.jsonl in any case."""

import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from adapters.training.shown import JsonlMetrics, TensorBoard, clock, listening, read_metrics
from tests.fixtures.runs import run_plan, step_line, summary


def test_a_run_that_is_not_on_a_terminal_is_told_in_plain_lines_and_in_metrics(tmp_path: Path) -> None:
    lines: list[str] = []
    with listening(tmp_path / "work", report=lines.append, console=Console(file=io.StringIO())) as progress:
        progress.start(run_plan(tmp_path))
        progress.step(step_line(10, validation_loss=1.9))
        progress.note("out of memory: batch 4 → 2")
        progress.end(summary())
    assert [line.split()[0] for line in lines] == ["model:", "step", "out", "early_stop:"]
    kinds = [json.loads(line)["kind"] for line in (tmp_path / "work" / "metrics.jsonl").read_text().splitlines()]
    assert kinds == ["start", "step", "note", "end"]


def test_a_terminal_shows_a_bar_with_loss_speed_memory_and_time_left(tmp_path: Path) -> None:
    screen = io.StringIO()
    with listening(tmp_path, report=pytest.fail, console=_terminal(screen)) as progress:
        progress.start(run_plan(tmp_path, first_step=5))
        progress.note("[bold] is no markup here")
        progress.step(step_line(10, loss=2.25, validation_loss=1.875))
    text = screen.getvalue()
    for shown in ("12,345 of 700,000 weights", "[bold] is no markup here", "10/40", "loss 2.2500", "validation 1.8750",
                  "1,234 tokens/s", "3.0 GiB", "1:02:05 left"):
        assert shown in text


def test_the_cursor_comes_back_when_a_run_fails(tmp_path: Path) -> None:
    screen = io.StringIO()
    with pytest.raises(MemoryError), listening(tmp_path, console=_terminal(screen)) as progress:
        progress.start(run_plan(tmp_path))
        raise MemoryError
    assert screen.getvalue().rindex("\x1b[?25h") > screen.getvalue().rindex("\x1b[?25l")


def test_a_resumed_run_counts_each_step_once_and_keeps_its_notes(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with JsonlMetrics(path) as metrics:
        metrics.start(run_plan(tmp_path))
        for step in (1, 2, 3, 4):
            metrics.step(step_line(step, loss=9.0))
        metrics.note("loss went astray")
    with JsonlMetrics(path) as metrics:
        metrics.start(run_plan(tmp_path, first_step=2))
        metrics.step(step_line(3, loss=1.0))
    read = read_metrics(path)
    assert [(line.step, line.loss) for line in read.steps] == [(1, 9.0), (2, 9.0), (3, 1.0)]
    assert read.notes == ((4, "loss went astray"),)


def test_half_a_line_of_a_killed_run_is_dropped_and_no_more(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with JsonlMetrics(path) as metrics:
        metrics.step(step_line(1))
    path.write_text(path.read_text() + '{"kind": "step", "st')
    with JsonlMetrics(path) as metrics:
        metrics.step(step_line(2))
    assert [line.step for line in read_metrics(path).steps] == [1, 2]


def test_every_line_is_on_its_way_to_the_disk_before_the_next_step(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with JsonlMetrics(path) as metrics:
        metrics.step(step_line(7))
        assert [line.step for line in read_metrics(path).steps] == [7]


def test_a_loss_that_is_no_number_is_null_in_json_and_nan_again_when_read(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with JsonlMetrics(path) as metrics:
        metrics.step(step_line(1, loss=math.nan, seconds_left=None))
    assert json.loads(path.read_text(), parse_constant=pytest.fail)["loss"] is None
    (line,) = read_metrics(path).steps
    assert math.isnan(line.loss)
    assert (line.seconds_left, line.validation_loss) == (None, None)


def test_tensorboard_purges_the_steps_that_a_resumed_run_does_again(tmp_path: Path) -> None:
    writers: list[_Writer] = []

    def opened(folder: str, purge_step: int) -> "_Writer":
        writers.append(_Writer(folder, purge_step))
        return writers[-1]

    with TensorBoard(tmp_path, opened) as board:
        board.start(run_plan(tmp_path, first_step=10))
        board.step(step_line(11, validation_loss=None))
        board.start(run_plan(tmp_path, first_step=5))
        board.step(step_line(6, validation_loss=1.5))
        board.end(summary())
    assert [(writer.purge_step, writer.is_open) for writer in writers] == [(11, False), (6, False)]
    assert ("loss/validation", 1.5, 6) in writers[1].scalars
    assert not any(name == "loss/validation" for name, _, _ in writers[0].scalars)


@pytest.mark.parametrize(("seconds", "shown"), [(0.4, "0:00"), (59.6, "1:00"), (725, "12:05"), (3725, "1:02:05")])
def test_seconds_are_shown_as_a_clock(seconds: float, shown: str) -> None:
    assert clock(seconds) == shown


def _terminal(screen: io.StringIO) -> Console:
    return Console(file=screen, force_terminal=True, width=160, color_system=None)


class _Writer:
    """Keeps what TensorBoard's SummaryWriter would write."""

    def __init__(self, folder: str, purge_step: int) -> None:
        self.purge_step = purge_step
        self.is_open = True
        self.scalars: list[tuple[str, Any, int]] = []

    def add_scalar(self, name: str, value: Any, step: int) -> None:
        assert value is not None
        self.scalars.append((name, value, step))

    def flush(self) -> None:
        assert self.is_open

    def close(self) -> None:
        self.is_open = False
