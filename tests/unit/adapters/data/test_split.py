"""Which share a row belongs to depends on its prompt alone, and the shares come out as large as asked for."""

from hypothesis import given
from hypothesis import strategies as st

from adapters.data.split import position, share_of

_shares = st.floats(0, 0.45)


def test_the_position_is_pinned_so_that_a_split_outlives_a_release() -> None:
    assert position("When does the next train leave?") == position(" when does  the next train leave?")
    assert f"{position('When does the next train leave?'):.12f}" == "0.462612735820"


def test_shares_are_as_large_as_asked_for() -> None:
    shares = [share_of(f"question {number}", 0.1, 0.05) for number in range(20_000)]
    assert abs(shares.count("validation") - 2000) < 150
    assert abs(shares.count("golden") - 1000) < 110


@given(st.text(), _shares, _shares, _shares)
def test_a_larger_share_takes_rows_from_training_only(
    prompt: str, validation: float, golden: float, more: float,
) -> None:
    before, after = share_of(prompt, validation, golden), share_of(prompt, validation, max(golden, more))
    assert after == before or (before, after) == ("train", "golden")
    after = share_of(prompt, max(validation, more), golden)
    assert after == before or (before, after) == ("train", "validation")


@given(st.text())
def test_without_shares_everything_is_trained_on(prompt: str) -> None:
    assert share_of(prompt, 0.0, 0.0) == "train"
