"""A trained adapter → artifact folder: weights, config, tokenizer, manifest; whole or not there."""

import importlib.metadata
import json
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers.utils.hub import cached_file

from adapters import data, manifest
from adapters.data.prepare import Prepared
from adapters.data.tokens import TokenStats
from adapters.manifest import Manifest
from adapters.recipe import Recipe
from adapters.training.run import Trained
from adapters.training.sharding import whole_adapter

LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "safetensors", "tokenizers")
LARGEST_METRICS = 1 << 20
"""The curve goes into the artifact, as training.jsonl, unless it is larger, in bytes."""


def write_weights(trained: Trained, folder: Path) -> None:
    """The adapter's weights and config into `folder`. Every process calls it; under FSDP each holds a part."""
    weights = whole_adapter(trained.model)
    config = trained.model.peft_config["default"]
    config.target_modules = sorted(config.target_modules)  # a set's order is another in every run
    if PartialState().is_main_process:
        trained.model.save_pretrained(folder, state_dict=weights)
    PartialState().wait_for_everyone()


def complete(folder: Path, tokenizer: Any, metrics: Path) -> None:
    """Add the base's tokenizer files and the curve; take away what serves nobody."""
    tokenizer.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's model card is an empty form
    curve = [line for line in metrics.read_text(encoding="utf-8").splitlines() if json.loads(line)["kind"] == "step"]
    text = "".join(f"{line}\n" for line in curve)  # without the notes, which may quote the data
    if len(text) <= LARGEST_METRICS:
        (folder / "training.jsonl").write_text(text, encoding="utf-8")
    for path in folder.iterdir():
        path.chmod(0o644)  # safetensors writes 0600, which a replica under another user cannot read


def describe(
    recipe: Recipe, trained: Trained, tokenizer: Any, tokens: TokenStats, prepared: Prepared,
) -> Manifest:
    """The manifest."""
    summary = trained.summary
    figures = {
        "steps": summary.steps, "kept_step": trained.kept_step, "first_loss": summary.first_loss,
        "last_loss": summary.last_loss, "best_validation_loss": summary.best_validation_loss, "tokens": summary.tokens,
        "seconds": summary.seconds, "tokens_per_second": summary.tokens_per_second,
        "peak_memory_bytes": summary.peak_memory_bytes, "cost": summary.cost}
    used = LIBRARIES if recipe.training.backend == "transformers" else (*LIBRARIES, recipe.training.backend)
    versions = {name: importlib.metadata.version(name) for name in used}
    return Manifest(
        base_model=recipe.base_model,
        base_revision=getattr(trained.model.config, "_commit_hash", None),
        base_model_config_sha256=_base_file_sha256(recipe, "config.json"),
        parent_version=recipe.parent_version,
        rank=recipe.lora.rank,
        alpha=recipe.lora.alpha,
        targets=tuple(trained.model.peft_config["default"].target_modules),
        chat_template_sha256=data.text_sha256(tokenizer.chat_template),
        tokenizer_sha256=_base_file_sha256(recipe, "tokenizer.json"),
        data_sha256=prepared.sha256,
        golden_sha256=prepared.golden_sha256,
        data_counts=prepared.counts,
        rows=tokens.rows,
        tokens=tokens.tokens,
        learned_tokens=tokens.learned_tokens,
        seed=recipe.training.seed,
        outcome=summary.outcome,
        recipe=recipe.to_document(),
        library_versions={**versions, "python": platform.python_version()},
        metrics={name: value for name, value in figures.items() if value is not None},
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def publish(described: Manifest, partial: Path, output: Path) -> None:
    """Make the folder the artifact."""
    manifest.write(described, partial)
    partial.rename(output)


def _base_file_sha256(recipe: Recipe, name: str) -> str | None:
    """The SHA-256 of one of the base model's files, None when it has no such file."""
    found = cached_file(recipe.base_model, name, revision=recipe.base_revision,
                        _raise_exceptions_for_missing_entries=False)
    return data.file_sha256(Path(found)) if found else None
