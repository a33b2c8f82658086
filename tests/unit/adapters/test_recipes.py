"""Every shipped recipe can be followed as it stands: it parses, its commands exist, and it says what it costs."""

import shlex
from pathlib import Path
from typing import Any

import pytest
import typer.main

import adapters
from adapters import recipe
from adapters.__main__ import app

RECIPES = sorted((Path(adapters.__file__).parent / "recipes").glob("*.toml"))
NAMES = {path.stem for path in RECIPES}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_opens_with_the_command_that_runs_it_and_says_how_much_memory_and_time_it_takes(path: Path) -> None:
    recipe.read(path)
    opening = _opening(path)
    assert f"python -m adapters train adapters/recipes/{path.name}" in opening
    assert "GB" in opening
    assert any(unit in opening for unit in ("second", "minute", "hour"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_command_in_a_recipe_exists_with_its_options(path: Path) -> None:
    lines = [line.strip() for line in _opening(path).splitlines()]
    commands = [line for line in lines if line.startswith(("python -m adapters ", "switchyard "))]
    assert commands
    for line in commands:
        words = shlex.split(line.removeprefix("python -m adapters ").removeprefix("switchyard "))
        found, rest = _command(words)
        known = {option for parameter in found.params for option in parameter.opts}
        assert {word for word in rest if word.startswith("--")} <= known, line


def test_the_named_recipes_are_all_there() -> None:
    assert {"tiny-cpu", "tickets-cpu", "llama-3.1-8b-24gb", "llama-3.1-8b-h200", "tinyllama-alpaca",
            "classification-5k"} <= NAMES


def test_chats_become_a_rank_stabilised_qlora_adapter() -> None:
    read = recipe.read(_path("llama-3.1-8b-24gb"))
    assert (read.quantization, read.lora.rslora, read.training.optimizer) == ("nf4", True, "paged_adamw_8bit")


def test_instruction_rows_are_split_so_that_a_golden_set_can_gate_on_accuracy() -> None:
    read = recipe.read(_path("classification-5k"))
    assert read.data.shape == "instruction" and read.data.golden_share > 0
    assert "switchyard evaluate acme/classifier@1 --golden classifier.golden.jsonl --metric accuracy" in _opening(
        _path("classification-5k"))


def test_curated_rows_train_with_a_divergence_stop_and_never_on_the_golden_set_of_the_f1_gate() -> None:
    read = recipe.read(_path("llama-3.1-8b-h200"))
    assert read.guards.on_divergence == "stop"
    assert str(read.data.golden) in _opening(_path("llama-3.1-8b-h200"))


def test_alpaca_rows_become_merged_weights_and_a_comparison() -> None:
    opening = _opening(_path("tinyllama-alpaca"))
    assert recipe.read(_path("tinyllama-alpaca")).data.shape == "alpaca"
    assert "python -m adapters merge" in opening and "python -m adapters compare" in opening


def _path(name: str) -> Path:
    return next(path for path in RECIPES if path.stem == name)


def _opening(path: Path) -> str:
    """The comment at the beginning, without its marks."""
    lines = path.read_text(encoding="utf-8").split("\n\n", 1)[0].splitlines()
    return "\n".join(line.removeprefix("#") for line in lines)


def _command(words: list[str]) -> tuple[Any, list[str]]:
    """The command that the first words name, and the words after them."""
    found: Any = typer.main.get_command(app)
    while hasattr(found, "commands"):
        found, words = found.commands[words[0]], words[1:]
    return found, words
