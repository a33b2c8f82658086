"""What an evaluation found, as one JSON document; its summary for the record, and as tables for people."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from adapters.evaluation.decide import Decision, Findings
from adapters.evaluation.judge import krippendorff_alpha
from adapters.evaluation.run import Result, Runs
from adapters.evaluation.statistics import LABEL_METRICS, Board, Rows, f1_scores, quantile

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

SCHEMA = "switchyard.evaluation/1"
SUMMARY_BYTES = 15 << 10
"""Of the record's report, as JSON; the gateway keeps 16 KiB."""
SUMMED_UP = ("model", "metrics", "calls", "failed", "cut_short", "latency_ms", "first_token_ms")
EXAMPLES = 20
SHOWN = 500
NO_LABEL = "(other)"


def metrics_of(board: Board) -> list[str]:
    """The metrics that the golden set's items allow, the most general first."""
    scorers = sorted({item.scorer for item in board.items})
    labels = list(LABEL_METRICS) if "label" in scorers else []
    return ["score", *labels, *(scorer for scorer in scorers if scorer != "label" and len(scorers) > 1)]


def contender_report(runs: Runs) -> dict[str, Any]:
    """One contender's figures: metrics, slices, labels, latencies in milliseconds, and what failed."""
    board, results = runs.board, list(runs.flat)
    answered = [result.answer for result in results if not result.answer.error]
    return {
        "model": runs.contender.model, "identity": runs.contender.identity,
        "metrics": {metric: value_of(board, metric) for metric in metrics_of(board)},
        "slices": _slices_report(board), "labels": _labels(board), "judge_alpha": _alpha(results),
        "calls": len(results), "failed": len(results) - len(answered), "errors": _errors(results),
        "retried": sum(result.answer.attempts > 1 for result in results),
        "cut_short": sum(answer.finish_reason == "length" for answer in answered),
        "completion_tokens": sum(answer.tokens for answer in answered), **latencies(runs), "wrong": list(_wrong(runs)),
    }


def latencies(runs: Runs) -> dict[str, dict[str, float] | None]:
    """p50, p95 and p99, in milliseconds, of the calls that were answered: to the first token, and to the end."""
    answered = [result.answer for result in runs.flat if not result.answer.error]
    return {"first_token_ms": _quantiles(each.first_token for each in answered),
            "latency_ms": _quantiles(each.latency for each in answered)}


def value_of(board: Board, metric: str, rows: Rows | None = None) -> float:
    """The metric over all its items, or those in `rows`."""
    return float(board.value(metric, board.rows(metric) if rows is None else rows))


def slices_of(board: Board, metric: str) -> dict[str, Rows]:
    """The slices that have items for the metric, by name: the rows of these."""
    rows = board.rows(metric)
    names = np.array([board.items[row].slice for row in rows])
    return {str(name): rows[names == name] for name in np.unique(names)}


def _slices_report(board: Board) -> dict[str, dict[str, float]]:
    report = {name: {"items": float(len(rows))} for name, rows in slices_of(board, "score").items()}
    for metric in metrics_of(board):
        for name, rows in slices_of(board, metric).items():
            report[name][metric] = value_of(board, metric, rows)
    return report


def _labels(board: Board) -> dict[str, Any] | None:
    rows = board.rows("accuracy")
    if not len(rows):
        return None
    confusion = board.confusion(rows)
    f1, support = f1_scores(confusion)
    given = confusion.sum(axis=0)
    names = [*board.labels, None]
    return {
        "classes": [{
            "label": label, "support": float(support[at]), "f1": float(f1[at]),
            "recall": _share(confusion[at, at], support[at]), "precision": _share(confusion[at, at], given[at]),
        } for at, label in enumerate(board.labels)],
        "confusion": [
            {"expected": board.labels[row], "answered": names[column], "weight": float(confusion[row, column])}
            for row, column in zip(*confusion.nonzero(), strict=True)],
    }


def _share(part: float, whole: float) -> float | None:
    return float(part / whole) if whole else None


def _alpha(results: Sequence[Result]) -> float | None:
    """Krippendorff's α of the judge's opinions; None where nothing was judged more than once."""
    return krippendorff_alpha(result.opinions for result in results if result.opinions)


def _errors(results: Sequence[Result]) -> list[dict[str, Any]]:
    """The failures by their words, the most frequent first."""
    counts: dict[str, int] = {}
    for result in results:
        if result.answer.error:
            counts[result.answer.error[:SHOWN]] = counts.get(result.answer.error[:SHOWN], 0) + 1
    ranked = sorted(counts.items(), key=lambda each: (-each[1], each[0]))
    return [{"error": error, "calls": calls} for error, calls in ranked[:EXAMPLES]]


def _quantiles(seconds: Iterable[float | None]) -> dict[str, float] | None:
    """In milliseconds, or None when there is nothing."""
    measured = [each for each in seconds if each is not None]
    found = {f"p{share}": quantile(measured, share / 100) for share in (50, 95, 99)}
    known = {name: round(value * 1e3, 3) for name, value in found.items() if value is not None}
    return known or None


def _wrong(runs: Runs) -> Iterator[dict[str, Any]]:
    """The worst answers, at most EXAMPLES, with what was asked and expected."""
    items = {item.id: item for item in runs.board.items}
    worst = sorted((result for result in runs.flat if result.mark.score < 1), key=lambda result: result.mark.score)
    for result in worst[:EXAMPLES]:
        item = items[result.item]
        yield {"item": item.id, "slice": item.slice, "asked": _clipped(item.messages[-1].get("content")),
               "expected": _clipped(item.expected), "answered": _clipped(result.answer.text),
               "score": result.mark.score, "error": result.answer.error or None}


def _clipped(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= SHOWN else text[:SHOWN] + " …"


def decision_document(findings: Findings, decision: Decision) -> dict[str, Any]:
    """What was decided by, and why, as JSON-ready data."""
    return {"passed": decision.passed, "message": decision.message,
            "checks": [asdict(check) for check in decision.checks], "metric": findings.metric,
            "value": findings.value, "baseline": findings.baseline, "baseline_name": findings.baseline_name,
            "comparison": asdict(findings.comparison) if findings.comparison else None}


def summary(document: Mapping[str, Any]) -> dict[str, Any]:
    """What of the report the gateway keeps: as much as fits in SUMMARY_BYTES, what matters most first."""
    decision, contenders = document["decision"], document["contenders"]
    kept: dict[str, Any] = {
        "schema": SCHEMA, "golden_set": document["golden_set"], "comparison": decision["comparison"],
        "contenders": {name: {part: contender[part] for part in SUMMED_UP} for name, contender in contenders.items()},
        "reasons": []}
    for check in sorted(decision["checks"], key=lambda check: check["passed"] is not False):
        kept = _with(kept, "reasons", [*kept["reasons"], _clipped(check["reason"])])
    kept = _with(kept, "slices", contenders["version"]["slices"])
    return _with(kept, "classes", (contenders["version"]["labels"] or {}).get("classes"))


def _with(kept: dict[str, Any], part: str, value: Any) -> dict[str, Any]:
    """With one part more, if there is something of it and it fits."""
    more = {**kept, part: value}
    return more if value and len(json.dumps(more, ensure_ascii=False).encode()) <= SUMMARY_BYTES else kept


def show(document: Mapping[str, Any], console: "Console") -> None:
    """The report as tables: contenders side by side, slices, the confusion, and the decision with every reason."""
    console.print(f"{document['version']['name']} · digest {document['version']['digest'][:12]} · golden set "
                  f"{document['golden_set']['name']} ({document['golden_set']['items']} items, "
                  f"{document['golden_set']['digest'][:12]})", markup=False)
    console.print(_contenders(document["contenders"]))
    if len(document["contenders"]["version"]["slices"]) > 1:
        console.print(_slices(document))
    labels = document["contenders"]["version"]["labels"]
    if labels:
        console.print(_confusion(labels))
    for error in document["contenders"]["version"]["errors"][:5]:
        console.print(f"  {error['calls']} × {error['error']}", markup=False)
    for note in document["notes"]:
        console.print(f"Note: {note}", markup=False)
    for check in document["decision"]["checks"]:
        mark, style = {True: ("✓", "green"), False: ("✗", "red"), None: ("·", "dim")}[check["passed"]]
        console.print(f"{mark} {check['reason']}", style=style, markup=False, soft_wrap=True)


def _contenders(contenders: Mapping[str, Any]) -> "Table":
    table = _table("", *(f"{name} ({contender['model']})" for name, contender in contenders.items()))
    for metric in contenders["version"]["metrics"]:
        table.add_row(metric, *(_number(contender["metrics"][metric], ".4f") for contender in contenders.values()))
    for part, words in (("first_token_ms", "first token"), ("latency_ms", "latency")):
        for share in ("p50", "p95", "p99"):
            table.add_row(f"{words} {share} ms", *(
                _number((contender[part] or {}).get(share), ".1f") for contender in contenders.values()))
    table.add_row("failed calls", *(f"{each['failed']} of {each['calls']}" for each in contenders.values()))
    table.add_row("cut short", *(str(each["cut_short"]) for each in contenders.values()))
    return table


def _slices(document: Mapping[str, Any]) -> "Table":
    metric, contenders = document["decision"]["metric"], document["contenders"]
    table = _table(f"{metric} by slice", "items", *contenders)
    for name, part in contenders["version"]["slices"].items():
        table.add_row(name, f"{part['items']:g}", *(
            _number(each["slices"][name].get(metric), ".4f") for each in contenders.values()))
    return table


def _confusion(labels: Mapping[str, Any]) -> "Table":
    """Expected labels down, answered ones across; a dot is none."""
    names = [each["label"] for each in labels["classes"]]
    weights = {(cell["expected"], cell["answered"]): cell["weight"] for cell in labels["confusion"]}
    table = _table("expected ↓ answered →", *names, NO_LABEL, "F1")
    for each in labels["classes"]:
        row = [weights.get((each["label"], answered)) for answered in (*names, None)]
        table.add_row(each["label"], *("·" if weight is None else f"{weight:g}" for weight in row), f"{each['f1']:.3f}")
    return table


def _table(*headings: str) -> "Table":
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for at, heading in enumerate(headings):
        table.add_column(escape(heading), justify="right" if at else "left")
    return table


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
