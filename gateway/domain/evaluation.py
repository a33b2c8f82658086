"""Evaluation records of versions, and what they allow: may a version take canary or stable traffic?

A record is bound to the bytes that were evaluated: the digest, not the version's number. The newest record of a golden
set and metric counts, if a gateway signed it and it was made on the version's own base model and chat template; a
version passes with at least one that counts, and none that counts failed.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from gateway.domain.errors import Conflict, InvalidRequest
from gateway.domain.model import Adapter, Entity, EvaluationPolicy, Snapshot, Version
from gateway.domain.seal import Seal, is_signed

RECORDS_KEPT = 20
"""How many records one digest keeps; the oldest goes when another comes."""
REPORT_BYTES = 16 << 10
"""The longest report, as JSON."""
SAMPLING_BYTES = 4 << 10
"""The longest `sampling`, as JSON."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation(Entity):
    """What a golden set (named by its digest) made of the artifact `digest`: the `value` of `metric`, higher is better.

    `passed` is never true below `floor`. `by`: who recorded it, `at` (Unix seconds).
    `report`: the evaluator's own words, JSON-ready and at most `REPORT_BYTES` long. What it was evaluated under is as
    in `conditions.Conditions`. `signature`: see `seal`; None in records of releases that did not sign.
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
    base_model: str | None = None
    engine_version: str | None = None
    chat_template_sha256: str | None = None
    sampling: Mapping[str, Any] | None = None
    latency_ms_p99: float | None = None
    signature: str | None = None

    @property
    def subject(self) -> tuple[str, str]:
        """What was measured: golden set and metric."""
        return self.golden_set, self.metric

    @property
    def path(self) -> str:
        return f"evaluation/{self.tenant}/{self.adapter}/{self.digest[:12]}/{self.id}"


@dataclass(frozen=True, slots=True)
class Gate:
    """May a version take traffic? `lack`: what is missing, in sentences (empty: nothing); `paths`: what says so.

    `unverified`: which records were not believed, a sentence each.
    """

    policy: EvaluationPolicy
    lack: str
    paths: tuple[str, ...]
    unverified: tuple[str, ...] = ()

    @property
    def warning(self) -> str:
        """What the policy wants told of a version that it lets through; empty when it is nothing."""
        if self.policy is EvaluationPolicy.OFF:
            return ""
        return (self.lack if self.policy is EvaluationPolicy.WARN else "") or " ".join(self.unverified)

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
        (superseded if record.subject in known else counting).append(record)
        known.add(record.subject)
    ranked = [*counting, *superseded]
    return ranked[RECORDS_KEPT - 1:]


def check_report(report: Mapping[str, Any], *, param: str = "report", max_bytes: int = REPORT_BYTES) -> None:
    """InvalidRequest for one that is too long, or that has what JSON cannot say: NaN, infinity, broken text."""
    try:
        size = len(json.dumps(report, ensure_ascii=False, allow_nan=False).encode())
    except ValueError as error:
        raise InvalidRequest(f"{param} cannot be kept as JSON: {error}.", param=param) from error
    if size > max_bytes:
        raise InvalidRequest(f"{param} has {size} bytes as JSON; at most {max_bytes} are kept. Send a summary.",
                             param=param)


def distrust(record: Evaluation, secret: str | None) -> str:
    """Why the record is not believed, in a clause; empty when it is."""
    if record.signature is None:
        return "is not signed, as those of earlier releases are not: evaluate again"
    if is_signed(record.to_document(), secret):
        return ""
    return (f"is not what a gateway signed: {record.path} was written or changed by another, or the registry's secret "
            "is another one now; evaluate again")


def mismatch(record: Evaluation, version: Version) -> str:
    """Why the record is of something other than what the version serves, in a clause; empty when it is of that."""
    if record.base_model is not None and record.base_model != version.base_model:
        return f"was made on the base model {record.base_model!r}, not {version.base_model!r}: evaluate again"
    template, own = record.chat_template_sha256, version.chat_template_sha256
    if template is not None and own is not None and template != own:
        return f"was made with the chat template {template[:12]}, not {own[:12]}: evaluate again"
    return ""


def gate(adapter: Adapter, version: Version, records: Iterable[Evaluation], secret: str | None) -> Gate:
    """What the adapter's policy says of the version, from the records (newest first) of its digest.

    One that is not believed hides the older ones of its golden set and metric: whoever spoils a failed record in Redis
    must not bring back one that passed.
    """
    newest: dict[tuple[str, str], tuple[Evaluation, str]] = {}
    ignored: list[str] = []
    for record in records:
        doubt = distrust(record, secret)
        if not doubt and (fault := mismatch(record, version)):
            ignored.append(_sentence(record, fault))
        else:
            newest.setdefault(record.subject, (record, doubt))
    counting = [record for record, doubt in newest.values() if not doubt]
    unverified = tuple(_sentence(record, doubt) for record, doubt in newest.values() if doubt)
    lack = _lack(version, counting, (*unverified, *ignored))
    return Gate(adapter.evaluation, lack, tuple(record.path for record, _ in newest.values()), unverified)


def gate_of(snapshot: Snapshot, version: Version, seal: Seal) -> Gate:
    """The gate of a version of the snapshot."""
    adapter = snapshot.adapters[version.tenant, version.adapter]
    records = records_of(snapshot, version.tenant, version.adapter, version.digest)
    found = gate(adapter, version, records, seal.secret(snapshot))
    return replace(found, paths=(adapter.path, *found.paths))


def _sentence(record: Evaluation, fault: str) -> str:
    return f"The record of {record.metric} on golden set {record.golden_set[:12]} {fault}."


def _lack(version: Version, counting: Iterable[Evaluation], ignored: Iterable[str]) -> str:
    who = f"Version {version.number} of {version.tenant}/{version.adapter}"
    found, others = list(counting), list(ignored)
    if not found and others:
        return " ".join([f"{who} has no evaluation record that counts.", *others])
    if not found:
        return (f"{who} has no evaluation record for its digest {version.digest[:12]}: run its golden set and POST the "
                f"result to /admin/v1/tenants/{version.tenant}/adapters/{version.adapter}/evaluations.")
    failed = "; ".join(
        f"{record.metric} {record.value:g} on golden set {record.golden_set[:12]} "
        + (f"is below {record.floor:g}" if record.value < record.floor else "was not passed by its evaluator")
        for record in found if not record.passed)
    return " ".join([f"{who} did not pass its evaluation: {failed}.", *others]) if failed else ""
