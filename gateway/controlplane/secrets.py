"""Secrets that all gateways of one registry share: whoever comes first makes them."""

from collections.abc import Mapping

from gateway.controlplane.changes import Changes, Step
from gateway.domain.model import Entity, Secret, Snapshot
from gateway.system import System

ACTOR = "gateway"


async def share_secret(changes: Changes, system: System, name: str) -> Secret:
    """The registry's secret of that name, made now if there is none. RegistryUnavailable."""
    def decide(snapshot: Snapshot) -> Step[Secret]:
        secret, writes = secret_in(snapshot, system, name)
        return Step("secret.create", secret, writes)

    return (await changes.commit(ACTOR, decide)).entity


def secret_in(snapshot: Snapshot, system: System, name: str) -> tuple[Secret, Mapping[str, Entity | None]]:
    """The secret as the snapshot has it, or a new one, and the write that keeps it if it is new."""
    known = snapshot.entities.get(f"secret/{name}")
    if isinstance(known, Secret):
        return known, {}
    made = Secret(name=name, value=system.token(32))
    return made, {made.path: made}
