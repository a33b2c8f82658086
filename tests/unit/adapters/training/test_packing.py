"""Packs hold every row once, are full, and come in an order that the seed alone decides."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.training.packing import Longs, Order, Packs, best_fit, one_each


def lengths(*values: int) -> "np.ndarray[tuple[int], np.dtype[np.int32]]":
    return np.array(values, np.int32)


def rows(count: int) -> Longs:
    return np.arange(count)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=80), st.integers(0, 3))
def test_every_row_is_in_one_pack_and_no_pack_is_too_long(given_lengths: list[int], seed: int) -> None:
    values = lengths(*given_lengths)
    packs = best_fit(rows(len(values)), values, 50, seed)
    assert sorted(packs.rows.tolist()) == list(range(len(values)))
    for at in range(len(packs)):
        assert int(values[packs[at]].sum()) == packs.tokens[at] <= 50


@given(st.lists(st.integers(1, 50), min_size=1, max_size=80))
def test_packs_are_at_most_half_as_many_again_as_could_be(given_lengths: list[int]) -> None:
    """Best-fit decreasing needs at most 11/9 of the fewest packs, and one."""
    values = lengths(*given_lengths)
    assert len(best_fit(rows(len(values)), values, 50, 0)) <= 1.5 * max(sum(given_lengths) / 50, 1) + 1


def test_a_row_goes_where_least_room_is_left_over() -> None:
    packs = best_fit(rows(4), lengths(7, 6, 4, 3), 10, 0)
    assert sorted(sorted(packs[at].tolist()) for at in range(2)) == [[0, 3], [1, 2]]


def test_rows_of_equal_length_are_mixed_by_the_seed() -> None:
    values = lengths(*[5] * 40)
    first, again, other = (best_fit(rows(40), values, 20, seed) for seed in (1, 1, 2))
    assert first.rows.tolist() == again.rows.tolist() != other.rows.tolist()
    assert first.rows.tolist() != list(range(40))


def test_a_row_longer_than_a_pack_is_refused() -> None:
    with pytest.raises(ValueError, match="a row of 12 tokens does not fit into a pack of 10"):
        best_fit(rows(2), lengths(3, 12), 10, 0)


def test_only_the_rows_given_are_packed() -> None:
    assert sorted(best_fit(np.array([1, 3]), lengths(4, 5, 6, 7), 20, 0).rows.tolist()) == [1, 3]


def taken(packs: Packs, seed: int, start: int, end: int) -> list[int]:
    return list(Order(packs, seed).between(start, end))


def test_each_epoch_takes_every_pack_once_in_another_order() -> None:
    packs = one_each(rows(30), lengths(*[3] * 30))
    first, second = taken(packs, 0, 0, 30), taken(packs, 0, 30, 60)
    assert sorted(first) == sorted(second) == list(range(30))
    assert len({tuple(first), tuple(second), tuple(range(30))}) == 3


def test_the_order_is_the_seeds_and_can_be_entered_anywhere() -> None:
    packs = one_each(rows(30), lengths(*[3] * 30))
    assert taken(packs, 5, 0, 75)[40:] == taken(packs, 5, 40, 75)
    assert taken(packs, 5, 0, 30) != taken(packs, 6, 0, 30)


def test_tokens_are_counted_over_epochs() -> None:
    packs = one_each(rows(4), lengths(1, 2, 3, 4))
    order = Order(packs, 0)
    for position in range(12):
        assert order.tokens_before(position) == sum(int(packs.tokens[pack]) for pack in order.between(0, position))
