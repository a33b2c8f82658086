"""Makes the replicas hold what the registry says, step by step, for as long as the gateway runs.

Every gateway runs one. The one that holds the lease loads, unloads, removes and resumes; while Redis does not answer
nobody holds it, and then each loads what is missing, as after a replica's restart, and leaves the rest alone.
"""

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

from gateway.controlplane.changes import Registry, Snapshots
from gateway.controlplane.fleet import Fleet
from gateway.controlplane.prepare import Preparer
from gateway.controlplane.removal import Removal
from gateway.domain import reconcile
from gateway.domain.errors import RegistryUnavailable, SwitchyardError
from gateway.domain.model import Version
from gateway.system import System

ACTOR = "reconciler"
LEASE = "reconciler"
LEASE_SECONDS = 5.0
LOADS_AT_ONCE = 4

_Job: TypeAlias = tuple[str, str, str]
"""(what, replica or empty, served name)"""


@dataclass(frozen=True, slots=True)
class _Failed:
    """`times` in a row; not to be tried again before `until` (monotonic seconds)."""

    times: int
    until: float


class Reconciler:
    """One loop; what takes time runs as jobs beside it, each at most once at a time and later after each failure."""

    def __init__(
        self, registry: Registry, snapshots: Snapshots, fleet: Fleet, preparer: Preparer, removal: Removal,
        choose: reconcile.Choose, policy: reconcile.Policy, system: System, log: Any, *, interval: float = 1.0,
    ) -> None:
        self._registry = registry
        self._snapshots = snapshots
        self._fleet = fleet
        self._preparer = preparer
        self._removal = removal
        self._choose = choose
        self._policy = policy
        self._system = system
        self._log = log
        self._interval = interval
        self._holder = system.hex(8)
        self._leads = False
        self._due = asyncio.Event()
        self._jobs: dict[_Job, asyncio.Task[None]] = {}
        self._failed: dict[_Job, _Failed] = {}
        self._strangers: Mapping[reconcile.Listing, float] = {}

    @property
    def leads(self) -> bool:
        """Did this gateway hold the lease at the last step?"""
        return self._leads

    @property
    def failures(self) -> Mapping[reconcile.Listing, int]:
        """How often in a row each (replica, served name) has failed to load."""
        return {(replica, name): f.times for (what, replica, name), f in self._failed.items() if what == "load"}

    def wake(self, _: object = None) -> None:
        """Do the next step now; to be called with every new snapshot."""
        self._due.set()

    async def run(self) -> None:
        """Step for ever; ends by cancellation, and then ends its jobs and gives the lease away."""
        try:
            while True:
                self._due.clear()
                await self.step()
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._interval):
                        await self._due.wait()
        finally:
            await self.close()

    async def close(self) -> None:
        """End the jobs; what they did not finish the next holder of the lease does again."""
        jobs = list(self._jobs.values())
        for job in jobs:
            job.cancel()
        await asyncio.gather(*jobs, return_exceptions=True)
        if self._leads:
            self._leads = False
            with suppress(RegistryUnavailable):  # then it runs out by itself
                await self._registry.release_lease(LEASE, self._holder)

    async def step(self) -> None:
        """Look once, and start what is to be done."""
        self._leads = await self._lead()
        views = self._fleet.replicas()
        plan = reconcile.decide(
            self._snapshots.current, views, self._strangers, choose=self._choose, policy=self._policy,
            now=self._system.now())
        self._strangers = plan.strangers
        if self._leads or not self._snapshots.connected:
            self._load(plan)
        if self._leads:
            self._clear_up(plan)
        self._forget({view.name for view in views})

    async def settle(self) -> None:
        """Wait until the jobs that run now have ended."""
        await asyncio.gather(*self._jobs.values(), return_exceptions=True)

    async def _lead(self) -> bool:
        try:
            return await self._registry.acquire_lease(LEASE, self._holder, LEASE_SECONDS) is not None
        except RegistryUnavailable:
            return False

    def _load(self, plan: reconcile.Plan) -> None:
        for load in plan.loads:
            if sum(what == "load" for what, _, _ in self._jobs) >= LOADS_AT_ONCE:
                return
            job = ("load", load.replica, load.version.served_name)
            self._start(job, partial(self._fleet.load, load.replica, load.version))

    def _clear_up(self, plan: reconcile.Plan) -> None:
        for unload in plan.unloads:
            job = ("unload", unload.replica, unload.served_name)
            self._start(job, partial(self._fleet.unload, unload.replica, unload.served_name))
        for version in plan.removable:
            if not self._is_loading(version):
                self._start(("remove", "", version.served_name), partial(self._remove, version))
        for version in self._snapshots.current.versions.values():
            if self._preparer.is_stale(version):
                job = ("resume", "", version.served_name)
                self._start(job, partial(self._preparer.resume, ACTOR, version))

    async def _remove(self, version: Version) -> None:
        if await self._removal.remove(ACTOR, version):
            self._log.info("version_removed", served_name=version.served_name)

    def _is_loading(self, version: Version) -> bool:
        return any(what == "load" and name == version.served_name for what, _, name in self._jobs)

    def _start(self, job: _Job, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        failed = self._failed.get(job)
        if job in self._jobs or (failed is not None and self._system.monotonic() < failed.until):
            return
        task = self._jobs[job] = asyncio.create_task(self._run(job, work()), name=" ".join(job))
        task.add_done_callback(lambda _: self._jobs.pop(job, None))

    async def _run(self, job: _Job, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except SwitchyardError as error:
            times = self._failed[job].times + 1 if job in self._failed else 1
            self._failed[job] = _Failed(times, self._system.monotonic() + reconcile.patience(times))
            what, replica, name = job
            self._log.warning("reconcile_failed", job=what, replica=replica, served_name=name, times=times,
                              error=error.message)
        else:
            self._failed.pop(job, None)

    def _forget(self, replicas: set[str]) -> None:
        """Drop the failures of replicas and versions that are gone."""
        names = {version.served_name for version in self._snapshots.current.versions.values()}
        for job in list(self._failed):
            _, replica, name = job
            if name not in names or (replica and replica not in replicas):
                del self._failed[job]
