"""Secrets that all gateways of one registry share: whoever comes first makes them."""

from gateway.controlplane.changes import Changes, Step
from gateway.domain.model import Secret, Snapshot
from gateway.system import System

ACTOR = "gateway"


async def share_secret(changes: Changes, system: System, name: str) -> Secret:
    """The registry's secret of that name, made now if there is none. RegistryUnavailable."""
    def decide(snapshot: Snapshot) -> Step[Secret]:
        known = snapshot.entities.get(f"secret/{name}")
        if isinstance(known, Secret):
            return Step("secret.create", known, {})
        made = Secret(name=name, value=system.token(32))
        return Step("secret.create", made, {made.path: made})

    return (await changes.commit(ACTOR, decide)).entity
