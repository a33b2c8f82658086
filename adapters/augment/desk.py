"""Works on the plan: asks the journal, then the teacher; reads strictly; has risky texts sorted again; makes rows."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from adapters.augment.journal import Answer, Journal
from adapters.augment.plan import Task
from adapters.augment.requests import Letters, ReplyError, Request, read_label, read_texts
from adapters.augment.results import Fault
from adapters.data import Row, text_sha256
from adapters.teacher import RequestRefused, Teacher, TeacherError, Usage

Report = Callable[[str], None]

MOST_REFUSALS = 8
"""After so many refused requests, and no answered one, the settings are wrong and not the texts."""


@dataclass(frozen=True, slots=True)
class Result:
    """What one task came to."""

    rows: Sequence[Row] = ()
    faults: Sequence[Fault] = ()


class Desk:
    """Works on tasks, as many at once as the teacher takes. `verify`: have hard negatives and edge cases sorted again.

    `done` has the result of each task by its place in the plan, `failure` what ended the work before all were done.
    """

    def __init__(self, teacher: Teacher, journal: Journal, letters: Letters, *, verify: bool) -> None:
        self._teacher = teacher
        self._journal = journal
        self._before = journal.spent
        self._letters = letters
        self._verify = verify
        self._asking: dict[str, asyncio.Lock] = {}
        self._refusals = 0
        self.done: dict[int, Result] = {}
        self.failure: TeacherError | None = None

    @property
    def spent(self) -> Usage:
        """What all runs have used so far."""
        return self._before + self._teacher.usage

    async def work(self, tasks: Sequence[Task], report: Report) -> None:
        """Do all the tasks. After a failure nothing new is begun, and what is under way is awaited: it is paid for."""
        waiting = iter(enumerate(tasks))
        every = max(1, len(tasks) // 10)

        async def one_after_another() -> None:
            for at, task in waiting:
                if self.failure:
                    return
                try:
                    self.done[at] = await self._result(task)
                except TeacherError as failure:
                    self.failure = self.failure or failure
                    return
                if len(self.done) % every == 0:
                    report(f"augment: {len(self.done):,}/{len(tasks):,} requests, {self.spent.tokens:,} tokens, cost "
                           f"{self.spent.cost:.4f}")

        async with asyncio.TaskGroup() as group:
            for _ in range(min(self._teacher.settings.concurrency, len(tasks))):
                group.create_task(one_after_another())

    async def _result(self, task: Task) -> Result:
        request = self._letters.make(task)
        try:
            answer = await self._answer(request)
            texts = read_texts(answer.text, task.count)
        except RequestRefused as refusal:
            self._refused(refusal)
            return Result(faults=[_fault(task, str(refusal))])
        except ReplyError as error:
            cut = f" (cut off at max_tokens = {request.max_tokens})" if answer.finish_reason == "length" else ""
            return Result(faults=[_fault(task, f"{error}{cut}")])
        rows, faults = [], []
        verify = self._verify and task.kind != "paraphrase"
        for at, text in enumerate(texts):
            reason = await self._misplaced(task, text) if verify else None
            if reason:
                faults.append(_fault(task, reason, text))
                continue
            provenance = self._letters.provenance(task, request, answer.model, verify)
            rows.append(_row(task, text, f"made-{text_sha256(f'{request.key} {at}')[:16]}", provenance))
        return Result(rows, faults)

    def _refused(self, refusal: RequestRefused) -> None:
        """Bear with single refusals; TeacherError when there was nothing else from the start."""
        self._refusals += 1
        if self._refusals >= MOST_REFUSALS and not self._journal.answers:
            raise TeacherError(f"The first {MOST_REFUSALS} requests were all refused: {refusal} Where the server does "
                               "not know response_format, switch it off (--no-structured).") from refusal

    async def _misplaced(self, task: Task, text: str) -> str | None:
        """Why the text is not one of its class by a second look, or None."""
        try:
            label = read_label((await self._answer(self._letters.sort(text))).text)
        except (RequestRefused, ReplyError) as error:
            return f"it could not be verified: {error}"
        return None if label == task.label else f"meant for {task.label!r}, but sorted into {label!r}"

    async def _answer(self, request: Request) -> Answer:
        """From the journal, or else from the teacher and into the journal; equal requests wait for one another."""
        async with self._asking.setdefault(request.key, asyncio.Lock()):
            return self._journal.answers.get(request.key) or await self._ask(request)

    async def _ask(self, request: Request) -> Answer:
        answer = None
        self._journal.begin(request.key, self._teacher.worst_case(request.messages, request.max_tokens))
        try:
            reply = await self._teacher.ask(
                request.messages, max_tokens=request.max_tokens, temperature=request.temperature, seed=request.seed,
                response_format=request.response_format)
            answer = Answer(reply.text, reply.model, reply.finish_reason)
        finally:
            self._journal.end(request.key, answer, self.spent)
        return answer


def _row(task: Task, text: str, name: str, provenance: Mapping[str, Any]) -> Row:
    """The source's chat with the made text in the place of the user's last, and the task's answer."""
    *before, asked, answered = task.source.messages
    messages = (*before, {**asked, "content": text}, {**answered, "content": task.answer})
    return replace(task.source, messages=messages, id=name, label=task.label, provenance=provenance)


def _fault(task: Task, reason: str, text: str | None = None) -> Fault:
    return Fault(task.kind, task.source.id, reason, text)
