"""Work that only one gateway may do at a time: leases that are kept alive while the work lasts."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from gateway.controlplane.changes import Registry
from gateway.domain.errors import Conflict, RegistryUnavailable
from gateway.system import System

SECONDS = 20.0
_PAUSE = 0.05


def files_of(digest: str) -> str:
    """The lease under which an artifact's files are put in place or deleted."""
    return f"files-{digest}"


def preparing(served_name: str) -> str:
    """The lease under which a version is prepared; free when its preparer is done, or dead."""
    return f"preparing-{served_name}"


class Leases:
    """Leases of the registry, each hold under a holder of its own."""

    def __init__(self, registry: Registry, system: System) -> None:
        self._registry = registry
        self._system = system

    @asynccontextmanager
    async def held(self, name: str) -> AsyncIterator[bool]:
        """Hold the lease for the block's time; gives False, and holds nothing, when another has it."""
        holder = self._system.hex(8)
        if await self._registry.acquire_lease(name, holder, SECONDS) is None:
            yield False
            return
        keeper = asyncio.create_task(self._keep(name, holder))
        try:
            yield True
        finally:
            keeper.cancel()
            await asyncio.wait([keeper])
            with suppress(RegistryUnavailable):  # then it runs out by itself
                await self._registry.release_lease(name, holder)

    @asynccontextmanager
    async def exclusive(self, name: str, patience: float = 60.0) -> AsyncIterator[None]:
        """Hold the lease for the block's time, waiting up to `patience` seconds for it; Conflict after that."""
        give_up_at = self._system.monotonic() + patience
        while True:
            async with self.held(name) as mine:
                if mine:
                    yield
                    return
            if self._system.monotonic() > give_up_at:
                raise Conflict(f"Another gateway has been working on {name} for {patience:g} seconds. Try again later.")
            await asyncio.sleep(_PAUSE)

    async def _keep(self, name: str, holder: str) -> None:
        while True:
            await asyncio.sleep(SECONDS / 4)
            with suppress(RegistryUnavailable):  # the next attempt may come in time
                await self._registry.acquire_lease(name, holder, SECONDS)
