"""Answers that failed in production, redacted, and the golden items that people make of them."""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from types import MappingProxyType
from typing import Any, Final, Self

from gateway.domain.errors import InvalidRequest
from gateway.domain.quality import QualityPolicy, Rule, RuleKind

MAX_BYTES: Final = 16 << 10
"""The longest candidate, and the longest item made of one, as JSON."""
MAX_PENDING: Final = 200
"""So many candidates of one adapter wait for a person; the oldest goes when another comes."""
MAX_APPROVED: Final = 500
"""So many approved items are kept of one adapter, until they are exported and rejected."""
SLICE: Final = "drift"
JUDGE: Final = "judge"
ID: Final = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Approval:
    """What a person says that the answer should have been; None: as the rule that was broken says.

    `scorer`, `expected`, `options`, `slice` and `weight` are the golden item's.
    """

    expected: Any = None
    scorer: str | None = None
    options: Mapping[str, Any] | None = None
    slice: str = SLICE
    weight: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One answer that failed, redacted. Its `id` is its question's: of one question there is one candidate.

    `rule`: the kind of the rule that it broke, or `judge`; `reason`: why, in words. `at`: Unix seconds. `item`: the
    golden item, once a person has approved it.
    """

    id: str
    tenant: str
    adapter: str
    version: int
    at: float
    messages: Sequence[Mapping[str, Any]]
    answer: str
    finish_reason: str
    score: float
    rule: str
    reason: str
    proposal: Mapping[str, Any] | None = None
    tools: Sequence[Mapping[str, Any]] = ()
    item: Mapping[str, Any] | None = None

    @property
    def state(self) -> str:
        """`pending` or `approved`."""
        return "pending" if self.item is None else "approved"

    def to_json(self) -> str:
        """The candidate as it is kept."""
        return _canonical(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """What `to_json` wrote."""
        return cls(**json.loads(text))

    def approved(self, approval: Approval) -> Self:
        """The candidate with its golden item; InvalidRequest when that would be none."""
        made = replace(self, item=_item(self, approval))
        if len(_canonical(made.item).encode()) > MAX_BYTES:
            raise InvalidRequest(f"The item has more than {MAX_BYTES} bytes as JSON; give a shorter expected answer.",
                                 param="expected")
        return made


def question_id(messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]) -> str:
    """What names a question: 16 hex digits of the SHA-256 of its canonical JSON."""
    return digest_of({"messages": messages, "tools": tools})[:16]


def digest_of(document: Any) -> str:
    """The SHA-256, in hex, of canonical JSON: sorted keys, no spaces."""
    return sha256(_canonical(document).encode()).hexdigest()


def proposal(rule: Rule | None, policy: QualityPolicy) -> dict[str, Any] | None:
    """Scorer, expected and options that say what the broken rule says; None where only a person can tell.

    `rule` None: the judge found the answer wanting.
    """
    if rule is None:
        return {"scorer": JUDGE, "expected": None, "options": {"criteria": policy.judge}}
    match rule.kind:
        case RuleKind.CONTAINS | RuleKind.REGEX:
            return {"scorer": rule.kind.value, "expected": rule.value}
        case RuleKind.NOT_EMPTY:
            return {"scorer": "regex", "expected": r"\S"}
        case RuleKind.JSON:
            names = list(rule.value) if isinstance(rule.value, tuple) else []
            return {"scorer": "json_schema", "expected": {"type": "object", "required": names} if names else True}
        case _:
            return None


def _item(candidate: Candidate, approval: Approval) -> dict[str, Any]:
    proposed = dict(candidate.proposal or {})
    if approval.expected is not None or approval.scorer not in (None, proposed.get("scorer")):
        proposed = {"scorer": approval.scorer or "normalised", "expected": approval.expected}
    if not proposed:
        raise InvalidRequest(
            f"The rule {candidate.rule!r} does not say what a good answer is: give it with expected.", param="expected")
    if approval.options is not None:
        proposed["options"] = dict(approval.options)
    check_expected(proposed["scorer"], proposed["expected"])
    if not (math.isfinite(approval.weight) and approval.weight > 0):
        raise InvalidRequest("weight must be a number above 0.", param="weight")
    item = {"id": f"{approval.slice}-{candidate.id}", "messages": list(candidate.messages), **proposed,
            "slice": approval.slice, "weight": approval.weight}
    return {**item, "tools": list(candidate.tools)} if candidate.tools else item


def check_expected(scorer: str, expected: Any) -> None:
    """InvalidRequest unless golden sets know the scorer, and `expected` is what it compares with."""
    if scorer not in EXPECTED:
        raise InvalidRequest(f"There is no scorer {scorer!r:.80}; use {', '.join(EXPECTED)}.", param="scorer")
    wanted, is_so = EXPECTED[scorer]
    if not is_so(expected):
        raise InvalidRequest(f"For the scorer {scorer}, expected must be {wanted}.", param="expected")


def _are_texts(expected: Any) -> bool:
    given = expected if isinstance(expected, list) else [expected]
    return bool(given) and all(isinstance(each, str) and each.strip() for each in given)


def _is_expression(expected: Any) -> bool:
    try:
        re.compile(expected)
    except (re.error, TypeError, RecursionError, OverflowError):
        return False
    return True


def _is_number(expected: Any) -> bool:
    return isinstance(expected, int | float) and not isinstance(expected, bool)


_TEXTS = ("text that is not empty, or a list of such texts", _are_texts)
EXPECTED: Final[Mapping[str, tuple[str, Callable[[Any], bool]]]] = MappingProxyType({
    "exact": _TEXTS, "normalised": _TEXTS, "contains": _TEXTS, "rouge_l": _TEXTS,
    "label": ("a label", lambda expected: isinstance(expected, str) and bool(expected.strip())),
    "regex": ("a regular expression", _is_expression),
    "json_schema": ("a JSON schema", lambda expected: isinstance(expected, dict | bool)),
    "json_fields": ("an object with a field", lambda expected: isinstance(expected, dict) and bool(expected)),
    "numeric": ("a number", _is_number),
    JUDGE: ("anything", lambda expected: True),
})
"""The scorers of golden sets: what `expected` must be, in words and as a check."""


def _canonical(document: Any) -> str:
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
