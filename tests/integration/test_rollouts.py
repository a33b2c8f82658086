"""Rollouts through the admin API, on real Valkey and fake replicas: what each move answers, leaves and refuses."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import pytest

from gateway.domain.happening import Kind
from tests.fixtures.artifacts import write_adapter
from tests.fixtures.fleet import Bench, FakeReplica, Gateway
from tests.fixtures.redis import RealValkey, until

ADAPTER = "/tenants/acme/adapters/support"
RELEASE = f"{ADAPTER}/release"
PLAN = "5% for 10m min 200, 25% for 10m, 100%"
EVALUATION = f'{{"version": 2, "golden_set": "{"d" * 64}", "metric": "m", "floor": 0, '
MOVES = ("shift", "pause", "resume", "promote", "abort")
WAYS: dict[str, tuple[str, ...]] = {
    "running": (), "paused": ("pause",), "promoted": ("promote",), "aborted": ("abort",)}
LEGAL = {"running": {"shift", "pause", "promote", "abort"}, "paused": {"resume", "promote", "abort"}}


@pytest.fixture
def bench(shared_valkey: RealValkey, registry_name: str, tmp_path: Path) -> Any:
    made = Bench(shared_valkey.url, registry_name, tmp_path)
    yield made
    made.close()


@pytest.fixture
async def replica(bench: Bench) -> AsyncIterator[FakeReplica]:
    async with bench.replica("one") as made:
        yield made


@pytest.fixture
async def gateway(bench: Bench, replica: FakeReplica) -> AsyncIterator[Gateway]:
    """Version 1 of acme/support is stable, version 2 ready."""
    async with bench.gateway() as made:
        await prepare(bench, made, replica)
        yield made


async def prepare(bench: Bench, gateway: Gateway, replica: FakeReplica) -> None:
    await gateway.add(replica)
    await gateway.tenants.create("operator", "acme")
    for seed in (1, 2):
        await register(bench, gateway, seed)


async def register(bench: Bench, gateway: Gateway, seed: int) -> None:
    folder = write_adapter(bench.folder / f"v{seed}", seed=seed)
    await gateway.catalog.register("operator", "acme", "support", str(folder))


async def ask(gateway: Gateway, method: str, path: str, status: int = 200, **arguments: Any) -> Any:
    """The JSON of an answer that must have that status."""
    answer = await gateway.http.request(method, path, **arguments)
    assert answer.status_code == status, answer.text
    return answer.json() if answer.content else None


async def start(gateway: Gateway, status: int = 200, **fields: Any) -> Any:
    return await ask(gateway, "POST", f"{RELEASE}/start", status, json={"canary": 2, "plan": PLAN, **fields})


async def refused(gateway: Gateway, method: str, path: str, status: int, **arguments: Any) -> str:
    """The message of a refusal with that status."""
    answer = await ask(gateway, method, path, status, **arguments)
    return str(answer["error"]["message"])


async def operator(gateway: Gateway, name: str, role: str) -> httpx.AsyncClient:
    """The API as a named operator uses it."""
    made = await ask(gateway, "POST", "/operators", 201, json={"name": name, "role": role})
    return httpx.AsyncClient(transport=httpx.ASGITransport(gateway.web, raise_app_exceptions=False), timeout=30,
                             base_url="http://gateway/admin/v1", headers={"Authorization": f"Bearer {made['key']}"})


async def test_a_canary_goes_its_way_from_start_to_promote_and_the_history_tells_it(gateway: Gateway) -> None:
    started = await start(gateway, reason="better")
    rollout = started["rollout"]
    assert (started["stable"], rollout["canary"], rollout["baseline"]) == (1, 2, 1)
    assert (rollout["phase"], rollout["weight"], rollout["reason"]) == ("running", 5.0, "better")
    assert rollout["plan"]["text"] == PLAN
    assert [step["weight"] for step in rollout["plan"]["steps"]] == [5.0, 25.0, 100.0]
    for move, fields, phase, weight in (
        ("shift", {}, "running", 25.0), ("shift", {"weight": 60}, "running", 60.0), ("pause", {}, "paused", 60.0),
        ("resume", {"reason": "lunch is over"}, "running", 60.0), ("promote", {}, "promoted", 100.0),
    ):
        answer = await gateway.http.post(f"{RELEASE}/{move}", json=fields)
        assert answer.status_code == 200, answer.text
        release = answer.json()
        assert (release["rollout"]["phase"], release["rollout"]["weight"]) == (phase, weight)
        assert answer.headers["etag"] == f'"{release["revision"]}"' == f'"{answer.headers["x-switchyard-revision"]}"'
        assert await ask(gateway, "GET", RELEASE) == release
    assert release["stable"] == 2
    page = await ask(gateway, "GET", f"{RELEASE}/history", params={"limit": 5})
    assert [change["action"] for change in page["data"]] == [
        "release.promote", "release.resume", "release.pause", "release.shift", "release.shift"]
    assert page["has_more"]
    assert page["data"][1]["detail"]["reason"] == "lunch is over"
    assert [told.kind for told in gateway.happenings] == [
        Kind.START, Kind.STEP, Kind.STEP, Kind.PAUSE, Kind.RESUME, Kind.PROMOTE]
    assert (await ask(gateway, "GET", f"{RELEASE}/analysis"))["analysis"] is None


async def test_a_move_needs_no_body(gateway: Gateway) -> None:
    await start(gateway)
    for move in ("shift", "pause", "abort"):
        await ask(gateway, "POST", f"{RELEASE}/{move}")
    assert (await ask(gateway, "GET", RELEASE))["rollout"]["phase"] == "aborted"


@pytest.mark.parametrize("phase", WAYS)
async def test_a_move_that_the_phase_does_not_know_is_409_and_changes_nothing(gateway: Gateway, phase: str) -> None:
    for move in MOVES:
        assert "has no rollout" in await refused(gateway, "POST", f"{RELEASE}/{move}", 409)
    await start(gateway)
    for move in WAYS[phase]:
        await ask(gateway, "POST", f"{RELEASE}/{move}")
    before = await ask(gateway, "GET", RELEASE)
    assert before["rollout"]["phase"] == phase
    for move in set(MOVES) - LEGAL.get(phase, set()):
        assert f"is {phase} and cannot {move}" in await refused(gateway, "POST", f"{RELEASE}/{move}", 409)
    assert await ask(gateway, "GET", RELEASE) == before
    for move in LEGAL.get(phase, set()):
        assert (await ask(gateway, "POST", f"{RELEASE}/{move}", params={"dry_run": True}))["revision"] == (
            before["revision"])


async def test_a_move_at_a_revision_that_is_gone_is_412_with_the_one_that_is(gateway: Gateway) -> None:
    old = (await start(gateway))["revision"]
    now = (await ask(gateway, "POST", f"{RELEASE}/pause", headers={"If-Match": f'"{old}"'}))["revision"]
    for method, path, body in (
        ("POST", f"{RELEASE}/resume", {}), ("POST", f"{RELEASE}/promote", {}), ("POST", f"{RELEASE}/abort", {}),
        ("PUT", f"{RELEASE}/shadow", {"version": 2}), ("DELETE", f"{RELEASE}/shadow", None),
    ):
        answer = await gateway.http.request(method, path, json=body, headers={"If-Match": f'"{old}"'})
        assert answer.status_code == 412, answer.text
        assert answer.json()["error"]["current_revision"] == now
    assert (await ask(gateway, "GET", RELEASE))["revision"] == now


async def test_two_operators_who_promote_at_once_through_two_gateways_promote_once(
    bench: Bench, gateway: Gateway, replica: FakeReplica,
) -> None:
    async with bench.gateway(reconciling=False) as other:
        await other.sees(replica)
        for number in (2, 1, 2, 1):
            started = await start(gateway, canary=number)
            await other.snapshots.wait_for(started["revision"])
            answers = await asyncio.gather(*(
                each.http.post(f"{RELEASE}/promote") for each in (gateway, other, gateway, other)))
            assert sorted(answer.status_code for answer in answers) == [200, 409, 409, 409]
            [won] = [answer.json() for answer in answers if answer.is_success]
            await gateway.snapshots.wait_for(won["revision"])
            await other.snapshots.wait_for(won["revision"])
            assert await ask(gateway, "GET", RELEASE) == won == await ask(other, "GET", RELEASE)
            assert won["stable"] == number
        history = await ask(gateway, "GET", f"{RELEASE}/history")
    assert [change["action"] for change in history["data"]].count("release.promote") == 4


async def test_a_promote_and_an_abort_at_once_are_one_of_both(bench: Bench, gateway: Gateway) -> None:
    for _ in range(4):
        await start(gateway)
        answers = await asyncio.gather(
            gateway.http.post(f"{RELEASE}/promote"), gateway.http.post(f"{RELEASE}/abort"))
        assert sorted(answer.status_code for answer in answers) == [200, 409]
        release = await ask(gateway, "GET", RELEASE)
        assert (release["rollout"]["phase"], release["stable"]) in (("promoted", 2), ("aborted", 1))
        if release["stable"] == 2:
            await ask(gateway, "PUT", RELEASE, json={"stable": 1})


async def test_a_canary_without_a_slot_is_refused_with_the_numbers_and_the_flag_and_force_is_in_the_audit(
    bench: Bench,
) -> None:
    async with bench.replica("small", max_loras=1) as replica, bench.gateway() as gateway:
        await prepare(bench, gateway, replica)
        await until(lambda: gateway.fleet.replicas()[0].slots == 1)
        message = await refused(gateway, "POST", f"{RELEASE}/start", 409, json={"canary": 2})
        assert "small has 1 slot for 2 versions (1 too few)" in message
        assert "--max-loras 2" in message
        plain = await operator(gateway, "ann", "operator")
        async with plain:
            answer = await plain.post(f"{RELEASE}/start", json={"canary": 2, "force": True})
            assert (answer.status_code, answer.json()["error"]["required_role"]) == (403, "admin")
        assert (await start(gateway, force=True))["rollout"]["forced"]
        [change] = (await ask(gateway, "GET", f"{RELEASE}/history"))["data"][:1]
        assert change["detail"]["force"] is True
        assert "1 too few" in change["detail"]["slots"]


async def test_a_canary_that_a_replica_lost_is_loaded_again_before_anybody_gets_it(
    bench: Bench, replica: FakeReplica,
) -> None:
    async with bench.gateway(reconciling=False) as gateway:
        await prepare(bench, gateway, replica)
        replica.fake.engine.adapters.clear()
        await until(lambda: not gateway.fleet.replicas()[0].loaded)
        canary = gateway.catalog.version("acme", "support", 2)
        await start(gateway)
        assert replica.listed == {canary.served_name}


async def test_a_canary_that_a_replica_refuses_is_not_started(bench: Bench, replica: FakeReplica) -> None:
    async with bench.gateway(reconciling=False) as gateway:
        await prepare(bench, gateway, replica)
        async with bench.replica("two", max_rank=4) as other:
            await gateway.add(other)
            message = await refused(gateway, "POST", f"{RELEASE}/start", 502, json={"canary": 2})
        assert "two:" in message
        assert (await ask(gateway, "GET", RELEASE))["rollout"] is None


async def test_stable_is_not_changed_under_a_live_rollout(gateway: Gateway) -> None:
    await start(gateway)
    assert "promote or abort" in await refused(gateway, "PUT", RELEASE, 409, json={"stable": 2})
    await ask(gateway, "POST", f"{RELEASE}/abort")
    assert (await ask(gateway, "PUT", RELEASE, json={"stable": 2}))["stable"] == 2


async def test_nothing_that_is_asked_for_as_a_dry_run_is_written(gateway: Gateway) -> None:
    await ask(gateway, "PUT", "/tenants/acme/aliases/old", json={"target": "support"})
    revision, end = gateway.snapshots.current.revision, (datetime.now(UTC) + timedelta(days=1)).isoformat()
    evaluation = {"version": 2, "golden_set": "d" * 64, "metric": "m", "value": 1.0, "floor": 0.5}
    dry = [
        ("POST", f"{RELEASE}/start", 200, {"canary": 2}), ("PUT", RELEASE, 200, {"stable": 2}),
        ("PUT", f"{RELEASE}/shadow", 200, {"version": 2}), ("DELETE", f"{RELEASE}/shadow", 200, None),
        ("POST", f"{ADAPTER}/evaluations", 201, evaluation),
        ("PUT", "/tenants/acme/aliases/new", 200, {"target": "support"}),
        ("DELETE", "/tenants/acme/aliases/old", 204, None),
        ("POST", "/freezes", 201, {"name": "f", "scope": "acme", "end": end, "reason": "sale"}),
    ]
    for method, path, status, body in dry:
        answer = await gateway.http.request(method, path, json=body, params={"dry_run": "true"})
        assert answer.status_code == status, answer.text
        assert "x-switchyard-revision" not in answer.headers
    assert (await gateway.registry.load()).revision == revision
    await start(gateway)
    revision = gateway.snapshots.current.revision
    for move in ("shift", "pause", "promote", "abort"):
        await ask(gateway, "POST", f"{RELEASE}/{move}", params={"dry_run": "true"})
    assert "cannot resume" in await refused(gateway, "POST", f"{RELEASE}/resume", 409, params={"dry_run": "true"})
    assert (await gateway.registry.load()).revision == revision
    assert len(gateway.happenings) == 1


async def test_a_required_evaluation_that_is_missing_is_409_and_one_that_passes_opens(
    bench: Bench, replica: FakeReplica,
) -> None:
    async with bench.gateway() as gateway:
        await gateway.add(replica)
        await gateway.tenants.create("operator", "acme")
        await ask(gateway, "PUT", ADAPTER, json={"evaluation": "required"})
        for seed in (1, 2):
            await register(bench, gateway, seed)
        assert (await ask(gateway, "GET", RELEASE))["stable"] is None, "the first version has proven nothing"
        assert "no evaluation record" in await refused(gateway, "PUT", RELEASE, 409, json={"stable": 1})
        await evaluate(gateway, 1, 0.9)
        await ask(gateway, "PUT", RELEASE, json={"stable": 1})
        message = await refused(gateway, "POST", f"{RELEASE}/start", 409, json={"canary": 2})
        assert "Version 2 of acme/support has no evaluation record" in message
        assert f"POST the result to /admin/v1{ADAPTER}/evaluations" in message
        await evaluate(gateway, 2, 0.7)
        message = await refused(gateway, "POST", f"{RELEASE}/start", 409, json={"canary": 2})
        assert "exact_match 0.7 on golden set dddddddddddd is below 0.8" in message
        passing = await evaluate(gateway, 2, 0.9)
        assert (await start(gateway))["warnings"] == []
        listed = await ask(gateway, "GET", f"{ADAPTER}/evaluations", params={"version": 2})
        assert [record["passed"] for record in listed["data"]] == [True, False]
        assert listed["data"][0] == passing
        assert (await ask(gateway, "PUT", ADAPTER, json={"replicas": 1}))["evaluation"] == "required", "it stays"


async def evaluate(gateway: Gateway, number: int, value: float) -> Any:
    body = {"version": number, "golden_set": "d" * 64, "metric": "exact_match", "value": value, "floor": 0.8,
            "report": {"rows": 100, "worst": ["a", "b"]}}
    return await ask(gateway, "POST", f"{ADAPTER}/evaluations", 201, json=body)


async def test_a_policy_that_warns_tells_it_in_the_answer_and_in_the_audit(gateway: Gateway) -> None:
    release = await start(gateway)
    assert [text[:9] for text in release["warnings"]] == ["Version 1", "Version 2"]
    [change] = (await ask(gateway, "GET", f"{RELEASE}/history"))["data"]
    assert "Version 2 of acme/support has no evaluation record" in change["detail"]["warning"]


async def test_in_a_freeze_window_moves_are_409_but_an_abort_is_not(gateway: Gateway) -> None:
    await start(gateway)
    end = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    window = {"name": "sale", "scope": "acme/support", "end": end, "reason": "black friday"}
    made = await ask(gateway, "POST", "/freezes", 201, json=window)
    assert (await ask(gateway, "GET", "/freezes"))["data"] == [made]
    assert await ask(gateway, "GET", "/freezes/sale") == made
    for move in ("shift", "pause", "promote"):
        message = await refused(gateway, "POST", f"{RELEASE}/{move}", 409)
        assert "black friday" in message
        assert "DELETE /admin/v1/freezes/sale" in message
    await ask(gateway, "POST", f"{RELEASE}/abort")
    assert "frozen" in await refused(gateway, "POST", f"{RELEASE}/start", 409, json={"canary": 2})
    assert "frozen" in await refused(gateway, "PUT", RELEASE, 409, json={"stable": 2})
    plain = await operator(gateway, "ann", "operator")
    async with plain:
        assert (await plain.delete("/freezes/sale")).status_code == 403
    await ask(gateway, "DELETE", "/freezes/sale", 204)
    await start(gateway)


async def test_a_second_operators_promote_is_the_approval(gateway: Gateway) -> None:
    ann, bob = await operator(gateway, "ann", "operator"), await operator(gateway, "bob", "operator")
    async with ann, bob:
        assert (await ann.post(f"{RELEASE}/start", json={"canary": 2, "approvals": 2})).status_code == 200
        answer = await ann.post(f"{RELEASE}/promote")
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "conflict")
        approved = await bob.post(f"{RELEASE}/promote")
        assert approved.status_code == 202
        rollout = approved.json()["rollout"]
        assert (rollout["approved_by"], rollout["approvals_missing"]) == (["bob"], 1)
        assert (await bob.post(f"{RELEASE}/promote")).status_code == 409
    assert (await ask(gateway, "POST", f"{RELEASE}/promote"))["stable"] == 2


async def test_a_viewer_may_ask_where_a_caller_goes_but_not_send_it_there(gateway: Gateway) -> None:
    await start(gateway, plan="50%, 100%")
    viewer = await operator(gateway, "eve", "viewer")
    async with viewer:
        told = [(await viewer.post(f"{ADAPTER}/route:explain", json={"subject": f"u{n}"})).json() for n in range(40)]
        assert (await viewer.post(f"{RELEASE}/promote")).status_code == 403
    assert {one["track"] for one in told} == {"stable", "canary"}
    assert all((one["bucket"] < 5000) is (one["track"] == "canary") is (one["version"] == 2) for one in told)
    assert {one["replicas"][0] for one in told} == {"one"}


@pytest.mark.parametrize(("path", "body"), [
    (f"{RELEASE}/start", '{"canary": 2, "plan": {"steps": [{"weight": NaN}, {"weight": 100}]}}'),
    (f"{RELEASE}/start", '{"canary": 2, "plan": {"steps": [{"weight": 5, "min_time": Infinity}, {"weight": 100}]}}'),
    (f"{RELEASE}/start", '{"canary": 2, "plan": {"steps": ["\\ud800", "100%"]}}'),
    (f"{RELEASE}/start", '{"canary": 2, "plan": {"steps": ' + "[" * 400 + "]" * 400 + "}}"),
    (f"{RELEASE}/start", '{"canary": 2, "reason": "\\ud800"}'),
    (f"{RELEASE}/shift", '{"weight": NaN}'),
    (f"{ADAPTER}/route:explain", '{"subject": ""}'),
    (f"{ADAPTER}/evaluations", EVALUATION + '"value": 1, "report": {"x": ' + "[" * 400 + "]" * 400 + "}}"),
    (f"{ADAPTER}/evaluations", EVALUATION + '"value": 1, "report": {"x": NaN}}'),
    (f"{ADAPTER}/evaluations", EVALUATION + '"value": 1, "report": {"x": "\\ud800"}}'),
    (f"{ADAPTER}/evaluations", EVALUATION + '"value": Infinity}'),
    ("/freezes", '{"name": "f", "scope": "acme", "end": "9999-12-31T23:59:59-12:00", "reason": "x"}'),
    ("/freezes", '{"name": "f", "scope": "acme", "start": "0001-01-01T00:00:00+14:00", "end": "2999-01-01T00:00:00Z", '
                 '"reason": "x"}'),
])
async def test_what_cannot_be_kept_or_counted_is_400(gateway: Gateway, path: str, body: str) -> None:
    answer = await gateway.http.post(path, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400, answer.text


@pytest.mark.parametrize("plan", ["5%", "nonsense", {"steps": []}, {"steps": [{"weight": "x"}]}, {"a": [[[[]]]]}, ""])
async def test_a_plan_that_makes_no_sense_is_400_on_plan(gateway: Gateway, plan: Any) -> None:
    answer = await ask(gateway, "POST", f"{RELEASE}/start", 400, json={"canary": 2, "plan": plan})
    assert answer["error"]["param"].startswith("plan")


async def test_a_shadow_is_set_changed_and_taken_away(gateway: Gateway) -> None:
    assert (await ask(gateway, "PUT", f"{RELEASE}/shadow", json={"version": 2, "share": 12.5}))["shadow"] == {
        "version": 2, "share": 12.5}
    assert "is the stable version" in await refused(gateway, "PUT", f"{RELEASE}/shadow", 409, json={"version": 1})
    retired = await refused(gateway, "DELETE", f"{ADAPTER}/versions/2", 409)
    assert "shadow" in retired
    assert (await ask(gateway, "DELETE", f"{RELEASE}/shadow"))["shadow"] is None


async def test_aliases_are_put_listed_and_deleted_and_never_hide_an_adapter(gateway: Gateway) -> None:
    made = await ask(gateway, "PUT", "/tenants/acme/aliases/champion", json={"target": "support@2"})
    assert made["target"] == "support@2"
    assert (await ask(gateway, "GET", "/tenants/acme/aliases"))["data"] == [made]
    assert await ask(gateway, "GET", "/tenants/acme/aliases/champion") == made
    assert "is an alias" in await refused(gateway, "PUT", "/tenants/acme/adapters/champion", 409, json={})
    assert "is an adapter" in await refused(
        gateway, "PUT", "/tenants/acme/aliases/support", 409, json={"target": "support"})
    stale = {"If-Match": f'"{made["revision"] + 1}"'}
    await ask(gateway, "DELETE", "/tenants/acme/aliases/champion", 412, headers=stale)
    await ask(gateway, "DELETE", "/tenants/acme/aliases/champion", 204)
    await ask(gateway, "GET", "/tenants/acme/aliases/champion", 404)


async def test_a_key_may_pin_only_if_it_was_made_so(gateway: Gateway) -> None:
    plain = await ask(gateway, "POST", "/tenants/acme/keys", 201, json={"name": "shop"})
    pinning = await ask(gateway, "POST", "/tenants/acme/keys", 201, json={"name": "tests", "may_pin": True})
    assert (plain["may_pin"], pinning["may_pin"]) == (False, True)


async def test_a_move_takes_effect_on_another_gateway_within_a_quarter_of_a_second(
    bench: Bench, gateway: Gateway, replica: FakeReplica,
) -> None:
    async with bench.gateway(reconciling=False) as other:
        await other.sees(replica)
        seconds = []
        for move in ("start", "shift", "abort", "start", "promote"):
            body = {"canary": 2} if move == "start" else {}
            asked = asyncio.get_running_loop().time()
            made = await ask(gateway, "POST", f"{RELEASE}/{move}", json=body)
            await until(partial(_has_reached, other, made["revision"]))
            seconds.append(asyncio.get_running_loop().time() - asked)
        assert median(seconds) < 0.25


def _has_reached(gateway: Gateway, revision: int) -> bool:
    return gateway.snapshots.current.revision >= revision
