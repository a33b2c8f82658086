"""What replicas lack and hold too much: nothing wanted is taken away, and no file while anything may need it."""

from collections.abc import Sequence
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from gateway.domain.fleet import ReplicaView
from gateway.domain.model import Adapter, Entity, Release, Replica, Snapshot, Version, VersionPhase
from gateway.domain.placement import choose
from gateway.domain.reconcile import Load, Plan, Policy, Unload, decide, is_listed, may_remove, patience, uses_files

STORE = "/store"
NOW = 1000.0
POLICY = Policy(artifacts_path=STORE, retire_grace=10.0, stranger_grace=60.0)
DIGESTS = ("a" * 64, "b" * 64, "c" * 64)


def version(number: int = 1, phase: VersionPhase = VersionPhase.READY, **fields: object) -> Version:
    values: dict[str, object] = {
        "tenant": "acme", "adapter": "support", "number": number, "digest": DIGESTS[0], "phase": phase,
        "base_model": "base", "rank": 8, "alpha": 16.0, "targets": (), "size_bytes": 1, "source": "upload",
        "created_at": 0.0, "phase_at": 0.0, "effect": 1.0, **fields}
    return Version(**values)  # type: ignore[arg-type]


def view(name: str = "one", *versions: Version, **fields: object) -> ReplicaView:
    values: dict[str, object] = {
        "name": name, "url": "", "healthy": True, "base_model": "base", "root": None, "busy_adapters": frozenset(),
        "loaded": {v.served_name: path_of(v) for v in versions}, "slots": None, "in_flight": 0, "exposed": (),
        "started_at": None, "engine_version": None, "last_error": None, **fields}
    return ReplicaView(**values)  # type: ignore[arg-type]


def path_of(one: Version) -> str:
    return f"{STORE}/sha256/{one.digest}"


def snapshot(*entities: Entity) -> Snapshot:
    return Snapshot.of(1, {entity.path: entity for entity in entities})


def plan(known: Snapshot, *views: ReplicaView, strangers: dict[tuple[str, str], float] | None = None) -> Plan:
    return decide(known, views, strangers or {}, choose=choose, policy=POLICY, now=NOW)


def test_a_ready_version_is_loaded_on_every_healthy_replica_of_its_pool() -> None:
    one = version()
    found = plan(snapshot(one), view("a"), view("b", one), view("c", healthy=False), view("d", base_model="other"))
    assert found.loads == (Load("a", one),)


def test_an_adapter_that_asks_for_two_replicas_gets_two() -> None:
    one = version()
    known = snapshot(one, Adapter(tenant="acme", name="support", created_at=0.0, replicas=2))
    assert len(plan(known, *(view(name) for name in "abcd")).loads) == 2


def test_versions_that_take_traffic_are_loaded_first() -> None:
    versions = [version(n, digest=f"{n:064d}") for n in (1, 2, 3)]
    known = snapshot(*versions, Release(tenant="acme", adapter="support", stable=3))
    assert plan(known, view()).loads[0].version.number == 3


def test_a_preparing_version_is_left_to_its_preparer() -> None:
    one = version(phase=VersionPhase.PREPARING)
    assert plan(snapshot(one), view("a"), view("b", one)) == Plan((), (), (), {})


def test_a_wanted_name_with_other_bytes_is_unloaded_and_not_loaded_over() -> None:
    one = version()
    found = plan(snapshot(one), view("a", loaded={one.served_name: f"{STORE}/sha256/{DIGESTS[1]}"}))
    assert found.unloads == (Unload("a", one.served_name),)
    assert found.loads == ()


def test_a_retiring_version_keeps_its_place_for_the_grace_time() -> None:
    early = version(phase=VersionPhase.RETIRING, phase_at=NOW - 9)
    late = replace(early, phase_at=NOW - 10)
    assert plan(snapshot(early), view("a", early)).unloads == ()
    assert plan(snapshot(late), view("a", late)).unloads == (Unload("a", late.served_name),)


def test_a_version_that_never_was_ready_leaves_without_grace() -> None:
    one = version(phase=VersionPhase.RETIRING, phase_at=NOW, effect=None)
    assert plan(snapshot(one), view("a", one)).unloads == (Unload("a", one.served_name),)
    assert plan(snapshot(one), view("a")).removable == (one,)


def test_a_retired_version_that_turns_up_is_unloaded_at_once() -> None:
    one = version(phase=VersionPhase.RETIRED, phase_at=NOW)
    assert plan(snapshot(one), view("a", one)).unloads == (Unload("a", one.served_name),)


def test_a_registered_replica_that_was_not_seen_yet_keeps_every_file() -> None:
    one = version(phase=VersionPhase.RETIRING)
    hidden = Replica(name="hidden", url="http://h", created_at=0.0)
    assert plan(snapshot(one, hidden), view("a")).removable == ()


def test_a_replica_whose_last_look_failed_keeps_every_file_though_it_still_counts_as_healthy() -> None:
    one = version(phase=VersionPhase.RETIRING)
    assert plan(snapshot(one), view("a", last_error="no answer")).removable == ()


def test_a_busy_version_keeps_its_files_though_it_is_not_listed() -> None:
    one = version(phase=VersionPhase.RETIRING)
    assert plan(snapshot(one), view("a", busy_adapters=frozenset({one.served_name}))).removable == ()


def test_files_that_another_name_was_loaded_from_stay() -> None:
    one = version(phase=VersionPhase.RETIRING)
    assert plan(snapshot(one), view("a", loaded={"somebody": path_of(one)})).removable == ()


def test_versions_share_files_until_the_last_of_them_is_retired() -> None:
    one, other = version(phase=VersionPhase.RETIRING), version(adapter="sales")
    assert uses_files(snapshot(one, other), one)
    assert not uses_files(snapshot(one, replace(other, phase=VersionPhase.RETIRED)), one)
    assert not uses_files(snapshot(one), one)


def test_a_stranger_is_unloaded_after_it_has_been_seen_for_the_grace_time() -> None:
    name = "acme/ghost@9-0123456789ab"
    there = view("a", loaded={
        name: f"{STORE}/sha256/x", "lora": f"{STORE}/x", "acme/far@1-0123456789ab": "/elsewhere/x"})
    first = plan(snapshot(), there)
    assert first.unloads == ()
    assert dict(first.strangers) == {("a", name): NOW}
    assert plan(snapshot(), there, strangers={("a", name): NOW - 59}).unloads == ()
    assert plan(snapshot(), there, strangers={("a", name): NOW - 60}).unloads == (Unload("a", name),)


def test_a_stranger_that_went_and_came_back_waits_anew() -> None:
    name = "acme/ghost@9-0123456789ab"
    assert plan(snapshot(), view("a"), strangers={("a", name): 0.0}).strangers == {}


def test_a_replica_that_sees_the_store_elsewhere_has_its_strangers_there() -> None:
    name = "acme/ghost@9-0123456789ab"
    far = Replica(name="a", url="http://h", created_at=0.0, artifacts_path="/mnt/far/")
    assert plan(snapshot(far), view("a", loaded={name: "/mnt/far/sha256/x"})).strangers
    assert not plan(snapshot(far), view("a", loaded={name: f"{STORE}/sha256/x"})).strangers


def test_patience_doubles_up_to_about_a_minute() -> None:
    assert [patience(n) for n in (1, 2, 3, 7, 8, 1000)] == [1, 2, 4, 64, 64, 64]


# --- whatever there is -----------------------------------------------------------------------------------------------

phases = st.sampled_from(list(VersionPhase))
versions = st.builds(
    version, number=st.integers(1, 4), phase=phases, digest=st.sampled_from(DIGESTS),
    adapter=st.sampled_from(["support", "sales"]), base_model=st.sampled_from(["base", "other"]),
    phase_at=st.sampled_from([0.0, NOW - 5, NOW]), effect=st.sampled_from([None, 1.0]))
adapters = st.builds(
    Adapter, tenant=st.just("acme"), name=st.sampled_from(["support", "sales"]), created_at=st.just(0.0),
    replicas=st.sampled_from([None, 1, 2]))


@st.composite
def worlds(draw: st.DrawFn) -> tuple[Snapshot, list[ReplicaView]]:
    known = snapshot(*draw(st.lists(versions, max_size=6)), *draw(st.lists(adapters, max_size=2)))
    names = [v.served_name for v in known.versions.values()] + ["acme/ghost@9-0123456789ab", "somebody"]
    paths = st.sampled_from([f"{STORE}/sha256/{digest}" for digest in DIGESTS] + ["/elsewhere"])
    views = [
        view(name, healthy=draw(st.booleans()), base_model=draw(st.sampled_from(["base", "other", None])),
             loaded=draw(st.dictionaries(st.sampled_from(names), paths, max_size=5)),
             busy_adapters=draw(st.frozensets(st.sampled_from(names), max_size=2)),
             last_error=draw(st.sampled_from([None, "no answer"])))
        for name in draw(st.sets(st.sampled_from("abc")))
    ]
    return known, views


@given(worlds())
def test_a_wanted_version_is_never_unloaded(world: tuple[Snapshot, list[ReplicaView]]) -> None:
    known, views = world
    by_name = {one.name: one for one in views}
    overdue = {(one.name, name): 0.0 for one in views for name in one.loaded}
    found = plan(known, *views, strangers=overdue)
    wanted = {v.served_name: v for v in known.versions.values() if v.is_wanted}
    for unload in found.unloads:
        assert by_name[unload.replica].healthy
        if unload.served_name in wanted:
            assert not is_listed(wanted[unload.served_name], by_name[unload.replica])


@given(worlds())
def test_no_files_go_while_anything_lists_them_or_may_list_them(world: tuple[Snapshot, list[ReplicaView]]) -> None:
    known, views = world
    for gone in plan(known, *views).removable:
        assert gone.phase is VersionPhase.RETIRING
        for one in views:
            assert one.healthy
            assert one.last_error is None
            assert gone.served_name not in one.loaded
            assert gone.served_name not in one.busy_adapters
            if not uses_files(known, gone):
                assert all(gone.digest not in root for root in one.loaded.values())


@given(worlds())
def test_only_ready_versions_are_loaded_and_only_where_they_belong(world: tuple[Snapshot, list[ReplicaView]]) -> None:
    known, views = world
    by_name = {one.name: one for one in views}
    found = plan(known, *views)
    assert len(set(found.loads)) == len(found.loads)
    for load in found.loads:
        place = by_name[load.replica]
        assert load.version.phase is VersionPhase.READY
        assert place.healthy
        assert place.base_model == load.version.base_model
        assert load.version.served_name not in place.loaded


@given(worlds())
def test_doing_what_is_planned_comes_to_rest_with_everything_in_place(
    world: tuple[Snapshot, list[ReplicaView]],
) -> None:
    known, views = world
    strangers: dict[tuple[str, str], float] = {}
    now = NOW
    for _ in range(4):
        now += 100
        found = decide(known, views, strangers, choose=choose, policy=POLICY, now=now)
        strangers = dict(found.strangers)
        views = [_after(one, found) for one in views]
    last = decide(known, views, strangers, choose=choose, policy=POLICY, now=now)
    assert (last.loads, last.unloads) == ((), ())
    for one in known.versions.values():
        pool = [there for there in views if there.healthy and there.base_model == one.base_model]
        adapter = known.adapters.get((one.tenant, one.adapter))
        count = min(len(pool), (adapter and adapter.replicas) or len(pool))
        if one.phase is VersionPhase.READY:
            assert sum(is_listed(one, there) for there in pool) >= count
        elif not one.is_wanted:
            assert all(one.served_name not in there.loaded for there in views if there.healthy)
            assert may_remove(one, known, views, POLICY, now) <= (one.phase is VersionPhase.RETIRING)


def _after(one: ReplicaView, found: Plan) -> ReplicaView:
    unloaded = {unload.served_name for unload in found.unloads if unload.replica == one.name}
    loaded: Sequence[Version] = [load.version for load in found.loads if load.replica == one.name]
    kept = {name: root for name, root in one.loaded.items() if name not in unloaded}
    return replace(one, loaded={**kept, **{v.served_name: path_of(v) for v in loaded}})
