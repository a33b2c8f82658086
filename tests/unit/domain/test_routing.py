"""A call reaches only what its key may use, and every refusal reads the same."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.domain.errors import ModelNotFound
from gateway.domain.model import Adapter, ApiKey, Entity, Release, Snapshot, Tenant, Version, VersionPhase
from gateway.domain.routing import Track, route, usable_adapters

BASES = frozenset({"base"})


def version(tenant: str, adapter: str, number: int = 1, phase: VersionPhase = VersionPhase.READY) -> Version:
    return Version(
        tenant=tenant, adapter=adapter, number=number, digest=f"{number:064x}", phase=phase, base_model="base", rank=8,
        alpha=16.0, targets=("q_proj",), size_bytes=1, source="upload", created_at=0.0, phase_at=0.0)


def key(tenant: str, adapters: tuple[str, ...] | None = None) -> ApiKey:
    return ApiKey(id="1", tenant=tenant, name="k", prefix="sy-1", sha256="0" * 64, created_at=0.0, adapters=adapters)


def snapshot(*entities: Entity) -> Snapshot:
    return Snapshot.of(1, {entity.path: entity for entity in entities})


def line(tenant: str, name: str, stable: int | None = 1) -> tuple[Entity, ...]:
    return (Adapter(tenant=tenant, name=name, created_at=0.0), version(tenant, name),
            Release(tenant=tenant, adapter=name, stable=stable))


ACME = Tenant(name="acme", created_at=0.0)
GLOBEX = Tenant(name="globex", created_at=0.0, base_access=False)


def test_an_adapter_resolves_to_its_stable_version() -> None:
    chosen = route(snapshot(ACME, *line("acme", "support")), key("acme"), "support", BASES)
    assert (chosen.served_name, chosen.track, chosen.number) == ("acme/support@1-000000000000", Track.STABLE, "1")


def test_the_tenant_may_stand_before_the_adapter() -> None:
    held = snapshot(ACME, *line("acme", "support"))
    assert route(held, key("acme"), "acme/support", BASES) == route(held, key("acme"), "support", BASES)


def test_an_adapter_whose_name_hides_the_base_model_wins() -> None:
    chosen = route(snapshot(ACME, *line("acme", "base")), key("acme"), "base", BASES)
    assert chosen.track is Track.STABLE


def test_the_base_model_answers_only_where_the_tenant_may_use_it() -> None:
    held = snapshot(ACME, GLOBEX)
    assert route(held, key("acme"), "base", BASES).track is Track.BASE
    for other in (key("globex"), key("acme", ("support",)), key("nobody")):
        with pytest.raises(ModelNotFound):
            route(held, other, "base", BASES)


@given(st.sampled_from(["support", "globex/support", "acme/support", "secret-project", "globex/secret-project"]))
def test_anothers_adapter_is_refused_in_the_words_for_one_that_does_not_exist(model: str) -> None:
    with_it = snapshot(ACME, GLOBEX, *line("globex", "support"), *line("globex", "secret-project"))
    without = snapshot(ACME, GLOBEX)
    said = []
    for held in (with_it, without):
        with pytest.raises(ModelNotFound) as refused:
            route(held, key("acme"), model, BASES)
        said.append((refused.value.message, refused.value.param, refused.value.code))
    assert said[0] == said[1]


def test_a_limited_key_sees_only_its_adapters() -> None:
    held = snapshot(ACME, *line("acme", "support"), *line("acme", "sales"))
    limited = key("acme", ("sales",))
    assert [a.name for a in usable_adapters(held, limited)] == ["sales"]
    with pytest.raises(ModelNotFound, match="does not exist, or this key may not use it"):
        route(held, limited, "support", BASES)


@pytest.mark.parametrize("phase", [p for p in VersionPhase if p is not VersionPhase.READY])
def test_a_version_that_is_not_ready_takes_no_traffic(phase: VersionPhase) -> None:
    adapter, _, release = line("acme", "support")
    held = snapshot(ACME, adapter, version("acme", "support", phase=phase), release)
    with pytest.raises(ModelNotFound, match="no version that takes traffic"):
        route(held, key("acme"), "support", BASES)
    assert usable_adapters(held, key("acme")) == []
