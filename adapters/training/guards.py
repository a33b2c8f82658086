"""Whether a run may go on: decided from its lines so far and the recipe's `[guards]`, with no clock and no model."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from adapters.recipe import Guards
from adapters.training.progress import Outcome, StepLine


@dataclass(frozen=True, slots=True)
class Stop:
    """Why a run should not go on; `outcome` "diverged" means that it should first go back."""

    outcome: Outcome
    reason: str


def judge(lines: Sequence[StepLine], guards: Guards) -> Stop | None:
    """What to do after the last of the run's lines: None to go on."""
    return _astray(lines, guards) or _no_better(lines, guards) or _budget(lines[-1].seconds, guards)


def cost(seconds: float, guards: Guards) -> float | None:
    """What so many seconds cost, where the recipe has a price."""
    return None if guards.price_per_hour is None else guards.price_per_hour * seconds / 3600


def best_validation(lines: Sequence[StepLine], min_improvement: float = 0.0) -> StepLine | None:
    """The line with the lowest validation loss; a later one must be lower by `min_improvement` to count."""
    best: StepLine | None = None
    for line in lines:
        if line.validation_loss is not None and (
                best is None or line.validation_loss < (best.validation_loss or 0.0) - min_improvement):
            best = line
    return best


def _astray(lines: Sequence[StepLine], guards: Guards) -> Stop | None:
    last = lines[-1]
    if not math.isfinite(last.loss):
        return Stop("diverged", f"at step {last.step} the loss is no longer a number")
    if not math.isfinite(last.grad_norm):
        return Stop("diverged", f"at step {last.step} the gradient is no longer a number")
    if last.validation_loss is not None and not math.isfinite(last.validation_loss):
        return Stop("diverged", f"at step {last.step} the validation loss is no longer a number")
    if guards.max_loss is not None and last.loss > guards.max_loss:
        return Stop(
            "diverged", f"at step {last.step} the loss is {last.loss:.3f}, above max_loss = {guards.max_loss:g}")
    lowest = min(line.loss for line in lines)
    if last.loss > lowest + guards.max_rise:
        return Stop("diverged", f"at step {last.step} the loss is {last.loss:.3f}, more than max_rise = "
                    f"{guards.max_rise:g} above the lowest, {lowest:.3f}")
    return None


def _no_better(lines: Sequence[StepLine], guards: Guards) -> Stop | None:
    best = best_validation(lines, guards.min_improvement)
    if guards.patience is None or best is None or lines[-1].validation_loss is None:
        return None
    since = sum(1 for line in lines if line.validation_loss is not None and line.step > best.step)
    if since < guards.patience:
        return None
    return Stop("early_stop", f"for {since} validation{'s' if since > 1 else ''} the loss has not fallen by "
                f"{guards.min_improvement:g} below that of step {best.step}, {best.validation_loss:.4f}")


def _budget(seconds: float, guards: Guards) -> Stop | None:
    if guards.max_minutes is not None and seconds >= 60 * guards.max_minutes:
        return Stop("max_minutes", f"{guards.max_minutes:g} minutes are over")
    spent = cost(seconds, guards)
    if guards.max_cost is not None and spent is not None and spent >= guards.max_cost:
        return Stop("max_cost", f"{spent:.2f} of {guards.max_cost:g} are spent")
    return None
