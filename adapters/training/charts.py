"""The picture of a run: loss, learning rate, speed, lengths and classes, drawn with matplotlib without a display."""

import io
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from adapters.data.tokens import BARS, TokenStats
from adapters.training.progress import StepLine

BLUE, PINK, GREY, GREEN, AMBER = "#1f5fa8", "#c2296b", "#8a97a6", "#2b8a57", "#c77f0a"
MAX_POINTS = 2000
MAX_CLASSES = 12
MAX_MARKS = 12
SMOOTHED_FROM = 40
STYLE: Any = {
    "font.size": 9.5, "axes.titlesize": 11, "axes.titleweight": "bold", "axes.titlelocation": "left",
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": GREY, "axes.grid": True,
    "grid.color": "#e6eaef", "axes.axisbelow": True, "legend.frameon": False,
    "text.parse_math": False,  # a class may be called "$5 or less"
    "svg.fonttype": "none", "svg.hashsalt": "switchyard",
}


def draw(
    title: str, steps: Sequence[StepLine], marks: Sequence[int], tokens: TokenStats, labels: Mapping[str, int],
) -> Figure:
    """A figure of 14 × 8 inches. `marks` are steps after which something happened, `labels` counts rows by class."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(14, 8), layout="constrained")
        FigureCanvasAgg(figure)
        figure.suptitle(title, x=0.008, ha="left", fontsize=14, fontweight="bold")
        rows: Any = figure.subfigures(2, 1)
        upper, lower = rows
        curves, rate = upper.subplots(1, 2, width_ratios=(2, 1))
        lengths, speed, classes = lower.subplots(1, 3)
        shown = steps[::max(1, len(steps) // MAX_POINTS)]
        _draw_loss(curves, shown, steps, marks)
        _draw_rate(rate, shown)
        _draw_lengths(lengths, tokens)
        _draw_speed(speed, shown)
        _draw_classes(classes, labels)
    return figure


def save(figure: Figure, path: Path) -> str:
    """Write the figure as PNG (1400 × 800 pixels and more) and return it as an SVG element."""
    text = io.StringIO()
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        # Names in scripts that the built-in font lacks show as boxes in the PNG; browsers draw them.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(path, dpi=110)
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return text.getvalue()[text.getvalue().index("<svg"):]


def _draw_loss(axes: Axes, shown: Sequence[StepLine], steps: Sequence[StepLine], marks: Sequence[int]) -> None:
    at, loss = [line.step for line in shown], [line.loss for line in shown]
    is_long = len(loss) >= SMOOTHED_FROM
    axes.plot(at, loss, color=BLUE, alpha=0.3 if is_long else 1, linewidth=1 if is_long else 1.8,
              label=None if is_long else "training")
    if is_long:
        axes.plot(at, _smoothed(loss), color=BLUE, linewidth=2, label="training, smoothed")
    validations = [(line.step, line.validation_loss) for line in steps if line.validation_loss is not None]
    if validations:
        best_step, best = min(validations, key=lambda pair: pair[1])
        axes.plot(*zip(*validations, strict=True), color=PINK, marker="o", markersize=4,
                  label=f"validation, best {best:.3f} at step {best_step}")
    for number, step in enumerate(sorted(set(marks))[:MAX_MARKS]):
        axes.axvline(step, color=AMBER, linestyle=":", linewidth=1.2, label="event" if number == 0 else None)
    axes.set(title="Loss", xlabel="step", ylabel="nats a token")
    axes.margins(y=0.12)
    axes.set_ylim(bottom=max(0.0, axes.get_ylim()[0]))
    if shown:
        axes.legend(loc="upper right")


def _draw_rate(axes: Axes, shown: Sequence[StepLine]) -> None:
    axes.plot([line.step for line in shown], [line.learning_rate for line in shown], color=GREEN, linewidth=1.8)
    axes.set(title="Learning rate", xlabel="step")
    axes.set_ylim(bottom=0)
    axes.ticklabel_format(axis="y", scilimits=(-2, 3))


def _draw_lengths(axes: Axes, tokens: TokenStats) -> None:
    """One bar for each upper edge of TokenStats' histogram; those beyond max_length are rows that were cut."""
    width = -(-tokens.max_length // BARS)
    edges = [*range(width, tokens.max_length, width), tokens.max_length]
    while edges[-1] < tokens.longest:
        edges.append(2 * edges[-1])
    within = sum(edge <= tokens.max_length for edge in edges)
    axes.bar(range(len(edges)), [tokens.histogram.get(edge, 0) for edge in edges], width=0.92,
             color=[BLUE] * within + [PINK] * (len(edges) - within))
    axes.axvline(within - 0.5, color=PINK, linewidth=1.5)
    axes.text(within - 0.6, 0.97, f"max_length {tokens.max_length:,}\n{tokens.truncated:,} rows cut", color=PINK,
              ha="right", va="top", transform=axes.get_xaxis_transform(),
              bbox={"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1})
    ticks = sorted({*range(within - 1, -1, -4), *range(within, len(edges))})
    axes.set_xticks(ticks, [f"{edges[tick]:,}" for tick in ticks], rotation=40, ha="right", rotation_mode="anchor")
    axes.set(title="Row lengths", xlabel="at most so many tokens", ylabel="rows")
    axes.margins(x=0.02, y=0.25)
    axes.grid(visible=False, axis="x")


def _draw_speed(axes: Axes, shown: Sequence[StepLine]) -> None:
    at = [line.step for line in shown]
    axes.plot(at, [line.tokens_per_second for line in shown], color=BLUE, linewidth=1.8)
    axes.set(title="Speed and memory", xlabel="step")
    axes.set_ylabel("tokens/s", color=BLUE)
    axes.margins(y=0.5)
    axes.set_ylim(bottom=0)
    memory = axes.twinx()
    memory.plot(at, [line.memory_bytes / 2**30 for line in shown], color=AMBER, linewidth=1.8)
    memory.set_ylabel("GiB", color=AMBER)
    memory.margins(y=0.2)
    memory.set_ylim(bottom=0)
    memory.grid(visible=False)


def _draw_classes(axes: Axes, labels: Mapping[str, int]) -> None:
    axes.set(title="Classes")
    if not labels:
        axes.set_axis_off()
        axes.text(0, 0.9, "The rows have no classes.", color=GREY, transform=axes.transAxes, va="top")
        return
    ordered = sorted(labels.items(), key=lambda pair: -pair[1])
    kept, rest = ordered[:MAX_CLASSES], ordered[MAX_CLASSES:]
    if rest:
        kept.append((f"{len(rest)} more", sum(count for _, count in rest)))
    names = [name if len(name) <= 28 else f"{name[:13]}…{name[-14:]}" for name, _ in kept]
    bars = axes.barh(range(len(kept)), [count for _, count in kept], color=BLUE)
    axes.set_yticks(range(len(kept)), names)
    axes.bar_label(bars, labels=[f" {count:,}" for _, count in kept], color="#17202b")
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("rows")


def _smoothed(values: Sequence[float], weight: float = 0.8) -> list[float]:
    """An exponential moving average without the bias of its first values (as Adam corrects it); NaN is passed over."""
    result, average, known = [], 0.0, 0.0
    for value in values:
        if value == value:
            average, known = weight * average + (1 - weight) * value, weight * known + (1 - weight)
        result.append(average / known if known else value)
    return result
