"""How a retiring version ends: unloaded everywhere, its files deleted when nothing can need them, its record closed."""

import asyncio
from contextlib import suppress
from dataclasses import replace
from typing import Protocol

from gateway.controlplane.changes import Changes, Step
from gateway.controlplane.fleet import Fleet
from gateway.controlplane.leases import Leases, files_of, preparing
from gateway.domain import reconcile
from gateway.domain.errors import EngineRefused, NotFound, ReplicaUnreachable
from gateway.domain.model import Snapshot, Version, VersionPhase
from gateway.system import System


class Files(Protocol):
    """The artifact store, as far as deleting goes."""

    async def delete(self, digest: str) -> None: ...


class Removal:
    """Ends versions. Safe to repeat, and to leave in the middle: a version stays `retiring` until all is done."""

    def __init__(
        self, changes: Changes, leases: Leases, fleet: Fleet, files: Files, policy: reconcile.Policy, system: System,
    ) -> None:
        self._changes = changes
        self._leases = leases
        self._fleet = fleet
        self._files = files
        self._policy = policy
        self._system = system

    async def unload_and_remove(self, actor: str, version: Version) -> bool:
        """Unload the version wherever it is listed, then `remove` it, after others that are at it."""
        holders = [view.name for view in self._fleet.replicas() if version.served_name in view.loaded]
        await asyncio.gather(*(self._unload(name, version.served_name) for name in holders))
        async with self._leases.exclusive(preparing(version.served_name)):
            return await self._remove(actor, version)

    async def remove(self, actor: str, version: Version) -> bool:
        """Delete the files and close the record, if every replica says just now that it holds nothing of the version.

        False when it is not safe yet, also while somebody is still preparing it. A version that was ready stays on
        record as `retired`; one that never was leaves none. The files stay while another version has the same bytes.
        """
        async with self._leases.held(preparing(version.served_name)) as mine:
            return mine and await self._remove(actor, version)

    async def _remove(self, actor: str, version: Version) -> bool:
        await asyncio.gather(*(self._refresh(view.name) for view in self._fleet.replicas()))
        async with self._leases.exclusive(files_of(version.digest)):
            snapshot = await self._changes.fresh()
            current = snapshot.versions.get((version.tenant, version.adapter, version.number))
            if current is None or current.phase is VersionPhase.RETIRED:
                return True
            now = self._system.now()
            if not reconcile.may_remove(current, snapshot, self._fleet.replicas(), self._policy, now):
                return False
            if not reconcile.uses_files(snapshot, current):
                await self._files.delete(current.digest)
            await self._changes.commit(actor, lambda latest: self._close(latest, current))
            return True

    def _close(self, snapshot: Snapshot, version: Version) -> Step[Version]:
        detail = {"digest": version.digest}
        if not reconcile.was_ready(version):
            return Step("version.remove", version, {version.path: None}, detail)
        retired = replace(version.move(VersionPhase.RETIRED, self._system.now()), revision=version.revision)
        return Step("version.retired", retired, {retired.path: retired}, detail)

    async def _unload(self, replica: str, served_name: str) -> None:
        with suppress(EngineRefused, ReplicaUnreachable, NotFound):  # then it is still listed, and nothing is deleted
            await self._fleet.unload(replica, served_name)

    async def _refresh(self, replica: str) -> None:
        with suppress(EngineRefused, ReplicaUnreachable, NotFound):  # its view says so, and nothing is deleted
            await self._fleet.refresh(replica)
