"""Bodies of the admin API about replicas, and about how this gateway stands."""

from datetime import datetime
from typing import Annotated, Any, Self

from pydantic import Field

from gateway.api.schemas import In, Out, ReplicaName, at, example, when
from gateway.domain.fleet import ReplicaView
from gateway.domain.model import Replica, VersionPhase


class ReplicaIn(In):
    """A vLLM process to send requests to."""

    model_config = example(name="gpu-0", url="http://gpu-0.example:8000", api_key="secret", max_in_flight=256)
    name: ReplicaName
    url: str = Field(
        min_length=1, max_length=1000, description="http://host:port, https://host:port or unix:/path/to.sock")
    api_key: Annotated[str, Field(min_length=1, max_length=1000, pattern=r"^[\x21-\x7e]+$")] | None = Field(
        None, description="The replica's own key; never shown again.")
    artifacts_path: Annotated[str, Field(max_length=4096, pattern=r"^/[^\x00-\x1f\x7f]*$")] | None = Field(
        None, description="Where the replica sees the artifact store; null: where the gateway does.")
    max_in_flight: int = Field(256, ge=1, le=1_000_000, description="Requests at once before others are preferred.")


class ReplicaOut(Out):
    """A replica: what the registry says of it (`registered`: does it?), and what this gateway saw of it last.

    `loaded`: served name → path; `exposed`: management and inference routes that answer without the replica's key.
    """

    model_config = example(
        name="gpu-0", url="http://gpu-0.example:8000", registered=True, has_api_key=True, artifacts_path=None,
        max_in_flight=256, created_at="2026-01-31T12:00:00Z", healthy=True, base_model="llama-3.1-8b",
        root="/models/llama-3.1-8b", loaded={"acme/support@3-9f86d081884c": "/artifacts/9f86d081884c"},
        busy_adapters=[], slots=8, in_flight=0, exposed=["POST /adapters"], version="0.32.0",
        started_at="2026-01-31T11:00:00Z", last_error=None, revision=2)
    name: str
    url: str
    registered: bool
    has_api_key: bool
    artifacts_path: str | None
    max_in_flight: int | None
    created_at: datetime | None
    healthy: bool
    base_model: str | None
    root: str | None
    loaded: dict[str, str]
    busy_adapters: list[str]
    slots: int | None
    in_flight: int
    exposed: list[str]
    version: str | None
    started_at: datetime | None
    last_error: str | None
    revision: int

    @classmethod
    def of(cls, known: Replica | ReplicaView, replica: Replica | None, view: ReplicaView | None) -> Self:
        """`known` is either of both: a replica of the settings is not registered, a new one was not seen yet."""
        return cls(
            name=known.name, url=known.url, registered=replica is not None,
            has_api_key=bool(replica and replica.api_key),
            artifacts_path=replica.artifacts_path if replica else None,
            max_in_flight=replica.max_in_flight if replica else None,
            created_at=at(replica.created_at) if replica else None, revision=replica.revision if replica else 0,
            **_seen(view))


def _seen(view: ReplicaView | None) -> dict[str, Any]:
    return {
        "healthy": view is not None and view.healthy,
        "base_model": view and view.base_model,
        "root": view and view.root,
        "loaded": dict(view.loaded) if view else {},
        "busy_adapters": sorted(view.busy_adapters) if view else [],
        "slots": view and view.slots,
        "in_flight": view.in_flight if view else 0,
        "exposed": list(view.exposed) if view else [],
        "version": view and view.engine_version,
        "started_at": when(view.started_at) if view else None,
        "last_error": view and view.last_error,
    }


class RegistryStatus(Out):
    """`lag_seconds`: since the registry last answered."""

    connected: bool
    revision: int
    lag_seconds: float


class ReplicaStatus(Out):
    """One replica in short."""

    name: str
    healthy: bool
    base_model: str | None
    loaded: int


class StatusOut(Out):
    """How this gateway stands."""

    model_config = example(
        registry={"connected": True, "revision": 9, "lag_seconds": 0.2},
        replicas=[{"name": "gpu-0", "healthy": True, "base_model": "llama-3.1-8b", "loaded": 1}],
        versions={"preparing": 0, "ready": 1, "retiring": 0, "retired": 0}, tenants=1, adapters=1)
    registry: RegistryStatus
    replicas: list[ReplicaStatus]
    versions: dict[VersionPhase, int]
    tenants: int
    adapters: int
