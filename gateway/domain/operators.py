"""Who may do what on the admin API: operators by name, and their roles."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar, Self

from gateway.domain.errors import PermissionDenied
from gateway.domain.model import Entity, Snapshot

SETTINGS_OPERATOR = "operator"
"""What the audit calls whoever holds the settings' own key, which is an admin's."""
RESERVED = frozenset({SETTINGS_OPERATOR, "analyst", "gateway", "reconciler"})
"""Names that the audit has for others."""


class Role(StrEnum):
    """What an operator may do; each role may do all that those before it may."""

    VIEWER = "viewer"      # read everything that holds no secret
    OPERATOR = "operator"  # day to day: tenants, keys, adapters, versions, releases
    ADMIN = "admin"        # everything: replicas, operators, freezes, and overriding a check

    def reaches(self, needed: "Role") -> bool:
        """May this role do what needs that one?"""
        order = list(Role)
        return order.index(self) >= order.index(needed)


@dataclass(frozen=True, slots=True)
class Asker:
    """Who asks the admin API: the name that the audit gets, and the role."""

    name: str
    role: Role

    def require(self, needed: Role, what: str = "This") -> None:
        """PermissionDenied, with the role that `what` needs, unless the asker's reaches."""
        if not self.role.reaches(needed):
            raise PermissionDenied(
                f"{what} needs the role {needed}; {self.name} has the role {self.role}. Ask an admin to do it, or for "
                "a key with that role.", required_role=needed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator(Entity):
    """A named operator; only the SHA-256 (hex) of the key is kept. `prefix` is shown for recognition."""

    kind: ClassVar[str] = "operator"
    name: str
    role: Role
    prefix: str
    sha256: str
    created_at: float
    revoked_at: float | None = None

    @property
    def path(self) -> str:
        return f"operator/{self.name}"

    @classmethod
    def from_document(cls, document: Mapping[str, Any], revision: int) -> Self:
        return super(Operator, cls).from_document({**document, "role": Role(document["role"])}, revision)


def operators_of(snapshot: Snapshot) -> list[Operator]:
    """All named operators, revoked ones too, by name."""
    found = [entity for entity in snapshot.entities.values() if isinstance(entity, Operator)]
    return sorted(found, key=lambda operator: operator.name)
