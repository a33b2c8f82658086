"""Which versions must stay in GPU memory, because callers are sent to them."""

from collections.abc import Iterator

from gateway.domain import names
from gateway.domain.model import Snapshot, Version, VersionPhase


def hot_versions(snapshot: Snapshot, base_model: str) -> dict[str, int | None]:
    """Served name → on how many replicas (None: all) of each version of that pool that a release or an alias names."""
    hot: dict[str, int | None] = {}
    for version in _named(snapshot):
        if version.base_model == base_model:
            adapter = snapshot.adapters.get((version.tenant, version.adapter))
            hot[version.served_name] = adapter.replicas if adapter else None
    return hot


def version_meant(snapshot: Snapshot, tenant: str, target: str) -> Version | None:
    """The ready version that `support@3` or `support@latest` means now; None for anything else."""
    meant = names.parse_model(target)
    if meant is None or meant.pin is None:
        return None
    if meant.pin != "latest":
        version = snapshot.versions.get((tenant, meant.adapter, int(meant.pin)))
        return version if version is not None and version.phase is VersionPhase.READY else None
    ready = [v for v in snapshot.versions_of(tenant, meant.adapter) if v.phase is VersionPhase.READY]
    return ready[-1] if ready else None


def _named(snapshot: Snapshot) -> Iterator[Version]:
    for release in snapshot.releases.values():
        for number in release.numbers:
            version = snapshot.versions.get((release.tenant, release.adapter, number))
            if version is not None:
                yield version
    for alias in snapshot.aliases.values():
        version = version_meant(snapshot, alias.tenant, alias.target)
        if version is not None:
            yield version
