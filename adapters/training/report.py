"""The report at the end of a run: report.html, self-contained, and its picture report.png."""

import collections
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adapters import pages
from adapters.compare import Comparison
from adapters.data.tokens import TokenStats
from adapters.training.progress import RunPlan, Summary
from adapters.training.shown import Metrics, clock

HTML, PNG = "report.html", "report.png"
MAX_REASONS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReport:
    """What there is to tell. `tokens` are of the training rows, `counts` of rows by what became of them, `labels` of
    training rows by class; `rejects`: the files that list rejected rows; `examples`: answers before and after;
    `timings`: seconds by phase.
    """

    plan: RunPlan
    summary: Summary
    metrics: Metrics
    recipe: Mapping[str, Any]
    tokens: TokenStats
    counts: Mapping[str, int] = field(default_factory=dict)
    labels: Mapping[str, int] = field(default_factory=dict)
    rejects: Sequence[Path] = ()
    examples: Sequence[Comparison] = ()
    timings: Mapping[str, float] = field(default_factory=dict)
    library_versions: Mapping[str, str] = field(default_factory=dict)


def write(folder: Path, run: RunReport) -> tuple[Path, Path]:
    """Write report.html and report.png into `folder` and return their paths.

    Not the artifact's own folder: the examples may be rows of the data, and an artifact goes to the gateway whole.
    """
    from adapters.training import charts

    figure = charts.draw(
        run.plan.output.name, run.metrics.steps, [step for step, _ in run.metrics.notes if step > 0], run.tokens,
        run.labels)
    html, png = folder / HTML, folder / PNG
    html.write_text(_page(run, charts.save(figure, png)), encoding="utf-8")
    return html, png


def _page(run: RunReport, picture: str) -> str:
    plan, summary = run.plan, run.summary
    return pages.render(
        "report.html", title=plan.output.name,
        subtitle=f"{plan.base_model}, {plan.quantization}, on {plan.device} with {plan.backend}",
        outcome=summary.outcome.replace("_", " "), reason=summary.reason, figures=_figures(plan, summary),
        charts=picture, examples=run.examples, notes=run.metrics.notes,
        counts=[(name.replace("_", " "), f"{count:,}") for name, count in run.counts.items()],
        labels=_shares(run.labels), rejects=_reasons(run.rejects),
        timings=[(name.replace("_", " "), clock(seconds)) for name, seconds in run.timings.items()],
        recipe=json.dumps(run.recipe, indent=2, ensure_ascii=False), libraries=sorted(run.library_versions.items()))


def _figures(plan: RunPlan, summary: Summary) -> list[tuple[str, str]]:
    """The run in a dozen numbers."""
    best, cost = summary.best_validation_loss, summary.cost
    effective = plan.batch * plan.accumulation * plan.processes
    return [
        ("Loss", f"{summary.first_loss:.3f} → {summary.last_loss:.3f}"),
        *([("Best validation loss", f"{best:.3f}")] if best is not None else []),
        ("Steps", f"{summary.steps:,} of {plan.steps:,}"),
        ("Epochs", f"{plan.epochs:.3g}"),
        ("Time", clock(summary.seconds)),
        ("Tokens a second", f"{summary.tokens_per_second:,.0f}"),
        ("Tokens seen", f"{summary.tokens:,}"),
        ("Peak memory", f"{summary.peak_memory_bytes / 2**30:.1f} GiB"),
        ("Rows", f"{plan.rows:,} + {plan.validation_rows:,} validation"),
        ("Learned tokens", f"{plan.learned_tokens / max(1, plan.tokens):.0%} of {plan.tokens:,}"),
        ("Rows cut", f"{plan.truncated:,}"),
        ("Effective batch", f"{effective} = {plan.batch} × {plan.accumulation} × {plan.processes}"),
        ("Trained weights", f"{plan.trained_weights:,} ({plan.trained_weights / max(1, plan.all_weights):.2%})"),
        *([("Cost", f"{cost:.2f}")] if cost is not None else []),
    ]


def _shares(labels: Mapping[str, int]) -> list[tuple[str, str]]:
    total = sum(labels.values())
    return [(name, f"{count:,} ({count / total:.1%})") for name, count in sorted(labels.items(), key=lambda p: -p[1])]


def _reasons(rejects: Sequence[Path]) -> list[tuple[int, str, str]]:
    """How many rows were rejected for which reason; the numbers in fields and reasons are taken for equal."""
    found: collections.Counter[tuple[str, str]] = collections.Counter()
    for path in rejects:
        with path.open(encoding="utf-8") as file:
            for line in file:
                reject = json.loads(line)
                found[re.sub(r"\d+", "…", reject["field"]), re.sub(r"\d+", "…", reject["reason"])] += 1
    return [(count, *reason) for reason, count in found.most_common(MAX_REASONS)]
