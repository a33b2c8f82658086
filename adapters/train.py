"""Recipe → artifact folder: LoRA or QLoRA with transformers, PEFT and bitsandbytes; read it top to bottom.

On several GPUs or machines the same recipe runs under what they are launched with, one process a GPU:

    torchrun --standalone --nproc-per-node 4 -m adapters train recipe.toml       every GPU holds the base model
    accelerate launch --config_file adapters/recipes/fsdp.yaml -m adapters train recipe.toml       the GPUs share it

A recipe's `batch` is each process's, so that a step learns from batch × accumulation × processes. Machines share the
folder that the output is in; the first process alone writes there. Nothing else changes, and every guard holds, but a
run of several processes that is out of memory ends: it goes on in a smaller shape when it is started again, which
torchrun does by itself with --max-restarts 3 (and TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1, or the processes may look for
one another where they were before). Under FSDP (training/sharding.py) each GPU holds the whole NF4 model while it is
loaded; LoRA layers and loss are the library's plain ones and the optimizer is AdamW.
"""

import dataclasses
import itertools
import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from adapters import data
from adapters.compare import chats_of
from adapters.data.prepare import Prepared, prepare, read_report
from adapters.data.tokens import TokenFile, tokenise
from adapters.manifest import Manifest
from adapters.recipe import Recipe
from adapters.training import answers, artifact, parity, sharding, shown, work
from adapters.training import report as reports
from adapters.training.errors import TrainingError
from adapters.training.model import Load, loader
from adapters.training.progress import Progress
from adapters.training.run import Run, Trained
from adapters.training.work import Work

__all__ = ["TrainingError", "leave", "train"]

LONGEST_WAIT = timedelta(hours=24)
"""How long the other processes wait while the first prepares the data."""
EXAMPLES = 4


@dataclass(frozen=True, slots=True)
class Rows:
    """The data, checked, and the same as tokens."""

    prepared: Prepared
    train: TokenFile
    validation: TokenFile | None
    rejects: Sequence[Path]


def train(
    recipe: Recipe, report: Callable[[str], None] = print, *, fresh: bool = False, load: Load | None = None,
) -> Manifest:
    """Train the recipe's adapter and leave it in `recipe.output`: weights, config, tokenizer and manifest.

    The folder appears whole or not at all. What a killed run left in `<output>.work` is gone on with, unless `fresh`.
    `load` makes the model instead of the recipe's back end. TrainingError, or DataError for what is wrong with the
    data.
    """
    if recipe.output.exists():
        raise TrainingError(f"{recipe.output} exists; remove it, or choose another output.")
    sharding.check(recipe)
    recipe = _with_absolute_base(recipe)
    load = load or loader(recipe)
    processes = PartialState(cpu=not torch.cuda.is_available(), timeout=LONGEST_WAIT)
    tokenizer = data.load_tokenizer(recipe.base_model, recipe.base_revision)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # padding is masked, so any token will do

    with _work(recipe, processes, fresh=fresh) as place, _listeners(recipe, place, report) as progress:
        if sharding.optimizer_of(recipe) != recipe.training.optimizer:
            progress.note(f"under FSDP the optimizer is adamw, not {recipe.training.optimizer}")
        rows = _rows(recipe, place, tokenizer, progress.note)
        trained = Run(recipe, place, rows.train, rows.validation, tokenizer, load, progress).finish()
        progress.end(trained.summary)
        described = _write(recipe, place, rows, tokenizer, trained, progress)
        if processes.is_main_process and not recipe.training.keep_work:
            place.remove()
    if processes.is_main_process:
        report(f"done: {recipe.output}")
    return described


def leave() -> None:
    """Part from the other processes, if there are any: this one's work is done."""
    PartialState().destroy_process_group()


def _with_absolute_base(recipe: Recipe) -> Recipe:
    """A base model's folder is named in full, so that the artifact says the same wherever it is read."""
    folder = Path(recipe.base_model)
    return dataclasses.replace(recipe, base_model=str(folder.resolve())) if folder.is_dir() else recipe


def _work(recipe: Recipe, processes: PartialState, *, fresh: bool) -> AbstractContextManager[Work]:
    if processes.is_main_process:
        return work.opened(recipe, processes.num_processes, fresh=fresh)
    return nullcontext(Work(work.folder_of(recipe.output)))


def _listeners(recipe: Recipe, place: Work, report: Callable[[str], None]) -> AbstractContextManager[Progress]:
    if PartialState().is_main_process:
        return shown.listening(place.folder, tensorboard=recipe.report.tensorboard, report=report)
    return nullcontext(shown.Several([]))


def _rows(recipe: Recipe, place: Work, tokenizer: Any, note: Callable[[str], None]) -> Rows:
    """The data, checked and tokenised by the first process, unless that was done before a kill."""
    folder, tokens = place.folder / "data", place.folder / "tokens"
    with PartialState().main_process_first():
        prepared = read_report(folder) if folder.exists() else prepare(recipe.data, folder, note)
        for rows in filter(None, (prepared.train, prepared.validation)):
            if not (tokens / rows.stem).exists():
                tokenise(rows, data.ChatTokenizer(tokenizer), recipe.training.max_length, tokens / rows.stem,
                         max_rejected_share=recipe.data.max_rejected_share)
    train, validation = (
        TokenFile.open(tokens / rows.stem) if rows else None for rows in (prepared.train, prepared.validation))
    assert train is not None
    note(f"data: {train.stats.rows:,} rows, {train.stats.tokens:,} tokens, {train.stats.truncated} cut to "
         f"{train.stats.max_length} tokens, {len(validation or ())} rows for validation")
    listed = (prepared.rejects, tokens / "train" / "rejects.jsonl")
    rejects = [path for path in listed if path.exists() and path.stat().st_size]
    if PartialState().is_main_process:
        _keep_aside(recipe, prepared, rejects, note)
    return Rows(prepared, train, validation, rejects)


def _keep_aside(recipe: Recipe, prepared: Prepared, rejects: Sequence[Path], note: Callable[[str], None]) -> None:
    """What outlives the work folder: the rejected rows, and the golden set that was cut off."""
    if rejects:
        kept = recipe.output.with_name(recipe.output.name + ".rejects.jsonl")
        kept.write_bytes(b"".join(path.read_bytes() for path in rejects))
        note(f"data: the rejected rows are listed in {kept}")
    if recipe.data.golden_share and prepared.golden:
        kept = recipe.output.with_name(recipe.output.name + ".golden.jsonl")
        shutil.copyfile(prepared.golden, kept)
        note(f"data: the golden set is {kept}")


def _write(
    recipe: Recipe, place: Work, rows: Rows, tokenizer: Any, trained: Trained, progress: Progress,
) -> Manifest:
    """The artifact, and beside it the report."""
    partial = recipe.output.with_name(f".{recipe.output.name}.partial")
    is_first = PartialState().is_main_process
    if is_first:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    PartialState().wait_for_everyone()
    artifact.write_weights(trained, partial)
    described = artifact.describe(recipe, trained, tokenizer, rows.train.stats, rows.prepared)
    if is_first:
        artifact.complete(partial, tokenizer, place.metrics)
    if is_first or sharding.is_sharded():  # what is in shards answers only where all ask
        _show(recipe, place, rows, tokenizer, trained, described, partial)
    if is_first:
        artifact.publish(described, partial, recipe.output)
    return described


def _show(
    recipe: Recipe, place: Work, rows: Rows, tokenizer: Any, trained: Trained, described: Manifest, partial: Path,
) -> None:
    """What the trained model itself says: for the engine to be compared with, and for a person to look at.

    The first process writes; the others, if any, take part in the answers.
    """
    shown_rows = data.read_prepared(rows.prepared.validation or rows.prepared.train)
    chats = list(itertools.islice(chats_of(shown_rows), EXAMPLES))
    is_first = PartialState().is_main_process
    if recipe.report.parity:
        reference = parity.reference(partial, recipe, tokenizer, trained.model, [chat.messages for chat in chats])
        if is_first:
            parity.write(reference, partial)
    if not recipe.report.page:
        return
    examples = list(answers.before_and_after(trained.model, tokenizer, chats))
    if not is_first:
        return
    folder = recipe.output.with_name(recipe.output.name + ".report")
    folder.mkdir(parents=True, exist_ok=True)
    reports.write(folder, reports.RunReport(
        plan=trained.plan, summary=trained.summary, metrics=shown.read_metrics(place.metrics),
        recipe=recipe.to_document(), tokens=rows.train.stats, counts=rows.prepared.counts,
        labels=rows.prepared.labels, rejects=rows.rejects, examples=examples,
        library_versions=described.library_versions))
