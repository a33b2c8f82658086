"""Named operators: the key's text exists once; a name is one person's, also after the key was revoked."""

from dataclasses import replace
from hashlib import sha256

import pytest

from gateway.controlplane.changes import Changes
from gateway.controlplane.operators import OperatorCatalog
from gateway.domain.errors import Conflict, NotFound
from gateway.domain.operators import RESERVED, Operator, Role
from gateway.system import System
from tests.fixtures.memory import MemoryRegistry


@pytest.fixture
def registry() -> MemoryRegistry:
    return MemoryRegistry()


@pytest.fixture
def operators(registry: MemoryRegistry) -> OperatorCatalog:
    return OperatorCatalog(Changes(registry, registry, System()), System())


async def test_only_the_keys_sha256_and_prefix_are_kept(registry: MemoryRegistry, operators: OperatorCatalog) -> None:
    alice, key = await operators.create("operator", "alice", Role.VIEWER)
    assert key.startswith(f"{alice.prefix}-")
    assert alice.sha256 == sha256(key.encode()).hexdigest()
    assert key not in repr((registry.truth, registry.changes))
    assert [(c.actor, c.action, c.target, c.detail) for c in registry.changes] == [
        ("operator", "operator.create", "operator/alice", {"role": "viewer", "prefix": alice.prefix})]


async def test_a_name_in_use_or_of_somebody_else_in_the_audit_is_refused(operators: OperatorCatalog) -> None:
    await operators.create("operator", "alice", Role.VIEWER)
    for name in ("alice", *RESERVED):
        with pytest.raises(Conflict, match=name):
            await operators.create("operator", name, Role.ADMIN)


async def test_a_revoked_operator_gets_a_new_key_under_the_old_name(operators: OperatorCatalog) -> None:
    first, old = await operators.create("operator", "alice", Role.VIEWER)
    revoked = await operators.revoke("operator", "alice")
    assert revoked.revoked_at is not None
    assert await operators.revoke("operator", "alice") == revoked, "again changes nothing"
    again, new = await operators.create("operator", "alice", Role.ADMIN)
    assert (again.role, again.revoked_at) == (Role.ADMIN, None)
    assert old != new
    assert first.sha256 != again.sha256
    assert operators.all() == [again]


async def test_an_operator_that_does_not_exist_cannot_be_revoked(operators: OperatorCatalog) -> None:
    with pytest.raises(NotFound, match="bob"):
        await operators.revoke("operator", "bob")


async def test_a_dry_run_creates_and_revokes_nobody(registry: MemoryRegistry, operators: OperatorCatalog) -> None:
    await operators.create("operator", "alice", Role.VIEWER, dry_run=True)
    assert operators.all() == []
    alice, _ = await operators.create("operator", "alice", Role.VIEWER)
    assert (await operators.revoke("operator", "alice", dry_run=True)).revoked_at is not None
    [kept] = operators.all()
    assert isinstance(kept, Operator) and kept == replace(alice, revision=registry.truth.revision)
