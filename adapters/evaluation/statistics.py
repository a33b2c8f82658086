"""The figures of an evaluation: weighted means, F1, quantiles, and how sure a difference is."""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from adapters.evaluation.golden import Item
from adapters.evaluation.scorers import Mark

Floats: TypeAlias = npt.NDArray[np.float64]
Rows: TypeAlias = npt.NDArray[np.intp]

LEAST_PAIRS = 20
"""Fewer items say too little when they are resampled."""
RESAMPLES = 4000
CELLS = 10_000_000
"""How many numbers a batch of resamples may hold at once."""


@dataclass(frozen=True, slots=True, eq=False)
class Board:
    """What one contender's answers are worth, items × repeats.

    `scores` 0..1; `expected` and `answered` are indices into `labels`, -1 for an item without labels, and
    len(labels) for an answer that is no label.
    """

    items: tuple[Item, ...]
    labels: tuple[str, ...]
    weights: Floats
    scores: Floats
    expected: Rows
    answered: Rows

    def rows(self, metric: str) -> Rows:
        """The items that the metric is about."""
        if metric == "score":
            return np.arange(len(self.items))
        scorer = "label" if metric in LABEL_METRICS else metric
        return np.array([row for row, item in enumerate(self.items) if item.scorer == scorer], np.intp)

    def value(self, metric: str, rows: Rows) -> Floats:
        """The metric over items; `rows` is (…, items), the result (…)."""
        return self._macro_f1(rows) if metric == "macro_f1" else self._mean(rows)

    def confusion(self, rows: Rows) -> Floats:
        """Weights of the answers by expected and answered label, (…, labels, labels + 1); the last is no label."""
        kinds, flat = len(self.labels), rows.reshape(-1, rows.shape[-1])
        cells = kinds * (kinds + 1)
        codes = self.expected[flat, None] * (kinds + 1) + self.answered[flat]
        codes += (np.arange(len(flat)) * cells)[:, None, None]
        weights = np.broadcast_to(self.weights[flat, None], codes.shape)
        counted = np.bincount(codes.ravel(), weights.ravel(), len(flat) * cells)
        return counted.astype(np.float64).reshape(*rows.shape[:-1], kinds, kinds + 1)

    def _mean(self, rows: Rows) -> Floats:
        weights = self.weights[rows]
        return np.asarray((self.scores.mean(axis=1)[rows] * weights).sum(axis=-1) / weights.sum(axis=-1))

    def _macro_f1(self, rows: Rows) -> Floats:
        f1, support = f1_scores(self.confusion(rows))
        occurs = support > 0
        return np.asarray((f1 * occurs).sum(axis=-1) / occurs.sum(axis=-1))


LABEL_METRICS = ("accuracy", "macro_f1")


def board_of(items: Sequence[Item], labels: Sequence[str], marks: Sequence[Sequence[Mark]]) -> Board:
    """The board of `marks`, for each item one for each repeat."""
    codes = {label: code for code, label in enumerate(labels)}
    answered = [[codes.get(mark.label, len(labels)) if mark.label is not None else len(labels) for mark in row]
                for row in marks]
    return Board(
        tuple(items), tuple(labels), np.array([item.weight for item in items], np.float64),
        np.array([[mark.score for mark in row] for row in marks], np.float64),
        np.array([codes[item.expected] if item.scorer == "label" else -1 for item in items], np.intp),
        np.array(answered, np.intp))


def f1_scores(confusion: Floats) -> tuple[Floats, Floats]:
    """F1 and support of each label, (…, labels) each; F1 is 0 where precision and recall both are.

    Macro-F1 is the plain mean over the labels that are expected at least once (Opitz & Burst, arXiv:1911.03347).
    """
    kinds = confusion.shape[-2]
    right = np.diagonal(confusion[..., :kinds], axis1=-2, axis2=-1)
    support, given = confusion.sum(axis=-1), confusion[..., :kinds].sum(axis=-2)
    total = support + given
    return np.divide(2 * right, total, out=np.zeros_like(right), where=total > 0), support


def quantile(values: Sequence[float], share: float) -> float | None:
    """The smallest value that at least `share` of the values do not exceed (nearest rank); None for no values."""
    ranked = sorted(values)
    return ranked[max(0, math.ceil(share * len(ranked) - 1e-9) - 1)] if ranked else None


@dataclass(frozen=True, slots=True)
class Comparison:
    """How much better than the baseline, on the same items.

    `low` and `high`: the interval of `difference` at `confidence`. `sure`: is it above the threshold, by a test whose
    false alarms are at most (1 - confidence) / 2? `p`: the test's one-sided p, None where the interval decides.
    """

    difference: float
    low: float
    high: float
    confidence: float
    threshold: float
    method: str
    pairs: int
    sure: bool
    p: float | None = None


def compare(version: Board, baseline: Board, metric: str, *, threshold: float, confidence: float, seed: int = 0,
            ) -> Comparison:
    """Is the version better than the baseline by more than `threshold`?

    Scores of 0 and 1 with equal weights, asked once, are compared by McNemar's exact test (Psychometrika 12, 1947) for
    the threshold 0, with Tango's score interval (Statistics in Medicine 17, 1998), which alone decides for others.
    All else by the paired BCa bootstrap over items (Efron & Tibshirani 1993, chapter 14), repeats kept together.
    """
    rows = version.rows(metric)
    if metric != "macro_f1" and _is_binary(version, rows) and _is_binary(baseline, rows):
        one, other = version.scores[rows, 0], baseline.scores[rows, 0]
        better, worse = int((one > other).sum()), int((one < other).sum())
        return compare_binary(better, worse, len(rows), threshold=threshold, confidence=confidence)
    return _bootstrap(version, baseline, metric, rows, threshold, confidence, seed)


def compare_binary(better: int, worse: int, pairs: int, *, threshold: float, confidence: float) -> Comparison:
    """The comparison of 0/1 scores: `better` items that only the version got right, `worse` that only the baseline."""
    from scipy.stats import binomtest

    low, high = tango_interval(better, worse, pairs, confidence)
    found = Comparison((better - worse) / pairs, low, high, confidence, threshold, "Tango's score interval", pairs,
                       low > threshold)
    if threshold != 0:
        return found
    p = float(binomtest(better, better + worse, 0.5, alternative="greater").pvalue) if better + worse else 1.0
    return replace(found, method=f"McNemar's exact test, {found.method}", sure=p <= (1 - confidence) / 2, p=p)


def tango_interval(better: int, worse: int, pairs: int, confidence: float) -> tuple[float, float]:
    """The score interval of the difference of two paired shares, (better - worse) / pairs."""
    from scipy.optimize import brentq
    from scipy.stats import norm

    z = float(norm.ppf((1 + confidence) / 2))

    def score(difference: float) -> float:
        spread = difference * (1 - difference)
        linear = -better - worse + (2 * pairs - better + worse) * difference
        share = (math.sqrt(max(0.0, linear**2 + 8 * pairs * worse * spread)) - linear) / (4 * pairs)
        variance = max(pairs * (2 * share + spread), 1e-12)
        return (better - worse - pairs * difference) / math.sqrt(variance)

    edge = 1 - 1e-9
    low = -1.0 if score(-edge) < z else brentq(lambda at: score(at) - z, -edge, edge)
    high = 1.0 if score(edge) > -z else brentq(lambda at: score(at) + z, -edge, edge)
    return float(low), float(high)


def _is_binary(board: Board, rows: Rows) -> bool:
    weights, scores = board.weights[rows], board.scores[rows]
    return scores.shape[1] == 1 and bool(np.isin(scores, (0.0, 1.0)).all()) and bool((weights == weights[0]).all())


def _bootstrap(version: Board, baseline: Board, metric: str, rows: Rows, threshold: float, confidence: float,
               seed: int) -> Comparison:
    def difference(chosen: Any, axis: int = -1) -> Floats:
        picked = rows[np.moveaxis(np.asarray(chosen), axis, -1)]
        return version.value(metric, picked) - baseline.value(metric, picked)

    found, pairs = float(difference(np.arange(len(rows)))), len(rows)
    if pairs < LEAST_PAIRS:
        method = f"no test: it needs {LEAST_PAIRS} items"
        return Comparison(found, -1.0, 1.0, confidence, threshold, method, pairs, False)
    cells = max(pairs * version.scores.shape[1], len(version.labels) * (len(version.labels) + 1))
    low, high = _bca(difference, pairs, confidence, max(1, CELLS // cells), seed)
    return Comparison(found, low, high, confidence, threshold, f"paired BCa bootstrap, {RESAMPLES} resamples", pairs,
                      low > threshold)


def _bca(statistic: Callable[..., Floats], pairs: int, confidence: float, batch: int, seed: int) -> tuple[float, float]:
    """The BCa interval; where it is not defined, as when all items differ alike, the percentile interval."""
    from scipy.stats import DegenerateDataWarning, bootstrap

    with warnings.catch_warnings(), np.errstate(invalid="ignore"):
        warnings.simplefilter("ignore", DegenerateDataWarning)
        found = bootstrap((np.arange(pairs),), statistic, n_resamples=RESAMPLES, batch=batch, vectorized=True,
                          confidence_level=confidence, method="BCa", rng=np.random.default_rng(seed))
    low, high = found.confidence_interval
    if math.isnan(low) or math.isnan(high):
        tail = (1 - confidence) / 2
        low, high = np.quantile(found.bootstrap_distribution, (tail, 1 - tail))
    return float(low), float(high)
