"""A run goes on while its lines are good, and stops for a reason that can be read."""

import math
from typing import Any

import pytest

from adapters.recipe import Guards
from adapters.training import guards
from adapters.training.progress import StepLine


def line(step: int, loss: float = 1.0, validation: float | None = None, **changes: Any) -> StepLine:
    values = {
        "step": step, "steps": 100, "loss": loss, "learning_rate": 1e-3, "grad_norm": 0.1, "tokens": 10 * step,
        "tokens_per_second": 1.0, "memory_bytes": 1, "seconds": float(step), "seconds_left": None,
        "validation_loss": validation, **changes}
    return StepLine(**values)


def test_a_good_line_stops_nothing() -> None:
    limits = Guards(max_loss=5.0, patience=1, max_minutes=10.0, price_per_hour=1.0, max_cost=1.0)
    assert guards.judge([line(1, 3.0), line(2, 2.0, 2.0)], limits) is None


@pytest.mark.parametrize(("last", "limits", "words"), [
    (line(2, math.nan), Guards(), "at step 2 the loss is no longer a number"),
    (line(2, math.inf), Guards(), "at step 2 the loss is no longer a number"),
    (line(2, grad_norm=math.nan), Guards(), "at step 2 the gradient is no longer a number"),
    (line(2, 1.0, math.nan), Guards(), "at step 2 the validation loss is no longer a number"),
    (line(2, 4.5), Guards(max_loss=4.0), "the loss is 4.500, above max_loss = 4"),
    (line(2, 3.1), Guards(), "the loss is 3.100, more than max_rise = 2 above the lowest, 1.000"),
    (line(2, 1.6), Guards(max_rise=0.5), "more than max_rise = 0.5"),
])
def test_a_loss_gone_astray_is_named(last: StepLine, limits: Guards, words: str) -> None:
    stop = guards.judge([line(1, 1.0), last], limits)
    assert stop is not None and stop.outcome == "diverged"
    assert words in stop.reason


def test_a_high_loss_at_the_start_is_no_divergence() -> None:
    assert guards.judge([line(1, 12.0)], Guards()) is None


def test_validations_that_do_not_improve_stop_the_run_after_patience() -> None:
    limits = Guards(patience=2)
    lines = [line(1, 1.0, 2.0), line(2, 1.0, 1.5), line(3), line(4, 1.0, 1.6), line(5)]
    assert guards.judge(lines, limits) is None
    stop = guards.judge([*lines, line(6, 1.0, 1.5)], limits)
    assert stop is not None and stop.outcome == "early_stop"
    assert "for 2 validations the loss has not fallen by 0 below that of step 2, 1.5000" in stop.reason


def test_a_small_improvement_does_not_count() -> None:
    lines = [line(1, 1.0, 2.0), line(2, 1.0, 1.95)]
    assert guards.judge(lines, Guards(patience=1, min_improvement=0.1)) is not None
    assert guards.judge(lines, Guards(patience=1, min_improvement=0.01)) is None


def test_without_patience_no_validation_stops_a_run() -> None:
    assert guards.judge([line(1, 1.0, 1.0), line(2, 1.0, 9.0)], Guards()) is None


def test_the_best_validation_is_the_lowest() -> None:
    best = guards.best_validation([line(1, 1.0, 2.0), line(2, 1.0, 1.0), line(3), line(4, 1.0, 1.5)])
    assert best is not None and best.step == 2
    assert guards.best_validation([line(1)]) is None


def test_time_and_money_end_a_run() -> None:
    stop = guards.judge([line(1, seconds=120.0)], Guards(max_minutes=2.0))
    assert stop is not None and (stop.outcome, stop.reason) == ("max_minutes", "2 minutes are over")
    stop = guards.judge([line(1, seconds=1800.0)], Guards(price_per_hour=4.0, max_cost=2.0))
    assert stop is not None and (stop.outcome, stop.reason) == ("max_cost", "2.00 of 2 are spent")
    assert guards.judge([line(1, seconds=119.0)], Guards(max_minutes=2.0, price_per_hour=4.0, max_cost=2.0)) is None


def test_cost_needs_a_price() -> None:
    assert guards.cost(3600.0, Guards()) is None
    assert guards.cost(1800.0, Guards(price_per_hour=3.0)) == 1.5
