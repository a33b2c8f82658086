"""A tenant's aliases: other names for its adapters and versions, which the gateway resolves."""

from gateway.controlplane.catalog import adapter_of
from gateway.controlplane.changes import Changes, Step
from gateway.controlplane.tenants import tenant_of
from gateway.domain import names
from gateway.domain.errors import Conflict, InvalidRequest, NotFound
from gateway.domain.hot import version_meant
from gateway.domain.model import Alias, Snapshot


class Aliases:
    """Sets, shows and deletes aliases, one write each."""

    def __init__(self, changes: Changes) -> None:
        self._changes = changes

    def all(self, tenant: str) -> list[Alias]:
        """The tenant's aliases, by name."""
        snapshot = self._changes.current
        tenant_of(snapshot, tenant)
        return sorted((a for a in snapshot.aliases.values() if a.tenant == tenant), key=lambda alias: alias.name)

    def get(self, tenant: str, name: str) -> Alias:
        """The alias, or NotFound."""
        return _alias_of(self._changes.current, tenant, name)

    async def put(
        self, actor: str, tenant: str, name: str, target: str, *, if_match: int | None = None, dry_run: bool = False,
    ) -> Alias:
        """The alias for `support`, `support@3` or `support@latest`.

        Conflict when an adapter has the name, or the version is not ready.
        """
        def decide(snapshot: Snapshot) -> Step[Alias]:
            owner = tenant_of(snapshot, tenant)
            if (tenant, name) in snapshot.adapters:
                raise Conflict(f"{tenant}/{name} is an adapter; choose another name for the alias.", param="alias")
            reads = (owner.path, f"adapter/{tenant}/{name}", *_target_paths(snapshot, tenant, target))
            old = snapshot.aliases.get((tenant, name))
            new = Alias(tenant=tenant, name=name, target=target, revision=old.revision if old else 0)
            detail = {"target": target, "before": old.target if old else None}
            return Step("alias.put", new, {} if new == old else {new.path: new}, detail, reads)

        return (await self._changes.commit(actor, decide, if_match=if_match, dry_run=dry_run)).entity

    async def delete(
        self, actor: str, tenant: str, name: str, *, if_match: int | None = None, dry_run: bool = False,
    ) -> Alias:
        """The alias that is no more."""
        def decide(snapshot: Snapshot) -> Step[Alias]:
            alias = _alias_of(snapshot, tenant, name)
            return Step("alias.delete", alias, {alias.path: None}, {"target": alias.target})

        return (await self._changes.commit(actor, decide, if_match=if_match, dry_run=dry_run)).entity


def _alias_of(snapshot: Snapshot, tenant: str, name: str) -> Alias:
    tenant_of(snapshot, tenant)
    found = snapshot.aliases.get((tenant, name))
    if found is None:
        raise NotFound(f"The tenant {tenant!r} has no alias {name!r}.", param="alias")
    return found


def _target_paths(snapshot: Snapshot, tenant: str, target: str) -> tuple[str, ...]:
    """The paths of what the target names, which must exist and, if a version, be ready."""
    meant = names.parse_model(target)
    if meant is None:
        raise InvalidRequest(
            f"The target {target[:80]!r} is none: write support, support@3 or support@latest.", param="target")
    adapter = adapter_of(snapshot, tenant, meant.adapter)
    if meant.pin is None:
        return (adapter.path,)
    version = version_meant(snapshot, tenant, target)
    if version is None:
        raise Conflict(f"{tenant}/{meant.adapter} has no ready version {meant.pin}; only a ready one can be named.",
                       param="target")
    return adapter.path, version.path
