"""What is explained is what a call gets."""

from dataclasses import replace

import pytest

from gateway.domain.errors import ModelNotFound
from gateway.domain.explanation import explain
from gateway.domain.hot import hot_versions
from gateway.domain.model import Adapter, Alias, ApiKey, Release, Replica, Snapshot, VersionPhase
from gateway.domain.placement import rank
from gateway.domain.plan import read
from gateway.domain.rollout import Move, Shadow, apply, draw_up
from gateway.domain.routing import Track, route
from gateway.domain.split import bucket
from tests.unit.domain.test_reconcile import DIGESTS, snapshot, version, view

ADAPTER = Adapter(tenant="acme", name="support", created_at=0.0)
STABLE, CANARY = version(1), version(2, digest=DIGESTS[1])
ROLLOUT = apply(draw_up(None, canary=2, baseline=1, plan=read("30%, 100%"), salt="5f", by="ann"), Move.START, 1.0)
RELEASE = Release(tenant="acme", adapter="support", stable=1).with_rollout(ROLLOUT)
KNOWN = snapshot(ADAPTER, STABLE, CANARY, RELEASE)
KEY = ApiKey(id="k", tenant="acme", name="k", prefix="p", sha256="s", created_at=0)


def test_every_subject_gets_what_was_explained_with_its_bucket_and_the_weight() -> None:
    for n in range(300):
        told = explain(KNOWN, [view("a", STABLE, CANARY)], ADAPTER, f"u{n}")
        got = route(KNOWN, KEY, "support", (), f"u{n}")
        assert (str(told.version), told.track, told.served_name) == (got.number, got.track, got.served_name)
        assert told.bucket == bucket("5f", f"u{n}")
        assert (told.track is Track.CANARY) is (told.bucket < 3000)
        assert told.weight == 30
        assert f"bucket is {told.bucket} of 10000" in told.why


def test_without_a_live_rollout_everybody_gets_the_stable_version() -> None:
    aborted = replace(RELEASE, rollout=apply(ROLLOUT, Move.ABORT, 2.0))
    told = explain(snapshot(ADAPTER, STABLE, CANARY, aborted), [], ADAPTER, "u")
    assert (told.version, told.track, told.bucket, told.weight, told.replicas) == (1, Track.STABLE, None, 0.0, ())
    assert "No rollout is live" in told.why


def test_a_canary_that_is_not_ready_is_told_as_the_reason_for_the_stable_one() -> None:
    known = snapshot(ADAPTER, STABLE, version(2, VersionPhase.RETIRING, digest=DIGESTS[1]), RELEASE)
    subject = next(f"u{n}" for n in range(100) if bucket("5f", f"u{n}") < 3000)
    told = explain(known, [], ADAPTER, subject)
    assert told.version == 1
    assert "not ready" in told.why


def test_an_adapter_without_a_stable_version_has_nothing_to_explain() -> None:
    with pytest.raises(ModelNotFound):
        explain(snapshot(ADAPTER, STABLE), [], ADAPTER, "u")


def test_replicas_come_in_the_order_in_which_they_would_be_tried() -> None:
    first, second, third = rank(STABLE.served_name, "abc")
    views = [view(first), view(second, STABLE, in_flight=5), view(third, STABLE),
             view("down", STABLE, healthy=False), view("elsewhere", STABLE, base_model="other")]
    stable_only = snapshot(ADAPTER, STABLE, Release(tenant="acme", adapter="support", stable=1))
    assert explain(stable_only, views, ADAPTER, "u").replicas == (second, third, first)
    busy = Replica(name=second, url="http://h", created_at=0.0, max_in_flight=5)
    known = stable_only.with_writes(2, {busy.path: busy})
    assert explain(known, views, ADAPTER, "u").replicas == (third, second, first)


def test_hot_is_what_releases_and_aliases_name_in_the_pool() -> None:
    three, four, five = (version(n, digest=DIGESTS[2]) for n in (3, 4, 5))
    elsewhere = version(6, base_model="other")
    known: Snapshot = snapshot(
        replace(ADAPTER, replicas=2), STABLE, CANARY, three, four, five, elsewhere,
        replace(RELEASE, shadow=Shadow(number=3, share=10, salt="s")),
        Alias(tenant="acme", name="pinned", target="support@4"), Alias(tenant="acme", name="same", target="support"),
        Alias(tenant="acme", name="gone", target="support@9"), Alias(tenant="acme", name="odd", target="no such"),
        Alias(tenant="acme", name="other", target="support@6"))
    assert hot_versions(known, "base") == dict.fromkeys((v.served_name for v in (STABLE, CANARY, three, four)), 2)
    newest = Alias(tenant="acme", name="newest", target="support@latest")
    assert elsewhere.served_name in hot_versions(known.with_writes(2, {newest.path: newest}), "other")
