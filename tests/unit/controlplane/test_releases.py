"""Releases: only a ready version takes traffic, and the one that does cannot be retired."""

import pytest

from gateway.controlplane.changes import Changes
from gateway.controlplane.releases import Releases
from gateway.domain.errors import Conflict, NotFound
from gateway.domain.model import Adapter, Release, Tenant, VersionPhase
from gateway.system import System
from tests.fixtures.memory import MemoryRegistry
from tests.unit.domain.test_reconcile import version


@pytest.fixture
def registry() -> MemoryRegistry:
    made = MemoryRegistry()
    made.put(Tenant(name="acme", created_at=0.0), Adapter(tenant="acme", name="support", created_at=0.0, last_number=4),
             version(1), version(2), version(3, VersionPhase.PREPARING), version(4, VersionPhase.RETIRING),
             Release(tenant="acme", adapter="support", stable=1))
    return made


@pytest.fixture
def releases(registry: MemoryRegistry) -> Releases:
    return Releases(Changes(registry, registry, System()), System())


async def test_moving_the_traffic_is_one_write_that_says_where_it_was(
    registry: MemoryRegistry, releases: Releases,
) -> None:
    assert (await releases.set_stable("alice", "acme", "support", 2)).stable == 2
    assert [(c.action, dict(c.detail)) for c in registry.changes] == [("release.set", {"stable": 2, "before": 1})]


@pytest.mark.parametrize("number", [3, 4])
async def test_only_a_ready_version_takes_traffic(releases: Releases, number: int) -> None:
    with pytest.raises(Conflict):
        await releases.set_stable("alice", "acme", "support", number)


async def test_a_version_that_does_not_exist_takes_no_traffic(releases: Releases) -> None:
    with pytest.raises(NotFound):
        await releases.set_stable("alice", "acme", "support", 9)


async def test_an_adapter_can_be_taken_off_the_traffic_and_then_its_last_version_retired(releases: Releases) -> None:
    with pytest.raises(Conflict):
        await releases.retire("alice", "acme", "support", 1)
    await releases.set_stable("alice", "acme", "support", None)
    assert (await releases.retire("alice", "acme", "support", 1)).phase is VersionPhase.RETIRING


async def test_a_version_retired_while_it_is_released_is_never_both(
    registry: MemoryRegistry, releases: Releases,
) -> None:
    registry.before_commit.append(lambda: registry.put(version(2, VersionPhase.RETIRING)))
    with pytest.raises(Conflict):
        await releases.set_stable("alice", "acme", "support", 2)
    registry.before_commit.append(lambda: registry.put(Release(tenant="acme", adapter="support", stable=3)))
    with pytest.raises(Conflict):
        await releases.retire("alice", "acme", "support", 3)


async def test_retiring_twice_is_one_change(registry: MemoryRegistry, releases: Releases) -> None:
    first = await releases.retire("alice", "acme", "support", 2)
    assert await releases.retire("alice", "acme", "support", 2) == first
    assert len(registry.changes) == 1


async def test_an_adapter_without_a_release_has_one_at_revision_0(
    registry: MemoryRegistry, releases: Releases,
) -> None:
    registry.put(Adapter(tenant="acme", name="new", created_at=0.0))
    assert releases.get("acme", "new") == Release(tenant="acme", adapter="new")
    with pytest.raises(NotFound):
        releases.get("acme", "none")
