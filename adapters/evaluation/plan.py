"""What to evaluate, and how: checked before anything is asked."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from adapters.evaluation.calls import Sampling
from adapters.evaluation.decide import Gate
from adapters.evaluation.golden import GoldenSet
from adapters.evaluation.statistics import LABEL_METRICS


class EvaluationError(ValueError):
    """What was asked cannot be evaluated; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Target:
    """The version to evaluate: `acme/support@4`."""

    tenant: str
    adapter: str
    number: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """The parts of `tenant/adapter@number`, or EvaluationError."""
        found = re.fullmatch(r"([^/@\s]+)/([^/@\s]+)@([0-9]{1,9})", text)
        if found is None:
            raise EvaluationError(f"{text!r:.200} is not a version; write tenant/adapter@number, such as "
                                  "acme/support@4.")
        return cls(found[1], found[2], int(found[3]))

    @property
    def path(self) -> tuple[str, str, str, str]:
        """The adapter's path in the admin API."""
        return "tenants", self.tenant, "adapters", self.adapter

    def __str__(self) -> str:
        return f"{self.tenant}/{self.adapter}@{self.number}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A version, a golden set, and how to ask and decide.

    `key` is an API key of the tenant that may pin; without one the run makes its own, and revokes it. `state` is the
    folder of journals and reports. `alone`: ask neither the stable version nor the base model. `fresh`: forget an
    interrupted run. `record`: tell the gateway what came of it.
    """

    target: Target
    golden: GoldenSet
    state: Path
    gate: Gate = field(default_factory=Gate)
    sampling: Sampling = field(default_factory=Sampling)
    repeats: int = 1
    concurrency: int = 8
    alone: bool = False
    key: str | None = field(default=None, repr=False)
    fresh: bool = False
    record: bool = True

    def __post_init__(self) -> None:
        for name in ("repeats", "concurrency"):
            if getattr(self, name) < 1:
                raise EvaluationError(f"{name} is {getattr(self, name)}; make it 1 or more.")
        if self.alone and self.gate.baseline in ("stable", "base"):
            raise EvaluationError(f"A version that is evaluated alone has no {self.gate.baseline} to compare with.")
        scorers = {item.scorer for item in self.golden.items}
        known = {"score", *scorers, *(LABEL_METRICS if "label" in scorers else ())}
        if self.metric not in known:
            raise EvaluationError(f"The golden set {self.golden.name} has no items for the metric {self.metric!r}; "
                                  f"take {', '.join(sorted(known))}.")

    @property
    def metric(self) -> str:
        """What is decided by."""
        if self.gate.metric != "auto":
            return self.gate.metric
        return "macro_f1" if all(item.scorer == "label" for item in self.golden.items) else "score"

    @property
    def folder(self) -> Path:
        """Where the journal and the reports of this version and golden set are."""
        return self.state / self.target.tenant / f"{self.target.adapter}@{self.target.number}" / self.golden.digest[:12]
