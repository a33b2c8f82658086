"""A rollout in the registry: what callers of the adapter are sent to, by name, alias, pin and bucket."""

import json
from dataclasses import replace

import pytest

from gateway.domain.errors import ModelNotFound
from gateway.domain.model import Adapter, Alias, ApiKey, Entity, Release, Snapshot, Tenant, Version, VersionPhase
from gateway.domain.plan import read
from gateway.domain.rollout import Move, Rollout, Shadow, apply, draw_up
from gateway.domain.routing import Track, route, shadow_of

KEY = ApiKey(id="1", tenant="acme", name="k", prefix="sy-1", sha256="0" * 64, created_at=0.0)
PINNING = replace(KEY, may_pin=True)
CALLERS = [f"caller-{n}" for n in range(2000)]


def version(number: int, phase: VersionPhase = VersionPhase.READY) -> Version:
    return Version(
        tenant="acme", adapter="support", number=number, digest=f"{number:064x}", phase=phase, base_model="base",
        rank=8, alpha=16.0, targets=("q_proj",), size_bytes=1, source="upload", created_at=0.0, phase_at=0.0)


def started(plan: str = "10%, 50%, 100%") -> Rollout:
    drawn = draw_up(None, canary=2, baseline=1, plan=read(plan), salt="s", by="ann")
    return apply(drawn, Move.START, 10.0)


def snapshot(release: Release, *more: Entity) -> Snapshot:
    entities = (
        Tenant(name="acme", created_at=0.0), Adapter(tenant="acme", name="support", created_at=0.0),
        version(1), version(2), version(3), release, *more)
    return Snapshot.of(1, {entity.path: entity for entity in entities})


def release(rollout: Rollout | None = None, shadow: Shadow | None = None) -> Release:
    made = Release(tenant="acme", adapter="support", stable=1, shadow=shadow)
    return made.with_rollout(rollout) if rollout else made


def tracks(held: Snapshot) -> dict[str, Track]:
    return {caller: route(held, KEY, "support", (), caller).track for caller in CALLERS}


def test_a_release_reads_back_from_the_registry_as_it_was_written() -> None:
    made = release(started(), Shadow(number=3, share=2.5, salt="t"))
    document = json.loads(json.dumps(made.to_document()))
    assert Release.from_document(document, 7) == replace(made, revision=7)


def test_a_release_of_an_older_gateway_has_neither_rollout_nor_shadow() -> None:
    old = Release.from_document({"tenant": "acme", "adapter": "support", "stable": 1}, 3)
    assert (old.rollout, old.shadow, old.stable) == (None, None, 1)


def test_raising_the_weight_only_moves_callers_to_the_canary() -> None:
    at_ten = tracks(snapshot(release(started())))
    at_fifty = tracks(snapshot(release(apply(started(), Move.SHIFT, 20.0))))
    assert 120 < sum(track is Track.CANARY for track in at_ten.values()) < 290
    assert 900 < sum(track is Track.CANARY for track in at_fifty.values()) < 1100
    assert all(at_fifty[caller] is Track.CANARY for caller in CALLERS if at_ten[caller] is Track.CANARY)


def test_a_promoted_canary_is_stable_for_all_and_an_aborted_one_for_none() -> None:
    promoted = snapshot(release(apply(started(), Move.PROMOTE, 20.0)))
    aborted = snapshot(release(apply(started(), Move.ABORT, 20.0)))
    for held, number in ((promoted, "2"), (aborted, "1")):
        assert {route(held, KEY, "support", (), caller).number for caller in CALLERS} == {number}
        assert set(tracks(held).values()) == {Track.STABLE}


def test_a_canary_that_is_not_ready_gets_nobody() -> None:
    held = snapshot(release(started("100%")), version(2, VersionPhase.RETIRING))
    assert set(tracks(held).values()) == {Track.STABLE}


def test_without_a_subject_the_key_is_the_subject() -> None:
    held = snapshot(release(started("50%, 100%")))
    assert route(held, KEY, "support", ()).track is route(held, KEY, "support", (), KEY.id).track


def test_both_tracks_of_a_weight_are_counted_in_one_epoch_and_the_next_weight_in_another() -> None:
    one = {route(snapshot(release(started())), KEY, "support", (), c).epoch for c in CALLERS}
    two = {route(snapshot(release(apply(started(), Move.SHIFT, 20.0))), KEY, "support", (), c).epoch for c in CALLERS}
    assert len(one) == len(two) == 1
    assert one != two
    assert route(snapshot(release()), KEY, "support", ()).epoch == ""


def test_a_version_is_reached_by_name_only_with_a_key_that_may_pin() -> None:
    held = snapshot(release(started()))
    assert (route(held, PINNING, "support@3", ()).number, route(held, PINNING, "support@latest", ()).track) == (
        "3", Track.PINNED)
    said = []
    for model in ("support@3", "nothing@3"):
        with pytest.raises(ModelNotFound) as refused:
            route(held, KEY, model, ())
        said.append(refused.value.message.replace(model, ""))
    assert said[0] == said[1]


def test_an_alias_stands_for_an_adapter_or_one_version_of_it() -> None:
    held = snapshot(
        release(), Alias(tenant="acme", name="champion", target="support"),
        Alias(tenant="acme", name="support-latest", target="support@latest"))
    assert route(held, KEY, "champion", ()).number == "1"
    assert route(held, KEY, "acme/support-latest", ()).number == "3"


def test_a_shadow_gets_its_share_of_what_the_release_answers_and_nothing_of_what_is_pinned() -> None:
    held = snapshot(release(shadow=Shadow(number=3, share=25.0, salt="t")))
    live = route(held, KEY, "support", ())
    copies = [shadow_of(held, live, caller) for caller in CALLERS]
    sent = [copy for copy in copies if copy is not None]
    assert 420 < len(sent) < 580
    assert {(copy.number, copy.track) for copy in sent} == {("3", Track.SHADOW)}
    assert shadow_of(held, route(held, PINNING, "support@1", ()), CALLERS[0]) is None
