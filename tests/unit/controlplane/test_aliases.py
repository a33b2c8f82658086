"""Aliases: they name what is there, never hide an adapter, and resolve for every key that may use what they name."""

import pytest

from gateway.controlplane.aliases import Aliases
from gateway.controlplane.changes import Changes
from gateway.controlplane.tenants import Tenants
from gateway.domain.errors import Conflict, InvalidRequest, LostRace, NotFound
from gateway.domain.model import Adapter, Release, Tenant, VersionPhase
from gateway.domain.routing import Track, route
from gateway.system import System
from tests.fixtures.memory import MemoryRegistry
from tests.unit.domain.test_reconcile import version


@pytest.fixture
def registry() -> MemoryRegistry:
    made = MemoryRegistry()
    made.put(Tenant(name="acme", created_at=0.0), Adapter(tenant="acme", name="support", created_at=0.0),
             version(1), version(2), version(3, VersionPhase.PREPARING),
             Release(tenant="acme", adapter="support", stable=1))
    return made


@pytest.fixture
def aliases(registry: MemoryRegistry) -> Aliases:
    return Aliases(Changes(registry, registry, System()))


@pytest.mark.parametrize(("target", "number", "track"), [
    ("support", "1", Track.STABLE), ("support@2", "2", Track.PINNED), ("support@latest", "2", Track.PINNED)])
async def test_an_alias_resolves_to_what_it_names(
    registry: MemoryRegistry, aliases: Aliases, target: str, number: str, track: Track,
) -> None:
    await aliases.put("ann", "acme", "champion", target)
    key, _ = await Tenants(Changes(registry, registry, System()), System()).create_key("ann", "acme", "k")
    for model in ("champion", "acme/champion"):
        found = route(registry.current, key, model, (), "u")
        assert (found.number, found.track) == (number, track)


@pytest.mark.parametrize(("target", "kind"), [
    ("none", NotFound), ("support@3", Conflict), ("support@9", Conflict), ("support@0", InvalidRequest),
    ("support@", InvalidRequest), ("acme/support", InvalidRequest), ("", InvalidRequest)])
async def test_an_alias_names_only_what_is_there_and_ready(
    registry: MemoryRegistry, aliases: Aliases, target: str, kind: type[Exception],
) -> None:
    with pytest.raises(kind):
        await aliases.put("ann", "acme", "champion", target)
    assert registry.changes == []


async def test_an_alias_never_has_an_adapters_name(registry: MemoryRegistry, aliases: Aliases) -> None:
    with pytest.raises(Conflict, match="is an adapter"):
        await aliases.put("ann", "acme", "support", "support@2")
    registry.before_commit.append(lambda: registry.put(Adapter(tenant="acme", name="champion", created_at=0.0)))
    with pytest.raises(Conflict, match="is an adapter"):
        await aliases.put("ann", "acme", "champion", "support")


async def test_a_version_that_was_retired_meanwhile_gets_no_alias(registry: MemoryRegistry, aliases: Aliases) -> None:
    registry.before_commit.append(lambda: registry.put(version(2, VersionPhase.RETIRING)))
    with pytest.raises(Conflict, match="no ready version 2"):
        await aliases.put("ann", "acme", "champion", "support@2")


async def test_an_alias_is_changed_by_who_read_it_last_and_the_same_again_is_no_change(
    registry: MemoryRegistry, aliases: Aliases,
) -> None:
    first = await aliases.put("ann", "acme", "champion", "support@1")
    assert await aliases.put("ann", "acme", "champion", "support@1") == first
    second = await aliases.put("ann", "acme", "champion", "support@2", if_match=first.revision)
    with pytest.raises(LostRace):
        await aliases.put("bob", "acme", "champion", "support@1", if_match=first.revision)
    with pytest.raises(LostRace):
        await aliases.delete("bob", "acme", "champion", if_match=first.revision)
    assert aliases.all("acme") == [second]
    assert [change.detail["before"] for change in registry.changes] == [None, "support@1"]


async def test_a_deleted_alias_is_gone_and_a_dry_run_deletes_nothing(
    registry: MemoryRegistry, aliases: Aliases,
) -> None:
    await aliases.put("ann", "acme", "champion", "support", dry_run=True)
    assert aliases.all("acme") == []
    await aliases.put("ann", "acme", "champion", "support")
    await aliases.delete("ann", "acme", "champion", dry_run=True)
    assert aliases.get("acme", "champion").target == "support"
    await aliases.delete("ann", "acme", "champion")
    with pytest.raises(NotFound):
        aliases.get("acme", "champion")
    with pytest.raises(NotFound):
        await aliases.delete("ann", "acme", "champion")
