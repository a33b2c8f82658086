"""Tenants and their API keys."""

from dataclasses import replace
from hashlib import sha256

from gateway.controlplane.changes import Changes, Step
from gateway.domain.errors import Conflict, InvalidRequest, NotFound
from gateway.domain.model import ApiKey, Snapshot, Tenant
from gateway.system import System


def tenant_of(snapshot: Snapshot, name: str) -> Tenant:
    """The tenant of that name, or NotFound."""
    found = snapshot.tenants.get(name)
    if found is None:
        raise NotFound(f"There is no tenant {name!r}. POST /admin/v1/tenants creates one.", param="tenant")
    return found


class Tenants:
    """Creates, changes and lists tenants and keys. The key itself exists only in the answer that creates it."""

    def __init__(self, changes: Changes, system: System) -> None:
        self._changes = changes
        self._system = system

    def all(self) -> list[Tenant]:
        """All tenants, by name."""
        return sorted(self._changes.current.tenants.values(), key=lambda tenant: tenant.name)

    def get(self, name: str) -> Tenant:
        """The tenant, or NotFound."""
        return tenant_of(self._changes.current, name)

    async def create(
        self, actor: str, name: str, *, base_access: bool = True, dry_run: bool = False,
    ) -> Tenant:
        """A new tenant; Conflict when the name is taken."""
        def decide(snapshot: Snapshot) -> Step[Tenant]:
            if name in snapshot.tenants:
                raise Conflict(f"A tenant {name!r} exists already.", param="name")
            tenant = Tenant(name=name, base_access=base_access, created_at=self._system.now())
            return Step("tenant.create", tenant, {tenant.path: tenant}, {"base_access": base_access})

        return (await self._changes.commit(actor, decide, dry_run=dry_run)).entity

    async def patch(
        self, actor: str, name: str, *, base_access: bool | None, if_match: int | None = None, dry_run: bool = False,
    ) -> Tenant:
        """The tenant with the given fields changed; None leaves a field as it is."""
        def decide(snapshot: Snapshot) -> Step[Tenant]:
            old = tenant_of(snapshot, name)
            new = old if base_access is None else replace(old, base_access=base_access)
            writes = {} if new == old else {new.path: new}
            return Step("tenant.patch", new, writes, {"base_access": new.base_access})

        return (await self._changes.commit(actor, decide, if_match=if_match, dry_run=dry_run)).entity

    def keys(self, tenant: str) -> list[ApiKey]:
        """The tenant's keys, oldest first, revoked and expired ones too."""
        snapshot = self._changes.current
        tenant_of(snapshot, tenant)
        found = [key for key in snapshot.keys_by_sha256.values() if key.tenant == tenant]
        return sorted(found, key=lambda key: (key.created_at, key.id))

    async def create_key(
        self, actor: str, tenant: str, name: str, *,
        adapters: tuple[str, ...] | None = None, expires_at: float | None = None, may_pin: bool = False,
        dry_run: bool = False,
    ) -> tuple[ApiKey, str]:
        """A new key and its text, which is kept nowhere; `expires_at` in Unix seconds."""
        now = self._system.now()
        if expires_at is not None and expires_at <= now:
            raise InvalidRequest("expires_at lies in the past; give a later time, or none.", param="expires_at")
        text = ""

        def decide(snapshot: Snapshot) -> Step[ApiKey]:
            nonlocal text
            owner = tenant_of(snapshot, tenant)
            key_id = self._system.hex(4)
            text = f"sy-{key_id}-{self._system.token(32)}"
            key = ApiKey(id=key_id, tenant=tenant, name=name, prefix=f"sy-{key_id}", created_at=now,
                         sha256=sha256(text.encode()).hexdigest(), adapters=adapters, expires_at=expires_at,
                         may_pin=may_pin)
            if key.path in snapshot.entities:
                raise Conflict(f"A key of the id {key_id} exists already. Send the request again for another id.")
            detail = {"tenant": tenant, "name": name, "prefix": key.prefix, "adapters": adapters,
                      "expires_at": expires_at, "may_pin": may_pin}
            return Step("key.create", key, {key.path: key}, detail, reads=(owner.path,))

        return (await self._changes.commit(actor, decide, dry_run=dry_run)).entity, text

    async def revoke_key(
        self, actor: str, tenant: str, key_id: str, *, if_match: int | None = None, dry_run: bool = False,
    ) -> ApiKey:
        """The key, revoked from now on; one that is revoked already stays as it is."""
        def decide(snapshot: Snapshot) -> Step[ApiKey]:
            tenant_of(snapshot, tenant)
            key = snapshot.entities.get(f"key/{key_id}")
            if not isinstance(key, ApiKey) or key.tenant != tenant:
                raise NotFound(f"The tenant {tenant!r} has no key {key_id!r}.", param="key")
            if key.revoked_at is not None:
                return Step("key.revoke", key, {})
            revoked = replace(key, revoked_at=self._system.now())
            return Step("key.revoke", revoked, {key.path: revoked}, {"tenant": tenant, "name": key.name})

        return (await self._changes.commit(actor, decide, if_match=if_match, dry_run=dry_run)).entity
