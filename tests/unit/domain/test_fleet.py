"""An adapter is told from the base model by its distance from all that the base model says, not from one answer."""

from hypothesis import given
from hypothesis import strategies as st

from gateway.domain.fleet import Effect

PATTERN = st.lists(st.floats(-9, 0), min_size=2, max_size=2)
PROMPTS = st.lists(st.lists(PATTERN, min_size=2, max_size=4), min_size=3, max_size=3)
"""For each of three prompts, the bit patterns that an engine has for it."""


def runs(prompts: list[list[list[float]]], picks: list[int]) -> list[list[list[float]]]:
    return [[patterns[pick % len(patterns)] for patterns in prompts] for pick in picks]


@given(PROMPTS, st.lists(st.integers(0, 3), min_size=2, max_size=5))
def test_what_the_base_model_said_too_is_no_effect(prompts: list[list[list[float]]], picks: list[int]) -> None:
    said = runs(prompts, picks)
    assert Effect.between(said, said[-1:]).effect == 0.0


@given(PROMPTS, st.integers(1, 50))
def test_what_is_away_from_everything_the_base_model_said_is_an_effect(
    prompts: list[list[list[float]]], distance: int
) -> None:
    base = runs(prompts, [0, 1, 2])
    adapter = [[[value - 20 - distance for value in pattern] for pattern in run] for run in base]
    assert Effect.between(base, adapter).effect >= distance


def test_one_prompt_alone_makes_no_effect_and_hides_none() -> None:
    base = [[[-1.0], [-1.0], [-1.0]]] * 2
    assert Effect.between(base, [[[-9.0], [-1.0], [-1.0]]]).effect == 0.0
    assert Effect.between(base, [[[-1.0], [-1.5], [-2.0]]]).effect == 0.5


def test_the_noise_is_how_far_the_base_model_is_from_its_nearest_other_self() -> None:
    two_patterns = [[[-1.0]], [[-1.3]], [[-1.0]], [[-1.3]]]
    assert Effect.between(two_patterns, two_patterns).noise == 0.0
    never_the_same = [[[-1.0]], [[-1.25]], [[-2.0]]]
    assert Effect.between(never_the_same, never_the_same).noise == 0.25
