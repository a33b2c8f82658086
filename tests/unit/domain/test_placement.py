"""Every gateway ranks alike; losing a replica moves only what it held; loaded and idle come first."""

from hypothesis import given
from hypothesis import strategies as st

from gateway.domain.placement import Candidate, choose, order, rank

NAMES = st.lists(st.text("abcdefgh0123", min_size=1, max_size=6), min_size=1, max_size=8, unique=True)
SERVED = st.text(min_size=1, max_size=30)


@given(SERVED, NAMES)
def test_the_ranking_does_not_depend_on_the_order_in_which_replicas_are_known(served: str, names: list[str]) -> None:
    assert rank(served, names) == rank(served, reversed(names))


@given(SERVED, NAMES)
def test_losing_a_replica_leaves_the_others_in_their_order(served: str, names: list[str]) -> None:
    before = rank(served, names)
    for gone in names:
        assert rank(served, [n for n in names if n != gone]) == [n for n in before if n != gone]


def test_names_spread_over_the_replicas_evenly() -> None:
    replicas = [f"r{n}" for n in range(4)]
    firsts = [rank(f"t/a@{n}-000000000000", replicas)[0] for n in range(4000)]
    assert all(850 < firsts.count(replica) < 1150 for replica in replicas)


@given(SERVED, NAMES, st.integers(1, 10))
def test_the_chosen_are_the_first_of_the_ranking(served: str, names: list[str], count: int) -> None:
    assert choose(served, names, count) == rank(served, names)[:count]
    assert choose(served, names, None) == rank(served, names)


CANDIDATES = st.lists(
    st.builds(Candidate, name=st.uuids().map(str), loaded=st.booleans(), in_flight=st.integers(0, 9),
              limit=st.integers(1, 8)), max_size=8, unique_by=lambda c: c.name)


@given(CANDIDATES, st.none() | st.integers(1, 8))
def test_every_candidate_is_tried_and_none_that_must_load_goes_before_one_that_has_it(
    candidates: list[Candidate], holders: int | None
) -> None:
    by_name = {c.name: c for c in candidates}
    tried = [by_name[name] for name in order(candidates, holders)]
    assert sorted(c.name for c in tried) == sorted(by_name)
    assert [c.loaded for c in tried] == sorted((c.loaded for c in tried), reverse=True)


@given(CANDIDATES)
def test_a_busy_replica_comes_after_every_idle_one_that_has_it_loaded(candidates: list[Candidate]) -> None:
    by_name = {c.name: c for c in candidates}
    loaded = [by_name[n] for n in order(candidates) if by_name[n].loaded]
    busy = [c.in_flight >= c.limit for c in loaded]
    assert busy == sorted(busy)
    idle_order = [c.name for c in candidates if c.loaded and c.in_flight < c.limit]
    assert [c.name for c in loaded if c.in_flight < c.limit] == idle_order


def test_a_call_spills_to_the_next_in_rank_when_the_first_is_busy() -> None:
    ranked = [Candidate("a", True, 4, 4), Candidate("b", True, 0, 4), Candidate("c", True, 0, 4)]
    assert order(ranked) == ["b", "c", "a"]


def test_the_least_loaded_of_busy_replicas_comes_first() -> None:
    assert order([Candidate("a", True, 9, 4), Candidate("b", True, 5, 4)]) == ["b", "a"]


def test_a_version_is_loaded_outside_its_holders_only_when_they_are_gone() -> None:
    ranked = [Candidate("a", False, 9, 4), Candidate("b", False, 0, 4)]
    assert order(ranked, holders=1) == ["a", "b"]
    assert order(ranked) == ["b", "a"]
