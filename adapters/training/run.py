"""One run: attempt after attempt until the adapter is trained. What an attempt does wrong, the next does otherwise.

Every attempt begins with a fresh model and goes on from the newest checkpoint: after it ran out of memory in a smaller
shape, after its loss went astray at a lower learning rate.
"""

import dataclasses
import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from accelerate import PartialState
from accelerate.utils.memory import should_reduce_batch_size

from adapters.data.tokens import TokenFile
from adapters.recipe import Recipe
from adapters.training import checkpoints, guards, shown, suspects, trainer
from adapters.training.batches import Course, Rehearsal
from adapters.training.errors import StartAgain, TrainingError
from adapters.training.guards import Stop
from adapters.training.ladder import first_shape, next_rung
from adapters.training.model import Load
from adapters.training.progress import Progress, RunPlan, StepLine, Summary
from adapters.training.trainer import Cadence, Trainer
from adapters.training.watch import Diverged, Watch, peak_memory
from adapters.training.work import Attempt, Work


@dataclass(frozen=True, slots=True)
class Trained:
    """The trained PeftModel, the trainer that can save it, and how it went; `kept_step` is the weights' own."""

    model: Any
    trainer: Trainer
    plan: RunPlan
    summary: Summary
    kept_step: int


class Run:
    """A recipe being carried out in its work folder."""

    def __init__(
        self, recipe: Recipe, work: Work, tokens: TokenFile, validation: TokenFile | None, tokenizer: Any, load: Load,
        progress: Progress,
    ) -> None:
        self._recipe = recipe
        self._work = work
        self._tokens = tokens
        self._validation = validation
        self._tokenizer = tokenizer
        self._load = load
        self._progress = progress
        self._attempt = work.attempt() or Attempt(first_shape(recipe, PartialState().num_processes))

    def finish(self) -> Trained:
        """Attempt until it is done. TrainingError when there is nothing left to try."""
        while True:
            try:
                return self._try()
            except Diverged as divergence:
                stop = divergence.stop
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                stop = None
            # Here the failed attempt's model is no longer held by an exception's frames.
            release_memory()
            self._attempt = self._smaller() if stop is None else self._slower(stop)
            self._work.remember(self._attempt)
            if stop is None and PartialState().num_processes > 1:
                raise StartAgain("Out of memory; the next start goes on in the smaller shape. torchrun starts again "
                                 "by itself with --max-restarts (adapters/train.py says how).")

    def _try(self) -> Trained:
        """Train from the newest checkpoint to the end, or to where a guard stops it."""
        attempt, recipe = self._attempt, self._recipe
        transformers.set_seed(recipe.training.seed)
        course = Course(self._tokens, attempt.shape, recipe.training.seed, recipe.training.epochs,
                        recipe.training.max_steps)
        rehearsal = Rehearsal(self._validation, attempt.shape) if self._validation else None
        first_step = max(checkpoints.steps(self._work.folder), default=0)
        lines = self._lines(first_step)
        model = self._load(recipe, attempt.shape, self._progress.note)
        watch = Watch(lines, recipe.guards, Cadence.of(recipe, course.steps, rehearsal is not None), course,
                      self._progress)
        built = trainer.build(
            recipe, model, course, rehearsal, shape=attempt.shape, work=self._work.folder, rate=attempt.rate,
            pad_token=self._tokenizer.pad_token_id, best_step=watch.best_step, callback=watch)
        plan = self._plan(model, course, first_step)
        self._progress.start(plan)
        with self._astray(model, course, built, watch):
            built.train(str(checkpoints.folder_of(self._work.folder, first_step)) if first_step else None)
        return self._trained(model, built, plan, watch)

    @contextmanager
    def _astray(self, model: Any, course: Course, built: Trainer, watch: Watch) -> Iterator[None]:
        """After a divergence: show the rows in question; where no more is to be tried, end on the last checkpoint."""
        try:
            yield
        except Diverged as divergence:
            self._show_suspects(model, course, watch)
            newest = max(checkpoints.steps(self._work.folder), default=0)
            if self._may_retry() or not newest:
                raise
            built.restore(newest)
            watch.lines = [line for line in watch.lines if line.step <= newest]
            watch.stop = divergence.stop

    def _trained(self, model: Any, built: Trainer, plan: RunPlan, watch: Watch) -> Trained:
        """The best weights that validation knows of, else the last."""
        kept = watch.lines[-1].step
        best = watch.best_step()
        if best is not None and best != kept and best in checkpoints.steps(self._work.folder):
            built.restore(best)
            kept = best
            self._progress.note(f"validation was best after step {best}: those weights are kept")
        return Trained(model, built, plan, self._summary(watch.lines, watch.stop), kept)

    def _lines(self, first_step: int) -> list[StepLine]:
        """The lines of this run up to the checkpoint that it goes on from."""
        if not first_step:
            return []
        return [line for line in shown.read_metrics(self._work.metrics).steps if line.step <= first_step]

    def _smaller(self) -> Attempt:
        rung = next_rung(self._attempt.shape)
        if rung is None:
            raise TrainingError("Out of memory even with single rows, all layers checkpointed and rows cut short; take "
                                'a smaller base model, quantization = "nf4" or a GPU with more memory.')
        shape, words = rung
        self._progress.note(f"out of memory: {words}")
        return dataclasses.replace(self._attempt, shape=shape)

    def _slower(self, stop: Stop) -> Attempt:
        """The next attempt after a divergence, from one checkpoint earlier if the newest one led to it again."""
        if not self._may_retry():
            raise TrainingError(f"The loss has gone astray: {stop.reason}, and there is no checkpoint to go back to; "
                                "lower training.learning_rate, or look at the data.")
        steps = [0, *checkpoints.steps(self._work.folder)]
        back = steps[-2] if len(steps) > 1 and steps[-1] == self._attempt.went_back_to else steps[-1]
        PartialState().wait_for_everyone()
        if PartialState().is_main_process:
            checkpoints.remove_after(self._work.folder, back)
        PartialState().wait_for_everyone()
        rate = self._attempt.rate * self._recipe.guards.retry_factor
        self._progress.note(f"{stop.reason}: back to step {back}, at a learning rate of "
                            f"{self._recipe.training.learning_rate * rate:.3g}")
        return dataclasses.replace(
            self._attempt, rate=rate, divergences=self._attempt.divergences + 1, went_back_to=back)

    def _may_retry(self) -> bool:
        limits = self._recipe.guards
        return limits.on_divergence == "retry" and self._attempt.divergences < limits.retries

    def _show_suspects(self, model: Any, course: Course, watch: Watch) -> None:
        if PartialState().num_processes > 1:
            return  # under FSDP no process can run the model alone
        *before, last = watch.lines
        rows = list(course.rows_between(before[-1].step if before else 0, last.step))
        found, usual = suspects.find(model, rows, course.row, self._tokenizer.decode)
        for suspect in found:
            self._progress.note(f"suspect: row {suspect.row + 1} has a loss of {suspect.loss:.2f} on the base alone, "
                                f"where {usual:.2f} is usual: {suspect.text!r}")

    def _plan(self, model: Any, course: Course, first_step: int) -> RunPlan:
        shape, stats = self._attempt.shape, self._tokens.stats
        trained, total = model.get_nb_trainable_parameters()
        return RunPlan(
            base_model=self._recipe.base_model, quantization=self._recipe.quantization, device=str(model.device.type),
            backend=self._recipe.training.backend, output=self._recipe.output, work=self._work.folder,
            rows=len(self._tokens), validation_rows=len(self._validation or ()), tokens=stats.tokens,
            learned_tokens=stats.learned_tokens, truncated=stats.truncated, steps=course.steps, first_step=first_step,
            epochs=round(course.epochs, 3), batch=shape.batch, accumulation=shape.accumulation,
            processes=shape.processes, trained_weights=trained, all_weights=total)

    def _summary(self, lines: Sequence[StepLine], stop: Stop | None) -> Summary:
        last, best = lines[-1], guards.best_validation(lines)
        return Summary(
            outcome=stop.outcome if stop else "finished", reason=stop.reason if stop else "all steps are done",
            steps=last.step, first_loss=lines[0].loss, last_loss=last.loss,
            best_validation_loss=best.validation_loss if best else None, tokens=last.tokens, seconds=last.seconds,
            tokens_per_second=round(last.tokens / max(last.seconds, 1e-9), 1), peak_memory_bytes=peak_memory(),
            cost=guards.cost(last.seconds, self._recipe.guards))


def is_out_of_memory(error: RuntimeError) -> bool:
    """Did the device, or the machine, run out of memory?"""
    return isinstance(error, torch.OutOfMemoryError) or bool(should_reduce_batch_size(error))


def release_memory() -> None:
    """Give back what no object holds any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


