"""What takes traffic: an adapter's stable version, and the way out for versions that no longer should."""

from dataclasses import replace
from typing import Any

from gateway.controlplane.activation import Activation
from gateway.controlplane.catalog import adapter_of, version_of
from gateway.controlplane.changes import Changes, Step
from gateway.controlplane.fleet import Fleet
from gateway.domain.errors import Conflict
from gateway.domain.evaluation import gate_of
from gateway.domain.freeze import check_thawed, in_force
from gateway.domain.model import Release, Snapshot, Version, VersionPhase
from gateway.domain.seal import SHARED, Seal
from gateway.system import System


class Releases:
    """Sets releases and retires versions, one write each."""

    def __init__(self, changes: Changes, fleet: Fleet, system: System, *, seal: Seal = SHARED) -> None:
        self._changes = changes
        self._activation = Activation(fleet)
        self._system = system
        self._seal = seal

    def get(self, tenant: str, adapter: str) -> Release:
        """The adapter's release, at revision 0 when none was ever set; NotFound without the adapter."""
        return release_of(self._changes.current, tenant, adapter)

    async def set_stable(
        self, actor: str, tenant: str, adapter: str, stable: int | None, *, if_match: int | None = None,
        dry_run: bool = False,
    ) -> Release:
        """The release with that stable version (None: the adapter takes no traffic), loaded before it takes any.

        Conflict: the version is not ready or not evaluated as the adapter's policy asks, a rollout is live, or a freeze
        window in force. Errors of `Activation.load`.
        """
        def decide(snapshot: Snapshot) -> Step[Release]:
            return self._decide(snapshot, tenant, adapter, stable)

        if stable is not None and not dry_run:
            await self._changes.require_registry()
            planned = await self._changes.commit(actor, decide, if_match=if_match, dry_run=True)
            if planned.changed:
                version = await self._changes.check(lambda snapshot: version_of(snapshot, tenant, adapter, stable))
                await self._activation.load(self._changes.current, version)
        return (await self._changes.commit(actor, decide, if_match=if_match, dry_run=dry_run)).entity

    async def retire(
        self, actor: str, tenant: str, adapter: str, number: int, *, if_match: int | None = None, dry_run: bool = False,
    ) -> Version:
        """The version, retiring: it gets no new calls, and the reconciler takes it away once the last ones are done.

        Conflict while a release or an alias names it. One that is retiring or retired already stays as it is.
        """
        def decide(snapshot: Snapshot) -> Step[Version]:
            version = version_of(snapshot, tenant, adapter, number)
            release = release_of(snapshot, tenant, adapter)
            if not version.is_wanted:
                return Step("version.retire", version, {})
            if number in release.numbers and number != release.stable:
                raise Conflict(f"Version {number} is the canary or the shadow of {tenant}/{adapter}: abort its "
                               "rollout, or take the shadow away, first.")
            if release.stable == number:
                raise Conflict(
                    f"Version {number} is the stable version of {tenant}/{adapter}: first set another one, or null, "
                    f"with PUT /admin/v1/tenants/{tenant}/adapters/{adapter}/release.")
            _refuse_named(snapshot, version)
            leaving = version.move(VersionPhase.RETIRING, self._system.now())
            return Step("version.retire", leaving, {leaving.path: leaving}, {"digest": version.digest},
                        reads=(release.path,))

        return (await self._changes.commit(actor, decide, if_match=if_match, dry_run=dry_run)).entity

    def _decide(self, snapshot: Snapshot, tenant: str, adapter: str, stable: int | None) -> Step[Release]:
        owner = adapter_of(snapshot, tenant, adapter)
        old = release_of(snapshot, tenant, adapter)
        shadow = None if old.shadow is not None and old.shadow.number == stable else old.shadow
        new = replace(old, stable=stable, shadow=shadow)
        if new == old:
            return Step("release.set", new, {})
        if old.live is not None:
            raise Conflict(
                f"The rollout of version {old.live.canary} is {old.live.phase} at {old.live.weight:g}%: promote or "
                "abort it before the stable version is changed.", param="stable")
        check_thawed(in_force(snapshot, tenant, adapter, self._system.now()), "another stable version")
        reads = [owner.path]
        detail: dict[str, Any] = {"stable": stable, "before": old.stable}
        if stable is not None:
            version = ready_version_of(snapshot, tenant, adapter, stable, param="stable")
            gate = gate_of(snapshot, version, self._seal)
            gate.check()
            reads += [version.path, *gate.paths]
            detail |= {"warning": gate.warning} if gate.warning else {}
        return Step("release.set", new, {new.path: new}, detail, reads=tuple(reads))


def release_of(snapshot: Snapshot, tenant: str, adapter: str) -> Release:
    """The adapter's release, at revision 0 when none was ever set; NotFound without the adapter."""
    adapter_of(snapshot, tenant, adapter)
    return snapshot.releases.get((tenant, adapter)) or Release(tenant=tenant, adapter=adapter)


def ready_version_of(
    snapshot: Snapshot, tenant: str, adapter: str, number: int, *, param: str | None = None,
) -> Version:
    """The version, or NotFound; Conflict unless it is ready."""
    version = version_of(snapshot, tenant, adapter, number)
    if version.phase is not VersionPhase.READY:
        raise Conflict(f"Version {number} of {tenant}/{adapter} is {version.phase}; only a ready version can take "
                       "traffic.", param=param)
    return version


def _refuse_named(snapshot: Snapshot, version: Version) -> None:
    target = f"{version.adapter}@{version.number}"
    for alias in snapshot.aliases.values():
        if alias.tenant == version.tenant and alias.target == target:
            raise Conflict(f"The alias {alias.name!r} names {target}: give it another target, or delete it, first.")
