"""FSDP: several processes share the base model, each holding a part of every weight, gathered a layer at a time.

accelerate does that (`accelerate launch` with an FSDP configuration such as recipes/fsdp.yaml; Zhao et al., 2023,
PyTorch FSDP). Here is what the adapter needs beside it: a configuration that fits, weights that come through unaltered,
and the adapter whole at the end.
"""

import os
from typing import Any

import torch
from accelerate.utils import parse_flag_from_env
from torch import Tensor
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor

from adapters.recipe import Recipe
from adapters.training.errors import TrainingError


def is_sharded() -> bool:
    """Were we launched under FSDP?"""
    return bool(parse_flag_from_env("ACCELERATE_USE_FSDP"))


def check(recipe: Recipe) -> None:
    """TrainingError where recipe and FSDP configuration cannot go together; nothing to check without FSDP."""
    if not is_sharded():
        return
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise TrainingError("This needs FSDP's version 2: `fsdp_version: 2` in accelerate's configuration, as in "
                            "adapters/recipes/fsdp.yaml.")
    if parse_flag_from_env("FSDP_ACTIVATION_CHECKPOINTING"):
        raise TrainingError("Say training.gradient_checkpointing = true in the recipe instead of "
                            "`fsdp_activation_checkpointing: true` in accelerate's configuration: that one renames "
                            "the layers, and memory guards know nothing of it.")
    if recipe.training.backend != "transformers":
        raise TrainingError(f'training.backend = "{recipe.training.backend}" does not run under FSDP; use '
                            '"transformers".')
    if recipe.speed.lora == "fused" or recipe.speed.loss == "chunked":
        raise TrainingError('Under FSDP there is neither speed.lora = "fused" nor speed.loss = "chunked"; use "auto".')


def optimizer_of(recipe: Recipe) -> str:
    """The recipe's, but for bitsandbytes' ones, which cannot work on parts of weights: AdamW does the same exactly."""
    return "adamw" if is_sharded() else recipe.training.optimizer


def keep_bits(accelerator: Any) -> None:
    """Gather weights as they are, and sum gradients over the processes in float32.

    accelerate would have weights cast to bf16 on the way. NF4 weights, which lie in floats that mean nothing, must not
    be copied as floats of 16 bits: GPUs make all that look like NaN the same NaN, which alters some weights and says
    nothing (seen as 0.02 nats more loss on an 8B model; github.com/bitsandbytes-foundation/bitsandbytes issue 1945).
    In float32, and not cast, they come through.
    """
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is not None:
        plugin.mixed_precision_policy = MixedPrecisionPolicy(reduce_dtype=torch.float32)


def compute_in_bf16(model: Any, device_type: str) -> None:
    """Have a PEFT model compute in bf16, which accelerate sees to elsewhere but not under FSDP."""
    causal_lm = model.get_base_model()
    causal_lm.forward = torch.autocast(device_type, torch.bfloat16)(causal_lm.forward)


def whole_adapter(model: Any) -> dict[str, Tensor]:
    """The trained weights by name, whole and on the CPU. Every process must call it; all get them."""
    return {name: (weight.full_tensor() if isinstance(weight, DTensor) else weight).detach().cpu()
            for name, weight in model.named_parameters() if weight.requires_grad}
