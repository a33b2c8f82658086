"""Adapters and their versions: from an artifact somewhere to a version that may take traffic."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from gateway.controlplane.changes import Changes, Step, Written
from gateway.controlplane.fleet import Fleet
from gateway.controlplane.leases import Leases, files_of
from gateway.controlplane.prepare import Preparer
from gateway.controlplane.tenants import tenant_of
from gateway.domain import preflight
from gateway.domain.errors import (
    ArtifactRefused,
    Conflict,
    InvalidRequest,
    NoHealthyReplica,
    NotFound,
    SwitchyardError,
)
from gateway.domain.fleet import ReplicaView
from gateway.domain.model import Adapter, Entity, EvaluationPolicy, Snapshot, Version, VersionPhase
from gateway.system import System

BaseFacts: TypeAlias = Callable[[str], Awaitable[preflight.BaseModelFacts | None]]
"""(path or id of a base model) → what is known of it."""
Upload: TypeAlias = str | AsyncIterator[bytes]
"""An artifact's address, or the chunks of an archive."""


class Staged(Protocol):
    """An artifact that was read and hashed but not kept yet; see `gateway.clients.artifacts`."""

    @property
    def digest(self) -> str: ...
    @property
    def size_bytes(self) -> int: ...
    @property
    def ignored_files(self) -> tuple[str, ...]: ...
    @property
    def facts(self) -> preflight.AdapterFacts: ...


class Artifacts(Protocol):
    """The artifact store; `keep` puts a staged artifact in place, `discard` leaves nothing of it behind."""

    async def stage(self, source: str) -> Any: ...
    async def stage_stream(self, chunks: AsyncIterator[bytes]) -> Any: ...
    async def keep(self, staged: Any) -> Path: ...
    async def discard(self, staged: Any) -> None: ...


@dataclass(frozen=True, slots=True)
class Registration:
    """The version that has the artifact's bytes; `created` is False when it was registered before."""

    version: Version
    created: bool


class Catalog:
    """Adapters, and versions as they are registered."""

    def __init__(
        self, changes: Changes, leases: Leases, fleet: Fleet, artifacts: Artifacts, preparer: Preparer,
        base_facts: BaseFacts, limits: preflight.Limits, system: System, log: Any,
    ) -> None:
        self._changes = changes
        self._leases = leases
        self._fleet = fleet
        self._artifacts = artifacts
        self._preparer = preparer
        self._base_facts = base_facts
        self._limits = limits
        self._system = system
        self._log = log
        self._preparing: set[asyncio.Task[Version]] = set()

    def adapters(self, tenant: str) -> list[Adapter]:
        """The tenant's adapters, by name."""
        snapshot = self._changes.current
        tenant_of(snapshot, tenant)
        return sorted((a for a in snapshot.adapters.values() if a.tenant == tenant), key=lambda adapter: adapter.name)

    def adapter(self, tenant: str, name: str) -> Adapter:
        """The adapter, or NotFound."""
        return adapter_of(self._changes.current, tenant, name)

    def versions(self, tenant: str, adapter: str) -> list[Version]:
        """The adapter's versions, oldest first."""
        adapter_of(self._changes.current, tenant, adapter)
        return self._changes.current.versions_of(tenant, adapter)

    def version(self, tenant: str, adapter: str, number: int) -> Version:
        """The version, or NotFound."""
        return version_of(self._changes.current, tenant, adapter, number)

    async def put_adapter(
        self, actor: str, tenant: str, name: str, *, replicas: int | None, evaluation: EvaluationPolicy | None = None,
        if_match: int | None = None, dry_run: bool = False,
    ) -> Written[Adapter]:
        """The adapter, created or changed, that `replicas` replicas (None: all of the pool) hold versions of.

        `evaluation` None: the policy stays as it is.
        """
        def decide(snapshot: Snapshot) -> Step[Adapter]:
            owner = tenant_of(snapshot, tenant)
            old = snapshot.adapters.get((tenant, name))
            known = old or self._new_adapter(snapshot, tenant, name)
            new = replace(known, replicas=replicas, evaluation=evaluation or known.evaluation)
            writes = {} if new == old else {new.path: new}
            detail = {"replicas": replicas, "evaluation": new.evaluation.value}
            return Step("adapter.put", new, writes, detail, reads=(owner.path, f"alias/{tenant}/{name}"))

        return await self._changes.commit(actor, decide, if_match=if_match, dry_run=dry_run)

    async def register(
        self, actor: str, tenant: str, adapter: str, upload: Upload, *,
        base_model: str | None = None, wait: bool = True, dry_run: bool = False,
    ) -> Registration:
        """The version of these bytes, made if there is none; the adapter too.

        `base_model` says which base model the artifact belongs to, whatever its files say. With `wait` the version is
        ready when this returns; without, it is `preparing`, and what becomes of it is seen in its record or, if it is
        refused, in the audit. NoHealthyReplica before anything of `upload` is read; ArtifactRefused, after which
        nothing of the artifact is left; Unavailable when no replica could say, which takes the version back as well.
        A `dry_run` fetches and checks the files, and neither keeps them nor asks a replica.
        """
        await self._changes.require_registry()
        await self._changes.check(lambda snapshot: tenant_of(snapshot, tenant))
        pool = self._pool(tenant, adapter, base_model)
        staged = await (
            self._artifacts.stage(upload) if isinstance(upload, str) else self._artifacts.stage_stream(upload))
        try:
            warnings = await self._check(staged, pool, base_model)
            draft = self._draft(tenant, adapter, staged, pool, upload, warnings)
            if dry_run:
                planned = await self._changes.commit(
                    actor, lambda snapshot: self._number(snapshot, draft), dry_run=True)
                return Registration(planned.entity, False)
            written = await self._record(actor, draft, staged)
        finally:
            await self._artifacts.discard(staged)
        if not written.changed:
            return Registration(written.entity, False)
        task = self._start(self._prepare(actor, written.entity, wait=wait))
        return Registration(await asyncio.shield(task) if wait else written.entity, True)

    async def close(self) -> None:
        """Stop preparing; another gateway, or this one's next start, resumes what is left."""
        for task in self._preparing:
            task.cancel()
        await asyncio.gather(*self._preparing, return_exceptions=True)

    def _pool(self, tenant: str, adapter: str, base_model: str | None) -> ReplicaView:
        """A healthy replica of the pool that the version is for."""
        pools: dict[str, ReplicaView] = {}
        for view in self._fleet.replicas():
            if view.healthy and view.base_model is not None:
                pools.setdefault(view.base_model, view)
        if not pools:
            raise NoHealthyReplica("No replica is healthy, so no version can be proven. Start one, or try again soon.")
        versions = self._changes.current.versions_of(tenant, adapter)
        asked = base_model if base_model is not None or not versions else versions[-1].base_model
        for view in pools.values():
            if asked in (view.base_model, view.root):
                return view
        if len(pools) == 1 and (base_model is not None or not versions):
            return next(iter(pools.values()))
        if base_model is None and versions:
            raise NoHealthyReplica(f"No replica of {asked!r}, this adapter's base model, is healthy. Try again soon.")
        raise InvalidRequest(
            f"Say with base_model which base model the artifact is for: {', '.join(sorted(pools))}.",
            param="base_model")

    async def _check(self, staged: Staged, pool: ReplicaView, declared: str | None) -> tuple[str, ...]:
        """The warnings of the static checks; ArtifactRefused with every reason."""
        names = [name for name in (pool.base_model, pool.root) if name]
        known = await self._base_facts(pool.root or names[0])
        base = replace(known, names=(*names, *known.names)) if known else preflight.BaseModelFacts(tuple(names))
        base = replace(base, names=tuple(dict.fromkeys(base.names)))
        findings = await asyncio.to_thread(
            preflight.check, staged.facts, base, self._limits, declared_base=declared)
        if findings.reasons:
            raise ArtifactRefused(findings.reasons)
        return findings.warnings

    def _draft(
        self, tenant: str, adapter: str, staged: Staged, pool: ReplicaView, upload: Upload, warnings: Sequence[str],
    ) -> Version:
        now = self._system.now()
        return Version(
            tenant=tenant, adapter=adapter, number=0, digest=staged.digest, phase=VersionPhase.PREPARING,
            base_model=pool.base_model or "", rank=staged.facts.rank, alpha=staged.facts.alpha,
            targets=staged.facts.targets, size_bytes=staged.size_bytes,
            source=upload if isinstance(upload, str) else "upload", created_at=now, phase_at=now,
            warnings=tuple(warnings), ignored_files=tuple(staged.ignored_files),
            chat_template_sha256=staged.facts.chat_template_sha256)

    async def _record(self, actor: str, draft: Version, staged: Staged) -> Written[Version]:
        """Write the version, then keep its files: a crash in between leaves a record that gets resumed and refused."""
        async with self._leases.exclusive(files_of(draft.digest)):
            written = await self._changes.commit(actor, lambda snapshot: self._number(snapshot, draft))
            if written.changed:
                try:
                    await self._artifacts.keep(staged)
                except SwitchyardError as error:
                    reason = error.message
                    await self._changes.commit(actor, lambda snapshot: _forget(snapshot, written.entity, reason))
                    raise
        return written

    def _number(self, snapshot: Snapshot, draft: Version) -> Step[Version]:
        owner = tenant_of(snapshot, draft.tenant)
        for known in snapshot.versions_of(draft.tenant, draft.adapter):
            if known.digest == draft.digest and known.is_wanted:
                return Step("version.register", known, {})
        adapter = snapshot.adapters.get((draft.tenant, draft.adapter)) or self._new_adapter(
            snapshot, draft.tenant, draft.adapter)
        adapter = replace(adapter, last_number=adapter.last_number + 1)
        version = replace(draft, number=adapter.last_number)
        writes: Mapping[str, Entity | None] = {adapter.path: adapter, version.path: version}
        detail = {"digest": version.digest, "source": version.source, "base_model": version.base_model,
                  "warnings": list(version.warnings)}
        return Step("version.register", version, writes, detail, reads=(owner.path,))

    async def _prepare(self, actor: str, version: Version, *, wait: bool) -> Version:
        try:
            return await self._preparer.prepare(actor, version)
        except ArtifactRefused:
            if wait:
                raise
            self._log.warning("version_refused", served_name=version.served_name)
        except SwitchyardError as error:
            if wait:
                await self._preparer.take_back(actor, version, [error.message], {})
                raise
            self._log.warning("version_not_prepared", served_name=version.served_name, error=error.message)
        return version

    def _start(self, work: Coroutine[Any, Any, Version]) -> asyncio.Task[Version]:
        """A task that goes on when its caller hangs up."""
        task = asyncio.create_task(work)
        self._preparing.add(task)
        task.add_done_callback(self._preparing.discard)
        return task

    def _new_adapter(self, snapshot: Snapshot, tenant: str, name: str) -> Adapter:
        if (tenant, name) in snapshot.aliases:
            raise Conflict(f"{tenant}/{name} is an alias: delete it first, or choose another name.", param="adapter")
        return Adapter(tenant=tenant, name=name, created_at=self._system.now())


def adapter_of(snapshot: Snapshot, tenant: str, name: str) -> Adapter:
    """The adapter, or NotFound."""
    tenant_of(snapshot, tenant)
    found = snapshot.adapters.get((tenant, name))
    if found is None:
        raise NotFound(f"The tenant {tenant!r} has no adapter {name!r}.", param="adapter")
    return found


def version_of(snapshot: Snapshot, tenant: str, adapter: str, number: int) -> Version:
    """The version, or NotFound."""
    adapter_of(snapshot, tenant, adapter)
    found = snapshot.versions.get((tenant, adapter, number))
    if found is None:
        raise NotFound(f"The adapter {tenant}/{adapter} has no version {number}.", param="version")
    return found


def _forget(snapshot: Snapshot, version: Version, reason: str) -> Step[Version]:
    return Step("version.refuse", version, {version.path: None}, {"reasons": [reason], "digest": version.digest})
