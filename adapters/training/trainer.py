"""transformers' Trainer with what it lacks: whole checkpoints, a fixed order, an exact validation loss, few syncs.

Its loop is used as it is. A step's loss is divided by the learned tokens of the whole step, over all batches and
processes, so that neither accumulation nor the number of processes changes what is learned. The host waits for the
device only where a line is due.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.utils.data import SequentialSampler

from adapters.recipe import Recipe
from adapters.training import checkpoints, fast
from adapters.training.batches import Course, Rehearsal, joined, padded
from adapters.training.ladder import Shape
from adapters.training.sharding import keep_bits, optimizer_of

LINES, VALIDATIONS, CHECKPOINTS = 20, 10, 5
"""How many of each a run has unless the recipe says otherwise."""
MOST_STEPS_TO_A_LINE, MOST_STEPS_TO_A_CHECKPOINT = 10, 200


@dataclass(frozen=True, slots=True)
class Cadence:
    """Every how many steps something is due; 0 for never. A line is due whenever anything is."""

    log: int
    validate: int
    checkpoint: int
    steps: int

    @classmethod
    def of(cls, recipe: Recipe, steps: int, has_validation: bool) -> "Cadence":
        """The recipe's, or what suits the number of steps."""
        training = recipe.training
        validate = (training.validate_every or -(-steps // VALIDATIONS)) if has_validation else 0
        return cls(training.log_every or min(MOST_STEPS_TO_A_LINE, -(-steps // LINES)), validate,
                   training.checkpoint_every or min(MOST_STEPS_TO_A_CHECKPOINT, -(-steps // CHECKPOINTS)), steps)

    def validates(self, step: int) -> bool:
        """Is a validation due after this step?"""
        return self.validate > 0 and (step % self.validate == 0 or step == self.steps)

    def checkpoints(self, step: int) -> bool:
        """Is a checkpoint due after this step?"""
        return step % self.checkpoint == 0 or step == self.steps

    def logs(self, step: int) -> bool:
        """Is a line due after this step?"""
        return step == 1 or step % self.log == 0 or self.validates(step) or self.checkpoints(step)


class Trainer(transformers.Trainer):  # type: ignore[misc]
    """A Trainer whose checkpoints in the folder `work` are whole or not there; old ones go, but for the best.

    `rate`: the share of the recipe's learning rate to train at; `best_step`: where validation was best so far.
    """

    control: Any

    def __init__(
        self, *, recipe: Recipe, work: Path, rate: float, best_step: Callable[[], int | None], **options: Any,
    ) -> None:
        super().__init__(**options)
        self.remove_callback(transformers.PrinterCallback)
        keep_bits(self.accelerator)
        self._work = work
        self._keep = recipe.training.keep_checkpoints
        self._peak_rate = recipe.training.learning_rate * rate
        self._best_step = best_step

    def restore(self, step: int) -> None:
        """Take the adapter's weights from the checkpoint after so many steps."""
        folder = checkpoints.folder_of(self._work, step)
        self._load_from_checkpoint(str(folder), self.model_wrapped if self.is_fsdp_enabled else None)

    def evaluate(self, *arguments: Any, **options: Any) -> dict[str, float]:
        """The mean over all learned tokens of the validation rows, in nats a token, as `eval_loss`."""
        model = self.model_wrapped
        model.eval()
        totals = torch.zeros(2, dtype=torch.float64, device=self.args.device)
        with torch.no_grad():
            for batch in self.get_eval_dataloader():
                inputs = self._prepare_inputs(batch)
                learned = inputs["labels"][..., 1:].ne(-100).sum()
                with self.compute_loss_context_manager():
                    loss = model(**inputs).loss
                totals += torch.stack([loss.double() * learned, learned.double()])
        total, tokens = self.accelerator.reduce(totals).tolist()
        metrics = {"eval_loss": total / tokens}
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def floating_point_ops(self, inputs: Any) -> int:
        """Nobody reads them, and counting goes over all weights for every batch."""
        return 0

    def _get_train_sampler(self, *arguments: Any) -> Any:
        return SequentialSampler(self.train_dataset)  # the course is in order

    def _get_output_dir(self, trial: Any) -> str:
        return str(checkpoints.staging(self._work))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if self.is_world_process_zero():
            checkpoints.publish(self._work, self.state.global_step)
            best = self._best_step()
            checkpoints.prune(self._work, self._keep, () if best is None else (best,))
        self.accelerator.wait_for_everyone()

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """The stored schedule, at this attempt's learning rate."""
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        share = self._peak_rate / self.lr_scheduler.base_lrs[0]
        self.lr_scheduler.base_lrs = [rate * share for rate in self.lr_scheduler.base_lrs]
        for group in self.optimizer.param_groups:
            group["lr"] *= share
            group["initial_lr"] *= share


def build(
    recipe: Recipe, model: Any, course: Course, rehearsal: Rehearsal | None, *, shape: Shape, work: Path, rate: float,
    pad_token: int, best_step: Callable[[], int | None], callback: transformers.TrainerCallback,
) -> Trainer:
    """The trainer of one attempt."""
    is_joined = recipe.training.backend == "unsloth" or fast.attention_of(recipe.speed) == "varlen"
    return Trainer(
        recipe=recipe, work=work, rate=rate, best_step=best_step, model=model,
        args=arguments(recipe, shape, course.steps, work, rate), train_dataset=course, eval_dataset=rehearsal,
        data_collator=joined if is_joined else lambda packs: padded(packs, pad_token), callbacks=[callback])


def arguments(recipe: Recipe, shape: Shape, steps: int, work: Path, rate: float) -> Any:
    """What the library's Trainer is told; when to log, validate and save is the callback's to say."""
    training = recipe.training
    on_gpu = torch.cuda.is_available()
    result = transformers.TrainingArguments(
        output_dir=str(work), max_steps=steps, seed=training.seed, data_seed=training.seed,
        per_device_train_batch_size=shape.batch, per_device_eval_batch_size=shape.batch,
        gradient_accumulation_steps=shape.accumulation,
        optim=_OPTIMIZERS[optimizer_of(recipe)], weight_decay=0.0,
        learning_rate=training.learning_rate * rate, lr_scheduler_type=_SCHEDULES[training.schedule],
        warmup_steps=math.ceil(training.warmup * steps), max_grad_norm=training.max_grad_norm,
        bf16=True, use_cpu=not on_gpu, logging_strategy="no", eval_strategy="no", save_strategy="no",
        logging_nan_inf_filter=False, remove_unused_columns=False, report_to="none", disable_tqdm=True,
        dataloader_pin_memory=on_gpu, accelerator_config={"non_blocking": on_gpu, "even_batches": True},
        ddp_find_unused_parameters=False)
    if result.n_gpu > 1:
        result._n_gpu = 1  # several GPUs are torchrun's: the library would put threads on them
    return result


_OPTIMIZERS = {"adamw": "adamw_torch", "paged_adamw_8bit": "paged_adamw_8bit"}
_SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}
