"""A rollout's plan: at which weights, for how long, on how many requests, and what to do when no answer comes.

As text, which `str` gives and `read` takes:

    5% for 10m min 200, 25% for 10m min 500 gate, 50% within 2h, 100%; within 1d else hold

A step has a weight, the least time (`for`) and canary requests (`min`, or `at least 200 requests`) it takes, perhaps a
`gate` at which an operator must say go, and how long it may go without a pass (`within`). After the `;` stands what
holds for every step: how long, and what then (`else abort`, `else hold`). As a JSON document or a TOML table it is

    {"steps": [{"weight": 5, "min_time": "10m", "min_requests": 200}, "100%"], "deadline": "1d", "at_deadline": "hold"}

where a time is in seconds, or text such as `1h30m`, and a step may be a table or text.
"""

import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from itertools import pairwise
from types import MappingProxyType
from typing import Any, NoReturn, Self

from gateway.domain.errors import InvalidRequest
from gateway.domain.split import check_percent

MAX_STEPS = 100
MAX_TIME = 365 * 86_400.0
MAX_REQUESTS = 1_000_000_000

_UNITS = (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1))
_DURATION = re.compile("".join(rf"(?:(\d{{1,9}}){unit}(?![a-z]))?" for unit, _ in _UNITS), re.ASCII)
_WEIGHT = re.compile(r"(\d{1,3}(?:\.\d{1,6})?)%", re.ASCII)
_WHOLE = re.compile(r"\d{1,10}", re.ASCII)
_CLAUSES = {"for": "min_time", "min": "min_requests", "gate": "gate", "within": "deadline"}
_TAIL = {"within": "deadline", "else": "at_deadline"}
_DAY = 86_400.0
_FILLERS = frozenset({"and", "request", "requests"})
_EXAMPLE = "'5% for 10m min 200, 25% for 10m min 500, 50%, 100%'"


class AtDeadline(StrEnum):
    """What becomes of a rollout that got no pass in time."""

    ABORT = "abort"
    HOLD = "hold"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One weight (percent) of a plan, and what it takes to leave it besides a pass.

    `min_time` in seconds, `min_requests` of the canary's while the weight is in force, `gate`: an operator's word.
    `deadline`: seconds without a pass after which the plan's `at_deadline` is done (None: the plan's).
    """

    weight: float
    min_time: float = 0.0
    min_requests: int = 0
    gate: bool = False
    deadline: float | None = None

    def __str__(self) -> str:
        parts = [f"{self.weight:g}%"]
        if self.min_time:
            parts.append(f"for {as_duration(self.min_time)}")
        if self.min_requests:
            parts.append(f"min {self.min_requests}")
        if self.gate:
            parts.append("gate")
        if self.deadline is not None:
            parts.append(f"within {as_duration(self.deadline)}")
        return " ".join(parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The steps of a rollout, weights rising to 100; a plan that makes no sense cannot be built (InvalidRequest).

    `deadline`: seconds that a step may go without a pass, where it says nothing else; `at_deadline`: what then.
    """

    steps: tuple[Step, ...]
    deadline: float = _DAY
    at_deadline: AtDeadline = AtDeadline.ABORT

    def __post_init__(self) -> None:
        _check_plan(self)

    def __str__(self) -> str:
        tail = []
        if self.deadline != _DAY:
            tail.append(f"within {as_duration(self.deadline)}")
        if self.at_deadline is not AtDeadline.ABORT:
            tail.append(f"else {self.at_deadline}")
        return ", ".join(map(str, self.steps)) + ("; " + " ".join(tail) if tail else "")

    def index_at(self, weight: float) -> int:
        """The step in force at `weight`: the last one whose weight is not above it (at least the first)."""
        return max(0, bisect_right([step.weight for step in self.steps], weight) - 1)

    def weight_after(self, weight: float) -> float | None:
        """The first weight of the plan above `weight`; None at its end."""
        return next((step.weight for step in self.steps if step.weight > weight), None)

    @property
    def compared(self) -> int:
        """How many steps compare the canary with the stable version: those that leave it some callers."""
        return sum(step.weight < 100 for step in self.steps)

    def deadline_of(self, step: Step) -> float:
        """How many seconds `step` may go without a pass."""
        return self.deadline if step.deadline is None else step.deadline

    def to_document(self) -> dict[str, Any]:
        """The plan as JSON-ready data, times in seconds."""
        return {"steps": [asdict(step) for step in self.steps], "deadline": self.deadline,
                "at_deadline": self.at_deadline.value}

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Self:
        """The plan that `to_document` wrote; fields that this release does not know are dropped, not refused."""
        values = {name: document[name] for name in _names(cls) if name in document}
        values["steps"] = tuple(
            Step(**{name: step[name] for name in _names(Step) if name in step}) for step in document["steps"])
        values["at_deadline"] = AtDeadline(document.get("at_deadline", AtDeadline.ABORT))
        return cls(**values)


def read(value: object) -> Plan:
    """The plan that an operator means: a named one (`default`), text, or a table of JSON or TOML.

    InvalidRequest names the step at fault and says what to write instead.
    """
    if isinstance(value, str):
        named = NAMED.get(value.strip())
        return named if named is not None else _plan_of(_table_of(value))
    if isinstance(value, Mapping):
        return _plan_of(value)
    _refuse("The plan", f"must be text such as {_EXAMPLE}, or a table with 'steps'")


def duration(text: str) -> float:
    """Seconds of a text such as `90s`, `1h30m`, `2d` or `500ms`; ValueError when it is none."""
    found = _DURATION.fullmatch(text)
    if not text or found is None:
        raise ValueError(f"{text[:40]!r} is no time: write it as 30s, 10m, 1h30m or 2d")
    return sum(int(count or 0) * size for count, (_, size) in zip(found.groups(), _UNITS, strict=True)) / 1000


def as_duration(seconds: float) -> str:
    """Seconds, to the millisecond, as text such as `1h30m` that `duration` reads."""
    left, parts = round(seconds * 1000), []
    for unit, size in _UNITS:
        count, left = divmod(left, size)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0s"


def _refuse(where: str, problem: str) -> NoReturn:
    raise InvalidRequest(f"{where} {problem}.", param="plan")


def _names(kind: type[Step] | type[Plan]) -> list[str]:
    return [field.name for field in fields(kind)]


# --- what makes sense ------------------------------------------------------------------------------------------------

def _check_plan(plan: Plan) -> None:
    if not 1 <= len(plan.steps) <= MAX_STEPS:
        _refuse("The plan", f"has {len(plan.steps)} steps: give it 1 to {MAX_STEPS}, such as {_EXAMPLE}")
    _check_time("The plan", "deadline", plan.deadline)
    for number, step in enumerate(plan.steps, 1):
        _check_step(_place(number, step), plan, step)
    for number, (before, step) in enumerate(pairwise(plan.steps), 2):
        if step.weight <= before.weight:
            _refuse(_place(number, step), f"does not raise the weight above {before.weight:g}%: every step must, since "
                                          "no caller is ever moved back")
    if plan.steps[-1].weight != 100:
        _refuse(_place(len(plan.steps), plan.steps[-1]), "is the last and must be of 100%: add ', 100%'")


def _check_step(where: str, plan: Plan, step: Step) -> None:
    _weight(where, step.weight)
    if step.weight == 0:
        _refuse(where, "sends no caller to the canary: give it a weight from 0.01%, or leave it out")
    _check_time(where, "least time", step.min_time)
    if not 0 <= step.min_requests <= MAX_REQUESTS:
        _refuse(where, f"asks for {step.min_requests} requests: use 0 to {MAX_REQUESTS}")
    deadline = plan.deadline_of(step)
    _check_time(where, "deadline", deadline)
    if deadline <= step.min_time:
        _refuse(where, f"takes at least {as_duration(step.min_time)} but has a deadline of {as_duration(deadline)}: "
                       f"add a later one, such as 'within {as_duration(2 * step.min_time or 60)}'")


def _check_time(where: str, what: str, seconds: float) -> None:
    if not 0 <= seconds <= MAX_TIME:
        _refuse(where, f"has a {what} of {seconds:g} seconds: use 0 to {as_duration(MAX_TIME)}")


def _place(number: int, step: Step | str | None = None) -> str:
    return f"Step {number} of the plan" + ("" if step is None else f" ({str(step)[:80]!r})")


# --- text → table ----------------------------------------------------------------------------------------------------

def _table_of(text: str) -> dict[str, Any]:
    steps, _, tail = text.partition(";")
    table: dict[str, Any] = {"steps": [part.strip() for part in steps.split(",")]}
    if tail.strip():
        table.update(_clauses("The plan, after ';',", iter(tail.lower().split()), _TAIL))
    return table


def _step_table(number: int, text: str) -> dict[str, Any]:
    where = _place(number, text)
    spaced = re.sub(r"\s+%", "%", text.lower()).replace("at least", "min")
    words = iter([word for word in spaced.split() if word not in _FILLERS])
    weight = _WEIGHT.fullmatch(next(words, ""))
    if weight is None:
        _refuse(where, "must begin with its weight, such as '5%' or '12.5%'")
    table: dict[str, Any] = {"weight": float(weight[1]), **_clauses(where, words, _CLAUSES)}
    requests = table.get("min_requests")
    if requests is not None:
        if not _WHOLE.fullmatch(requests):
            _refuse(where, f"asks for {requests[:40]!r} requests: write a whole number, such as 'min 200'")
        table["min_requests"] = int(requests)
    return table


def _clauses(where: str, words: Iterator[str], known: Mapping[str, str]) -> dict[str, Any]:
    """Pairs such as `for 10m`, by the field each is for; `gate` stands alone."""
    table: dict[str, Any] = {}
    for word in words:
        name = known.get(word)
        if name is None:
            _refuse(where, f"has {word[:40]!r}, which says nothing here: use {', '.join(known)}")
        if name in table:
            _refuse(where, f"says {word!r} twice: leave one out")
        value = True if name == "gate" else next(words, None)
        if value is None:
            _refuse(where, f"ends after {word!r}: say how much")
        table[name] = value
    return table


# --- table → plan ----------------------------------------------------------------------------------------------------

def _plan_of(table: Mapping[str, Any]) -> Plan:
    _check_keys("The plan", table, _names(Plan))
    listed = table.get("steps")
    if not isinstance(listed, Sequence) or isinstance(listed, str):
        _refuse("The plan", "needs 'steps', a list of tables or texts such as '5% for 10m min 200'")
    values: dict[str, Any] = {"steps": tuple(_step_of(number, step) for number, step in enumerate(listed, 1))}
    if "deadline" in table:
        values["deadline"] = _seconds("The plan", "deadline", table["deadline"])
    if "at_deadline" in table:
        wanted = table["at_deadline"]
        if wanted not in list(AtDeadline):
            _refuse("The plan", f"does {str(wanted)[:40]!r} at its deadline: use {' or '.join(AtDeadline)}")
        values["at_deadline"] = AtDeadline(wanted)
    return Plan(**values)


def _step_of(number: int, given: object) -> Step:
    where = _place(number, given if isinstance(given, str) else None)
    table = _step_table(number, given) if isinstance(given, str) else given
    if not isinstance(table, Mapping):
        _refuse(where, "must be a table with a 'weight', or text such as '5% for 10m min 200'")
    _check_keys(where, table, _names(Step))
    requests, gate = table.get("min_requests", 0), table.get("gate", False)
    if not isinstance(requests, int) or isinstance(requests, bool):
        _refuse(where, "must have a whole number of min_requests, such as 200")
    if not isinstance(gate, bool):
        _refuse(where, "must have a gate of true or false")
    deadline = table.get("deadline")
    return Step(
        weight=_weight(where, table.get("weight")), min_time=_seconds(where, "min_time", table.get("min_time", 0)),
        min_requests=requests, gate=gate, deadline=None if deadline is None else _seconds(where, "deadline", deadline))


def _check_keys(where: str, table: Mapping[str, Any], known: Sequence[str]) -> None:
    strange = [str(key)[:40] for key in table if key not in known]
    if strange:
        _refuse(where, f"has {', '.join(map(repr, strange[:5]))}, which it does not know: it knows {', '.join(known)}")


def _weight(where: str, value: object) -> float:
    try:
        return check_percent(value, "weight")
    except InvalidRequest as error:
        raise InvalidRequest(f"{where}: {error.message}", param="plan") from error


def _seconds(where: str, what: str, value: object) -> float:
    if isinstance(value, str):
        try:
            return duration(value.strip())
        except ValueError as error:
            raise InvalidRequest(f"{where}: {what} {error}.", param="plan") from error
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= MAX_TIME:
        _refuse(where, f"must have a {what} of 0 to {MAX_TIME:.0f} seconds, or text such as '10m'")
    return round(float(value), 3)


DEFAULT = _plan_of(_table_of("5% for 10m min 200, 25% for 10m min 500, 50% for 10m min 500, 100%"))

NAMED: Mapping[str, Plan] = MappingProxyType({"default": DEFAULT})
"""The plans that an operator may ask for by name."""
