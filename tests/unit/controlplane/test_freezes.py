"""Freeze windows: they end, they are of something that exists, and their names are theirs."""

from dataclasses import dataclass
from typing import Any

import pytest

from gateway.controlplane.changes import Changes
from gateway.controlplane.freezes import FURTHEST_SECONDS, Freezes
from gateway.domain.errors import Conflict, InvalidRequest, NotFound
from gateway.domain.freeze import Freeze
from gateway.domain.kinds import entity_from
from gateway.domain.model import Adapter, Tenant
from gateway.system import System
from tests.fixtures.memory import MemoryRegistry


@dataclass(frozen=True, slots=True)
class Still(System):
    """A clock that stands."""

    def now(self) -> float:
        return 1000.0


@pytest.fixture
def registry() -> MemoryRegistry:
    made = MemoryRegistry()
    made.put(Tenant(name="acme", created_at=0.0), Adapter(tenant="acme", name="support", created_at=0.0))
    return made


@pytest.fixture
def freezes(registry: MemoryRegistry) -> Freezes:
    return Freezes(Changes(registry, registry, Still()), Still())


async def create(freezes: Freezes, name: str = "sale", **fields: Any) -> Freeze:
    return await freezes.create("ann", name, **{
        "scope": "acme/support", "start": None, "end": 2000.0, "reason": "nobody is here", **fields})


async def test_a_window_begins_now_if_nothing_else_is_said_and_is_kept_as_it_was_made(freezes: Freezes) -> None:
    made = await create(freezes)
    assert (made.start, made.end, made.scope, made.created_by) == (1000.0, 2000.0, "acme/support", "ann")
    assert freezes.all() == [made] == [freezes.get("sale")]
    assert entity_from(made.path, made.to_document(), made.revision) == made


@pytest.mark.parametrize(("fields", "kind"), [
    ({"end": 1000.0}, InvalidRequest), ({"start": 2000.0}, InvalidRequest),
    ({"start": 10.0, "end": 20.0}, InvalidRequest),
    ({"end": 1001.0 + FURTHEST_SECONDS}, InvalidRequest), ({"start": -FURTHEST_SECONDS}, InvalidRequest),
    ({"scope": "none"}, NotFound), ({"scope": "acme/none"}, NotFound), ({"scope": "a b"}, InvalidRequest)])
async def test_a_window_that_makes_no_sense_is_refused(
    registry: MemoryRegistry, freezes: Freezes, fields: dict[str, Any], kind: type[Exception],
) -> None:
    with pytest.raises(kind):
        await create(freezes, **fields)
    assert registry.changes == []


async def test_a_name_is_of_one_window_until_it_is_deleted(registry: MemoryRegistry, freezes: Freezes) -> None:
    await create(freezes)
    with pytest.raises(Conflict):
        await create(freezes, scope="acme")
    await freezes.delete("ann", "sale", dry_run=True)
    await freezes.delete("ann", "sale")
    with pytest.raises(NotFound):
        await freezes.delete("ann", "sale")
    await create(freezes, scope="acme", dry_run=True)
    assert freezes.all() == []
    assert [change.action for change in registry.changes] == ["freeze.create", "freeze.delete"]
