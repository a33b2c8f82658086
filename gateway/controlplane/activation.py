"""The first phase of a change of traffic: a version is loaded where it should be before any caller is sent to it."""

import asyncio
from collections.abc import Mapping

from gateway.controlplane.fleet import Fleet
from gateway.domain import placement
from gateway.domain.errors import (
    AdapterNotLoaded,
    ArtifactRefused,
    EngineRefused,
    NoHealthyReplica,
    NotFound,
    ReplicaUnreachable,
    SwitchyardError,
)
from gateway.domain.model import Snapshot, Version
from gateway.domain.reconcile import is_listed, pool_of


class Activation:
    """Sees to it that versions are loaded; nothing is asked of a replica that lists one with the right root already."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    async def load(self, snapshot: Snapshot, version: Version) -> None:
        """Return once every healthy replica that should hold the version lists it.

        EngineRefused when one says no, AdapterNotLoaded when one does not answer; NoHealthyReplica.
        """
        pool = {view.name: view for view in pool_of(version.base_model, self._fleet.replicas())}
        if not pool:
            raise NoHealthyReplica(
                f"No replica of {version.base_model!r} is healthy, so {version.served_name} cannot take traffic yet.")
        adapter = snapshot.adapters.get((version.tenant, version.adapter))
        count = len(pool) if adapter is None or adapter.replicas is None else adapter.replicas
        lacking = [name for name in placement.choose(version.served_name, list(pool), count)
                   if not is_listed(version, pool[name])]
        results = await asyncio.gather(*(self._load(name, version) for name in lacking))
        _refuse(version, {name: error for name, error in zip(lacking, results, strict=True) if error is not None})

    async def _load(self, replica: str, version: Version) -> SwitchyardError | None:
        try:
            await self._fleet.load(replica, version)
        except (ArtifactRefused, EngineRefused, NotFound, ReplicaUnreachable) as error:
            return error
        return None


def _refuse(version: Version, failures: Mapping[str, SwitchyardError]) -> None:
    if not failures:
        return
    told = " ".join(f"{name}: {error.message}" for name, error in failures.items())
    message = (f"{version.served_name} takes no more traffic before every replica that should hold it does, and not "
               f"all could load it. {told}")
    if any(isinstance(error, (ArtifactRefused, EngineRefused)) for error in failures.values()):
        raise EngineRefused(message)
    raise AdapterNotLoaded(message)
