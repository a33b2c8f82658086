"""Freeze windows: times in which no release of their scope moves, but to be aborted."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import ClassVar

from gateway.domain import names
from gateway.domain.errors import Conflict, InvalidRequest
from gateway.domain.model import Entity, Snapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class Freeze(Entity):
    """A window from `start` up to `end` (Unix seconds). `scope`: a tenant `acme`, or one adapter of it `acme/support`.
    """

    kind: ClassVar[str] = "freeze"
    name: str
    scope: str
    start: float
    end: float
    reason: str
    created_by: str
    created_at: float

    @property
    def path(self) -> str:
        return f"freeze/{self.name}"

    def is_in_force(self, now: float) -> bool:
        """Is `now` within the window?"""
        return self.start <= now < self.end

    def covers(self, tenant: str, adapter: str) -> bool:
        """Is the adapter in its scope?"""
        return self.scope in (tenant, f"{tenant}/{adapter}")


def check_scope(scope: str) -> tuple[str, str | None]:
    """The tenant and, if it names one, the adapter of a scope; InvalidRequest when it is none."""
    tenant, slash, adapter = scope.partition("/")
    try:
        names.check_name("tenant", names.TENANT, tenant)
        if slash:
            names.check_name("adapter", names.ADAPTER, adapter)
    except InvalidRequest as error:
        raise InvalidRequest(f"The scope must be a tenant or tenant/adapter: {error.message}", param="scope") from error
    return tenant, adapter if slash else None


def freezes(snapshot: Snapshot) -> list[Freeze]:
    """Every window, past and to come, by start and name."""
    found = [entity for entity in snapshot.entities.values() if isinstance(entity, Freeze)]
    return sorted(found, key=lambda freeze: (freeze.start, freeze.name))


def in_force(snapshot: Snapshot, tenant: str, adapter: str, now: float) -> list[Freeze]:
    """The windows that hold the adapter now."""
    return [freeze for freeze in freezes(snapshot) if freeze.covers(tenant, adapter) and freeze.is_in_force(now)]


def check_thawed(found: Iterable[Freeze], what: str) -> None:
    """Conflict, with the reason and the end of the window that ends last, if any of `found` is given."""
    last = max(found, key=lambda freeze: freeze.end, default=None)
    if last is not None:
        until = datetime.fromtimestamp(last.end, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        raise Conflict(
            f"{last.scope} is frozen until {until} by the window {last.name!r} ({last.reason}): {what} must wait. Only "
            f"an abort is possible now; DELETE /admin/v1/freezes/{last.name} ends the window.")
