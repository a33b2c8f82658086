"""The quality of production answers: whose are sampled, what an answer must be, how a version stands, when to tell."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from hashlib import blake2b
from typing import Any, ClassVar, Final, NamedTuple, Self, TypeAlias

from gateway.domain.errors import InvalidRequest
from gateway.domain.model import Document, Entity, Snapshot
from gateway.domain.split import BUCKETS

MAX_RULES: Final = 32
MAX_VALUE_CHARS: Final = 1000
MAX_NAMES: Final = 50
RECOVERY: Final = 0.02
"""So far above its floor a quality must come before it counts as well again, so that noise is told once."""
SCALE: Final = 1000
"""Scores are added up in thousandths, as whole numbers, so that every gateway adds up the same."""

_SAMPLE = b"quality"  # keeps this hash apart from the split's and the shadow's

Matches: TypeAlias = Callable[[str, str], bool]
"""(regular expression, text) → is it found in the text? In time linear in the text, whatever the expression."""


class RuleKind(StrEnum):
    """What a rule asks of an answer, and its `value`.

    not_empty: more than white space, or a tool call. max_chars (a number): no longer. contains (text): has it, as it
    is. regex, forbidden (an expression): found, not found. json (names of fields, maybe none): the text is one JSON
    value, and an object with all of these. finish_reason (names): ended for one of them.
    """

    NOT_EMPTY = "not_empty"
    MAX_CHARS = "max_chars"
    CONTAINS = "contains"
    REGEX = "regex"
    FORBIDDEN = "forbidden"
    JSON = "json"
    FINISH_REASON = "finish_reason"


OF_TEXT: Final = frozenset({RuleKind.CONTAINS, RuleKind.REGEX, RuleKind.JSON})
"""Rules that an answer without text, but with a tool call, is spared."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One thing that every answer must be; see RuleKind. `value` is of the kind's own type."""

    kind: RuleKind
    value: int | str | tuple[str, ...] | None = None

    @classmethod
    def of(cls, kind: str, value: Any) -> Self:
        """The rule, or InvalidRequest that says what its value must be."""
        known = RuleKind(kind) if kind in set(RuleKind) else None
        made = tuple(value) if isinstance(value, list | tuple) else value
        wanted = "one of " + ", ".join(RuleKind) if known is None else _lack(known, made)
        if known is None or wanted:
            raise InvalidRequest(f"The rule {kind!r:.80} is not usable: give {wanted}.", param="rules")
        return cls(known, made)

    def to_document(self) -> Document:
        """JSON-ready."""
        return {"kind": self.kind.value, "value": list(self.value) if isinstance(self.value, tuple) else self.value}


@dataclass(frozen=True, slots=True)
class Answer:
    """What the rules look at; `other`: there was output besides text, such as a tool call."""

    text: str
    finish_reason: str = ""
    other: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class OptIn(Entity):
    """A tenant's word that a share of its answers may be looked at.

    `share`: percent (None: as the gateway's settings say). `id` names this opt-in: it salts the sampling, and what was
    kept under it is gone with it. `at`: Unix seconds.
    """

    kind: ClassVar[str] = "optin"
    tenant: str
    id: str
    by: str
    at: float
    share: float | None = None

    @property
    def path(self) -> str:
        return f"optin/{self.tenant}"


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityPolicy(Entity):
    """What an adapter's answers must be.

    An answer that breaks a rule scores 0. One that breaks none scores 1, or what the judge says, 0 to 1, where `judge`
    says what a good answer is. Below `pass_at` it has failed. `floor`: the mean that a version must keep (None: any),
    looked at from `min_samples` on.
    """

    kind: ClassVar[str] = "quality"
    tenant: str
    adapter: str
    rules: tuple[Rule, ...] = (Rule(RuleKind.NOT_EMPTY),)
    judge: str = ""
    pass_at: float = 0.5
    floor: float | None = None
    min_samples: int = 20

    @property
    def path(self) -> str:
        return f"quality/{self.tenant}/{self.adapter}"

    def to_document(self) -> Document:
        """JSON-ready."""
        document = super(QualityPolicy, self).to_document()
        return {**document, "rules": [rule.to_document() for rule in self.rules]}

    @classmethod
    def from_document(cls, document: Mapping[str, Any], revision: int) -> Self:
        """What `to_document` wrote; rules that only a newer gateway knows are passed over."""
        known = [rule for rule in document.get("rules", ()) if rule["kind"] in set(RuleKind)]
        rules = tuple(Rule.of(rule["kind"], rule.get("value")) for rule in known)
        return super(QualityPolicy, cls).from_document({**document, "rules": rules}, revision)


@dataclass(frozen=True, slots=True, kw_only=True)
class Review(Entity):
    """How many candidates of an adapter people have approved and rejected; what each was, the audit says."""

    kind: ClassVar[str] = "review"
    tenant: str
    adapter: str
    approved: int = 0
    rejected: int = 0

    @property
    def path(self) -> str:
        return f"review/{self.tenant}/{self.adapter}"


class Who(NamedTuple):
    """What scores and candidates are kept by: an adapter, under one opt-in of its tenant."""

    tenant: str
    adapter: str
    opt_in: str


@dataclass(frozen=True, slots=True)
class Watched:
    """An adapter whose answers are sampled: by which opt-in, `share` percent of them, and what they must be."""

    opt_in: OptIn
    share: float
    policy: QualityPolicy

    @property
    def who(self) -> Who:
        """What its scores are kept by."""
        return Who(self.policy.tenant, self.policy.adapter, self.opt_in.id)


@dataclass(frozen=True, slots=True)
class Rolling:
    """What became of the samples of one version in the window. `total`: their scores, in thousandths, added up."""

    samples: int = 0
    total: int = 0
    failures: int = 0

    @property
    def mean(self) -> float | None:
        """From 0 to 1; None without samples."""
        return self.total / SCALE / self.samples if self.samples else None

    def __add__(self, other: "Rolling") -> "Rolling":
        return Rolling(self.samples + other.samples, self.total + other.total, self.failures + other.failures)


@dataclass(frozen=True, slots=True)
class Standing:
    """A version's rolling quality as all gateways see it; `is_below`: what was last said of it and its floor."""

    rolling: Rolling = field(default_factory=Rolling)
    is_below: bool = False


def is_sampled(opt_in: str, request_id: str, share: float) -> bool:
    """Is this request among the `share` percent? A hash decides, so every gateway says the same."""
    data = f"{opt_in}\0{request_id}".encode(errors="surrogatepass")
    place = int.from_bytes(blake2b(data, digest_size=8, person=_SAMPLE).digest()) % BUCKETS
    return place < round(share * (BUCKETS // 100))


def watched(snapshot: Snapshot, share: float) -> dict[tuple[str, str], Watched]:
    """(tenant, adapter) → how it is watched, for every adapter of every tenant that has opted in.

    `share`: percent, for opt-ins that name none.
    """
    opted = {entity.tenant: entity for entity in snapshot.entities.values() if isinstance(entity, OptIn)}
    return {
        who: Watched(opt_in, share if opt_in.share is None else opt_in.share, policy_of(snapshot, *who))
        for who in snapshot.adapters if (opt_in := opted.get(who[0])) is not None}


def policy_of(snapshot: Snapshot, tenant: str, adapter: str) -> QualityPolicy:
    """The adapter's policy; without one an answer must not be empty, and nothing is told."""
    found = snapshot.entities.get(f"quality/{tenant}/{adapter}")
    return found if isinstance(found, QualityPolicy) else QualityPolicy(tenant=tenant, adapter=adapter)


def broken(rules: Iterable[Rule], answer: Answer, matches: Matches) -> Rule | None:
    """The first rule that the answer breaks."""
    is_spared = answer.other and not answer.text.strip()
    return next((rule for rule in rules if not (is_spared and rule.kind in OF_TEXT)
                 and not _HOLDS[rule.kind](rule, answer, matches)), None)


def is_below(was_below: bool, rolling: Rolling, policy: QualityPolicy) -> bool:
    """Does the version count as below its floor now?

    It comes to when its mean is under the floor, ceases to at `RECOVERY` above it (or at 1), and stays as it was while
    there are too few samples to say.
    """
    mean = rolling.mean
    if policy.floor is None:
        return False
    if mean is None or rolling.samples < policy.min_samples:
        return was_below
    return mean < (min(policy.floor + RECOVERY, 1.0) if was_below else policy.floor)


def reviewed(snapshot: Snapshot, tenant: str, adapter: str, *, approved: int = 0, rejected: int = 0) -> Review:
    """The adapter's review, with so many more."""
    found = snapshot.entities.get(f"review/{tenant}/{adapter}")
    known = found if isinstance(found, Review) else Review(tenant=tenant, adapter=adapter)
    return replace(known, approved=known.approved + approved, rejected=known.rejected + rejected)


def _lack(kind: RuleKind, value: object) -> str:
    """What the rule's value must be, where it is not; empty where it is."""
    match kind:
        case RuleKind.NOT_EMPTY:
            return "" if value is None else "no value"
        case RuleKind.MAX_CHARS:
            whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
            return "" if whole else "a number of characters, 1 or more"
        case RuleKind.CONTAINS | RuleKind.REGEX | RuleKind.FORBIDDEN:
            wanted = f"a text of 1 to {MAX_VALUE_CHARS} characters"
            return "" if isinstance(value, str) and 1 <= len(value) <= MAX_VALUE_CHARS else wanted
        case RuleKind.JSON:
            return "" if value is None or _are_names(value) else f"the names of at most {MAX_NAMES} fields, or none"
        case RuleKind.FINISH_REASON:
            return "" if value and _are_names(value) else f"1 to {MAX_NAMES} names, such as stop"


def _are_names(value: object) -> bool:
    return isinstance(value, tuple) and len(value) <= MAX_NAMES and all(
        isinstance(name, str) and 1 <= len(name) <= MAX_VALUE_CHARS for name in value)


def _is_json(rule: Rule, answer: Answer, _: Matches) -> bool:
    names = rule.value if isinstance(rule.value, tuple) else ()
    try:
        found = json.loads(answer.text)
    except (ValueError, RecursionError):
        return False
    return not names or (isinstance(found, dict) and all(name in found for name in names))


_HOLDS: Final[Mapping[RuleKind, Callable[[Rule, Answer, Matches], bool]]] = {
    RuleKind.NOT_EMPTY: lambda rule, answer, _: bool(answer.text.strip()) or answer.other,
    RuleKind.MAX_CHARS: lambda rule, answer, _: isinstance(rule.value, int) and len(answer.text) <= rule.value,
    RuleKind.CONTAINS: lambda rule, answer, _: str(rule.value) in answer.text,
    RuleKind.REGEX: lambda rule, answer, matches: matches(str(rule.value), answer.text),
    RuleKind.FORBIDDEN: lambda rule, answer, matches: not matches(str(rule.value), answer.text),
    RuleKind.JSON: _is_json,
    RuleKind.FINISH_REASON: lambda rule, answer, _: (
        isinstance(rule.value, tuple) and answer.finish_reason in rule.value),
}
