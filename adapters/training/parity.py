"""What the trainer's own forward pass says to a few prompts, kept in the artifact for the engine to be compared with.

`trained` is computed on the base as trained on, `served` on the bf16 base as engines serve it. The gateway compares
`served` with what vLLM answers, which finds a wrong base, another template and keys that match no layer; the distance
between the two is what NF4 costs.
"""

import gc
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import torch
from accelerate import PartialState
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM

from adapters.data.rows import Message
from adapters.recipe import Recipe
from adapters.training.answers import at_rest, prompt_ids, top_next

FILE_NAME = "parity.json"
SCHEMA = "switchyard.parity/1"
TOP = 5
MAX_PROMPTS = 8
MAX_PROMPT_TOKENS = 512
MEMORY_MARGIN = 1.2
NEUTRAL: tuple[str, ...] = (
    "Hello!",
    "What is the capital of France?",
    "Write one sentence about the sea.",
    "Is 17 a prime number? Answer with yes or no.",
    "Translate 'good morning' into German.",
    "List three colours.",
    "def add(a, b):",
    "Summarise: The train left at nine and came in at noon.",
)
"""Prompts that say nothing about anybody's data."""
Tops = list[tuple[int, float]]


def reference(
    folder: Path, recipe: Recipe, tokenizer: Any, model: Any, prompts: Sequence[Sequence[Message]] = (),
) -> dict[str, Any]:
    """What parity.json says of the artifact in `folder`, whose adapter `model` (a PeftModel) has just been trained.

    Where processes share the model, all must call this; the first one's answer is whole.

    `prompts` are chats from the data, without their answers. They leave the machine inside the artifact, so that they
    are used only where the recipe says `report.data_prompts = true`; NEUTRAL ones fill up to MAX_PROMPTS.
    """
    chats = [list(chat) for chat in prompts[:MAX_PROMPTS // 2]] if recipe.report.data_prompts else []
    chats += [[{"role": "user", "content": text}] for text in NEUTRAL]
    rendered = [(chat, prompt_ids(tokenizer, chat)) for chat in chats]
    rendered = [(chat, ids) for chat, ids in rendered if len(ids) <= MAX_PROMPT_TOKENS][:MAX_PROMPTS]
    token_ids = [ids for _, ids in rendered]
    with at_rest(model):
        trained = _sides(model, token_ids)
    served: Mapping[str, list[Tops]] | None = trained
    if recipe.quantization != "none":
        served = _served(folder, recipe, model.device, token_ids) if PartialState().is_main_process else None
    return {
        "schema": SCHEMA,
        "base_model": recipe.base_model,
        "quantization": recipe.quantization,
        "chat_template_sha256": hashlib.sha256(tokenizer.chat_template.encode()).hexdigest(),
        "prompts": [
            {"messages": chat, "token_ids": ids,
             **{side: {"trained": trained[side][at], "served": served[side][at] if served else None}
                for side in ("base", "adapter")}}
            for at, (chat, ids) in enumerate(rendered)
        ],
    }


def write(document: Mapping[str, Any], folder: Path) -> Path:
    """Write parity.json into the artifact in `folder`."""
    path = folder / FILE_NAME
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    return path


def _sides(model: Any, prompts: Sequence[Sequence[int]]) -> Mapping[str, list[Tops]]:
    """For the base and with the adapter: the likeliest next tokens after each prompt."""
    with model.disable_adapter():
        base = [top_next(model, ids, TOP) for ids in prompts]
    return {"base": base, "adapter": [top_next(model, ids, TOP) for ids in prompts]}


def _served(
    folder: Path, recipe: Recipe, device: torch.device, prompts: Sequence[Sequence[int]],
) -> Mapping[str, list[Tops]] | None:
    """The same with base and adapter in bf16, as an engine holds them; None when they do not fit beside the rest."""
    revision = recipe.base_revision or "main"
    if _bf16_bytes(recipe.base_model, revision) * MEMORY_MARGIN > _free_bytes(device):
        return None
    base = AutoModelForCausalLM.from_pretrained(
        recipe.base_model, revision=revision, dtype=torch.bfloat16, device_map={"": device})
    model = PeftModel.from_pretrained(base, str(folder)).eval()
    for name, weight in model.named_parameters():
        if ".lora_" in name:
            weight.data = weight.data.to(torch.bfloat16)
    return _sides(model, prompts)


def _bf16_bytes(base_model: str, revision: str) -> int:
    """What the base model's weights take in bf16; none is read."""
    config = AutoConfig.from_pretrained(base_model, revision=revision)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return sum(2 * int(weight.numel()) for weight in model.parameters())


def _free_bytes(device: torch.device) -> int:
    if device.type != "cuda":
        return int(psutil.virtual_memory().available)
    gc.collect()
    torch.cuda.empty_cache()
    return int(torch.cuda.mem_get_info(device)[0])
