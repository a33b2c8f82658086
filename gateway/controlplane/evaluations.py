"""Evaluation records: what golden sets made of versions, kept beside them and asked by the gate to traffic."""

import math
from collections.abc import Mapping
from typing import Any

from gateway.controlplane.catalog import adapter_of, version_of
from gateway.controlplane.changes import Changes, Step
from gateway.domain.errors import Conflict, InvalidRequest, NotFound
from gateway.domain.evaluation import Evaluation, check_report, records_of, surplus
from gateway.domain.model import Entity, Snapshot
from gateway.system import System


class Evaluations:
    """Takes and lists records; one is never changed, and counts until a newer one of its golden set and metric comes.
    """

    def __init__(self, changes: Changes, system: System) -> None:
        self._changes = changes
        self._system = system

    def all(self, tenant: str, adapter: str, *, number: int | None = None) -> list[Evaluation]:
        """The adapter's records, of one version's bytes if `number` is given; newest first."""
        snapshot = self._changes.current
        adapter_of(snapshot, tenant, adapter)
        digest = None if number is None else version_of(snapshot, tenant, adapter, number).digest
        return records_of(snapshot, tenant, adapter, digest)

    async def record(
        self, actor: str, tenant: str, adapter: str, *, number: int | None, digest: str | None, golden_set: str,
        metric: str, value: float, floor: float, passed: bool | None = None, report: Mapping[str, Any],
        if_match: int | None = None, dry_run: bool = False,
    ) -> Evaluation:
        """A new record for the version `number`, or the bytes `digest`, which must agree if both are given.

        `passed` None: whether `value` reaches `floor`. It cannot be true below the floor, but an evaluator may have
        found another fault (InvalidRequest, Conflict, NotFound).
        """
        if not (math.isfinite(value) and math.isfinite(floor)):
            raise InvalidRequest("value and floor must be finite numbers.", param="value")
        if passed and value < floor:
            raise InvalidRequest(f"{metric} {value:g} is below its floor {floor:g}, so it cannot be passed.",
                                 param="passed")
        check_report(report)

        def decide(snapshot: Snapshot) -> Step[Evaluation]:
            bytes_of = _digest(snapshot, tenant, adapter, number, digest)
            made = Evaluation(
                tenant=tenant, adapter=adapter, digest=bytes_of, id=self._system.hex(8), golden_set=golden_set,
                metric=metric, value=value, floor=floor, passed=value >= floor if passed is None else passed,
                by=actor, at=self._system.now(), report=dict(report))
            too_many = surplus(records_of(snapshot, tenant, adapter, bytes_of))
            writes: dict[str, Entity | None] = {made.path: made, **{record.path: None for record in too_many}}
            detail = {"digest": bytes_of, "golden_set": golden_set, "metric": metric, "value": value, "floor": floor,
                      "passed": made.passed}
            return Step("evaluation.record", made, writes, detail, (f"adapter/{tenant}/{adapter}",))

        return (await self._changes.commit(actor, decide, if_match=if_match, dry_run=dry_run)).entity


def _digest(snapshot: Snapshot, tenant: str, adapter: str, number: int | None, digest: str | None) -> str:
    adapter_of(snapshot, tenant, adapter)
    if number is not None:
        found = version_of(snapshot, tenant, adapter, number).digest
        if digest is not None and digest != found:
            raise Conflict(f"Version {number} of {tenant}/{adapter} has the digest {found}, not {digest}.",
                           param="digest")
        return found
    if digest is None:
        raise InvalidRequest("Say with version or digest what was evaluated.", param="version")
    if all(version.digest != digest for version in snapshot.versions_of(tenant, adapter)):
        raise NotFound(f"No version of {tenant}/{adapter} has the digest {digest}. Register it first.", param="digest")
    return digest
