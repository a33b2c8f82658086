"""A checkpoint counts when it is whole, and the ones still needed are never removed."""

from pathlib import Path

from adapters.training import checkpoints


def write(work: Path, step: int) -> Path:
    """As the library's trainer does, in the staging folder."""
    folder = checkpoints.folder_of(checkpoints.staging(work), step)
    (folder / "inner").mkdir(parents=True)
    (folder / "weights").write_text(f"weights {step}")
    (folder / "inner" / "state").write_text("state")
    return folder


def published(work: Path, *steps: int) -> None:
    for step in steps:
        write(work, step)
        checkpoints.publish(work, step)


def test_what_is_still_being_written_is_no_checkpoint(tmp_path: Path) -> None:
    write(tmp_path, 5)
    assert checkpoints.steps(tmp_path) == []
    checkpoints.publish(tmp_path, 5)
    assert checkpoints.steps(tmp_path) == [5]
    assert (checkpoints.folder_of(tmp_path, 5) / "inner" / "state").read_text() == "state"
    assert not checkpoints.staging(tmp_path).exists()


def test_a_checkpoint_takes_an_older_ones_place(tmp_path: Path) -> None:
    published(tmp_path, 5)
    write(tmp_path, 5).joinpath("weights").write_text("newer")
    checkpoints.publish(tmp_path, 5)
    assert (checkpoints.folder_of(tmp_path, 5) / "weights").read_text() == "newer"


def test_steps_are_in_the_order_of_numbers_and_other_names_do_not_count(tmp_path: Path) -> None:
    published(tmp_path, 100, 20, 3)
    (tmp_path / "checkpoint-7").write_text("a file")
    (tmp_path / "checkpoint-8x").mkdir()
    assert checkpoints.steps(tmp_path) == [3, 20, 100]
    assert checkpoints.steps(tmp_path / "none") == []


def test_the_newest_stay_and_what_is_named(tmp_path: Path) -> None:
    published(tmp_path, 1, 2, 3, 4, 5)
    checkpoints.prune(tmp_path, 2, also=(2,))
    assert checkpoints.steps(tmp_path) == [2, 4, 5]


def test_later_ones_can_be_removed(tmp_path: Path) -> None:
    published(tmp_path, 1, 2, 3)
    checkpoints.remove_after(tmp_path, 1)
    assert checkpoints.steps(tmp_path) == [1]
    checkpoints.remove_after(tmp_path, 0)
    assert checkpoints.steps(tmp_path) == []
