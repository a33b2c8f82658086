"""Rows → the texts to ask for: which classes lack rows, and which rows the new ones are made from; asks nobody."""

import heapq
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import cycle
from typing import Literal, TypeAlias

from adapters.augment.settings import AugmentSettings
from adapters.data import Row

Kind: TypeAlias = Literal["paraphrase", "hard_negative", "edge_case"]
KINDS: tuple[Kind, ...] = ("paraphrase", "hard_negative", "edge_case")
EXAMPLES = 3
"""How many texts of a class are shown where a request has to show what it is like: the first ones."""


@dataclass(frozen=True, slots=True)
class Task:
    """One request for `count` texts of a kind, made from `source`, that `label` and `answer` are right for.

    `variant` tells requests from the same text apart.
    """

    kind: Kind
    source: Row
    label: str | None
    answer: str
    count: int
    variant: int


@dataclass(slots=True)
class Census:
    """How many rows each class has, its answers (two at most), its first texts; and the rows that nothing fits."""

    classes: Counter[str | None] = field(default_factory=Counter)
    answers: dict[str | None, set[str]] = field(default_factory=dict)
    examples: dict[str | None, list[str]] = field(default_factory=dict)
    unusable: int = 0

    @property
    def labels(self) -> list[str]:
        """The classes that have a name, in order."""
        return sorted(label for label in self.classes if label is not None)

    def only_answer(self, label: str | None) -> str | None:
        """The answer of every row of the class, None where they differ."""
        answers = self.answers[label]
        return next(iter(answers)) if len(answers) == 1 else None


def plan(read: Callable[[], Iterable[Row]], settings: AugmentSettings) -> tuple[list[Task], Census]:
    """The requests to make; `read` starts to read the rows anew, which happens twice. Equal rows give equal plans.

    Memory is bounded by the rows that are chosen, not by those that are read.
    """
    census = _census(read())
    wanted = {kind: {label: _wanted(kind, label, census, settings) for label in _classes(census)} for kind in KINDS}
    chosen = _choose(read(), wanted, settings)
    tasks = [task for kind in KINDS for label, number in wanted[kind].items()
             for task in _tasks(kind, label, number, chosen, census, settings)]
    return tasks, census


def text_of(row: Row) -> str | None:
    """What the user asked last in a chat that ends with a plain answer; None for rows that nothing can be made from."""
    if len(row.messages) < 2 or row.messages[-1]["role"] != "assistant" or row.messages[-2]["role"] != "user":
        return None
    asked, answer = row.messages[-2].get("content"), row.messages[-1]
    is_plain = isinstance(asked, str) and isinstance(answer.get("content"), str) and not answer.get("tool_calls")
    return asked if is_plain else None


def answer_of(row: Row) -> str:
    """The answer that the chat ends with."""
    return str(row.messages[-1]["content"])


def _census(rows: Iterable[Row]) -> Census:
    census = Census()
    for row in rows:
        text = text_of(row)
        if text is None:
            census.unusable += 1
            continue
        census.classes[row.label] += 1
        answers = census.answers.setdefault(row.label, set())
        if len(answers) < 2:
            answers.add(answer_of(row))
        examples = census.examples.setdefault(row.label, [])
        if len(examples) < EXAMPLES:
            examples.append(text)
    return census


def _classes(census: Census) -> Sequence[str | None]:
    """The classes that rows are made for: those with a name, or the one of all rows where none has."""
    return census.labels or list(census.classes)


def _wanted(kind: Kind, label: str | None, census: Census, settings: AugmentSettings) -> int:
    """How many rows of the kind the class is to get."""
    rows = census.classes[label]
    lacking = max(0, math.ceil(settings.balance * max(census.classes.values())) - rows)
    others = sum(census.classes[other] for other in census.labels if other != label)
    hard = 0 if label is None or census.only_answer(label) is None else round(lacking * settings.hard_negatives)
    hard = min(hard, settings.max_per_source * others)
    if kind == "hard_negative":
        return hard
    more = lacking - hard + math.ceil(rows * settings.paraphrases)
    return min(more if kind == "paraphrase" else math.ceil(rows * settings.edge_cases), settings.max_per_source * rows)


Chosen: TypeAlias = Mapping[tuple[Kind, str | None], Sequence[Row]]


def _choose(
    rows: Iterable[Row], wanted: Mapping[Kind, Mapping[str | None, int]], settings: AugmentSettings,
) -> Chosen:
    """For each kind and class, as many source rows as it can use, drawn by the hash of seed and id."""
    room = {(kind, label): math.ceil(number / settings.at_once)
            for kind, numbers in wanted.items() for label, number in numbers.items() if number}
    heaps: dict[tuple[Kind, str | None], list[tuple[int, int, Row]]] = {place: [] for place in room}
    for row in rows:
        if text_of(row) is None:
            continue
        for (kind, label), heap in heaps.items():
            if row.label in (label, None) if kind == "hard_negative" else row.label != label:
                continue
            drawn = sha256(f"{settings.seed} {kind} {label} {row.id}".encode()).hexdigest()
            entry = (-int(drawn, 16), row.line, row)
            if len(heap) < room[kind, label]:
                heapq.heappush(heap, entry)
            elif entry[:2] > heap[0][:2]:
                heapq.heapreplace(heap, entry)
    return {place: [row for *_, row in sorted(heap, key=lambda entry: entry[:2], reverse=True)]
            for place, heap in heaps.items()}


def _tasks(
    kind: Kind, label: str | None, number: int, chosen: Chosen, census: Census, settings: AugmentSettings,
) -> Iterator[Task]:
    """Requests for `number` texts in all, each source row in turn."""
    answer = census.only_answer(label) if kind == "hard_negative" else None
    turns, given = Counter[str | None](), Counter[int]()
    for source in cycle(chosen.get((kind, label), ())):
        count = min(settings.at_once, number, settings.max_per_source - given[source.line])
        if count <= 0:
            return
        yield Task(kind, source, label, answer_of(source) if answer is None else answer, count, turns[text_of(source)])
        turns[text_of(source)] += 1
        given[source.line] += count
        number -= count

