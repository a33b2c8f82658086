"""Roles: each may do what those below it may, and no more."""

import pytest

from gateway.domain.errors import PermissionDenied
from gateway.domain.model import Snapshot, Tenant
from gateway.domain.operators import Asker, Operator, Role, operators_of


@pytest.mark.parametrize("held", list(Role))
@pytest.mark.parametrize("needed", list(Role))
def test_a_role_reaches_itself_and_what_is_below(held: Role, needed: Role) -> None:
    rank = {"viewer": 0, "operator": 1, "admin": 2}
    assert held.reaches(needed) == (rank[held] >= rank[needed])
    if held.reaches(needed):
        Asker("alice", held).require(needed)
    else:
        with pytest.raises(PermissionDenied, match=f"needs the role {needed}; alice has the role {held}") as denied:
            Asker("alice", held).require(needed, "POST /x")
        assert denied.value.required_role == needed


def test_an_operator_survives_the_registry() -> None:
    alice = Operator(name="alice", role=Role.ADMIN, prefix="p", sha256="s", created_at=1.0, revoked_at=2.0)
    assert Operator.from_document(alice.to_document(), 7) == Operator(
        name="alice", role=Role.ADMIN, prefix="p", sha256="s", created_at=1.0, revoked_at=2.0, revision=7)


def test_operators_are_found_among_all_entities_by_name() -> None:
    made = [Operator(name=n, role=Role.VIEWER, prefix="p", sha256=n, created_at=1.0) for n in ("zoe", "alice")]
    entities = [*made, Tenant(name="acme", created_at=1.0)]
    assert [o.name for o in operators_of(Snapshot.of(1, {e.path: e for e in entities}))] == ["alice", "zoe"]
