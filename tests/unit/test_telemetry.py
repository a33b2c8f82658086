"""The metrics of releases: what a split decided, and how every release stands, alike on every gateway."""

import math
from dataclasses import replace

from gateway.domain.model import Release, Snapshot
from gateway.domain.plan import DEFAULT
from gateway.domain.rollout import Move, Rollout, apply
from gateway.telemetry import Metrics, Record, Telemetry, make_log

CALL = Record("r", "chat", 0.0, tenant="acme", adapter="support", version="2", track="canary", status=200,
              epoch="e-1", ended=1.0)


def shown(metrics: Metrics, name: str) -> list[str]:
    lines = metrics.render().decode().splitlines()
    return sorted(line.removeprefix(f"switchyard_{name}") for line in lines if line.startswith(f"switchyard_{name}{{"))


def snapshot(*releases: Release) -> Snapshot:
    return Snapshot.of(1, {release.path: release for release in releases})


def test_only_calls_that_a_rollout_split_are_counted_as_split_and_tallied() -> None:
    metrics, tallied = Metrics(10), list[Record]()
    telemetry = Telemetry(metrics, make_log("error"), tallied.append)
    for record in (CALL, replace(CALL, track="stable", version="1"), CALL, replace(CALL, epoch="")):
        telemetry.close(record)
    assert shown(metrics, "split_decisions_total") == [
        '{adapter="support",tenant="acme",track="canary"} 2.0', '{adapter="support",tenant="acme",track="stable"} 1.0']
    assert [record.track for record in tallied] == ["canary", "stable", "canary"]


def test_adapters_beyond_the_limit_are_counted_as_other() -> None:
    metrics = Metrics(1)
    for name in ("one", "two", "three"):
        metrics.observe(replace(CALL, adapter=name))
    assert shown(metrics, "split_decisions_total") == [
        '{adapter="one",tenant="acme",track="canary"} 1.0', '{adapter="other",tenant="other",track="other"} 2.0']


def test_weight_and_verdict_follow_the_registry_and_the_verdict_outlives_the_rollout() -> None:
    metrics = Metrics(10)
    idle = Rollout(canary=2, baseline=1, plan=DEFAULT, salt="s")
    release = Release(tenant="acme", adapter="support", stable=1)
    metrics.follow(snapshot(release))
    assert shown(metrics, "release_weight") == []
    live = apply(idle, Move.START, 1.0)
    metrics.follow(snapshot(replace(release, rollout=live)))
    assert shown(metrics, "release_weight") == ['{adapter="support",tenant="acme"} 5.0']
    assert shown(metrics, "release_verdict") == ['{adapter="support",tenant="acme"} 0.0']
    over = replace(release, rollout=apply(live, Move.ABORT, 2.0), analysis={"verdict": "fail"})
    metrics.follow(snapshot(over))
    assert shown(metrics, "release_weight") == ['{adapter="support",tenant="acme"} 0.0']
    assert shown(metrics, "release_verdict") == ['{adapter="support",tenant="acme"} 4.0']


def test_releases_beyond_the_limit_are_not_shown() -> None:
    metrics = Metrics(2)
    live = apply(Rollout(canary=2, baseline=1, plan=DEFAULT, salt="s"), Move.START, 1.0)
    metrics.follow(snapshot(*(Release(tenant="acme", adapter=f"a{n}", stable=1, rollout=live) for n in range(5))))
    assert len(shown(metrics, "release_weight")) == 2


def test_the_quality_of_what_is_no_longer_shown_is_no_number() -> None:
    metrics = Metrics(10)
    metrics.show_quality({("acme", "support", "1"): 0.5, ("acme", "support", "2"): 1.0}, {("acme", "support"): 0.9})
    metrics.show_quality({("acme", "support", "2"): 0.75}, {})
    gone, here = shown(metrics, "adapter_quality")
    assert math.isnan(float(gone.split()[1])) and here == '{adapter="support",tenant="acme",version="2"} 0.75'
    assert [math.isnan(float(line.split()[1])) for line in shown(metrics, "adapter_quality_floor")] == [True]
    metrics.show_quality({("acme", "support", "1"): 0.25}, {("acme", "support"): 0.9})
    assert shown(metrics, "adapter_quality")[0].endswith(" 0.25")
    assert shown(metrics, "adapter_quality_floor")[0].endswith(" 0.9")


def test_qualities_beyond_the_limit_are_not_shown() -> None:
    metrics = Metrics(2)
    metrics.show_quality({("acme", f"a{n}", "1"): 1.0 for n in range(5)}, {("acme", f"a{n}"): 1.0 for n in range(5)})
    assert (len(shown(metrics, "adapter_quality")), len(shown(metrics, "adapter_quality_floor"))) == (2, 2)
