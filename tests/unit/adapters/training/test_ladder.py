"""When memory runs out, a step goes on learning from as much as before for as long as that can be."""

from dataclasses import replace

import pytest

from adapters import recipe
from adapters.training.ladder import Shape, first_shape, next_rung

SHAPE = Shape(batch=8, accumulation=2, processes=2, max_length=512, pack_length=None, checkpoint_layers="none")


def rungs(shape: Shape) -> list[Shape]:
    found = []
    while (rung := next_rung(shape)) is not None:
        shape, words = rung
        assert words
        found.append(shape)
    return found


def test_first_the_batch_is_halved_and_accumulated_twice_as_often() -> None:
    assert [(shape.batch, shape.accumulation) for shape in rungs(SHAPE)[:3]] == [(4, 4), (2, 8), (1, 16)]


@pytest.mark.parametrize(("batch", "accumulation"), [(3, 2), (7, 1), (12, 5)])
def test_a_smaller_batch_leaves_the_effective_batch_as_it_is(batch: int, accumulation: int) -> None:
    shape = replace(SHAPE, batch=batch, accumulation=accumulation)
    assert {smaller.packs_per_step for smaller in rungs(shape)} == {shape.packs_per_step}


def test_then_all_layers_are_checkpointed_before_a_row_is_cut() -> None:
    later = rungs(replace(SHAPE, batch=1, checkpoint_layers=4))
    assert [shape.checkpoint_layers for shape in later] == ["all", "all", "all"]
    assert [shape.max_length for shape in later] == [512, 256, 128]


def test_packs_are_shortened_to_a_rows_length_and_a_step_takes_more_of_them() -> None:
    packed = replace(SHAPE, batch=1, pack_length=1300, checkpoint_layers="all")
    later = rungs(packed)
    assert [(shape.pack_length, shape.accumulation) for shape in later[:2]] == [(650, 4), (512, 5)]
    assert all(shape.pack_length is None or shape.pack_length >= shape.max_length for shape in later)


def test_the_ladder_ends() -> None:
    assert next_rung(replace(SHAPE, batch=1, max_length=128, checkpoint_layers="all")) is None


def test_the_first_shape_is_the_recipes() -> None:
    read = recipe.from_document({
        "base_model": "b", "data": "d", "output": "o", "speed": {"checkpoint_layers": 3},
        "training": {"batch": 2, "accumulation": 3, "max_length": 100, "packing": True}})
    assert first_shape(read, 4) == Shape(
        batch=2, accumulation=3, processes=4, max_length=100, pack_length=400, checkpoint_layers=3)


def test_gradient_checkpointing_means_all_layers() -> None:
    read = recipe.from_document({
        "base_model": "b", "data": "d", "output": "o", "training": {"gradient_checkpointing": True}})
    assert first_shape(read, 1).checkpoint_layers == "all"
