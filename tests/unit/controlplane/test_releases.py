"""Releases: only a ready version takes traffic, and the one that does cannot be retired."""

from dataclasses import replace

import pytest

from gateway.controlplane.changes import Changes
from gateway.controlplane.releases import Releases
from gateway.domain.errors import Conflict, EngineRefused, NoHealthyReplica, NotFound
from gateway.domain.model import Adapter, Alias, EvaluationPolicy, Release, Tenant, VersionPhase
from gateway.domain.plan import DEFAULT
from gateway.domain.rollout import Move, Shadow, apply, draw_up
from gateway.system import System
from tests.fixtures.memory import FleetOfViews, MemoryRegistry
from tests.unit.domain.test_reconcile import version, view

ADAPTER = Adapter(
    tenant="acme", name="support", created_at=0.0, last_number=4, evaluation=EvaluationPolicy.OFF)


@pytest.fixture
def fleet() -> FleetOfViews:
    return FleetOfViews(view())


@pytest.fixture
def registry() -> MemoryRegistry:
    made = MemoryRegistry()
    made.put(Tenant(name="acme", created_at=0.0), ADAPTER, version(1), version(2), version(3, VersionPhase.PREPARING),
             version(4, VersionPhase.RETIRING),
             Release(tenant="acme", adapter="support", stable=1))
    return made


@pytest.fixture
def releases(registry: MemoryRegistry, fleet: FleetOfViews) -> Releases:
    return Releases(Changes(registry, registry, System()), fleet, System())


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


async def test_a_version_that_an_alias_names_is_not_retired(registry: MemoryRegistry, releases: Releases) -> None:
    registry.put(Alias(tenant="acme", name="champion", target="support@2"),
                 Alias(tenant="beta", name="champion", target="support@1"))
    with pytest.raises(Conflict, match="alias 'champion' names support@2"):
        await releases.retire("alice", "acme", "support", 2)
    registry.put(Alias(tenant="acme", name="champion", target="support@latest"))
    assert (await releases.retire("alice", "acme", "support", 2)).phase is VersionPhase.RETIRING


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


async def test_the_version_is_loaded_before_it_takes_any_traffic(
    registry: MemoryRegistry, releases: Releases, fleet: FleetOfViews,
) -> None:
    fleet.meanwhile.append(lambda: registry.before_commit.append(lambda: fleet.loads.append(("the write", ""))))
    await releases.set_stable("alice", "acme", "support", 2)
    assert [where for where, _ in fleet.loads] == ["one", "the write"]


async def test_a_version_that_cannot_be_loaded_takes_no_traffic(
    registry: MemoryRegistry, releases: Releases, fleet: FleetOfViews,
) -> None:
    fleet.refusal = EngineRefused("no room")
    with pytest.raises(EngineRefused, match="one: no room"):
        await releases.set_stable("alice", "acme", "support", 2)
    fleet.views.clear()
    with pytest.raises(NoHealthyReplica):
        await releases.set_stable("alice", "acme", "support", 2)
    assert registry.changes == []


async def test_the_stable_version_stays_while_a_rollout_is_live(registry: MemoryRegistry, releases: Releases) -> None:
    rollout = apply(draw_up(None, canary=2, baseline=1, plan=DEFAULT, salt="s", by="ann"), Move.START, 1.0)
    registry.put(Release(tenant="acme", adapter="support", stable=1, rollout=rollout))
    for number in (2, None):
        with pytest.raises(Conflict, match="promote or abort it before"):
            await releases.set_stable("alice", "acme", "support", number)
    assert (await releases.set_stable("alice", "acme", "support", 1)).live, "which changes nothing"
    with pytest.raises(Conflict, match="is the canary or the shadow"):
        await releases.retire("alice", "acme", "support", 2)
    over = apply(rollout, Move.ABORT, 2.0)
    registry.put(Release(tenant="acme", adapter="support", stable=1, rollout=over))
    assert (await releases.set_stable("alice", "acme", "support", 2)).stable == 2


async def test_a_version_that_becomes_stable_is_nobodys_shadow(registry: MemoryRegistry, releases: Releases) -> None:
    registry.put(Release(tenant="acme", adapter="support", stable=1, shadow=Shadow(number=2, share=5, salt="s")))
    assert (await releases.set_stable("alice", "acme", "support", 2)).shadow is None


async def test_without_an_evaluation_that_the_policy_requires_no_version_becomes_stable(
    registry: MemoryRegistry, releases: Releases,
) -> None:
    registry.put(replace(ADAPTER, evaluation=EvaluationPolicy.REQUIRED))
    with pytest.raises(Conflict, match="no evaluation record"):
        await releases.set_stable("alice", "acme", "support", 2)
    assert (await releases.set_stable("alice", "acme", "support", None)).stable is None
    registry.put(replace(ADAPTER, evaluation=EvaluationPolicy.WARN))
    await releases.set_stable("alice", "acme", "support", 2)
    assert "no evaluation record" in registry.changes[-1].detail["warning"]


async def test_a_dry_run_answers_as_if_and_neither_loads_nor_writes(
    registry: MemoryRegistry, releases: Releases, fleet: FleetOfViews,
) -> None:
    would_be = await releases.set_stable("alice", "acme", "support", 2, dry_run=True)
    assert would_be.stable == 2
    assert would_be.revision == registry.truth.releases["acme", "support"].revision
    with pytest.raises(Conflict):
        await releases.set_stable("alice", "acme", "support", 3, dry_run=True)
    assert (registry.changes, fleet.loads) == ([], [])
