"""Scores answers by another model's opinion: asked for several times, read strictly, with how far it agrees."""

import asyncio
import itertools
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, TypeAlias

from adapters.teacher import Teacher, Usage

Verdict: TypeAlias = Literal["mean", "majority"]
Winner: TypeAlias = Literal["first", "second", "tie"]

PROMPTS = Path(__file__).with_name("prompts")
AGREEING = 0.125
"""Two scores agree when they are no further apart: half a step of the five that the prompt names."""


class JudgeError(RuntimeError):
    """An answer could not be judged: too few of the judge's opinions could be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeSettings:
    """How to judge. `repeats`: opinions on each answer; `attempts`: how often one is asked for until it can be read.

    `verdict` "mean" scores the mean of the opinions; "majority" scores 1 where more than half of them are at least
    `pass_mark`, else 0. `scoring` and `comparing` are prompt files; `structured` asks the server to keep to the JSON
    schema of an opinion (switch it off where the server refuses `response_format`).
    """

    repeats: int = 3
    attempts: int = 2
    verdict: Verdict = "mean"
    pass_mark: float = 0.5
    temperature: float = 0.7
    max_tokens: int = 512
    seed: int = 0
    structured: bool = True
    scoring: Path = PROMPTS / "score.md"
    comparing: Path = PROMPTS / "compare.md"

    def __post_init__(self) -> None:
        for name in ("repeats", "attempts", "max_tokens"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        _require(0 < self.pass_mark <= 1, "pass_mark", self.pass_mark, "above 0 and at most 1")
        _require(self.temperature >= 0, "temperature", self.temperature, "0 or more")


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the judge thinks of one answer.

    `score` 0..1 by the verdict; `scores` each readable opinion; `agreement` the share of pairs of opinions that agree
    (Fleiss' observed agreement of one subject, doi:10.1037/h0031619; 1 for a single opinion); `reasons` one for each
    opinion; `unread` counts replies that could not be read; `usage` covers all of them.
    """

    score: float
    agreement: float
    reasons: tuple[str, ...]
    usage: Usage
    scores: tuple[float, ...] = ()
    unread: int = 0


@dataclass(frozen=True, slots=True)
class Preference:
    """Which of two answers the judge prefers.

    Each repeat shows the pair in both orders, and an answer wins it only when it is preferred in both; else the repeat
    is a tie (the conservative rule of Zheng et al., arXiv:2306.05685, 3.4). `winner` is who won more repeats; `share`
    0..1 is the first answer's part, a tie counting one half; `consistent` is the share of repeats in which both orders
    named the same answer or a tie; `agreement` is the share of pairs of repeats that agree.
    """

    winner: Winner
    share: float
    agreement: float
    consistent: float
    reasons: tuple[str, ...]
    usage: Usage
    unread: int = 0


class Judge:
    """A model as a judge; `teacher` brings the server, the concurrency, the retries and the budget.

    What is judged reaches the model as one JSON document, so that no answer can pose as the instruction.
    """

    def __init__(self, teacher: Teacher, settings: JudgeSettings | None = None) -> None:
        self.settings = settings or JudgeSettings()
        self._teacher = teacher
        self._scoring = self.settings.scoring.read_text(encoding="utf-8")
        self._comparing = self.settings.comparing.read_text(encoding="utf-8")

    def to_document(self) -> dict[str, Any]:
        """What the judge's scores depend on, JSON-ready, for the record of an evaluation."""
        settings = self.settings
        return {
            "model": self._teacher.settings.model, "repeats": settings.repeats, "verdict": settings.verdict,
            "temperature": settings.temperature, "seed": settings.seed,
            "prompt_sha256": sha256(self._scoring.encode()).hexdigest(),
        }

    async def score(self, item: Mapping[str, Any], answer: str) -> Judgement:
        """How good `answer` is for an item of a golden set; `options.criteria` of the item may say what counts.

        JudgeError when fewer than half of the opinions can be read; TeacherError of the client passes through.
        """
        question = {**_asked(item), "answer": answer}
        opinions = await asyncio.gather(*(
            self._opinion(self._scoring, question, _SCORE, repeat) for repeat in range(self.settings.repeats)))
        read = self._readable(opinions)
        scores = tuple(float(opinion.value) for opinion in read)
        agree = agreement(scores, AGREEING)
        return Judgement(self._verdict(scores), agree, tuple(opinion.reason for opinion in read), _used(opinions),
                         scores, _unread(opinions))

    async def compare(self, item: Mapping[str, Any], first: str, second: str) -> Preference:
        """Which answer is better for an item of a golden set, whatever their order; errors as for `score`."""
        asked = _asked(item)
        pairs = [(first, second), (second, first)]
        opinions = await asyncio.gather(*(
            self._opinion(self._comparing, {**asked, "answer_a": a, "answer_b": b}, _CHOICE, repeat)
            for repeat in range(self.settings.repeats) for a, b in pairs))
        self._readable(opinions)
        both = [(there.value, _SWAPPED[back.value]) for there, back in zip(opinions[::2], opinions[1::2], strict=True)
                if there.value is not None and back.value is not None]
        if not both:
            raise JudgeError("The judge's opinions could be read in one order only, never in both; raise attempts.")
        points = [_POINTS[there] if there == back else 0.5 for there, back in both]
        share = statistics.fmean(points)
        return Preference(
            "first" if share > 0.5 else "second" if share < 0.5 else "tie", share, agreement(points, 0.0),
            statistics.fmean(there == back for there, back in both),
            tuple(opinion.reason for opinion in opinions if opinion.value is not None), _used(opinions),
            _unread(opinions))

    async def _opinion(
        self, prompt: str, question: Mapping[str, Any], form: "_Form", repeat: int,
    ) -> "_Opinion":
        """One opinion, asked for until it can be read or `attempts` are used up."""
        messages = [{"role": "system", "content": prompt},
                    {"role": "user", "content": json.dumps(question, ensure_ascii=False, indent=1)}]
        usage = Usage()
        for attempt in range(self.settings.attempts):
            reply = await self._teacher.ask(
                messages, max_tokens=self.settings.max_tokens, temperature=self.settings.temperature,
                seed=self.settings.seed + repeat + attempt * self.settings.repeats,
                response_format=form.response_format if self.settings.structured else None)
            usage += reply.usage
            try:
                value, reason = form.read(reply.text)
            except ValueError as error:
                is_cut = reply.finish_reason == "length"
                fault = f"{error}{f' (cut off at max_tokens = {self.settings.max_tokens})' if is_cut else ''}"
                continue
            return _Opinion(value, reason, usage, attempt)
        return _Opinion(None, fault, usage, self.settings.attempts)

    def _readable(self, opinions: Sequence["_Opinion"]) -> list["_Opinion"]:
        read = [opinion for opinion in opinions if opinion.value is not None]
        if 2 * len(read) < len(opinions) or not read:
            faults = next(opinion.reason for opinion in opinions if opinion.value is None)
            raise JudgeError(f"Only {len(read)} of {len(opinions)} opinions of {self._teacher.settings.model!r} can be "
                             f"read: {faults}. Take a stronger model, or mend the prompt.")
        return read

    def _verdict(self, scores: Sequence[float]) -> float:
        if self.settings.verdict == "mean":
            return statistics.fmean(scores)
        passed = sum(score >= self.settings.pass_mark for score in scores)
        return float(2 * passed > len(scores))


def agreement(values: Sequence[float], apart: float) -> float:
    """The share of pairs no further apart than `apart`; 1 for fewer than two values."""
    pairs = list(itertools.combinations(values, 2))
    return sum(abs(a - b) <= apart for a, b in pairs) / len(pairs) if pairs else 1.0


def krippendorff_alpha(units: Iterable[Sequence[float]]) -> float | None:
    """Krippendorff's α of the repeats over a whole golden set, interval metric; one unit for each item judged.

    1 is perfect agreement, 0 what chance would give; None where no unit has two opinions or all opinions are equal.
    Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011).
    """
    paired = [unit for unit in units if len(unit) > 1]
    everything = [value for unit in paired for value in unit]
    if not everything:
        return None
    observed = sum(_distances(unit) / (len(unit) - 1) for unit in paired) / len(everything)
    expected = _distances(everything) / (len(everything) * (len(everything) - 1))
    return 1 - observed / expected if expected else None


def _distances(values: Sequence[float]) -> float:
    """The sum of squared distances over all ordered pairs: 2·n times the squared distances from the mean."""
    mean = statistics.fmean(values)
    return 2 * len(values) * sum((value - mean) ** 2 for value in values)


@dataclass(frozen=True, slots=True)
class _Opinion:
    """One opinion: what was read (None: nothing could be), why, what it used, and how many replies were unreadable."""

    value: Any
    reason: str
    usage: Usage
    unread: int


@dataclass(frozen=True, slots=True)
class _Form:
    """What an opinion looks like: a JSON object of a reason and one field."""

    field: str
    schema: Mapping[str, Any]

    @property
    def response_format(self) -> dict[str, Any]:
        """The form as servers take it: the reason comes first, so that it is thought before the verdict."""
        schema = {"type": "object", "properties": {"reason": {"type": "string"}, self.field: dict(self.schema)},
                  "required": ["reason", self.field], "additionalProperties": False}
        return {"type": "json_schema", "json_schema": {"name": "opinion", "schema": schema}}

    def read(self, text: str) -> tuple[Any, str]:
        """(value, reason), or ValueError for anything but the form."""
        try:
            document = json.loads(text)
        except ValueError as error:
            raise ValueError(f"the opinion is not JSON: {text[:80]!r}") from error
        if not isinstance(document, dict) or set(document) != {"reason", self.field}:
            raise ValueError(f"the opinion must be an object of 'reason' and {self.field!r}: {text[:80]!r}")
        value, reason = document[self.field], document["reason"]
        if not isinstance(reason, str):
            raise ValueError(f"the opinion's reason is {reason!r}, not text")
        if not self._fits(value):
            raise ValueError(f"the opinion's {self.field} is {value!r}")
        return value, reason

    def _fits(self, value: Any) -> bool:
        if "enum" in self.schema:
            return value in self.schema["enum"]
        return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1


_SCORE = _Form("score", {"type": "number", "minimum": 0, "maximum": 1})
_CHOICE = _Form("better", {"type": "string", "enum": ["a", "b", "tie"]})
_SWAPPED: Mapping[str, str] = {"a": "b", "b": "a", "tie": "tie"}
_POINTS: Mapping[str, float] = {"a": 1.0, "b": 0.0, "tie": 0.5}


def _asked(item: Mapping[str, Any]) -> dict[str, Any]:
    """What of a golden item the judge sees."""
    criteria = (item.get("options") or {}).get("criteria")
    seen = {"conversation": item["messages"], "reference": item.get("expected"), "criteria": criteria}
    return {key: value for key, value in seen.items() if value is not None}


def _used(opinions: Iterable[_Opinion]) -> Usage:
    return sum((opinion.usage for opinion in opinions), Usage())


def _unread(opinions: Iterable[_Opinion]) -> int:
    return sum(opinion.unread for opinion in opinions)


def _require(good: bool, name: str, value: object, wanted: str) -> None:
    if not good:
        raise ValueError(f"judge: {name} is {value!r}; make it {wanted}.")
