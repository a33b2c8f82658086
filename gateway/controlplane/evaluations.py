"""Evaluation records: what golden sets made of versions, kept beside them and asked by the gate to traffic."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from gateway.controlplane.catalog import adapter_of, version_of
from gateway.controlplane.changes import Changes, Step
from gateway.controlplane.fleet import Fleet
from gateway.controlplane.secrets import secret_in
from gateway.domain.conditions import UNSAID, Conditions, settle
from gateway.domain.errors import Conflict, InvalidRequest, NotFound
from gateway.domain.evaluation import (
    SAMPLING_BYTES,
    Evaluation,
    check_report,
    distrust,
    mismatch,
    records_of,
    surplus,
)
from gateway.domain.model import Entity, Snapshot, Version
from gateway.domain.seal import SECRET, SHARED, Seal, sign
from gateway.system import System


@dataclass(frozen=True, slots=True)
class Kept:
    """A record as it stands. `verified`: a gateway signed just this; `ignored`: why the gate takes no account of it, in
    a clause; empty when it does."""

    record: Evaluation
    verified: bool
    ignored: str


class Evaluations:
    """Takes, signs and lists records; one is never changed, and counts until a newer one of its golden set and metric
    comes.
    """

    def __init__(self, changes: Changes, fleet: Fleet, system: System, *, seal: Seal = SHARED) -> None:
        self._changes = changes
        self._fleet = fleet
        self._system = system
        self._seal = seal

    def all(self, tenant: str, adapter: str, *, number: int | None = None) -> list[Kept]:
        """The adapter's records, of one version's bytes if `number` is given; newest first."""
        snapshot = self._changes.current
        adapter_of(snapshot, tenant, adapter)
        digest = None if number is None else version_of(snapshot, tenant, adapter, number).digest
        secret = self._seal.secret(snapshot)
        versions = {version.digest: version for version in snapshot.versions_of(tenant, adapter)}
        return [_kept(record, secret, versions.get(record.digest))
                for record in records_of(snapshot, tenant, adapter, digest)]

    async def record(
        self, actor: str, tenant: str, adapter: str, *, number: int | None, digest: str | None, golden_set: str,
        metric: str, value: float, floor: float, passed: bool | None = None, report: Mapping[str, Any],
        conditions: Conditions = UNSAID, if_match: int | None = None, dry_run: bool = False,
    ) -> Evaluation:
        """A new signed record for the version `number`, or the bytes `digest`, which must agree if both are given.

        `passed` None: whether `value` reaches `floor`. It cannot be true below the floor, but an evaluator may have
        found another fault. What `conditions` leave open is filled in; Conflict where they contradict the registry or
        the fleet (InvalidRequest, Conflict, NotFound).
        """
        _check(metric, value, floor, passed, report, conditions)

        def decide(snapshot: Snapshot) -> Step[Evaluation]:
            version = _evaluated(snapshot, tenant, adapter, number, digest)
            settled = settle(conditions, version, self._fleet.replicas())
            made = Evaluation(
                tenant=tenant, adapter=adapter, digest=version.digest, id=self._system.hex(8), golden_set=golden_set,
                metric=metric, value=value, floor=floor, passed=value >= floor if passed is None else passed,
                by=actor, at=self._system.now(), report=dict(report), **asdict(settled))
            signed, secret = self._signed(snapshot, made)
            too_many = surplus(records_of(snapshot, tenant, adapter, version.digest))
            writes = {signed.path: signed, **{record.path: None for record in too_many}, **secret}
            detail = {"digest": version.digest, "golden_set": golden_set, "metric": metric, "value": value,
                      "floor": floor, "passed": made.passed, "base_model": made.base_model,
                      "engine_version": made.engine_version}
            return Step("evaluation.record", signed, writes, detail, (f"adapter/{tenant}/{adapter}", version.path))

        return (await self._changes.commit(actor, decide, if_match=if_match, dry_run=dry_run)).entity

    def _signed(self, snapshot: Snapshot, record: Evaluation) -> tuple[Evaluation, Mapping[str, Entity | None]]:
        """The record with its signature, and the write of the registry's secret if this is its first use."""
        given = self._seal.given
        if given is not None:
            return _sealed(record, given), {}
        kept, writes = secret_in(snapshot, self._system, SECRET)
        return _sealed(record, kept.value), writes


def _sealed(record: Evaluation, secret: str) -> Evaluation:
    return replace(record, signature=sign(record.to_document(), secret))


def _kept(record: Evaluation, secret: str | None, version: Version | None) -> Kept:
    doubt = distrust(record, secret)
    return Kept(record, not doubt, doubt or (mismatch(record, version) if version is not None else ""))


def _check(
    metric: str, value: float, floor: float, passed: bool | None, report: Mapping[str, Any], conditions: Conditions,
) -> None:
    if not (math.isfinite(value) and math.isfinite(floor)):
        raise InvalidRequest("value and floor must be finite numbers.", param="value")
    if passed and value < floor:
        raise InvalidRequest(f"{metric} {value:g} is below its floor {floor:g}, so it cannot be passed.",
                             param="passed")
    check_report(report)
    check_report(conditions.sampling or {}, param="sampling", max_bytes=SAMPLING_BYTES)
    latency = conditions.latency_ms_p99
    if latency is not None and not 0 <= latency < math.inf:
        raise InvalidRequest("latency_ms_p99 must be a finite number of milliseconds.", param="latency_ms_p99")


def _evaluated(snapshot: Snapshot, tenant: str, adapter: str, number: int | None, digest: str | None) -> Version:
    """The version that has the bytes: by its number, or the newest that is of that digest."""
    adapter_of(snapshot, tenant, adapter)
    if number is not None:
        found = version_of(snapshot, tenant, adapter, number)
        if digest is not None and digest != found.digest:
            raise Conflict(f"Version {number} of {tenant}/{adapter} has the digest {found.digest}, not {digest}.",
                           param="digest")
        return found
    if digest is None:
        raise InvalidRequest("Say with version or digest what was evaluated.", param="version")
    known = [version for version in snapshot.versions_of(tenant, adapter) if version.digest == digest]
    if not known:
        raise NotFound(f"No version of {tenant}/{adapter} has the digest {digest}. Register it first.", param="digest")
    return known[-1]
