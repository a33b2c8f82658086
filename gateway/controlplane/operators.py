"""Named operators: created with a role and a key that is told once, and revoked."""

from dataclasses import replace
from hashlib import sha256

from gateway.controlplane.changes import Changes, Step
from gateway.domain.errors import Conflict, NotFound
from gateway.domain.model import Snapshot
from gateway.domain.operators import RESERVED, Operator, Role, operators_of
from gateway.system import System


class OperatorCatalog:
    """Creates, lists and revokes operators. The key itself exists only in the answer that creates it."""

    def __init__(self, changes: Changes, system: System) -> None:
        self._changes = changes
        self._system = system

    def all(self) -> list[Operator]:
        """All named operators, revoked ones too, by name."""
        return operators_of(self._changes.current)

    async def create(self, actor: str, name: str, role: Role, *, dry_run: bool = False) -> tuple[Operator, str]:
        """A new operator and the key's text, which is kept nowhere; one who was revoked gets a new key so.

        Conflict when the name is in use, or means somebody else in the audit.
        """
        text, prefix = "", ""
        if name in RESERVED:
            raise Conflict(f"The audit calls others {name!r}; choose another name.", param="name")

        def decide(snapshot: Snapshot) -> Step[Operator]:
            nonlocal text, prefix
            old = snapshot.entities.get(f"operator/{name}")
            if isinstance(old, Operator) and old.revoked_at is None:
                raise Conflict(f"An operator {name!r} exists already. For a new key revoke the old one first.",
                               param="name")
            prefix = f"sy-operator-{self._system.hex(4)}"
            text = f"{prefix}-{self._system.token(32)}"
            made = Operator(name=name, role=role, prefix=prefix, created_at=self._system.now(),
                            sha256=sha256(text.encode()).hexdigest(), revision=old.revision if old else 0)
            return Step("operator.create", made, {made.path: made}, {"role": role, "prefix": prefix})

        return (await self._changes.commit(actor, decide, dry_run=dry_run)).entity, text

    async def revoke(
        self, actor: str, name: str, *, if_match: int | None = None, dry_run: bool = False,
    ) -> Operator:
        """The operator, whose key opens nothing from now on; one who is revoked already stays so."""
        def decide(snapshot: Snapshot) -> Step[Operator]:
            operator = snapshot.entities.get(f"operator/{name}")
            if not isinstance(operator, Operator):
                raise NotFound(f"There is no operator {name!r}.", param="name")
            if operator.revoked_at is not None:
                return Step("operator.revoke", operator, {})
            revoked = replace(operator, revoked_at=self._system.now())
            return Step("operator.revoke", revoked, {revoked.path: revoked}, {"prefix": operator.prefix})

        return (await self._changes.commit(actor, decide, if_match=if_match, dry_run=dry_run)).entity
