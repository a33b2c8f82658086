"""Recipe → artifact folder: LoRA or QLoRA with transformers, PEFT and bitsandbytes; read it top to bottom."""

import dataclasses
import importlib.metadata
import math
import platform
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jinja2
import torch
import transformers
from peft import LoraConfig, TaskType, get_peft_model
from transformers.utils.hub import cached_file

from adapters import data, manifest
from adapters.manifest import Manifest
from adapters.recipe import Recipe

Report = Callable[[str], None]

LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "safetensors", "tokenizers")


class TrainingError(RuntimeError):
    """Training cannot start or has failed; the message says why and what to do."""


def train(recipe: Recipe, report: Report = print) -> Manifest:
    """Train the recipe's adapter and leave it in `recipe.output`: weights, config, tokenizer and manifest.

    The folder appears whole or not at all. TrainingError, or DataError for what is wrong with the data.
    """
    if recipe.output.exists():
        raise TrainingError(f"{recipe.output} exists; remove it, or choose another output.")
    recipe = _with_absolute_base(recipe)
    tokenizer = _load_tokenizer(recipe.base_model)
    prepared = _prepare(recipe, tokenizer, report)

    transformers.set_seed(recipe.training.seed)
    model = _load_model(recipe)
    trainable, total = model.get_nb_trainable_parameters()
    report(f"model: {recipe.base_model}, {recipe.quantization} on {model.device.type}; "
           f"{trainable:,} of {total:,} weights are trained")
    metrics = _fit(model, recipe, prepared, tokenizer.pad_token_id, report)

    partial = recipe.output.with_name(f".{recipe.output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    _save(model, tokenizer, partial)
    result = _manifest(recipe, model, tokenizer, prepared, metrics)
    manifest.write(result, partial)
    partial.rename(recipe.output)
    report(f"done: {recipe.output}")
    return result


def _with_absolute_base(recipe: Recipe) -> Recipe:
    """A base model's folder is named in full, so that the artifact says the same wherever it is read."""
    folder = Path(recipe.base_model)
    return dataclasses.replace(recipe, base_model=str(folder.resolve())) if folder.is_dir() else recipe


def _load_tokenizer(base_model: str) -> Any:
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(base_model)
    except (OSError, ValueError) as error:
        raise TrainingError(f"The base model {base_model!r} cannot be read: {error}") from error
    if not tokenizer.chat_template:
        raise TrainingError(f"The base model {base_model!r} has no chat template; take its instruct variant.")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # padding is masked, so any token will do
    return tokenizer


class _ChatTokenizer:
    """A transformers tokenizer as data.py wants it: a template's complaint is about the row, not about us."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def apply_chat_template(self, conversation: Sequence[data.Message], **options: Any) -> str:
        try:
            text: str = self._tokenizer.apply_chat_template(conversation, **options)
        except jinja2.TemplateError as error:
            raise data.TemplateRefused(str(error)) from error
        return text

    def __call__(self, text: str, **options: Any) -> Mapping[str, Any]:
        tokens: Mapping[str, Any] = self._tokenizer(text, **options)
        return tokens


def _prepare(recipe: Recipe, tokenizer: Any, report: Report) -> data.Prepared:
    prepared = data.prepare(recipe.data, _ChatTokenizer(tokenizer), recipe.training.max_length)
    tokens = sum(len(example.input_ids) for example in prepared.examples)
    report(f"data: {recipe.data}, {len(prepared.examples):,} rows, {tokens:,} tokens, {prepared.truncated} cut to "
           f"{recipe.training.max_length} tokens, {len(prepared.rejects)} rejected")
    if prepared.rejects:
        path = recipe.output.with_name(recipe.output.name + ".rejects.jsonl")
        path.parent.mkdir(parents=True, exist_ok=True)
        data.write_rejects(prepared.rejects, path)
        report(f"data: the rejected rows are listed in {path}")
    return prepared


def _load_model(recipe: Recipe) -> Any:
    """The frozen base model, in NF4 or bf16, with fresh float32 LoRA weights on it."""
    quantization = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    ) if recipe.quantization == "nf4" else None
    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    base = transformers.AutoModelForCausalLM.from_pretrained(
        recipe.base_model, dtype=torch.bfloat16, device_map={"": device}, quantization_config=quantization)
    base.config.use_cache = False
    lora = recipe.lora
    targets = _linear_layers(base) if isinstance(lora.targets, str) else list(lora.targets)
    try:
        return get_peft_model(base, LoraConfig(
            task_type=TaskType.CAUSAL_LM, r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout,
            target_modules=targets, use_rslora=lora.rslora))
    except ValueError as error:
        raise TrainingError(f"lora.targets does not fit {recipe.base_model!r}: {error}") from error


def _linear_layers(base: Any) -> list[str]:
    """The names of all linear layers but the head: PEFT's own "all-linear" would list each by its full path."""
    head = base.get_output_embeddings()
    return sorted({name.rsplit(".", 1)[-1] for name, layer in base.named_modules()
                   if isinstance(layer, torch.nn.Linear) and layer is not head})


def _fit(model: Any, recipe: Recipe, prepared: data.Prepared, pad_token: int, report: Report) -> dict[str, float]:
    """Train in place; the figures of the run. TrainingError when the loss is no longer a number."""
    with TemporaryDirectory() as scratch:
        trainer = transformers.Trainer(
            model=model,
            args=_arguments(recipe, len(prepared.examples), scratch),
            train_dataset=list(prepared.examples),
            data_collator=lambda examples: _batch(examples, pad_token),
            callbacks=[_Progress(report)],
        )
        trainer.remove_callback(transformers.PrinterCallback)
        started = time.monotonic()
        outcome = trainer.train()
        seconds = time.monotonic() - started
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    if not math.isfinite(outcome.training_loss):
        raise TrainingError("The loss is no longer a number; lower training.learning_rate.")
    tokens = trainer.state.num_input_tokens_seen
    return {"steps": outcome.global_step, "first_loss": losses[0], "last_loss": losses[-1], "tokens": tokens,
            "seconds": round(seconds, 3), "tokens_per_second": round(tokens / seconds, 1)}


def _arguments(recipe: Recipe, rows: int, scratch: str) -> Any:
    training = recipe.training
    per_epoch = math.ceil(rows / (training.batch * training.accumulation))
    steps = training.max_steps or math.ceil(training.epochs * per_epoch)
    return transformers.TrainingArguments(
        output_dir=scratch, max_steps=steps, seed=training.seed, data_seed=training.seed,
        per_device_train_batch_size=training.batch, gradient_accumulation_steps=training.accumulation,
        optim="adamw_torch" if training.optimizer == "adamw" else training.optimizer, weight_decay=0.0,
        learning_rate=training.learning_rate, lr_scheduler_type=_SCHEDULES[training.schedule],
        warmup_steps=math.ceil(training.warmup * steps), max_grad_norm=training.max_grad_norm,
        gradient_checkpointing=training.gradient_checkpointing, bf16=True, use_cpu=not torch.cuda.is_available(),
        logging_steps=max(1, steps // 10), logging_first_step=True, logging_nan_inf_filter=False,
        include_num_input_tokens_seen="non_padding", remove_unused_columns=False, save_strategy="no",
        report_to="none", disable_tqdm=True, dataloader_pin_memory=torch.cuda.is_available())


_SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}


def _batch(examples: Sequence[data.Example], pad_token: int) -> dict[str, torch.Tensor]:
    """Examples as int64 tensors (rows, longest row), padded on the right with what is not learned."""
    def padded(rows: Sequence[Sequence[int]], fill: int) -> torch.Tensor:
        width = max(len(row) for row in rows)
        return torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows])

    return {
        "input_ids": padded([example.input_ids for example in examples], pad_token),
        "labels": padded([example.labels for example in examples], data.IGNORED),
        "attention_mask": padded([[1] * len(example.input_ids) for example in examples], 0),
    }


class _Progress(transformers.TrainerCallback):  # type: ignore[misc]
    """One plain line each time that the trainer logs."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._started = time.monotonic()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._started = time.monotonic()

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, float] | None = None, **kw: Any) -> None:
        if logs and "loss" in logs:
            speed = state.num_input_tokens_seen / (time.monotonic() - self._started)
            self._report(f"step {state.global_step}/{state.max_steps} loss {logs['loss']:.4f} {speed:,.0f} tokens/s")


def _save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Adapter weights and config, the base's tokenizer files; the order of targets does not depend on the run."""
    config = model.peft_config["default"]
    config.target_modules = sorted(config.target_modules)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's model card is an empty form
    for path in folder.iterdir():
        path.chmod(0o644)  # safetensors writes 0600, which a replica under another user cannot read


def _manifest(
    recipe: Recipe, model: Any, tokenizer: Any, prepared: data.Prepared, metrics: Mapping[str, float],
) -> Manifest:
    versions = {name: importlib.metadata.version(name) for name in LIBRARIES}
    return Manifest(
        base_model=recipe.base_model,
        base_model_config_sha256=_base_file_sha256(recipe.base_model, "config.json"),
        rank=recipe.lora.rank,
        alpha=recipe.lora.alpha,
        targets=tuple(model.peft_config["default"].target_modules),
        chat_template_sha256=data.text_sha256(tokenizer.chat_template),
        tokenizer_sha256=_base_file_sha256(recipe.base_model, "tokenizer.json"),
        data_sha256=prepared.sha256,
        rows=len(prepared.examples),
        seed=recipe.training.seed,
        recipe=recipe.to_document(),
        library_versions={**versions, "python": platform.python_version()},
        metrics=metrics,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _base_file_sha256(base_model: str, name: str) -> str | None:
    """The SHA-256 of one of the base model's files, None when it has no such file."""
    found = cached_file(base_model, name, _raise_exceptions_for_missing_entries=False)
    return data.file_sha256(Path(found)) if found else None
