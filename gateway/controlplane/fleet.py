"""The replicas: what the control plane asks of them, and which ones there are."""

import re
from collections.abc import Sequence
from typing import Protocol
from urllib.parse import urlsplit

from gateway.controlplane.changes import Changes, Step
from gateway.domain.errors import Conflict, InvalidRequest, NotFound
from gateway.domain.fleet import Effect, ReplicaView
from gateway.domain.model import Replica, Snapshot, Version
from gateway.domain.parity import Observed, Reference
from gateway.system import System

_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?|[0-9A-Fa-f:.]+")


class Fleet(Protocol):
    """All replicas as this gateway sees them; see `gateway.dataplane.replicas`.

    `load` verifies the artifact's bytes, and returns once the replica lists the version with the expected root.
    `refresh` puts what the replica says now, or in `last_error` that it did not answer, into its view.
    EngineRefused, ReplicaUnreachable, NotFound for a replica that is gone; `load` also ArtifactRefused.
    """

    def replicas(self) -> Sequence[ReplicaView]: ...
    async def load(self, replica: str, version: Version) -> None: ...
    async def unload(self, replica: str, served_name: str) -> None: ...
    async def measure_effect(self, replica: str, version: Version) -> Effect: ...
    async def observe(self, replica: str, version: Version, reference: Reference) -> Observed: ...
    async def refresh(self, replica: str) -> None: ...


class Replicas:
    """Adds and removes the registry's replicas."""

    def __init__(self, changes: Changes, system: System) -> None:
        self._changes = changes
        self._system = system

    def all(self) -> list[Replica]:
        """All registered replicas, by name."""
        return sorted(self._changes.current.replicas.values(), key=lambda replica: replica.name)

    async def add(
        self, actor: str, name: str, url: str, *,
        api_key: str | None = None, artifacts_path: str | None = None, max_in_flight: int = 256,
        dry_run: bool = False,
    ) -> Replica:
        """A new replica; Conflict when its name or its URL is taken, InvalidRequest for a URL that cannot be one."""
        address = check_url(url)

        def decide(snapshot: Snapshot) -> Step[Replica]:
            _refuse_twin(snapshot, name, address)
            replica = Replica(name=name, url=address, created_at=self._system.now(), api_key=api_key,
                              artifacts_path=artifacts_path, max_in_flight=max_in_flight)
            detail = {"url": address, "has_api_key": api_key is not None, "artifacts_path": artifacts_path,
                      "max_in_flight": max_in_flight}
            return Step("replica.add", replica, {replica.path: replica}, detail)

        return (await self._changes.commit(actor, decide, dry_run=dry_run)).entity

    async def remove(self, actor: str, name: str, *, if_match: int | None = None, dry_run: bool = False) -> Replica:
        """The replica, gone from the registry; its process is left as it is."""
        def decide(snapshot: Snapshot) -> Step[Replica]:
            replica = snapshot.replicas.get(name)
            if replica is None:
                raise NotFound(
                    f"The registry has no replica {name!r}. One that the settings name is removed there.",
                    param="replica")
            return Step("replica.remove", replica, {replica.path: None}, {"url": replica.url})

        return (await self._changes.commit(actor, decide, if_match=if_match, dry_run=dry_run)).entity


def check_url(url: str) -> str:
    """The URL without a trailing slash: `http(s)://host[:port]` or `unix:/path/to.sock`; else InvalidRequest."""
    if url.startswith("unix:"):
        path = url.removeprefix("unix:")
        if path.startswith("/") and path.isprintable() and not path.startswith("//"):
            return url
    elif _is_http(url):
        return url.rstrip("/")
    raise InvalidRequest(
        f"The URL {url[:200]!r} cannot be a replica's: write http://host:port, https://host:port or "
        "unix:/path/to.sock, without user, path or query.", param="url")


def _is_http(url: str) -> bool:
    try:
        parts = urlsplit(url)
        port, host = parts.port, parts.hostname or ""
    except ValueError:
        return False
    plain = parts.path in ("", "/") and "?" not in url and "#" not in url and "@" not in url and "\\" not in url
    return (parts.scheme in ("http", "https") and plain and port != 0 and url.isascii() and url.isprintable()
            and " " not in url and bool(_HOST.fullmatch(host)))


def _refuse_twin(snapshot: Snapshot, name: str, url: str) -> None:
    if name in snapshot.replicas:
        raise Conflict(f"A replica {name!r} exists already. Remove it first, or choose another name.", param="name")
    for replica in snapshot.replicas.values():
        if replica.url == url:
            raise Conflict(f"The replica {replica.name!r} has this URL already.", param="url")
