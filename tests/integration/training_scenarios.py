"""Trains under faults, in one process of the engine's python: what became of each scenario, as JSON on the last line.

    python training_scenarios.py BASE FOLDER NAME …

A fault is a hook on the loaded model, through the trainer's own `load` argument.
"""

import json
import math
import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from transformers.utils import logging

from adapters import recipe as recipes
from adapters.data.tokens import Example, TokenFile
from adapters.demo import DEMOS, write_demos
from adapters.recipe import Recipe
from adapters.train import train
from adapters.training import model as models
from adapters.training import shown
from adapters.training.batches import padded
from adapters.training.errors import StartAgain, TrainingError
from adapters.training.ladder import Shape

ROWS = 64
Fault = Callable[[Any, dict[str, Any]], None]
"""Called before each forward pass with the model and its inputs; may raise."""


SMALL = Shape(batch=1, accumulation=1, processes=1, max_length=128, pack_length=512, checkpoint_layers="none")


class Scenarios:
    """Runs recipes that differ in a few keys from one small recipe."""

    def __init__(self, base: Path, folder: Path) -> None:
        self.base = base
        self.folder = folder
        self.rows = folder / "rows.jsonl"
        if not self.rows.exists():
            write_demos(folder)
            lines = (folder / DEMOS[0].file_name).read_text().splitlines()[:ROWS]
            self.rows.write_text("\n".join(lines) + "\n")

    def recipe(self, name: str, rows: Path | None = None, **changes: Any) -> Recipe:
        """The small recipe with other values; `training__batch=2` is `[training] batch = 2`."""
        document: dict[str, Any] = {
            "base_model": str(self.base), "output": str(self.folder / name), "quantization": "none",
            "data": {"source": str(rows or self.rows), "duplicates": "off"},
            "lora": {"rank": 4, "targets": ["q_proj", "v_proj"]}, "report": {"page": False},
            "training": {"learning_rate": 5e-3, "batch": 4, "max_length": 128, "max_steps": 12, "log_every": 1,
                         "checkpoint_every": 3, "keep_work": True},
        }
        for key, value in changes.items():
            table, _, inner = key.partition("__")
            document[table] = {**document.get(table, {}), inner: value} if inner else value
        return recipes.from_document(document)

    def run(self, name: str, fault: Fault | None = None, rows: Path | None = None, **changes: Any) -> dict[str, Any]:
        """What came of it: lines, notes, the manifest's outcome; or the error."""
        recipe = self.recipe(name, rows, **changes)
        told: list[str] = []
        try:
            made = train(recipe, told.append, load=with_fault(fault) if fault else None)
        except StartAgain:
            raise
        except (TrainingError, ValueError) as error:
            return {"error": str(error), "told": told, "exists": recipe.output.exists()}
        if not is_first():
            return {}
        metrics = shown.read_metrics(recipe.output.with_name(f"{name}.work") / "metrics.jsonl")
        weights = load_file(recipe.output / "adapter_model.safetensors")
        return {
            "told": told, "steps": [line.step for line in metrics.steps],
            "losses": [line.loss for line in metrics.steps],
            "validation": {line.step: line.validation_loss for line in metrics.steps if line.validation_loss},
            "rates": [line.learning_rate for line in metrics.steps], "outcome": made.outcome, "metrics": made.metrics,
            "is_finite": all(bool(weight.isfinite().all()) for weight in weights.values()),
            "weights": {name: list(weight.shape) for name, weight in sorted(weights.items())},
            "checkpoints": self.checkpoints_equal(name, weights)}

    def checkpoints_equal(self, name: str, weights: dict[str, Any]) -> list[int]:
        """The steps whose checkpoint has the artifact's weights."""
        found = []
        for path in sorted((self.folder / f"{name}.work").glob("checkpoint-*")):
            kept = weights_of(path)
            if all(torch.equal(kept[key], weight) for key, weight in weights.items()):
                found.append(int(path.name.removeprefix("checkpoint-")))
        return found


def weights_of(checkpoint: Path) -> dict[str, Any]:
    """The adapter's weights in a checkpoint, those of all shards put together."""
    shards = checkpoint / "pytorch_model_fsdp_0"
    if not shards.exists():
        return dict(load_file(checkpoint / "adapter_model.safetensors"))
    together = checkpoint / "together.pt"
    dcp_to_torch_save(shards, together)
    return dict(torch.load(together)["model"])


def is_first() -> bool:
    """Of several processes the first tells what came of it."""
    return os.environ.get("RANK", "0") == "0"


def with_fault(fault: Fault) -> models.Load:
    """A loader whose models do as the fault says."""
    def load(recipe: Recipe, shape: Shape, note: Callable[[str], None]) -> Any:
        model = models.load(recipe, shape, note)

        def before(module: Any, arguments: Any, inputs: dict[str, Any]) -> None:
            fault(module, inputs)

        model.register_forward_pre_hook(before, with_kwargs=True)
        return model

    return load


def memory_for(tokens: int) -> Fault:
    """As if more tokens at once did not fit."""
    def fault(model: Any, inputs: dict[str, Any]) -> None:
        if model.training and inputs["input_ids"].numel() > tokens:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate too much")

    return fault


def nan_at(*passes: int) -> Fault:
    """As if the weights overflowed before these forward passes in training, counted from 1 over all attempts."""
    count = 0

    def fault(model: Any, inputs: dict[str, Any]) -> None:
        nonlocal count
        if not model.training:
            return
        count += 1
        if count in passes or not passes:
            with torch.no_grad():
                next(weight for name, weight in model.named_parameters() if "lora_B" in name).fill_(math.nan)

    return fault


def killed_at(number: int) -> Fault:
    """As if the machine lost its power at this forward pass."""
    count = 0

    def fault(model: Any, inputs: dict[str, Any]) -> None:
        nonlocal count
        count += 1
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)

    return fault


def poisoned(scenarios: Scenarios) -> Path:
    """The rows with a row of noise at the end."""
    path = scenarios.folder / "poisoned.jsonl"
    noise = "".join(random.Random(0).choices("qzxjkvw#%&@~^", k=200))
    path.write_text(scenarios.rows.read_text()
                    + json.dumps({"prompt": "The poisoned row", "completion": noise}) + "\n")
    return path


LONG: dict[str, Any] = {
    "lora__dropout": 0.1, "training__packing": True, "training__pack_length": 160, "training__batch": 1,
    "training__accumulation": 2, "training__checkpoint_every": 4, "data__validation_share": 0.1,
    "training__validate_every": 6, "training__max_steps": 20,
}
"""Has all that must go on exactly: dropout, packs, accumulation, validation, more than one epoch."""


QUANTISED: dict[str, Any] = {
    "quantization": "nf4", "lora__targets": "all-linear", "training__packing": True, "training__pack_length": 160,
    "training__batch": 1, "training__accumulation": 2, "training__gradient_checkpointing": True,
}
"""All that is particular about a base model in shards."""
BEST: dict[str, Any] = {
    "data__validation_share": 0.2, "training__validate_every": 2, "training__learning_rate": 0.2,
    "training__max_grad_norm": 100.0, "guards__max_rise": 100.0, "training__keep_checkpoints": 1,
}
"""Is best somewhere before the end."""
VALIDATED: dict[str, Any] = {"quantization": "nf4", "lora__targets": "all-linear", "data__validation_share": 0.2}


def packed_equals_alone(scenarios: Scenarios) -> dict[str, Any]:
    """How far the logits and the loss of packed rows are from the same rows' alone; and without their positions."""
    train(scenarios.recipe("packed-for-logits", training__max_steps=3))
    tokens = TokenFile.open(scenarios.folder / "packed-for-logits.work" / "tokens" / "train")
    recipe = scenarios.recipe("unused")
    model = models.load(recipe, SMALL, print).float()
    torch.manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.1)
    model.eval()
    rows = [Example(tokens[at].input_ids, tokens[at].input_ids) for at in range(5)]  # all of it is learned
    packs = [rows[:3], rows[3:]]
    batch = padded(packs, pad_token=0)
    with torch.no_grad():
        together = model(**batch)
        mixed = model(input_ids=batch["input_ids"], labels=batch["labels"]).logits
        alone, losses, learned = [], 0.0, 0
        for row in rows:
            lone = model(**padded([[row]], pad_token=0))
            count = int((row.labels[1:] != -100).sum())
            alone.append(lone.logits[0])
            losses, learned = losses + float(lone.loss) * count, learned + count
    wanted = [torch.cat(alone[:3]), torch.cat(alone[3:])]

    def distance(logits: Any) -> float:
        return max(float((logits[at, :len(one)] - one).abs().max()) for at, one in enumerate(wanted))

    return {"logits": distance(together.logits), "contaminated": distance(mixed),
            "loss": float(together.loss), "loss_alone": losses / learned}


def sharded(scenarios: Scenarios) -> dict[str, Any]:
    """How the base model is loaded alone and under `accelerate launch` with FSDP, and what is refused there."""
    recipe = scenarios.recipe("sharded", quantization="nf4")

    def options() -> dict[str, Any]:
        found = models.load_options(recipe)
        return {"storage": str(found["quantization_config"].bnb_4bit_quant_storage), "placed": "device_map" in found}

    alone = options()
    os.environ.update(ACCELERATE_USE_FSDP="true", FSDP_VERSION="2")
    try:
        return {"alone": alone, "under fsdp": options(),
                "fused": scenarios.run("sharded", speed__lora="fused")["error"],
                "unsloth": scenarios.run("sharded", training__backend="unsloth")["error"]}
    finally:
        del os.environ["ACCELERATE_USE_FSDP"], os.environ["FSDP_VERSION"]


SCENARIOS: dict[str, Callable[[Scenarios], dict[str, Any]]] = {
    "plain": lambda s: s.run("plain"),
    "accumulated": lambda s: s.run("accumulated", training__batch=1, training__accumulation=4),
    "two processes": lambda s: s.run("two-processes", training__batch=1, training__accumulation=2),
    "logits": packed_equals_alone,
    "two processes, little memory": lambda s: s.run(
        "two-processes-memory", memory_for(64), training__batch=2, training__accumulation=1),
    "memory": lambda s: s.run("memory", memory_for(64)),
    "little memory": lambda s: s.run(
        "little-memory", memory_for(130), training__packing=True, training__pack_length=256, training__batch=2),
    "no memory": lambda s: s.run("no-memory", memory_for(0)),
    "nan": lambda s: s.run("nan", nan_at(8)),
    "nan again": lambda s: s.run("nan-again", nan_at(8, 10)),
    "nan and stop": lambda s: s.run("nan-and-stop", nan_at(8), guards__on_divergence="stop"),
    "nan at once": lambda s: s.run("nan-at-once", nan_at(), guards__retries=1),
    "poisoned": lambda s: s.run("poisoned", rows=poisoned(s), guards__max_rise=1.0, guards__on_divergence="stop",
                                training__seed=2, training__max_steps=17, training__learning_rate=2e-2),
    "early": lambda s: s.run("early", data__validation_share=0.2, data__max_rejected_share=0.5,
                             training__validate_every=2, guards__patience=1, guards__min_improvement=5.0),
    "best": lambda s: s.run("best", **BEST),
    "budget": lambda s: s.run("budget", guards__price_per_hour=3600.0, guards__max_cost=1e-6),
    "whole": lambda s: s.run("whole", **{**QUANTISED, "training__accumulation": 4}),
    "in shards": lambda s: s.run("in-shards", **QUANTISED, training__optimizer="paged_adamw_8bit", report__page=True),
    "shards best": lambda s: s.run("shards-best", **{
        **BEST, "training__schedule": "constant", "training__learning_rate": 0.05, "training__max_steps": 6}),
    "shards killed": lambda s: s.run("shards-long", killed_at(29), **LONG),
    "shards resumed": lambda s: s.run("shards-long", **LONG),
    "shards not killed": lambda s: s.run("shards-not-killed", **LONG),
    "validated at the end": lambda s: s.run("validated-at-the-end", **VALIDATED, training__validate_every=12),
    "validated often": lambda s: s.run("validated-often", **VALIDATED, training__validate_every=2),
    "killed": lambda s: s.run("long", killed_at(29), **LONG),
    "resumed": lambda s: s.run("long", **LONG),
    "not killed": lambda s: s.run("not-killed", **LONG),
    "refused": lambda s: s.run("refused"),
    "masked": lambda s: s.run("masked", training__max_length=8),
    "sharded": sharded,
    "unsloth": lambda s: s.run("unsloth", training__backend="unsloth"),
    "unsloth packs": lambda s: s.run("unsloth-packs", **{
        **QUANTISED, "training__accumulation": 4, "training__backend": "unsloth"}, report__page=True),
}


def main() -> None:
    """The scenarios named, one after another."""
    logging.set_verbosity_error()
    scenarios = Scenarios(Path(sys.argv[1]), Path(sys.argv[2]))
    names = sys.argv[3:]
    came = {name: SCENARIOS[name](scenarios) for name in names}
    if is_first():
        print(json.dumps(came))


if __name__ == "__main__":
    main()
