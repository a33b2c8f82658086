"""Freeze windows: made, shown and ended."""

from gateway.controlplane.catalog import adapter_of
from gateway.controlplane.changes import Changes, Step
from gateway.controlplane.tenants import tenant_of
from gateway.domain.errors import Conflict, InvalidRequest, NotFound
from gateway.domain.freeze import Freeze, check_scope, freezes
from gateway.domain.model import Snapshot
from gateway.system import System

FURTHEST_SECONDS = 10 * 366 * 86_400.0


class Freezes:
    """Freeze windows, one write each. One that is over stays on record until it is deleted."""

    def __init__(self, changes: Changes, system: System) -> None:
        self._changes = changes
        self._system = system

    def all(self) -> list[Freeze]:
        """Every window, past and to come, by start."""
        return freezes(self._changes.current)

    def get(self, name: str) -> Freeze:
        """The window, or NotFound."""
        return _freeze_of(self._changes.current, name)

    async def create(
        self, actor: str, name: str, *, scope: str, start: float | None, end: float, reason: str,
        if_match: int | None = None, dry_run: bool = False,
    ) -> Freeze:
        """A window over `scope` (a tenant or tenant/adapter) from `start` (Unix seconds; None: now) up to `end`.

        Conflict when the name is taken; InvalidRequest when it is over before it begins, or has ended.
        """
        now = self._system.now()
        begin = now if start is None else start
        if not begin < end or end <= now:
            raise InvalidRequest("The window must end after it starts, and in the future.", param="end")
        if max(abs(begin - now), end - now) > FURTHEST_SECONDS:
            raise InvalidRequest("The window must start and end within ten years of today.", param="end")
        tenant, adapter = check_scope(scope)

        def decide(snapshot: Snapshot) -> Step[Freeze]:
            within = tenant_of(snapshot, tenant) if adapter is None else adapter_of(snapshot, tenant, adapter)
            if f"freeze/{name}" in snapshot.entities:
                raise Conflict(f"A freeze window {name!r} exists already. Delete it, or choose another name.",
                               param="name")
            made = Freeze(name=name, scope=scope, start=begin, end=end, reason=reason, created_by=actor, created_at=now)
            detail = {"scope": scope, "start": begin, "end": end, "reason": reason}
            return Step("freeze.create", made, {made.path: made}, detail, (within.path,))

        return (await self._changes.commit(actor, decide, if_match=if_match, dry_run=dry_run)).entity

    async def delete(self, actor: str, name: str, *, if_match: int | None = None, dry_run: bool = False) -> Freeze:
        """The window that is no more."""
        def decide(snapshot: Snapshot) -> Step[Freeze]:
            freeze = _freeze_of(snapshot, name)
            detail = {"scope": freeze.scope, "start": freeze.start, "end": freeze.end, "reason": freeze.reason}
            return Step("freeze.delete", freeze, {freeze.path: None}, detail)

        return (await self._changes.commit(actor, decide, if_match=if_match, dry_run=dry_run)).entity


def _freeze_of(snapshot: Snapshot, name: str) -> Freeze:
    found = snapshot.entities.get(f"freeze/{name}")
    if not isinstance(found, Freeze):
        raise NotFound(f"There is no freeze window {name!r}.", param="name")
    return found
