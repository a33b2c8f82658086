"""What to change when memory runs out: one rung at a time, and never what a step learns from as long as that can be."""

from dataclasses import dataclass, replace

from adapters.recipe import Recipe

SHORTEST = 128
"""Rows are not cut to fewer tokens than this for want of memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """How much is computed at once. `batch` packs on each of `processes`, `accumulation` times a step.

    Rows are cut to `max_length` tokens and packs hold at most `pack_length`, None where every row is its own pack;
    `checkpoint_layers` is as in the recipe.
    """

    batch: int
    accumulation: int
    processes: int
    max_length: int
    pack_length: int | None
    checkpoint_layers: str | int

    @property
    def packs_per_step(self) -> int:
        """The effective batch."""
        return self.batch * self.accumulation * self.processes


def first_shape(recipe: Recipe, processes: int) -> Shape:
    """The recipe's own."""
    training = recipe.training
    return Shape(
        batch=training.batch, accumulation=training.accumulation, processes=processes, max_length=training.max_length,
        pack_length=training.packed_length,
        checkpoint_layers="all" if training.gradient_checkpointing else recipe.speed.checkpoint_layers)


def next_rung(shape: Shape) -> tuple[Shape, str] | None:
    """What needs less memory, and what it is in words; None at the end.

    First smaller batches, accumulated more often; then activations computed twice: neither changes what a step learns
    from. Then shorter packs, more of them a step; last of all shorter rows.
    """
    if shape.batch > 1:
        packs = shape.batch * shape.accumulation
        batch = max(size for size in range(1, shape.batch // 2 + 1) if packs % size == 0)
        smaller = replace(shape, batch=batch, accumulation=packs // batch)
        return smaller, (f"batch {shape.batch} × accumulation {shape.accumulation} becomes "
                         f"{batch} × {smaller.accumulation}; a step learns from as much as before")
    if shape.checkpoint_layers != "all":
        return replace(shape, checkpoint_layers="all"), "all layers now compute their activations twice"
    if shape.pack_length is not None and shape.pack_length > shape.max_length:
        length = max(shape.pack_length // 2, shape.max_length)
        accumulation = round(shape.accumulation * shape.pack_length / length)
        return (replace(shape, pack_length=length, accumulation=accumulation),
                f"packs of {shape.pack_length} tokens become packs of {length}, {accumulation} a step for "
                f"{shape.accumulation}; rows not yet trained on are dealt anew")
    if shape.max_length > SHORTEST:
        length = max(shape.max_length // 2, SHORTEST)
        return (replace(shape, max_length=length, pack_length=None if shape.pack_length is None else length),
                f"rows are cut to {length} tokens instead of {shape.max_length}")
    return None
