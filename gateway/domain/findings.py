"""What checks have found: reasons to refuse and warnings to keep, in sentences that name their culprits."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

NAMED_AT_MOST = 10


@dataclass(frozen=True, slots=True)
class Findings:
    """`reasons` to refuse and `warnings` to keep, each one sentence or two; no reasons: it may be loaded."""

    reasons: tuple[str, ...]
    warnings: tuple[str, ...]


class Notes:
    """Collects findings, naming at most `NAMED_AT_MOST` culprits each."""

    def __init__(self) -> None:
        self.reasons: list[str] = []
        self.warnings: list[str] = []

    def refuse_each(self, culprits: Sequence[str], sentence: str) -> None:
        """Refuse with `sentence`, its {} filled with the culprits; nothing when there are none."""
        if culprits:
            self.reasons.append(sentence.format(_listing(culprits)))

    def warn_each(self, culprits: Sequence[str], sentence: str) -> None:
        """Likewise, as a warning."""
        if culprits:
            self.warnings.append(sentence.format(_listing(culprits)))

    def findings(self) -> Findings:
        return Findings(tuple(self.reasons), tuple(self.warnings))


def _listing(culprits: Sequence[str]) -> str:
    named = [culprit if len(culprit) <= 200 else culprit[:200] + "…" for culprit in culprits[:NAMED_AT_MOST]]
    rest = len(culprits) - len(named)
    return ", ".join(named) + (f" and {rest} more" if rest else "")


def short(value: Any) -> str:
    """Its repr, cut to fit a sentence."""
    text = repr(value)
    return text if len(text) <= 80 else text[:80] + "…"
