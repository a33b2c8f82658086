"""Evaluation records: bound to bytes, bounded in number, never better than what was measured."""

import json
from typing import Any

import pytest

from gateway.controlplane.changes import Changes
from gateway.controlplane.evaluations import Evaluations
from gateway.domain.conditions import Conditions
from gateway.domain.errors import Conflict, InvalidRequest, NotFound
from gateway.domain.evaluation import RECORDS_KEPT, Evaluation
from gateway.domain.model import Adapter, Secret, Tenant
from gateway.domain.seal import Seal
from gateway.system import System
from tests.fixtures.memory import FleetOfViews, MemoryRegistry
from tests.unit.domain.test_reconcile import DIGESTS, version, view


@pytest.fixture
def registry() -> MemoryRegistry:
    made = MemoryRegistry()
    made.put(Tenant(name="acme", created_at=0.0), Adapter(tenant="acme", name="support", created_at=0.0),
             version(1), version(2, digest=DIGESTS[1]))
    return made


@pytest.fixture
def fleet() -> FleetOfViews:
    return FleetOfViews(view("one", engine_version="0.32.0", root="/models/meta/base-7B"))


@pytest.fixture
def evaluations(registry: MemoryRegistry, fleet: FleetOfViews) -> Evaluations:
    return Evaluations(Changes(registry, registry, System()), fleet, System())


async def record(evaluations: Evaluations, **fields: Any) -> Evaluation:
    return await evaluations.record("ann", "acme", "support", **{
        "number": 1, "digest": None, "golden_set": "d" * 64, "metric": "exact_match", "value": 0.9, "floor": 0.8,
        "report": {}, **fields})


async def test_a_record_is_of_the_versions_bytes_however_they_are_named(evaluations: Evaluations) -> None:
    made = [await record(evaluations), await record(evaluations, number=None, digest=DIGESTS[0]),
            await record(evaluations, digest=DIGESTS[0])]
    assert {one.digest for one in made} == {DIGESTS[0]}
    assert len({one.id for one in made}) == 3
    assert {one.by for one in made} == {"ann"}
    kept = evaluations.all("acme", "support", number=1)
    assert len(kept) == 3
    assert all(one.verified and one.ignored == "" for one in kept)
    assert len({one.signature for one in made}) == 3
    assert evaluations.all("acme", "support", number=2) == []


@pytest.mark.parametrize(("fields", "kind"), [
    ({"number": 2, "digest": DIGESTS[0]}, Conflict), ({"number": 9}, NotFound), ({"number": None}, InvalidRequest),
    ({"number": None, "digest": DIGESTS[2]}, NotFound), ({"value": float("nan")}, InvalidRequest),
    ({"floor": float("inf")}, InvalidRequest), ({"value": 0.7, "passed": True}, InvalidRequest),
    ({"report": {"x": "y" * 20_000}}, InvalidRequest), ({"report": {"x": [float("nan")]}}, InvalidRequest),
    ({"report": {"x": "\ud800"}}, InvalidRequest),
    ({"conditions": Conditions(sampling={"x": "y" * 5_000})}, InvalidRequest),
    ({"conditions": Conditions(latency_ms_p99=-1.0)}, InvalidRequest),
    ({"conditions": Conditions(base_model="llama-2")}, Conflict)])
async def test_what_cannot_be_bound_or_believed_is_refused_and_leaves_no_record(
    registry: MemoryRegistry, evaluations: Evaluations, fields: dict[str, Any], kind: type[Exception],
) -> None:
    with pytest.raises(kind):
        await record(evaluations, **fields)
    assert registry.changes == []


@pytest.mark.parametrize(("value", "said", "passed"), [
    (0.8, None, True), (0.79, None, False), (0.9, False, False), (0.9, True, True)])
async def test_it_is_passed_from_the_floor_on_unless_the_evaluator_says_no(
    evaluations: Evaluations, value: float, said: bool | None, passed: bool,
) -> None:
    assert (await record(evaluations, value=value, passed=said)).passed is passed


async def test_only_so_many_records_of_one_digest_are_kept_and_the_rest_goes_in_the_same_write(
    registry: MemoryRegistry, evaluations: Evaluations,
) -> None:
    other = await record(evaluations, metric="rouge")
    for _ in range(RECORDS_KEPT + 3):
        await record(evaluations)
    kept = [one.record for one in evaluations.all("acme", "support", number=1)]
    assert len(kept) == RECORDS_KEPT
    assert other in kept, "the only one of its metric"
    assert len(registry.changes) == RECORDS_KEPT + 4


async def test_a_dry_run_records_nothing(registry: MemoryRegistry, evaluations: Evaluations) -> None:
    assert (await record(evaluations, dry_run=True)).passed
    assert registry.changes == []
    assert registry.truth.entities.get("secret/evaluation") is None


async def test_what_the_evaluator_leaves_open_is_filled_in_and_signed(evaluations: Evaluations) -> None:
    made = await record(evaluations, conditions=Conditions(latency_ms_p99=12.0, base_model="base-7b"))
    assert (made.base_model, made.engine_version, made.latency_ms_p99) == ("base", "0.32.0", 12.0)
    assert evaluations.all("acme", "support")[0].verified


async def test_the_first_record_makes_the_registrys_secret_and_later_ones_keep_it(
    registry: MemoryRegistry, evaluations: Evaluations,
) -> None:
    await record(evaluations)
    first = registry.truth.entities["secret/evaluation"]
    assert isinstance(first, Secret)
    assert len(registry.changes) == 1, "in the same write"
    await record(evaluations)
    assert registry.truth.entities["secret/evaluation"] == first
    assert first.value not in json.dumps([dict(change.detail) for change in registry.changes])


async def test_with_the_settings_secret_the_registry_holds_none(registry: MemoryRegistry, fleet: FleetOfViews) -> None:
    sealed = Evaluations(Changes(registry, registry, System()), fleet, System(), seal=Seal("the settings'"))
    await record(sealed)
    assert "secret/evaluation" not in registry.truth.entities
    assert sealed.all("acme", "support")[0].verified
    stranger = Evaluations(Changes(registry, registry, System()), fleet, System(), seal=Seal("another's"))
    [kept] = stranger.all("acme", "support")
    assert not kept.verified and "is not what a gateway signed" in kept.ignored


async def test_a_record_of_a_base_that_the_version_no_longer_has_is_shown_as_ignored(
    registry: MemoryRegistry, evaluations: Evaluations,
) -> None:
    await record(evaluations)
    registry.put(version(1, base_model="another"))
    [kept] = evaluations.all("acme", "support", number=1)
    assert kept.verified
    assert kept.ignored == "was made on the base model 'base', not 'another': evaluate again"
