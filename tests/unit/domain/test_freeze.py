"""A freeze window holds exactly its scope, exactly as long as it says."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.domain.errors import Conflict, InvalidRequest
from gateway.domain.freeze import Freeze, check_scope, check_thawed, in_force
from gateway.domain.model import Snapshot


def freeze(name: str = "holidays", scope: str = "acme", start: float = 10.0, end: float = 20.0) -> Freeze:
    return Freeze(name=name, scope=scope, start=start, end=end, reason="nobody is here", created_by="ann", created_at=0)


def snapshot(*freezes: Freeze) -> Snapshot:
    return Snapshot.of(1, {one.path: one for one in freezes})


@pytest.mark.parametrize(("scope", "tenant", "adapter", "held"), [
    ("acme", "acme", "support", True), ("acme", "acme", "sales", True), ("acme", "beta", "support", False),
    ("acme/support", "acme", "support", True), ("acme/support", "acme", "sales", False),
    ("acme/support", "beta", "support", False),
])
def test_a_window_holds_its_tenant_or_its_adapter_and_no_other(
    scope: str, tenant: str, adapter: str, held: bool,
) -> None:
    assert bool(in_force(snapshot(freeze(scope=scope)), tenant, adapter, 15.0)) is held


@given(now=st.floats(0, 30))
def test_a_window_begins_at_its_start_and_ends_just_before_its_end(now: float) -> None:
    assert bool(in_force(snapshot(freeze()), "acme", "support", now)) is (10.0 <= now < 20.0)


def test_a_refusal_says_until_when_and_why_by_the_window_that_ends_last() -> None:
    windows = [freeze(), freeze("later", end=86_400.0)]
    with pytest.raises(Conflict, match=r"until 1970-01-02T00:00:00Z by the window 'later' \(nobody is here\): a shift"):
        check_thawed(windows, "a shift")
    check_thawed([], "a shift")


@pytest.mark.parametrize("scope", ["", "/", "acme/", "/support", "a/b/c", "Acme", "*", "acme/ support"])
def test_what_is_no_scope_is_refused(scope: str) -> None:
    with pytest.raises(InvalidRequest):
        check_scope(scope)


def test_a_scope_is_a_tenant_or_an_adapter_of_one() -> None:
    assert check_scope("acme") == ("acme", None)
    assert check_scope("acme/support") == ("acme", "support")
