"""Base model + fresh LoRA weights, ready to be trained, on one device or under whatever launched us."""

import dataclasses
import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
import transformers
from accelerate import PartialState
from bitsandbytes.nn import Linear4bit
from peft import LoraConfig, TaskType, get_peft_model

from adapters.recipe import Lora, Recipe, Speed
from adapters.training import fast
from adapters.training.errors import TrainingError
from adapters.training.ladder import Shape
from adapters.training.sharding import compute_in_bf16, is_sharded

Load = Callable[[Recipe, Shape, Callable[[str], None]], Any]
"""From a recipe, a shape and someone to tell things, a PeftModel."""


def loader(recipe: Recipe) -> Load:
    """What loads models for the recipe's back end; TrainingError when that is not installed."""
    if recipe.training.backend == "transformers":
        return load
    if importlib.util.find_spec("unsloth") is None:
        raise TrainingError('training.backend = "unsloth" needs the package unsloth; install it, or use '
                            '"transformers".')
    return load_with_unsloth


def load(recipe: Recipe, shape: Shape, note: Callable[[str], None]) -> Any:
    """The frozen base model, in NF4 or bf16, with float32 LoRA weights on it."""
    speed = _speed(recipe.speed)
    try:
        base = transformers.AutoModelForCausalLM.from_pretrained(
            recipe.base_model, revision=recipe.base_revision or "main", dtype=torch.bfloat16,
            **load_options(recipe), **fast.load_options(speed))
    except (OSError, ValueError) as error:
        raise TrainingError(f"The base model {recipe.base_model!r} cannot be loaded: {error}") from error
    base.config.use_cache = False
    _keep_unpacked(base)
    model = _with_lora(base, recipe)
    checkpoint_layers(model, shape.checkpoint_layers)
    fast.apply(model, speed, note)
    if is_sharded():
        compute_in_bf16(model, PartialState().device.type)
    return model


def load_options(recipe: Recipe) -> dict[str, Any]:
    """In which form and where to load the base model's weights.

    FSDP places them itself, and can only shard NF4 weights that are stored as if they were floats; see sharding.py for
    why not bf16.
    """
    options: dict[str, Any] = {} if is_sharded() else {"device_map": {"": PartialState().device}}
    if recipe.quantization == "nf4":
        options["quantization_config"] = transformers.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
            bnb_4bit_quant_storage=torch.float32 if is_sharded() else torch.uint8)
    return options


def _speed(speed: Speed) -> Speed:
    """Under FSDP a weight is there only while its own layer runs, so that layers and loss stay the library's."""
    return dataclasses.replace(speed, lora="plain", loss="plain") if is_sharded() else speed


def _keep_unpacked(base: Any) -> None:
    """Keep bitsandbytes from packing NF4 weights anew for CPUs with bf16 instructions.

    It would, in the first pass without gradients (a validation, say), and from then on no gradient got through them.
    """
    for layer in base.modules():
        if isinstance(layer, Linear4bit):
            layer.support_avx512bf16_for_cpu = False


def _with_lora(base: Any, recipe: Recipe) -> Any:
    lora = recipe.lora
    targets = linear_layers(base) if isinstance(lora.targets, str) else list(lora.targets)
    try:
        return get_peft_model(base, LoraConfig(
            task_type=TaskType.CAUSAL_LM, r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout,
            target_modules=targets, use_rslora=lora.rslora))
    except ValueError as error:
        raise TrainingError(f"lora.targets does not fit {recipe.base_model!r}: {error}") from error


def linear_layers(base: Any) -> list[str]:
    """The names of all linear layers but the head: PEFT's own "all-linear" would list each by its full path."""
    head = base.get_output_embeddings()
    return sorted({name.rsplit(".", 1)[-1] for name, layer in base.named_modules()
                   if isinstance(layer, torch.nn.Linear) and layer is not head})


def checkpoint_layers(model: Any, count: str | int) -> None:
    """Let the first `count` layers ("all", "none" or a number) compute their activations twice to keep few of them."""
    if count in ("none", 0):
        return
    model.gradient_checkpointing_enable({"use_reentrant": False})
    layers = [layer for layer in model.modules() if isinstance(layer, transformers.GradientCheckpointingLayer)]
    for layer in layers[len(layers) if isinstance(count, str) else count:]:
        layer.gradient_checkpointing = False


def load_with_unsloth(recipe: Recipe, shape: Shape, note: Callable[[str], None]) -> Any:
    """The same through unsloth, which brings its own kernels; `[speed]` does not apply.

    It tells the rows of a pack apart by positions that begin again, in a batch of one line without a mask.
    """
    unsloth = importlib.import_module("unsloth")
    try:
        base, _ = unsloth.FastLanguageModel.from_pretrained(
            recipe.base_model, max_seq_length=shape.batch * (shape.pack_length or shape.max_length),
            dtype=torch.bfloat16, load_in_4bit=recipe.quantization == "nf4", revision=recipe.base_revision or "main")
    except (OSError, ValueError, RuntimeError) as error:
        raise TrainingError(f"unsloth cannot load the base model {recipe.base_model!r}: {error}") from error
    note("model: by unsloth")
    lora: Lora = recipe.lora
    return unsloth.FastLanguageModel.get_peft_model(
        base, r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, use_rslora=lora.rslora,
        target_modules=linear_layers(base) if isinstance(lora.targets, str) else list(lora.targets),
        use_gradient_checkpointing=shape.checkpoint_layers != "none", random_state=recipe.training.seed)
