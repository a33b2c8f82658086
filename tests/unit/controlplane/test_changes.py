"""How a change is made: what is believed, what is tried again, and what is refused."""

import asyncio

import pytest

from gateway.controlplane.changes import ATTEMPTS, Changes, Step
from gateway.controlplane.leases import Leases
from gateway.controlplane.tenants import Tenants
from gateway.domain.errors import Conflict, LostRace, NotFound, RegistryUnavailable
from gateway.domain.model import Snapshot, Tenant
from gateway.system import System
from tests.fixtures.memory import MemoryRegistry


@pytest.fixture
def registry() -> MemoryRegistry:
    return MemoryRegistry()


@pytest.fixture
def changes(registry: MemoryRegistry) -> Changes:
    return Changes(registry, registry, System())


def tenant(name: str = "acme", **fields: bool) -> Tenant:
    return Tenant(name=name, created_at=1.0, **fields)


async def test_a_change_is_audited_with_who_and_what(registry: MemoryRegistry, changes: Changes) -> None:
    await Tenants(changes, System()).create("alice", "acme")
    assert [(c.actor, c.action, c.target) for c in registry.changes] == [("alice", "tenant.create", "tenant/acme")]


async def test_a_change_that_was_overtaken_is_decided_again(registry: MemoryRegistry, changes: Changes) -> None:
    registry.put(tenant())
    registry.before_commit.append(lambda: registry.put(tenant(base_access=False)))
    seen: list[int] = []

    def decide(snapshot: Snapshot) -> Step[Tenant]:
        seen.append(snapshot.tenants["acme"].revision)
        return Step("tenant.patch", tenant(), {"tenant/acme": tenant()})

    written = await changes.commit("alice", decide)
    assert seen == [1, 2]
    assert written.entity.revision == 3


async def test_a_change_with_a_revision_is_not_repeated_upon_another(
    registry: MemoryRegistry, changes: Changes,
) -> None:
    registry.put(tenant())
    registry.before_commit.append(lambda: registry.put(tenant(base_access=False)))
    with pytest.raises(LostRace) as lost:
        await Tenants(changes, System()).patch("alice", "acme", base_access=False, if_match=1)
    assert lost.value.current == 2
    assert registry.changes == []


async def test_a_revision_that_only_our_snapshot_does_not_know_yet_is_no_lost_race(
    registry: MemoryRegistry, changes: Changes,
) -> None:
    registry.put(tenant())
    registry.follows = False
    registry.put(tenant(base_access=False))
    patched = await Tenants(changes, System()).patch("alice", "acme", base_access=True, if_match=2)
    assert patched.revision == 3


async def test_a_refusal_is_asked_again_of_the_registry_itself(registry: MemoryRegistry, changes: Changes) -> None:
    registry.follows = False
    registry.put(tenant())
    key, _ = await Tenants(changes, System()).create_key("alice", "acme", "shop")
    assert key.tenant == "acme"
    assert await changes.check(lambda snapshot: snapshot.revision) == 0
    with pytest.raises(Conflict):
        await Tenants(changes, System()).create("alice", "acme")
    with pytest.raises(NotFound):
        await Tenants(changes, System()).create_key("alice", "nobody", "shop")


async def test_an_entity_that_was_read_may_not_change_under_the_decision(
    registry: MemoryRegistry, changes: Changes,
) -> None:
    registry.put(tenant())
    registry.before_commit.append(lambda: registry.put(tenant(base_access=False)))
    tries = 0

    def decide(snapshot: Snapshot) -> Step[Tenant]:
        nonlocal tries
        tries += 1
        other = tenant("other")
        return Step("tenant.create", other, {other.path: other}, reads=("tenant/acme",))

    await changes.commit("alice", decide)
    assert tries == 2


async def test_endless_overtaking_ends_as_a_conflict(registry: MemoryRegistry, changes: Changes) -> None:
    registry.put(tenant())
    tries = 0

    def decide(snapshot: Snapshot) -> Step[Tenant]:
        nonlocal tries
        tries += 1
        registry.before_commit.append(lambda: registry.put(tenant()))
        return Step("tenant.patch", tenant(), {"tenant/acme": tenant()})

    with pytest.raises(Conflict):
        await changes.commit("alice", decide)
    assert tries == ATTEMPTS


async def test_a_change_of_nothing_writes_nothing(registry: MemoryRegistry, changes: Changes) -> None:
    registry.put(tenant())
    same = await Tenants(changes, System()).patch("alice", "acme", base_access=None)
    assert same.revision == 1
    assert registry.changes == []


async def test_work_is_not_begun_while_the_registry_is_known_to_be_away(
    registry: MemoryRegistry, changes: Changes,
) -> None:
    await changes.require_registry()
    registry.connected = registry.answers = False
    with pytest.raises(RegistryUnavailable):
        await changes.require_registry()


async def test_work_is_begun_when_the_registry_answers_though_it_missed_a_sign_of_life(
    registry: MemoryRegistry, changes: Changes,
) -> None:
    registry.connected = False
    await changes.require_registry()


async def test_a_lease_is_held_once_and_given_back(registry: MemoryRegistry) -> None:
    leases = Leases(registry, System())
    async with leases.held("x") as mine, leases.held("x") as second:
        assert mine
        assert not second
        with pytest.raises(Conflict):
            async with leases.exclusive("x", patience=0.01):
                raise AssertionError("held twice")
    assert registry.leases == {}


async def test_a_lease_is_given_back_when_its_holder_is_cancelled_or_fails(registry: MemoryRegistry) -> None:
    leases = Leases(registry, System())

    async def hold() -> None:
        async with leases.held("x"):
            await asyncio.sleep(60)

    task = asyncio.create_task(hold())
    await asyncio.sleep(0.01)
    assert registry.leases
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert registry.leases == {}
    with pytest.raises(ZeroDivisionError):
        async with leases.exclusive("x"):
            raise ZeroDivisionError
    assert registry.leases == {}


async def test_who_waits_for_a_lease_gets_it_next(registry: MemoryRegistry) -> None:
    leases = Leases(registry, System())
    order: list[str] = []

    async def work(name: str) -> None:
        async with leases.exclusive("x"):
            order.append(f"{name} begins")
            await asyncio.sleep(0.01)
            order.append(f"{name} ends")

    await asyncio.gather(work("a"), work("b"))
    assert order in (["a begins", "a ends", "b begins", "b ends"], ["b begins", "b ends", "a begins", "a ends"])
