"""A canary that does not fit is refused with how much is missing, where, and the flag to raise."""

from hypothesis import given
from hypothesis import strategies as st

from gateway.domain.placement import choose
from gateway.domain.slots import ReplicaSlots, Shortage, check_slots, holders_of

NAMES = st.sampled_from([f"t/a@{n}-000000000000" for n in range(8)])
HOT = st.dictionaries(NAMES, st.none() | st.integers(1, 4), max_size=8)
POOL = st.dictionaries(st.sampled_from(["r0", "r1", "r2", "r3"]), st.none() | st.integers(1, 9), min_size=1)


def test_a_canary_that_takes_the_last_slot_fits() -> None:
    assert check_slots("c", [ReplicaSlots("r0", 3, {"a", "b"})]).fits


def test_a_canary_that_is_hot_already_is_counted_once() -> None:
    assert check_slots("c", [ReplicaSlots("r0", 2, {"a", "c"})]).fits


def test_the_sentence_says_by_how_much_on_which_replicas_and_which_flag_to_raise() -> None:
    check = check_slots("t/a@4-0", [
        ReplicaSlots("r0", 4, set("abcd")), ReplicaSlots("r1", 1, set("abcde")), ReplicaSlots("r2", 9, set("ab")),
        ReplicaSlots("r3", None, set())])
    assert check.shortages == (Shortage("r1", 1, 6), Shortage("r0", 4, 5))
    assert [shortage.missing for shortage in check.shortages] == [5, 1]
    assert check.sentence == (
        "t/a@4-0 does not fit beside the versions that must stay hot: r1 has 1 slot for 6 versions (5 too few), r0 has "
        "4 slots for 5 versions (1 too few). Restart the replicas with vLLM's --max-loras 6, take other versions off "
        "them, or force the start. Not known, and so not checked: the slots of r3.")


def test_a_replica_that_does_not_tell_its_slots_refuses_nothing_but_is_named() -> None:
    check = check_slots("c", [ReplicaSlots("r0", None, set("abcdef"))])
    assert check.fits
    assert check.sentence == (
        "c has a slot on every replica that is to hold it. Not known, and so not checked: the slots of r0.")


@given(NAMES, st.none() | st.integers(1, 4), HOT, POOL)
def test_only_the_candidates_holders_are_asked_each_for_the_versions_placed_on_it(
    candidate: str, count: int | None, hot: dict[str, int | None], slots: dict[str, int | None],
) -> None:
    replicas = holders_of(candidate, count, hot, slots)
    assert [r.name for r in replicas] == choose(candidate, slots, count)
    for replica in replicas:
        assert replica.slots == slots[replica.name]
        assert replica.hot == {n for n, holders in hot.items() if replica.name in choose(n, slots, holders)}


@given(NAMES, HOT, POOL)
def test_it_fits_exactly_when_the_slots_found_missing_are_added(
    candidate: str, hot: dict[str, int | None], slots: dict[str, int | None],
) -> None:
    check = check_slots(candidate, holders_of(candidate, None, hot, slots))
    raised = {**slots, **{s.replica: s.needed for s in check.shortages}}
    assert check_slots(candidate, holders_of(candidate, None, hot, raised)).fits
    for shortage in check.shortages:
        assert shortage.missing > 0
        short = {**raised, shortage.replica: shortage.needed - 1}
        assert not check_slots(candidate, holders_of(candidate, None, hot, short)).fits
