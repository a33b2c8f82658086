"""Samples of answers, scored in the background once their callers have them: by rules, and by a judge where one is set.

Sampling never changes, delays or costs a caller anything. Nothing is copied of tenants that have not opted in; of the
others, what does not fit is shed first, and counted. Rules see the answer as it was; what leaves this process' memory
(to the judge, to Redis) is redacted, and no word of it goes into a log.
"""

import asyncio
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Protocol

import msgspec

from gateway.dataplane.answers import Kept
from gateway.dataplane.body import Body
from gateway.domain.candidate import JUDGE, MAX_BYTES, Candidate, proposal, question_id
from gateway.domain.errors import SwitchyardError
from gateway.domain.model import Snapshot
from gateway.domain.quality import (
    SCALE,
    Answer,
    Matches,
    QualityPolicy,
    Rolling,
    Rule,
    Watched,
    Who,
    broken,
    is_sampled,
    watched,
)
from gateway.domain.redaction import redact, redacted
from gateway.domain.routing import Route
from gateway.system import System

ENDPOINTS: Final = frozenset({"chat.completions", "completions"})
"""The endpoints whose answers are read; others' are not sampled."""
MAX_SAMPLE_CHARS: Final = 32 << 10
"""A longer question (in bytes, as JSON) or answer is not looked at: redacting it would take a while."""
MAX_UNDER_WAY: Final = 32
_ROLES: Final = frozenset({"system", "developer", "user", "assistant", "tool"})
_KEPT_OF_A_MESSAGE: Final = ("role", "content", "tool_calls", "tool_call_id")
_QUESTION: Final = ("messages", "prompt", "tools")

_decode_messages = msgspec.json.Decoder(list[dict[str, Any]]).decode
_decode_text = msgspec.json.Decoder(str).decode


class Grade(Protocol):
    """A judge's opinion; see `gateway.clients.judge.Grade`."""

    @property
    def score(self) -> float: ...
    @property
    def reason(self) -> str: ...


class Judge(Protocol):
    """See `gateway.clients.judge.Judge`."""

    @property
    def is_well(self) -> bool: ...
    @property
    def has_room(self) -> bool: ...
    async def grade(self, criteria: str, conversation: Sequence[Mapping[str, Any]], answer: str) -> Grade: ...


class Candidates(Protocol):
    """Where failures are kept; see `gateway.clients.quality.Candidates`."""

    async def keep(self, who: Who, candidate: Candidate) -> bool: ...


@dataclass(frozen=True, slots=True)
class _Sample:
    """A call to be looked at; `question` is the raw fields of its body that ask."""

    watched: Watched
    version: int
    question: Mapping[str, bytes]
    kept: Kept


@dataclass(frozen=True, slots=True)
class _Looked:
    """A sample as the rules found it, redacted where it is needed any further."""

    rule: Rule | None
    messages: Sequence[Mapping[str, Any]] = ()
    tools: Sequence[Mapping[str, Any]] = ()
    answer: str = ""
    finish_reason: str = ""


class Quality:
    """Samples, scores, and adds up; `watch` and `offer` never wait and never raise.

    `share`: percent, for tenants that name none. At most `samples_a_second` are taken in this process, MAX_UNDER_WAY at
    a time, and one thread looks at them, one after the other.
    """

    def __init__(
        self, judge: Judge | None, candidates: Candidates, matches: Matches, count: Callable[[str, int], None],
        log: Any, system: System, *, share: float, samples_a_second: float,
    ) -> None:
        """`count` is told what became of samples that got no score: `shed`, `unread` or `unjudged`."""
        self._judge = judge
        self._candidates = candidates
        self._matches = matches
        self._count = count
        self._log = log
        self._system = system
        self._share = share
        self._rate = samples_a_second
        self._room = max(1.0, samples_a_second)
        self._filled_at = system.monotonic()
        self._watched: Mapping[tuple[str, str], Watched] = {}
        self._scores: dict[Who, dict[int, Rolling]] = {}
        self._running: set[asyncio.Task[None]] = set()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="quality")

    def follow(self, snapshot: Snapshot) -> None:
        """Watch what the registry says; to be called with every snapshot."""
        self._watched = watched(snapshot, self._share)

    def watch(self, chosen: Route, endpoint: str, request_id: str) -> Watched | None:
        """Is the answer of this call to be kept for a sample? As a rule not, and then this is all that it costs."""
        if not self._watched:
            return None
        found = self._watched.get((chosen.tenant, chosen.adapter))
        if found is None or endpoint not in ENDPOINTS or not is_sampled(found.opt_in.id, request_id, found.share):
            return None
        if len(self._running) >= MAX_UNDER_WAY or not self._has_room():
            self._count("shed", 1)
            return None
        return found

    def offer(self, found: Watched, chosen: Route, body: Body, kept: Kept) -> None:
        """Look at a call that was answered in full, in the background."""
        question = {name: bytes(raw) for name in _QUESTION if (raw := body.fields.get(name)) is not None}
        is_long = sum(map(len, question.values())) > MAX_SAMPLE_CHARS
        if is_long or len(self._running) >= MAX_UNDER_WAY:
            self._count("unread" if is_long else "shed", 1)
            return
        sample = _Sample(found, int(chosen.number), question, kept)
        task = asyncio.create_task(self._score(sample))
        self._running.add(task)
        task.add_done_callback(partial(self._ended, found.who))

    def take(self) -> Mapping[Who, Mapping[int, Rolling]]:
        """The scores since the last time; from now on it counts anew."""
        taken, self._scores = self._scores, {}
        return taken

    async def settle(self) -> None:
        """Wait until what is under way now has ended."""
        await asyncio.gather(*self._running, return_exceptions=True)

    async def close(self) -> None:
        """Give up what is under way."""
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _score(self, sample: _Sample) -> None:
        policy, judge = sample.watched.policy, self._judge
        if policy.judge and (judge is None or not judge.has_room):
            self._count("unjudged", 1)
            return
        looked = await asyncio.get_running_loop().run_in_executor(self._thread, _look, sample, self._matches)
        if looked is None:
            self._count("unread", 1)
            return
        if looked.rule is not None:
            # While the judge gives no scores, only bad samples would count: then none does.
            if policy.judge and judge is not None and not judge.is_well:
                self._count("unjudged", 1)
                return
            await self._take_down(sample, looked, 0.0, f"It breaks the rule {looked.rule.kind}.")
        elif policy.judge and judge is not None:
            try:
                grade = await judge.grade(policy.judge, looked.messages, looked.answer)
            except SwitchyardError as error:
                self._log.info("not_judged", tenant=policy.tenant, adapter=policy.adapter, error=error.message)
                self._count("unjudged", 1)
                return
            await self._take_down(sample, looked, grade.score, redact(grade.reason))
        else:
            await self._take_down(sample, looked, 1.0, "")

    async def _take_down(self, sample: _Sample, looked: _Looked, score: float, reason: str) -> None:
        """Add the score up, and keep a failure as a candidate; nothing, once the tenant has opted out."""
        who, policy = sample.watched.who, sample.watched.policy
        now = self._watched.get((who.tenant, who.adapter))
        if now is None or now.opt_in.id != who.opt_in:
            return
        has_failed = looked.rule is not None or score < policy.pass_at
        scores = self._scores.setdefault(who, {})
        more = Rolling(1, round(score * SCALE), int(has_failed))
        scores[sample.version] = scores.get(sample.version, Rolling()) + more
        if not has_failed:
            return
        candidate = _candidate(sample, looked, score, reason, self._system.now())
        if len(candidate.to_json().encode()) > MAX_BYTES:
            return
        try:
            await self._candidates.keep(who, candidate)
        except SwitchyardError as error:
            self._log.info("candidate_dropped", tenant=who.tenant, adapter=who.adapter, error=error.code)

    def _ended(self, who: Who, task: asyncio.Task[None]) -> None:
        """A sample that ends by an error is a fault of ours: say where, but not of what text."""
        self._running.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            at = traceback.extract_tb(error.__traceback__)[-1]
            self._count("unread", 1)
            self._log.error("sample_died", tenant=who.tenant, adapter=who.adapter, error=type(error).__name__,
                            at=f"{at.filename}:{at.lineno}")

    def _has_room(self) -> bool:
        """May another sample be taken, by the rate? It fills again evenly."""
        now = self._system.monotonic()
        self._room = min(max(1.0, self._rate), self._room + (now - self._filled_at) * self._rate)
        self._filled_at = now
        if self._room < 1:
            return False
        self._room -= 1
        return True


def _look(sample: _Sample, matches: Matches) -> _Looked | None:
    """Read, judge by the rules, redact; in a thread of its own. None for what cannot be read, or is too long."""
    said = sample.kept.said(0.0)
    if said is None or not said.pieces or said.finish_reason == "error" or len(said.text) > MAX_SAMPLE_CHARS:
        return None
    question = _question(sample.question)
    if question is None:
        return None
    policy = sample.watched.policy
    if policy.judge and said.other and not said.text:
        return None  # a tool call is nothing that the judge could read
    rule = broken(policy.rules, Answer(said.text, said.finish_reason, said.other), matches)
    if rule is None and not policy.judge:
        return _Looked(None)
    messages, tools = question
    return _Looked(rule, redacted(messages), redacted(tools), redact(said.text), said.finish_reason)


def _question(fields: Mapping[str, bytes]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]] | None:
    """(messages, tools) of a call that is all text, and to which an answer is the next word; else None."""
    try:
        tools = _decode_messages(fields["tools"]) if fields.get("tools", b"null").strip() != b"null" else []
        if "messages" not in fields:
            return [{"role": "user", "content": _decode_text(fields["prompt"])}], tools
        messages = [_message(message) for message in _decode_messages(fields["messages"])]
    except (KeyError, msgspec.ValidationError, msgspec.DecodeError):
        return None
    told = [message for message in messages if message is not None]
    is_whole = bool(told) and len(told) == len(messages) and told[-1]["role"] != "assistant"
    return (told, tools) if is_whole else None


def _message(message: Mapping[str, Any]) -> dict[str, Any] | None:
    """What is kept of a message; None when it is more than text (an image), or none that we know."""
    content = message.get("content")
    parts = content if isinstance(content, list) else []
    is_text = isinstance(content, str) or (content is None and bool(message.get("tool_calls"))) or (
        bool(parts) and all(isinstance(part, dict) and part.get("type") == "text" for part in parts))
    if message.get("role") not in _ROLES or not is_text or content == "":
        return None
    return {name: message[name] for name in _KEPT_OF_A_MESSAGE if message.get(name) is not None}


def _candidate(sample: _Sample, looked: _Looked, score: float, reason: str, now: float) -> Candidate:
    policy: QualityPolicy = sample.watched.policy
    return Candidate(
        id=question_id(looked.messages, looked.tools), tenant=policy.tenant, adapter=policy.adapter,
        version=sample.version, at=now, messages=looked.messages, tools=looked.tools, answer=looked.answer,
        finish_reason=looked.finish_reason, score=score, rule=looked.rule.kind if looked.rule else JUDGE,
        reason=reason, proposal=proposal(looked.rule, policy))
