"""Scores → pass or fail: every condition with what was found, in words. Pure."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

from adapters.evaluation.statistics import Comparison

Baseline: TypeAlias = float | Literal["auto", "stable", "base", "none"]
SLACK = 1e-9
"""So that 0.88 + 0.02 is not above 0.9."""


class GateError(ValueError):
    """There is nothing sensible to decide by; the message says what to give."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """What a version must reach. None switches a condition off.

    `metric` "auto" is macro_f1 for a golden set of labels, else score (the weighted mean of all items' scores);
    accuracy, or a scorer's name for the mean of its items, are the others. `floor`: the least value. `baseline` "auto"
    is the stable version where there is another one, else the base model; a number is compared as it is, without a
    test. `threshold`: how much better than the baseline, negative for how much worse is allowed. `confidence` of the
    paired test. `slice_drop`: how far a slice of `slice_least` items or more may fall below the baseline's;
    `slice_floor`: the least value of each. `max_errors`: the share of calls that may fail, for each contender.
    """

    metric: str = "auto"
    floor: float | None = None
    baseline: Baseline = "auto"
    threshold: float = 0.0
    confidence: float | None = 0.95
    slice_drop: float | None = 0.05
    slice_floor: float | None = None
    slice_least: int = 10
    latency_p99_ms: float | None = None
    max_errors: float = 0.01

    def __post_init__(self) -> None:
        _require(self.confidence is None or 0.5 <= self.confidence < 1, "confidence", self.confidence, "0.5 to below 1")
        _require(self.slice_drop is None or self.slice_drop >= 0, "slice drop", self.slice_drop, "0 or more")
        _require(self.slice_least >= 1, "least items of a slice", self.slice_least, "1 or more")
        _require(self.latency_p99_ms is None or self.latency_p99_ms > 0, "latency limit", self.latency_p99_ms,
                 "more than 0 ms")
        _require(0 <= self.max_errors <= 1, "share of errors", self.max_errors, "0 to 1")

    def to_document(self) -> dict[str, Any]:
        """The gate as JSON-ready data."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class Slice:
    """One part of the golden set: how many items, the version's value, and the baseline's if it was asked."""

    name: str
    items: int
    value: float
    baseline: float | None


@dataclass(frozen=True, slots=True)
class Failures:
    """How many of a contender's calls failed."""

    contender: str
    failed: int
    calls: int

    @property
    def share(self) -> float:
        """0..1."""
        return self.failed / self.calls if self.calls else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What an evaluation found, higher values being better. `baseline_name`: whose value `baseline` is."""

    metric: str
    value: float
    baseline_name: str | None = None
    baseline: float | None = None
    comparison: Comparison | None = None
    slices: Sequence[Slice] = ()
    failures: Sequence[Failures] = ()
    latency_p99_ms: float | None = None

    def against(self, name: str, baseline: float, comparison: Comparison | None) -> "Findings":
        """The same, with what it is compared with."""
        return replace(self, baseline_name=name, baseline=baseline, comparison=comparison)


@dataclass(frozen=True, slots=True)
class Check:
    """One condition; `passed` None: it was looked at, but does not decide. `reason` is a sentence."""

    name: str
    passed: bool | None
    reason: str


@dataclass(frozen=True, slots=True)
class Decision:
    """Pass only if no check failed and one passed."""

    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """May the version take traffic?"""
        outcomes = {check.passed for check in self.checks}
        return True in outcomes and False not in outcomes

    @property
    def reasons(self) -> list[str]:
        """Every reason, those against it first."""
        return [check.reason for check in sorted(self.checks, key=lambda check: check.passed is not False)]

    @property
    def message(self) -> str:
        """One line: what was decided, and all that speaks against it, or else for it."""
        if self.passed:
            return "Passed. " + " ".join(check.reason for check in self.checks if check.passed)
        against = [check.reason for check in self.checks if check.passed is False]
        return "Failed. " + " ".join(against)


def decide(findings: Findings, gate: Gate) -> Decision:
    """Whether the gate opens; GateError when it has neither a floor nor a baseline to measure by."""
    if gate.floor is None and findings.baseline is None:
        raise GateError("There is nothing to decide by: give a floor, or a baseline (the stable version, the base "
                        "model or a number).")
    return Decision((
        *_floor(findings, gate), *_baseline(findings, gate), *_test(findings, gate), *_slices(findings, gate),
        *_failures(findings, gate), *_latency(findings, gate)))


def least_value(findings: Findings, gate: Gate) -> float:
    """The least value of the metric that can pass: the floor or baseline + threshold, whichever is higher."""
    wanted = [] if gate.floor is None else [gate.floor]
    if findings.baseline is not None:
        wanted.append(findings.baseline + gate.threshold)
    return max(wanted)


def _floor(findings: Findings, gate: Gate) -> Iterator[Check]:
    if gate.floor is not None:
        reached = findings.value >= gate.floor - SLACK
        yield Check("floor", reached, f"{findings.metric} {findings.value:.4f} {_reaches(reached)} the floor "
                    f"{gate.floor:g}.")


def _baseline(findings: Findings, gate: Gate) -> Iterator[Check]:
    if findings.baseline is None:
        yield Check("baseline", None, "There is no baseline to compare with.")
        return
    reached = findings.value >= findings.baseline + gate.threshold - SLACK
    wanted = f"{findings.baseline_name}'s {findings.baseline:.4f}{f' {gate.threshold:+g}' if gate.threshold else ''}"
    yield Check("baseline", reached, f"{findings.metric} {findings.value:.4f} {_reaches(reached)} {wanted}.")


def _test(findings: Findings, gate: Gate) -> Iterator[Check]:
    found = findings.comparison
    if found is None:
        return
    p = "" if found.p is None else f", one-sided p = {found.p:.4f}"
    interval = (f"The difference from {findings.baseline_name} is {found.difference:+.4f}, {found.confidence:.0%} "
                f"interval {found.low:+.4f} to {found.high:+.4f} over {found.pairs} items ({found.method}{p})")
    if gate.confidence is None:
        yield Check("test", None, f"{interval}; it does not decide.")
    elif found.sure:
        yield Check("test", True, f"{interval}: surely more than {found.threshold:g}.")
    else:
        yield Check("test", False, f"{interval}: not surely more than {found.threshold:g}. Take more items, or allow a "
                    "lower threshold.")


def _slices(findings: Findings, gate: Gate) -> Iterator[Check]:
    for part in findings.slices:
        if part.items < gate.slice_least:
            yield Check("slice", None, f"The slice {part.name!r} has {part.items} items, too few to decide "
                        f"({part.value:.4f}).")
            continue
        if gate.slice_floor is not None:
            reached = part.value >= gate.slice_floor - SLACK
            yield Check("slice", reached, f"{findings.metric} {part.value:.4f} of the slice {part.name!r} "
                        f"{_reaches(reached)} its floor {gate.slice_floor:g}.")
        if gate.slice_drop is not None and part.baseline is not None:
            kept = part.value >= part.baseline - gate.slice_drop - SLACK
            yield Check("slice", kept, f"{findings.metric} {part.value:.4f} of the slice {part.name!r} is "
                        f"{'not ' if kept else ''}more than {gate.slice_drop:g} below {part.baseline:.4f} of "
                        f"{findings.baseline_name}.")


def _failures(findings: Findings, gate: Gate) -> Iterator[Check]:
    """A baseline that fails is weak by accident, so its errors forbid a pass too."""
    for each in findings.failures:
        if each.failed:
            few = each.share <= gate.max_errors + SLACK
            yield Check("errors", None if few else False, f"{each.failed} of {each.calls} calls of {each.contender} "
                        f"failed ({each.share:.1%}, {'within' if few else 'more than'} the {gate.max_errors:.1%} "
                        "allowed); each counts as a wrong answer.")


def _latency(findings: Findings, gate: Gate) -> Iterator[Check]:
    if gate.latency_p99_ms is None:
        return
    found = findings.latency_p99_ms
    if found is None:
        yield Check("latency", False, "No call was answered, so there is no latency.")
        return
    kept = found <= gate.latency_p99_ms + SLACK
    yield Check("latency", kept, f"The p99 latency {found:.1f} ms is {'within' if kept else 'over'} the limit of "
                f"{gate.latency_p99_ms:g} ms.")


def _reaches(reached: bool) -> str:
    return "reaches" if reached else "is below"


def _require(good: bool, name: str, value: object, wanted: str) -> None:
    if not good:
        raise GateError(f"The {name} is {value!r}; make it {wanted}.")
