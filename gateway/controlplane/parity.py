"""Train → serve parity: does the engine compute what the trainer left beside the weights?"""

from enum import StrEnum
from typing import Protocol

from gateway.controlplane.fleet import Fleet
from gateway.domain.errors import EngineRefused
from gateway.domain.model import Version
from gateway.domain.parity import Fault, Finding, Parity, Reference, Verdict, compare


class ParityPolicy(StrEnum):
    """What findings do to a version: nobody looks, they become its warnings, or it is refused (without a reference,
    too)."""

    OFF = "off"
    WARN = "warn"
    REQUIRED = "required"


class References(Protocol):
    """What trainers left in artifacts, by digest; see `gateway.clients.artifacts`."""

    async def parity(self, digest: str) -> Reference | None: ...


class ParityCheck:
    """Compares versions as the policy asks."""

    def __init__(self, fleet: Fleet, references: References, policy: ParityPolicy) -> None:
        self._fleet = fleet
        self._references = references
        self._policy = policy

    async def compare(self, replica: str, version: Version) -> Parity | None:
        """The comparison on one replica that has the version loaded; None when nobody is to look.

        An engine that refuses to answer is a finding; ReplicaUnreachable when it does not answer.
        """
        if self._policy is ParityPolicy.OFF:
            return None
        reference = await self._references.parity(version.digest)
        if reference is None:
            return Parity(verdict=Verdict.ABSENT)
        try:
            return compare(reference, await self._fleet.observe(replica, version, reference))
        except EngineRefused as error:
            return Parity.of([Finding(Fault.NOT_COMPARED, f"Not compared with the trainer: {error.message}")])

    def objections(self, parity: Parity | None) -> tuple[str, ...]:
        """Why the version is refused; none under another policy than `required`."""
        if self._policy is not ParityPolicy.REQUIRED or parity is None:
            return ()
        if parity.verdict is Verdict.ABSENT:
            return ("The artifact has no parity.json to compare the engine with: train it with this release's trainer, "
                    "or set SWITCHYARD_PARITY=warn.",)
        return tuple(finding.text for finding in parity.findings)
