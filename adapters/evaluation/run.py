"""Asks every contender every question, in pairs and at once, and goes on where an interrupted run stopped."""

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

from adapters.evaluation.calls import Answer, Contender, Sampling, request_body
from adapters.evaluation.golden import GoldenSet, Item
from adapters.evaluation.journal import Journal, key_of
from adapters.evaluation.judge import Judge, JudgeError
from adapters.evaluation.scorers import Mark, Scorers
from adapters.evaluation.statistics import Board, board_of
from adapters.teacher import RequestRefused

WRONG = Mark(0.0)


class Asks(Protocol):
    """Who puts questions to contenders (`calls.Caller`)."""

    async def ask(self, contender: Contender, item: Item, sampling: Sampling, repeat: int = 0) -> Answer: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One answer to one item and what it is worth; `opinions` and `reasons` are the judge's, if it was one."""

    item: str
    repeat: int
    answer: Answer
    mark: Mark
    opinions: tuple[float, ...] = ()
    reasons: tuple[str, ...] = ()

    def to_document(self) -> dict[str, Any]:
        """As JSON-ready data."""
        return asdict(self)

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> "Result":
        """The result that `to_document` wrote; TypeError or KeyError when it did not."""
        return cls(**{**document, "answer": Answer(**document["answer"]), "mark": Mark(**document["mark"]),
                      "opinions": tuple(document["opinions"]), "reasons": tuple(document["reasons"])})


@dataclass(frozen=True, slots=True)
class Runs:
    """One contender's results, for each item (in the golden set's order) one for each repeat, and their board."""

    contender: Contender
    results: tuple[tuple[Result, ...], ...]
    board: Board

    @property
    def flat(self) -> Iterator[Result]:
        """All of them."""
        return (result for row in self.results for result in row)


@dataclass(kw_only=True)
class Runner:
    """A golden set and how its questions are asked: `repeats` times each, `concurrency` of them at once.

    `engines` are the engines' versions: an answer of other engines, or to another question, is not taken from the
    journal. Failed calls are asked again when a run goes on. `progress` is told how many of how many are done.
    """

    golden: GoldenSet
    scorers: Scorers
    caller: Asks
    journal: Journal
    sampling: Sampling
    judge: Judge | None = None
    repeats: int = 1
    concurrency: int = 8
    engines: tuple[str, ...] = ()
    progress: Callable[[int, int], None] = field(default=lambda done, total: None)

    async def run(self, contenders: Sequence[Contender]) -> list[Runs]:
        """Every contender's results, in the same order. What ends the run comes out of it; the journal keeps the rest.

        Adapters are asked side by side, and the base model after them, by itself: vLLM's CPU kernels (0.32) give a base
        request that shares a batch with adapters the weights in the last slot, because its index there is -1.
        """
        total = len(contenders) * len(self.golden.items) * self.repeats
        found: dict[tuple[str, str, int], Result] = {}

        async def work(waiting: Iterator[tuple[Contender, Item, int]]) -> None:
            for contender, item, repeat in waiting:
                found[contender.role, item.id, repeat] = await self._result(contender, item, repeat)
                self.progress(len(found), total)

        for is_base in (False, True):
            jobs = self._jobs([each for each in contenders if (each.role == "base") == is_base])
            await _together(work(jobs) for _ in range(min(self.concurrency, total)))
        return [self._runs(contender, found) for contender in contenders]

    def _jobs(self, contenders: Sequence[Contender]) -> Iterator[tuple[Contender, Item, int]]:
        """Contenders take turns at being the first, so that none has the quieter engine."""
        turn = 0
        for repeat in range(self.repeats):
            for item in self.golden.items:
                for place in range(len(contenders)):
                    yield contenders[(turn + place) % len(contenders)], item, repeat
                turn += 1

    async def _result(self, contender: Contender, item: Item, repeat: int) -> Result:
        judged = self.judge.to_document() if self.judge and item.scorer == "judge" else None
        key = key_of(contender.identity, self.engines, request_body(contender, item, self.sampling, repeat), repeat,
                     item.to_document(), judged)
        known = self.journal.get(key)
        if known is not None:
            return Result.of({name: value for name, value in known.items() if name != "contender"})
        result = await self._score(item, repeat, await self.caller.ask(contender, item, self.sampling, repeat))
        if not result.answer.error:
            self.journal.add(key, {"contender": contender.role, **result.to_document()})
        return result

    async def _score(self, item: Item, repeat: int, answer: Answer) -> Result:
        if answer.error:
            return Result(item=item.id, repeat=repeat, answer=answer, mark=WRONG)
        if item.scorer != "judge":
            return Result(item=item.id, repeat=repeat, answer=answer, mark=self.scorers.mark(item, answer.text))
        if self.judge is None:
            raise ValueError(f"{item.id!r} is for a judge, and there is none.")
        try:
            opinion = await self.judge.score(item.to_document(), answer.text)
        except (JudgeError, RequestRefused) as error:
            failed = replace(answer, error=f"it could not be judged: {error}")
            return Result(item=item.id, repeat=repeat, answer=failed, mark=WRONG)
        return Result(item=item.id, repeat=repeat, answer=answer, mark=Mark(opinion.score), opinions=opinion.scores,
                      reasons=opinion.reasons)

    def _runs(self, contender: Contender, found: Mapping[tuple[str, str, int], Result]) -> Runs:
        results = tuple(tuple(found[contender.role, item.id, repeat] for repeat in range(self.repeats))
                        for item in self.golden.items)
        marks = [[result.mark for result in row] for row in results]
        return Runs(contender, results, board_of(self.golden.items, self.scorers.labels, marks))


async def _together(works: Iterable[Coroutine[Any, Any, None]]) -> None:
    """All of them to the end; the first error ends the others and comes out as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            for work in works:
                group.create_task(work)
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
