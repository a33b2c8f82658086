"""An answer and what a golden item expects → a score from 0 (wrong) to 1 (right)."""

import json
import math
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from adapters.evaluation.golden import GoldenError, GoldenSet, Item

NUMBER = re.compile(r"(?:(?<!\w)[-+\u2212])?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?")
FENCE = re.compile(r"\A```[\w-]*\n(.*?)\n?```\Z", re.DOTALL)
TOLERANCE = 1e-9


@dataclass(frozen=True, slots=True)
class Mark:
    """What an answer is worth: `score` 0..1, and for a label item the label that was answered (None: no known one)."""

    score: float
    label: str | None = None


class Scorers:
    """Scores answers to one golden set; a judge's items are for a judge.

    Label items without `options.labels` share the labels that the set expects. GoldenError for a JSON schema that is
    none. Libraries are loaded for the scorers that the set uses, and no others.
    """

    def __init__(self, golden: GoldenSet) -> None:
        self.labels = labels_of(golden)
        self._by_words = {normalise(label): label for label in self.labels}
        used = {item.scorer for item in golden.items}
        self._score: dict[str, Callable[[Item, str], float]] = {**_PLAIN}
        if "json_schema" in used:
            self._score["json_schema"] = _schema_scorer(golden)
        if "rouge_l" in used:
            self._score["rouge_l"] = _rouge_scorer()

    def mark(self, item: Item, answer: str) -> Mark:
        """What the answer is worth; ValueError for an item that only a judge can score."""
        if item.scorer == "label":
            label = self._label(item, answer)
            return Mark(float(label == item.expected), label)
        if item.scorer not in self._score:
            raise ValueError(f"{item.id!r} is for a judge.")
        return Mark(self._score[item.scorer](item, answer))

    def _label(self, item: Item, answer: str) -> str | None:
        """The label that the whole answer is, but for case, punctuation and spaces."""
        given = normalise(answer)
        own = item.options.get("labels")
        if own is None:
            return self._by_words.get(given)
        return next((label for label in own if normalise(label) == given), None)


def labels_of(golden: GoldenSet) -> tuple[str, ...]:
    """Every label that the set expects or may be answered with, sorted; GoldenError when two look alike."""
    found = {label for item in golden.items if item.scorer == "label"
             for label in (item.expected, *item.options.get("labels", ()))}
    alike: dict[str, str] = {}
    for label in sorted(found):
        twin = alike.setdefault(normalise(label), label)
        if twin != label:
            raise GoldenError(f"The golden set {golden.name} has the labels {twin!r} and {label!r}, which differ in "
                              "case or punctuation only; write one of them everywhere.")
    return tuple(sorted(found))


def normalise(text: str) -> str:
    """Compatible characters made one (NFKC), no case, no punctuation, single spaces."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    kept = "".join(" " if unicodedata.category(char).startswith(("P", "Z", "C")) else char for char in folded)
    return " ".join(kept.split())


def parse_json(answer: str) -> Any:
    """The JSON value that the answer is, with or without a Markdown fence around it; ValueError."""
    text = answer.strip()
    fenced = FENCE.match(text)
    try:
        return json.loads(fenced[1] if fenced else text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def last_number(answer: str) -> float | None:
    """The last number in the answer, where models put their result; commas may separate thousands."""
    found = NUMBER.findall(answer)
    return float(found[-1].replace(",", "").replace("\u2212", "-")) if found else None


def _texts(item: Item) -> list[str]:
    return item.expected if isinstance(item.expected, list) else [item.expected]


def _exact(item: Item, answer: str) -> float:
    return float(answer.strip() in (text.strip() for text in _texts(item)))


def _normalised(item: Item, answer: str) -> float:
    return float(normalise(answer) in map(normalise, _texts(item)))


def _contains(item: Item, answer: str) -> float:
    fold = str.casefold if item.options.get("ignore_case") else str
    found = [fold(text) in fold(answer) for text in _texts(item)]
    return float(any(found) if item.options.get("any") else all(found))


def _regex(item: Item, answer: str) -> float:
    pattern = re.compile(item.expected, re.IGNORECASE if item.options.get("ignore_case") else 0)
    found = pattern.fullmatch(answer.strip()) if item.options.get("whole") else pattern.search(answer)
    return float(found is not None)


def _json_fields(item: Item, answer: str) -> float:
    """The share of the expected leaves that the answer has, or with `all` whether it has every one."""
    try:
        given = parse_json(answer)
    except ValueError:
        return 0.0
    found = [_is_at(given, path, leaf) for path, leaf in _leaves(item.expected)]
    return float(all(found)) if item.options.get("all") else sum(found) / len(found)


def _numeric(item: Item, answer: str) -> float:
    """Within the larger of `absolute` and `relative` × the expected number."""
    given = last_number(answer)
    if given is None:
        return 0.0
    options = item.options
    return float(math.isclose(given, item.expected, rel_tol=0.0, abs_tol=max(
        options.get("absolute", 0.0), options.get("relative", 0.0) * abs(item.expected), TOLERANCE)))


_PLAIN: Mapping[str, Callable[[Item, str], float]] = {
    "exact": _exact, "normalised": _normalised, "contains": _contains, "regex": _regex, "json_fields": _json_fields,
    "numeric": _numeric,
}


def _leaves(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """(path, value) of everything below that is no object; a list is one leaf."""
    if isinstance(value, dict) and value:
        for key, below in value.items():
            yield from _leaves(below, (*path, key))
    else:
        yield path, value


def _is_at(value: Any, path: tuple[str | int, ...], leaf: Any) -> bool:
    for key in path:
        if not isinstance(value, dict) or key not in value:
            return False
        value = value[key]
    return _same(value, leaf)


def _same(one: Any, other: Any) -> bool:
    """Equality as JSON has it: 1 is 1.0, but not true."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    return bool(one == other)


def _schema_scorer(golden: GoldenSet) -> Callable[[Item, str], float]:
    import jsonschema

    validators = {}
    for item in golden.items:
        if item.scorer == "json_schema":
            kind = jsonschema.validators.validator_for(item.expected, default=jsonschema.Draft202012Validator)
            try:
                kind.check_schema(item.expected)
            except jsonschema.SchemaError as error:
                raise GoldenError(f"The golden set {golden.name}, item {item.id!r}, expected: is no JSON schema: "
                                  f"{error.message}.") from error
            validators[item.id] = kind(item.expected)

    def score(item: Item, answer: str) -> float:
        try:
            return float(validators[item.id].is_valid(parse_json(answer)))
        except ValueError:
            return 0.0

    return score


def _rouge_scorer() -> Callable[[Item, str], float]:
    """ROUGE-L's F-measure with the best of the references (Lin 2004, aclanthology.org/W04-1013)."""
    from rouge_score.rouge_scorer import RougeScorer

    by_stem = {stem: RougeScorer(["rougeL"], use_stemmer=stem) for stem in (False, True)}

    def score(item: Item, answer: str) -> float:
        scorer = by_stem[bool(item.options.get("stem"))]
        return max(float(scorer.score(text, answer)["rougeL"].fmeasure) for text in _texts(item))

    return score
