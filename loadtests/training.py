"""How fast the trainer learns beside plain TRL + PEFT + bitsandbytes: the same base, rows and card, run after run.

    python -m loadtests.training FOLDER [--base PATH] [--only NAME …] [--steps 12] [--rows 640] [--tokens 400]

Needs an NVIDIA GPU and the trainer's environment (`pip install "switchyard[data,train,gpu]" trl`). Without `--base` it
makes a base of Llama-3.1-8B's shape with random weights in FOLDER (16 GB): speed and memory do not depend on what they
are. Every run is a process of its own; its first steps, which compile and allocate, are left out of its speed. `peak`
is the most that torch reserved; a process needs about half a gigabyte beside it.
"""

import argparse
import json
import math
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WARM_UP = 3
"""Optimiser steps that are left out of a run's speed."""
WORDS = 64
SHAPES = {
    "llama-3.1-8b": {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 128256, "rope_theta": 500000.0},
    "tiny": {
        "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 1024, "rope_theta": 10000.0},
}


@dataclass(frozen=True, slots=True)
class Plan:
    """One run: TRL as its documentation has it (`plain`), or this project's trainer with `settings` of a recipe.

    `rows` at once, `accumulation` of them a step; `against` names the plain run that it is compared with. The artifact
    of a run that `is_served` holds parity.json, for a replica of this base to be compared with; all stay in FOLDER.
    """

    name: str
    rows: int
    accumulation: int
    checkpointing: bool
    against: str = ""
    speed: Mapping[str, Any] | None = None
    is_served: bool = False

    @property
    def is_plain(self) -> bool:
        return self.speed is None


PLANS = (
    Plan("plain, 2 × 4, checkpointing", 2, 4, True),
    Plan("plain, 16, checkpointing", 16, 1, True),
    Plan("plain, 16", 16, 1, False),
    Plan("ours with every speed-up off, 16", 16, 1, False, "plain, 16", {
        "attention": "sdpa", "lora": "plain", "kernels": "plain", "loss": "plain"}),
    Plan("ours in 24 GB, 16", 16, 1, False, "plain, 16, checkpointing", {"checkpoint_layers": 18},
         is_served=True),
    Plan("ours, 16", 16, 1, False, "plain, 16", {}),
    Plan("ours, 64", 64, 1, False, "plain, 16", {}),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a run gave: tokens a second after the warm-up, GB at the peak, the loss of each step in nats a token."""

    tokens_per_second: float
    peak_gb: float
    losses: tuple[float, ...]
    seconds: float


def make_base(folder: Path, shape: str) -> None:
    """A Llama with random bf16 weights, a tokenizer with one token for each made-up word, and a chat template."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    config = LlamaConfig(**SHAPES[shape], max_position_embeddings=8192, rms_norm_eps=1e-5, tie_word_embeddings=False,
                         bos_token_id=0, eos_token_id=1, pad_token_id=4)
    specials = ["<|begin|>", "<|end|>", "<|user|>", "<|assistant|>", "<|pad|>"]
    made_up = map(_word, range(config.vocab_size - len(specials)))
    vocabulary = {word: number for number, word in enumerate([*specials, *made_up])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<|begin|>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.add_special_tokens(specials)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token=specials[0], eos_token=specials[1], pad_token=specials[4],
        chat_template="{% for m in messages %}<|{{ m['role'] }}|> {{ m['content'] }} <|end|> {% endfor %}"
                      "{% if add_generation_prompt %}<|assistant|> {% endif %}")
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        torch.set_default_dtype(torch.bfloat16)
        LlamaForCausalLM(config).save_pretrained(folder)


def write_rows(path: Path, rows: int, tokens: int) -> None:
    """Rows of `tokens` tokens, template included; each word is followed by one of four: there is something to learn."""
    chance = random.Random(0)
    next_of = [[chance.randrange(WORDS) for _ in range(4)] for _ in range(WORDS)]
    with path.open("w", encoding="utf-8") as file:
        for _ in range(rows):
            at, said = chance.randrange(WORDS), []
            for _ in range(tokens - 6):
                at = chance.choice(next_of[at])
                said.append(_word(at))
            turns = [{"role": "user", "content": _word(WORDS + chance.randrange(100)) + " " + _word(WORDS + 100)},
                     {"role": "assistant", "content": " ".join(said)}]
            file.write(json.dumps({"messages": turns}) + "\n")


def _word(number: int) -> str:
    return f"w{number}"


def run_plain(plan: Plan, base: Path, rows: Path, steps: int, tokens: int) -> Outcome:
    """The run by TRL's SFTTrainer, on the same tokens and labels as ours."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    tokenizer = AutoTokenizer.from_pretrained(base)
    examples = [*_examples(rows, tokenizer, tokens)]
    model = AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.bfloat16, device_map={"": "cuda:0" if torch.cuda.is_available() else "cpu"},
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16))
    times: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *arguments: Any, **options: Any) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times.append(time.monotonic())

    trainer = SFTTrainer(
        model=model, processing_class=tokenizer, train_dataset=Dataset.from_list(examples), callbacks=[Clock()],
        peft_config=LoraConfig(task_type="CAUSAL_LM", **_lora()),
        args=SFTConfig(
            output_dir=str(rows.parent / "plain"), per_device_train_batch_size=plan.rows, max_length=tokens,
            gradient_accumulation_steps=plan.accumulation, gradient_checkpointing=plan.checkpointing,
            gradient_checkpointing_kwargs={"use_reentrant": False}, bf16=True, max_steps=steps, logging_steps=1,
            report_to="none", save_strategy="no", optim={"adamw": "adamw_torch"}.get(_optimizer(), _optimizer()),
            use_cpu=not torch.cuda.is_available(), disable_tqdm=True, lr_scheduler_type="cosine", **_course()))
    started = time.monotonic()
    trainer.train()
    losses = tuple(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
    step_tokens = sum(len(example["input_ids"]) for example in examples) / len(examples) * plan.rows * plan.accumulation
    speed = step_tokens * (len(times) - WARM_UP) / (times[-1] - times[WARM_UP - 1])
    return Outcome(tokens_per_second=speed, peak_gb=torch.cuda.max_memory_reserved() / 1e9, losses=losses,
                   seconds=time.monotonic() - started)


def run_ours(plan: Plan, base: Path, rows: Path, steps: int, tokens: int) -> Outcome:
    """The run by this project's trainer; speed from the metrics that it writes anyway."""
    from adapters import recipe as recipes
    from adapters.train import train

    output = rows.parent / re.sub(r"[^a-z0-9]+", "-", plan.name)
    shutil.rmtree(output, ignore_errors=True)
    course = {**_course(), "schedule": "cosine", "optimizer": _optimizer()}
    course["warmup"] = course.pop("warmup_steps") / steps
    lora = _lora()
    document = {
        "base_model": str(base), "output": str(output), "data": {"source": str(rows), "duplicates": "off"},
        "lora": {"rank": lora["r"], "alpha": lora["lora_alpha"], "targets": "all-linear"},
        "training": {**course, "batch": 1, "packing": True, "pack_length": tokens * plan.rows,
                     "accumulation": plan.accumulation, "max_length": tokens, "max_steps": steps, "log_every": 1,
                     "checkpoint_every": 10 * steps,
                     "gradient_checkpointing": plan.checkpointing},
        "speed": dict(plan.speed or {}),
        "report": {"page": False, "parity": plan.is_served, "data_prompts": True},
    }
    started = time.monotonic()
    train(recipes.from_document(document))
    lines = [json.loads(line) for line in _metrics(output).read_text().splitlines()]
    lines = [line for line in lines if "loss" in line and "tokens" in line]
    first, last = lines[WARM_UP - 1], lines[-1]
    speed = (last["tokens"] - first["tokens"]) / (last["seconds"] - first["seconds"])
    return Outcome(tokens_per_second=speed, peak_gb=max(line["memory_bytes"] for line in lines) / 1e9,
                   losses=tuple(line["loss"] for line in lines), seconds=time.monotonic() - started)


def _metrics(output: Path) -> Path:
    inside = output / "training.jsonl"
    return inside if inside.exists() else output.with_name(output.name + ".work") / "metrics.jsonl"


def _lora() -> dict[str, Any]:
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    return {"r": 16, "lora_alpha": 32, "lora_dropout": 0.0, "target_modules": targets}


def _course() -> dict[str, Any]:
    return {"learning_rate": 1e-3, "warmup_steps": 2, "max_grad_norm": 0.3, "seed": 0}


def _optimizer() -> str:
    """Ours and transformers' names differ only where there is no GPU, which serves to try this file out."""
    import torch

    return "paged_adamw_8bit" if torch.cuda.is_available() else "adamw"


def _examples(rows: Path, tokenizer: Any, tokens: int) -> Iterator[dict[str, list[int]]]:
    from adapters import data

    with rows.open(encoding="utf-8") as file:
        for line in file:
            messages = json.loads(line)["messages"]
            text = tokenizer.apply_chat_template(messages, tokenize=False)
            prompt = tokenizer.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
            ids = tokenizer(text, add_special_tokens=False)["input_ids"][:tokens]
            told = len(tokenizer(prompt, add_special_tokens=False)["input_ids"])
            yield {"input_ids": ids, "labels": [data.IGNORED] * told + ids[told:]}


def table(outcomes: Mapping[str, Outcome]) -> str:
    """Markdown: speed, memory, the ratio to the plain run beside it, and how far the loss curves lie apart."""
    lines = ["| run | tokens/s | peak GB | beside | ratio | loss, first → last | mean distance of the curves |",
             "|---|---|---|---|---|---|---|"]
    for plan in PLANS:
        if plan.name not in outcomes:
            continue
        own, other = outcomes[plan.name], outcomes.get(plan.against)
        ratio = f"{own.tokens_per_second / other.tokens_per_second:.2f}" if other else ""
        apart = ""
        if other and plan.rows * plan.accumulation == 16:
            pairs = list(zip(own.losses, other.losses, strict=False))
            apart = f"{math.fsum(abs(a - b) for a, b in pairs) / len(pairs):.3f}"
        lines.append(f"| {plan.name} | {own.tokens_per_second:,.0f} | {own.peak_gb:.1f} | {plan.against} | {ratio} | "
                     f"{own.losses[0]:.3f} → {own.losses[-1]:.3f} | {apart} |")
    return "\n".join(lines)


def _one(options: argparse.Namespace) -> None:
    """What a child does: one plan, its outcome as JSON into a file."""
    plan = next(plan for plan in PLANS if plan.name == options.run)
    run = run_plain if plan.is_plain else run_ours
    outcome = run(plan, options.base, options.folder / "rows.jsonl", options.steps, options.tokens)
    options.result.write_text(json.dumps(
        {"tokens_per_second": outcome.tokens_per_second, "peak_gb": outcome.peak_gb, "losses": outcome.losses,
         "seconds": outcome.seconds}))


def _all(options: argparse.Namespace) -> dict[str, Outcome]:
    outcomes: dict[str, Outcome] = {}
    for plan in PLANS:
        if options.only and plan.name not in options.only:
            continue
        result = options.folder / "result.json"
        result.unlink(missing_ok=True)
        command = [
            sys.executable, "-m", "loadtests.training", str(options.folder), "--base", str(options.base),
            "--run", plan.name, "--result", str(result), "--steps", str(options.steps), "--tokens", str(options.tokens)]
        status = subprocess.run(command, check=False).returncode
        if status or not result.exists():
            print(f"{plan.name}: failed with exit status {status}", flush=True)
            continue
        found = json.loads(result.read_text())
        outcomes[plan.name] = Outcome(**{**found, "losses": tuple(found["losses"])})
        print(f"{plan.name}: {outcomes[plan.name].tokens_per_second:,.0f} tokens/s", flush=True)
    return outcomes


def main() -> None:
    """All plans, each in a process of its own, then the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--base", type=Path)
    parser.add_argument("--shape", choices=[*SHAPES], default="llama-3.1-8b")
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rows", type=int, default=800)
    parser.add_argument("--tokens", type=int, default=400)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--run", help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        _one(options)
        return
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.base is None:
        options.base = options.folder / "base"
        if not options.base.exists():
            make_base(options.base, options.shape)
    write_rows(options.folder / "rows.jsonl", options.rows, options.tokens)
    outcomes = _all(options)
    print(table(outcomes))
    if options.json:
        options.json.write_text(json.dumps({name: {
            "tokens_per_second": run.tokens_per_second, "peak_gb": run.peak_gb, "losses": run.losses,
            "seconds": run.seconds} for name, run in outcomes.items()}, indent=2))


if __name__ == "__main__":
    main()
