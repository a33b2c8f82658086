"""What takes traffic: an adapter's stable version, and the way out for versions that no longer should."""

from dataclasses import replace

from gateway.controlplane.catalog import adapter_of, version_of
from gateway.controlplane.changes import Changes, Step
from gateway.domain.errors import Conflict
from gateway.domain.model import Release, Snapshot, Version, VersionPhase
from gateway.system import System


class Releases:
    """Sets releases and retires versions, one write each."""

    def __init__(self, changes: Changes, system: System) -> None:
        self._changes = changes
        self._system = system

    def get(self, tenant: str, adapter: str) -> Release:
        """The adapter's release, at revision 0 when none was ever set; NotFound without the adapter."""
        adapter_of(self._changes.current, tenant, adapter)
        return _release_of(self._changes.current, tenant, adapter)

    async def set_stable(
        self, actor: str, tenant: str, adapter: str, stable: int | None, *, if_match: int | None = None,
    ) -> Release:
        """The release with that stable version (None: the adapter takes no traffic); Conflict unless it is ready."""
        def decide(snapshot: Snapshot) -> Step[Release]:
            reads = [adapter_of(snapshot, tenant, adapter).path]
            if stable is not None:
                version = version_of(snapshot, tenant, adapter, stable)
                if version.phase is not VersionPhase.READY:
                    raise Conflict(f"Version {stable} is {version.phase}; only a ready version can take traffic.",
                                   param="stable")
                reads.append(version.path)
            old = _release_of(snapshot, tenant, adapter)
            new = replace(old, stable=stable)
            writes = {} if new == old else {new.path: new}
            return Step("release.set", new, writes, {"stable": stable, "before": old.stable}, reads=tuple(reads))

        return (await self._changes.commit(actor, decide, if_match=if_match)).entity

    async def retire(
        self, actor: str, tenant: str, adapter: str, number: int, *, if_match: int | None = None,
    ) -> Version:
        """The version, retiring: it gets no new calls, and the reconciler takes it away once the last ones are done.

        Conflict while it is the stable version. One that is retiring or retired already stays as it is.
        """
        def decide(snapshot: Snapshot) -> Step[Version]:
            version = version_of(snapshot, tenant, adapter, number)
            release = _release_of(snapshot, tenant, adapter)
            if not version.is_wanted:
                return Step("version.retire", version, {})
            if release.stable == number:
                raise Conflict(
                    f"Version {number} is the stable version of {tenant}/{adapter}: first set another one, or null, "
                    f"with PUT /admin/v1/tenants/{tenant}/adapters/{adapter}/release.")
            leaving = version.move(VersionPhase.RETIRING, self._system.now())
            return Step("version.retire", leaving, {leaving.path: leaving}, {"digest": version.digest},
                        reads=(release.path,))

        return (await self._changes.commit(actor, decide, if_match=if_match)).entity


def _release_of(snapshot: Snapshot, tenant: str, adapter: str) -> Release:
    return snapshot.releases.get((tenant, adapter)) or Release(tenant=tenant, adapter=adapter)
