"""From `preparing` to `ready`: loaded on its replicas, seen there, proven to change the base model's output, and
compared with what its trainer computed."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

from gateway.controlplane.changes import Changes, Step
from gateway.controlplane.fleet import Fleet
from gateway.controlplane.leases import Leases, preparing
from gateway.controlplane.parity import ParityCheck
from gateway.controlplane.removal import Removal
from gateway.domain.errors import (
    AdapterNotLoaded,
    ArtifactRefused,
    Conflict,
    EngineRefused,
    NoHealthyReplica,
    ReplicaUnreachable,
    SwitchyardError,
)
from gateway.domain.evaluation import gate_of
from gateway.domain.fleet import Effect
from gateway.domain.model import Entity, Release, Snapshot, Version, VersionPhase
from gateway.domain.parity import Parity
from gateway.domain.reconcile import Choose, pool_of
from gateway.domain.seal import SHARED, Seal
from gateway.system import System

T = TypeVar("T")
NOISE_FACTOR = 3.0
RESUME_AFTER_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class _Proof:
    """What was measured of a version; `parity` None: it was not compared."""

    effect: Effect
    parity: Parity | None = None

    @property
    def detail(self) -> dict[str, Any]:
        """What the audit says of it."""
        compared = {} if self.parity is None else {"parity": asdict(self.parity)}
        return {"effect": self.effect.effect, "noise": self.effect.noise, **compared}


class _Refusal(Exception):
    """The version does not pass; `proof` is what was measured, if it came to that."""

    def __init__(self, reasons: tuple[str, ...], proof: _Proof | None = None) -> None:
        super().__init__(*reasons)
        self.reasons = reasons
        self.proof = proof


class Preparer:
    """Proves versions, one gateway at a time each; refuses those that fail, and then leaves nothing behind.

    `min_effect` in nats: the least that an adapter must change a log probability by.
    """

    def __init__(
        self, changes: Changes, leases: Leases, fleet: Fleet, removal: Removal, parity: ParityCheck, choose: Choose,
        min_effect: float, system: System, *, seal: Seal = SHARED,
    ) -> None:
        self._changes = changes
        self._leases = leases
        self._fleet = fleet
        self._removal = removal
        self._parity = parity
        self._choose = choose
        self._min_effect = min_effect
        self._system = system
        self._seal = seal

    async def prepare(self, actor: str, version: Version) -> Version:
        """The version, ready.

        ArtifactRefused after taking it back; Unavailable when no replica could say, which leaves it `preparing`;
        Conflict when another gateway prepares it, or it was retired meanwhile.
        """
        try:
            async with self._leases.held(preparing(version.served_name)) as mine:
                if not mine:
                    raise Conflict(f"Another gateway is preparing {version.served_name} already. Look again later.")
                proof = await self._prove(version)
                ready = await self._changes.commit(actor, lambda snapshot: self._mark_ready(snapshot, version, proof))
                return ready.entity
        except _Refusal as refusal:
            await self.take_back(actor, version, refusal.reasons, refusal.proof.detail if refusal.proof else {})
            raise ArtifactRefused(refusal.reasons) from refusal

    async def take_back(
        self, actor: str, version: Version, reasons: Sequence[str], measured: Mapping[str, Any],
    ) -> None:
        """Refuse the version: unload it, delete its files and its record; the audit keeps the reasons and the numbers.

        What cannot be done at once (a replica does not answer) the reconciler does later.
        """
        detail = {"reasons": list(reasons), "digest": version.digest, "source": version.source, **measured}

        def decide(snapshot: Snapshot) -> Step[Version]:
            current = _still_preparing(snapshot, version)
            leaving = current.move(VersionPhase.RETIRING, self._system.now())
            return Step("version.refuse", leaving, {leaving.path: leaving}, detail)

        leaving = await self._changes.commit(actor, decide)
        await self._removal.unload_and_remove(actor, leaving.entity)

    async def resume(self, actor: str, version: Version) -> None:
        """Prepare a version whose preparer died; nothing happens while one lives, or when no replica can say."""
        try:
            await self.prepare(actor, version)
        except (ArtifactRefused, Conflict):
            return  # the audit has it; or another gateway was faster

    def is_stale(self, version: Version) -> bool:
        """Has the version been preparing for so long that its preparer may be dead?"""
        waited = self._system.now() - version.phase_at
        return version.phase is VersionPhase.PREPARING and waited > RESUME_AFTER_SECONDS

    async def _prove(self, version: Version) -> _Proof:
        """What the adapter does, measured on one replica after loading it on all that should hold it; _Refusal."""
        pool = [view.name for view in pool_of(version.base_model, self._fleet.replicas())]
        if not pool:
            raise NoHealthyReplica(f"No replica of {version.base_model!r} is healthy, so nothing can be loaded.")
        adapter = self._changes.current.adapters.get((version.tenant, version.adapter))
        count = len(pool) if adapter is None or adapter.replicas is None else adapter.replicas
        holders = await self._load(version, self._choose(version.served_name, pool, count))
        effect = await _on_one(holders, lambda name: self._measure(name, version))
        if not effect.effect > max(self._min_effect, NOISE_FACTOR * effect.noise):
            raise _Refusal((
                "The adapter does not change what the base model says: over the probe's prompts the change of "
                f"a log probability was {effect.effect:.6f} nats. It must be more than {self._min_effect:.6f}, and "
                f"more than {NOISE_FACTOR:g} times the {effect.noise:.6f} by which the base model differs from itself. "
                "The adapter was probably not trained, or saved under names that the engine ignores.",
            ), _Proof(effect))
        proof = _Proof(effect, await _on_one(holders, lambda name: self._parity.compare(name, version)))
        if objections := self._parity.objections(proof.parity):
            raise _Refusal(objections, proof)
        return proof

    async def _load(self, version: Version, replicas: Sequence[str]) -> list[str]:
        """The replicas that hold the version now, at least one; _Refusal when an engine or the bytes say no."""
        results = await asyncio.gather(
            *(self._fleet.load(name, version) for name in replicas), return_exceptions=True)
        failures = {n: r for n, r in zip(replicas, results, strict=True) if isinstance(r, BaseException)}
        for failure in failures.values():
            if not isinstance(failure, SwitchyardError):
                raise failure
        reasons = [reason for name, failure in failures.items() for reason in _reasons(name, failure)]
        if reasons:
            raise _Refusal(tuple(reasons))
        if len(failures) == len(replicas):
            told = " ".join(str(failure) for failure in failures.values())
            raise AdapterNotLoaded(f"No replica could load {version.served_name} just now: {told}")
        return [name for name in replicas if name not in failures]

    async def _measure(self, replica: str, version: Version) -> Effect:
        try:
            return await self._fleet.measure_effect(replica, version)
        except EngineRefused as error:
            raise _Refusal((f"The replica {replica} could not run the adapter: {error.message}",)) from error

    def _mark_ready(self, snapshot: Snapshot, version: Version, proof: _Proof) -> Step[Version]:
        current = _still_preparing(snapshot, version)
        doubts = tuple(finding.text for finding in proof.parity.findings) if proof.parity else ()
        ready = replace(
            current.move(VersionPhase.READY, self._system.now()), effect=proof.effect.effect, noise=proof.effect.noise,
            parity=proof.parity, warnings=(*current.warnings, *doubts))
        writes: dict[str, Entity | None] = {ready.path: ready}
        release = snapshot.releases.get((version.tenant, version.adapter)) or Release(
            tenant=version.tenant, adapter=version.adapter)
        gate = gate_of(snapshot, version, self._seal)
        first = release.stable is None and gate.is_open
        if first:
            writes[release.path] = replace(release, stable=version.number)
        detail = {**proof.detail, "stable": first}
        if release.stable is None and (gate.warning or not gate.is_open):
            detail["evaluation"] = gate.lack or gate.warning
        return Step("version.ready", ready, writes, detail, reads=(release.path, *gate.paths))


async def _on_one(holders: Sequence[str], ask: Callable[[str], Awaitable[T]]) -> T:
    """What the first of the replicas that answers says; ReplicaUnreachable when none does."""
    unreachable: ReplicaUnreachable | None = None
    for name in holders:
        try:
            return await ask(name)
        except ReplicaUnreachable as error:
            unreachable = error
    assert unreachable is not None, "asked of no replica"
    raise unreachable


def _still_preparing(snapshot: Snapshot, version: Version) -> Version:
    current = snapshot.versions.get((version.tenant, version.adapter, version.number))
    if current is None or current.phase is not VersionPhase.PREPARING:
        now = "gone" if current is None else current.phase
        raise Conflict(f"Version {version.number} of {version.tenant}/{version.adapter} is {now}, no longer preparing.")
    return current


def _reasons(replica: str, failure: BaseException) -> tuple[str, ...]:
    if isinstance(failure, ArtifactRefused):
        return failure.reasons
    return (f"The replica {replica} refused it: {failure.message}",) if isinstance(failure, EngineRefused) else ()
