"""A run's folder is gone on with by the same run alone, one process at a time, and a failed run leaves nothing."""

from pathlib import Path
from typing import Any

import pytest

from adapters import recipe
from adapters.recipe import Recipe
from adapters.training import work
from adapters.training.errors import TrainingError
from adapters.training.ladder import first_shape
from adapters.training.work import Attempt, Work


def a_recipe(folder: Path, **changes: Any) -> Recipe:
    rows = folder / "rows.jsonl"
    if not rows.exists():
        rows.write_text("{}\n")
    return recipe.from_document(
        {"base_model": "b", "data": str(rows), "output": str(folder / "out"), **changes})


def begin(folder: Path, step: int = 5) -> None:
    """A run with a checkpoint, then killed."""
    with work.opened(a_recipe(folder), 1, fresh=False) as place:
        (place.folder / f"checkpoint-{step}").mkdir()


def test_a_run_without_a_checkpoint_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), work.opened(a_recipe(tmp_path), 1, fresh=False) as place:
        (place.folder / "data").mkdir()
        raise RuntimeError
    assert not (tmp_path / "out.work").exists()


def test_a_run_that_gave_up_on_its_data_leaves_the_rejected_rows_and_may_be_tried_again(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), work.opened(a_recipe(tmp_path), 1, fresh=False) as place:
        (place.folder / work.REJECTS).write_text("{}\n")
        raise RuntimeError
    assert [path.name for path in (tmp_path / "out.work").iterdir()] == [work.REJECTS]
    (tmp_path / "rows.jsonl").write_text("better rows\n")
    begin(tmp_path)


def test_the_same_run_goes_on(tmp_path: Path) -> None:
    begin(tmp_path)
    with work.opened(a_recipe(tmp_path), 1, fresh=False) as place:
        assert (place.folder / "checkpoint-5").is_dir()


@pytest.mark.parametrize(("changes", "words"), [
    ({"training": {"learning_rate": 1.0}}, "training changed"),
    ({"base_model": "c"}, "base_model changed"),
    ({"lora": {"rank": 2}, "quantization": "none"}, "lora and quantization changed"),
])
def test_another_recipe_does_not_go_on(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    begin(tmp_path)
    with pytest.raises(TrainingError, match=rf"{words} since it began; .* --fresh"), \
            work.opened(a_recipe(tmp_path, **changes), 1, fresh=False):
        pass
    assert (tmp_path / "out.work" / "checkpoint-5").is_dir()


def test_other_data_or_more_processes_do_not_go_on(tmp_path: Path) -> None:
    begin(tmp_path)
    with pytest.raises(TrainingError, match="processes changed"), work.opened(a_recipe(tmp_path), 2, fresh=False):
        pass
    (tmp_path / "rows.jsonl").write_text("{}\n{}\n")
    with pytest.raises(TrainingError, match="source changed"), work.opened(a_recipe(tmp_path), 1, fresh=False):
        pass


def test_limits_may_be_changed_on_the_way(tmp_path: Path) -> None:
    begin(tmp_path)
    changed = a_recipe(tmp_path, guards={"max_minutes": 5}, training={"keep_work": True, "log_every": 1})
    with work.opened(changed, 1, fresh=False) as place:
        assert (place.folder / "checkpoint-5").is_dir()


def test_a_fresh_run_forgets_the_old_one_whatever_it_was(tmp_path: Path) -> None:
    begin(tmp_path)
    with work.opened(a_recipe(tmp_path, base_model="c"), 1, fresh=True) as place:
        assert not (place.folder / "checkpoint-5").exists()


def test_two_processes_do_not_train_the_same_output(tmp_path: Path) -> None:
    with work.opened(a_recipe(tmp_path), 1, fresh=False), \
            pytest.raises(TrainingError, match="Another process trains"), \
            work.opened(a_recipe(tmp_path), 1, fresh=False):
        pass


def test_an_attempt_is_remembered(tmp_path: Path) -> None:
    place = Work(tmp_path)
    assert place.attempt() is None
    attempt = Attempt(first_shape(a_recipe(tmp_path), 2), rate=0.25, divergences=2, went_back_to=40)
    place.remember(attempt)
    assert place.attempt() == attempt
