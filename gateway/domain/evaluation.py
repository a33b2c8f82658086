"""Evaluation records of versions, and what they allow: may a version take canary or stable traffic?

A record is bound to the bytes that were evaluated: the digest, not the version's number. The newest record of a golden
set and metric counts; a version passes with at least one that counts, and none that counts failed.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from gateway.domain.errors import Conflict, InvalidRequest
from gateway.domain.model import Adapter, Entity, EvaluationPolicy, Snapshot, Version

RECORDS_KEPT = 20
"""How many records one digest keeps; the oldest goes when another comes."""
REPORT_BYTES = 16 << 10
"""The longest report, as JSON."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation(Entity):
    """What a golden set (named by its digest) made of the artifact `digest`: the `value` of `metric`, higher is better.

    `passed` is never true below `floor`. `by`: who recorded it, `at` (Unix seconds).
    `report`: the evaluator's own words, JSON-ready and at most `REPORT_BYTES` long.
    """

    kind: ClassVar[str] = "evaluation"
    tenant: str
    adapter: str
    digest: str
    id: str
    golden_set: str
    metric: str
    value: float
    floor: float
    passed: bool
    by: str
    at: float
    report: Mapping[str, Any] = field(default_factory=dict)

    @property
    def path(self) -> str:
        return f"evaluation/{self.tenant}/{self.adapter}/{self.digest[:12]}/{self.id}"


@dataclass(frozen=True, slots=True)
class Gate:
    """May a version take traffic? `lack`: what is missing, in a sentence (empty: nothing); `paths`: what says so."""

    policy: EvaluationPolicy
    lack: str
    paths: tuple[str, ...]

    @property
    def warning(self) -> str:
        """What the policy wants told; empty when it is nothing."""
        return self.lack if self.policy is EvaluationPolicy.WARN else ""

    @property
    def is_open(self) -> bool:
        """Does the policy let the version through?"""
        return not (self.lack and self.policy is EvaluationPolicy.REQUIRED)

    def check(self) -> None:
        """Conflict unless it is open."""
        if not self.is_open:
            raise Conflict(f"{self.lack} This adapter's evaluation policy is 'required'.", param="evaluation")


def records_of(snapshot: Snapshot, tenant: str, adapter: str, digest: str | None = None) -> list[Evaluation]:
    """The adapter's records, of that artifact alone if `digest` is given; newest first."""
    found = [
        record for record in snapshot.entities.values()
        if isinstance(record, Evaluation) and (record.tenant, record.adapter) == (tenant, adapter)
        and digest in (None, record.digest)
    ]
    return sorted(found, key=lambda record: (record.at, record.revision, record.id), reverse=True)


def surplus(records: Iterable[Evaluation]) -> list[Evaluation]:
    """Which of one digest's records (newest first) go so that one more can be kept: superseded ones, oldest first."""
    known: set[tuple[str, str]] = set()
    counting: list[Evaluation] = []
    superseded: list[Evaluation] = []
    for record in records:
        subject = (record.golden_set, record.metric)
        (superseded if subject in known else counting).append(record)
        known.add(subject)
    ranked = [*counting, *superseded]
    return ranked[RECORDS_KEPT - 1:]


def check_report(report: Mapping[str, Any]) -> None:
    """InvalidRequest for a report that is too long, or that has what JSON cannot say: NaN, infinity, broken text."""
    try:
        size = len(json.dumps(report, ensure_ascii=False, allow_nan=False).encode())
    except ValueError as error:
        raise InvalidRequest(f"The report cannot be kept as JSON: {error}.", param="report") from error
    if size > REPORT_BYTES:
        raise InvalidRequest(f"The report has {size} bytes as JSON; at most {REPORT_BYTES} are kept. Send a summary.",
                             param="report")


def gate(adapter: Adapter, version: Version, records: Iterable[Evaluation]) -> Gate:
    """What the adapter's policy says of the version, from the records (newest first) of its digest."""
    newest: dict[tuple[str, str], Evaluation] = {}
    for record in records:
        newest.setdefault((record.golden_set, record.metric), record)
    counting = list(newest.values())
    return Gate(adapter.evaluation, _lack(version, counting), tuple(record.path for record in counting))


def gate_of(snapshot: Snapshot, version: Version) -> Gate:
    """The gate of a version of the snapshot."""
    adapter = snapshot.adapters[version.tenant, version.adapter]
    found = gate(adapter, version, records_of(snapshot, version.tenant, version.adapter, version.digest))
    return replace(found, paths=(adapter.path, *found.paths))


def _lack(version: Version, counting: Iterable[Evaluation]) -> str:
    who = f"Version {version.number} of {version.tenant}/{version.adapter}"
    found = list(counting)
    if not found:
        return (f"{who} has no evaluation record for its digest {version.digest[:12]}: run its golden set and POST the "
                f"result to /admin/v1/tenants/{version.tenant}/adapters/{version.adapter}/evaluations.")
    failed = "; ".join(
        f"{record.metric} {record.value:g} on golden set {record.golden_set[:12]} "
        + (f"is below {record.floor:g}" if record.value < record.floor else "was not passed by its evaluator")
        for record in found if not record.passed)
    return f"{who} did not pass its evaluation: {failed}." if failed else ""
