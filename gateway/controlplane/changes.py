"""How every change is made: decide on a snapshot, compare and set, audit, wait until our own snapshot shows it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Protocol, TypeVar

from gateway.domain.errors import Conflict, LostRace, NotFound, RegistryUnavailable
from gateway.domain.model import Change, Entity, Snapshot
from gateway.system import System

E = TypeVar("E", bound=Entity)
T = TypeVar("T")

ATTEMPTS = 20


class Registry(Protocol):
    """What the control plane asks of the registry; see `gateway.clients.registry.Registry`."""

    async def load(self) -> Snapshot: ...
    async def commit(
        self, change: Change, writes: Mapping[str, Entity | None], expected: Mapping[str, int],
    ) -> int: ...
    async def history(
        self, *, before: int | None = None, limit: int = 100, target: str | None = None,
    ) -> list[Change]: ...
    async def acquire_lease(self, name: str, holder: str, seconds: float) -> int | None: ...
    async def release_lease(self, name: str, holder: str) -> None: ...


class Snapshots(Protocol):
    """The followed registry; see `gateway.dataplane.snapshots.Snapshots`."""

    @property
    def current(self) -> Snapshot: ...
    @property
    def connected(self) -> bool: ...
    @property
    def lag_seconds(self) -> float: ...
    async def wait_for(self, revision: int, timeout: float = 5.0) -> Snapshot: ...


@dataclass(frozen=True, slots=True)
class Step(Generic[E]):
    """A change, decided but not made: `entity` is what it is about and what `If-Match` guards.

    Nothing is written unless every path of `writes` and `reads` still is as the decision saw it. No `writes`: there is
    nothing to change. `detail` goes to the audit and holds no secret.
    """

    action: str
    entity: E
    writes: Mapping[str, Entity | None]
    detail: Mapping[str, Any] = field(default_factory=dict)
    reads: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Written(Generic[E]):
    """The entity at its revision now; `changed` is False when the change had nothing to write.

    After a dry run the entity is as it would be, but at the revision that it has.
    """

    entity: E
    changed: bool


class Changes:
    """Makes changes; a refusal is only believed of the registry itself, since a snapshot may be behind."""

    def __init__(self, registry: Registry, snapshots: Snapshots, system: System) -> None:
        self._registry = registry
        self._snapshots = snapshots
        self._system = system

    @property
    def current(self) -> Snapshot:
        """The snapshot that reads are answered from."""
        return self._snapshots.current

    @property
    def connected(self) -> bool:
        """Does the registry answer?"""
        return self._snapshots.connected

    @property
    def lag_seconds(self) -> float:
        """Since the registry last answered."""
        return self._snapshots.lag_seconds

    async def history(self, *, before: int | None, limit: int, target: str | None) -> list[Change]:
        """The audit, newest first: at most `limit` changes, below revision `before`, of `target` or below it."""
        return await self._registry.history(before=before, limit=limit, target=target)

    async def require_registry(self) -> None:
        """RegistryUnavailable when Redis does not answer, so that no work is begun in vain.

        One missed sign of life proves little (a full disk queue, a busy host), so Redis itself is asked again.
        """
        if self._snapshots.connected:
            return
        try:
            await self._registry.load()
        except RegistryUnavailable as error:
            raise RegistryUnavailable(
                "The registry does not answer, so nothing can be changed. Requests go on; try again soon.") from error

    async def check(self, read: Callable[[Snapshot], T]) -> T:
        """What `read` gives; when it refuses (NotFound, Conflict) it is asked again about the registry itself."""
        try:
            return read(self._snapshots.current)
        except (NotFound, Conflict):
            return read(await self._registry.load())

    async def fresh(self) -> Snapshot:
        """The registry itself, not what was followed of it."""
        return await self._registry.load()

    async def commit(
        self, actor: str, decide: Callable[[Snapshot], Step[E]], *, if_match: int | None = None, dry_run: bool = False,
    ) -> Written[E]:
        """Make the change that `decide` gives, deciding again when others were faster.

        LostRace when `if_match` is given and the entity is at another revision; whatever `decide` refuses;
        RegistryUnavailable. A `dry_run` decides, refuses and answers alike, and writes nothing.
        """
        if dry_run:
            await self.require_registry()
        snapshot, believed = self._snapshots.current, False
        for _ in range(ATTEMPTS):
            try:
                step = _guarded(decide(snapshot), snapshot, if_match)
                if dry_run or not step.writes:
                    return Written(step.entity, bool(step.writes))
                return Written(await self._write(actor, step, snapshot), True)
            except _Overtaken:
                pass
            except (NotFound, Conflict, LostRace):
                if believed:
                    raise
            snapshot, believed = await self._registry.load(), True
        raise Conflict("Others kept changing this faster than the change could be made. Send it again.")

    async def _write(self, actor: str, step: Step[E], snapshot: Snapshot) -> E:
        expected = {path: _revision(snapshot, path) for path in (*step.writes, *step.reads)}
        change = Change(actor=actor, action=step.action, target=step.entity.path, at=self._system.now(),
                        detail=step.detail)
        try:
            revision = await self._registry.commit(change, step.writes, expected)
        except LostRace as error:
            raise _Overtaken from error
        await self._snapshots.wait_for(revision)
        return replace(step.entity, revision=revision)


class _Overtaken(Exception):
    """The registry moved on between decision and write."""


def _guarded(step: Step[E], snapshot: Snapshot, if_match: int | None) -> Step[E]:
    current = _revision(snapshot, step.entity.path)
    if if_match is not None and if_match != current:
        raise LostRace(
            f"{step.entity.path} is at revision {current}, not {if_match}. Read it again, then decide again.",
            current=current)
    return step


def _revision(snapshot: Snapshot, path: str) -> int:
    entity = snapshot.entities.get(path)
    return 0 if entity is None else entity.revision
