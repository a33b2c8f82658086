"""A recipe is read whole, and every mistake in it is named with what to do."""

from pathlib import Path
from typing import Any

import pytest

import adapters
from adapters import recipe
from adapters.recipe import Lora, RecipeError, Training

MINIMAL: dict[str, Any] = {"base_model": "tiny", "data": "rows.jsonl", "output": "out"}


def test_a_minimal_recipe_has_the_documented_defaults() -> None:
    read = recipe.from_document(MINIMAL)
    assert (read.base_model, read.data, read.output) == ("tiny", Path("rows.jsonl"), Path("out"))
    assert (read.quantization, read.lora, read.training) == ("nf4", Lora(), Training())


def test_every_value_of_a_file_arrives(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text("""
        base_model = "b"
        data = "d.jsonl"
        output = "o"
        quantization = "none"
        [lora]
        rank = 4
        alpha = 8
        dropout = 0.1
        targets = ["q_proj", "v_proj"]
        rslora = true
        [training]
        optimizer = "paged_adamw_8bit"
        learning_rate = 1e-3
        schedule = "linear"
        warmup = 0
        max_grad_norm = 1
        epochs = 2
        max_steps = 7
        batch = 2
        accumulation = 3
        max_length = 99
        gradient_checkpointing = true
        seed = 5
    """)
    read = recipe.read(path)
    assert read.lora == Lora(rank=4, alpha=8.0, dropout=0.1, targets=("q_proj", "v_proj"), rslora=True)
    assert read.training == Training(
        optimizer="paged_adamw_8bit", learning_rate=1e-3, schedule="linear", warmup=0.0, max_grad_norm=1.0, epochs=2.0,
        max_steps=7, batch=2, accumulation=3, max_length=99, gradient_checkpointing=True, seed=5)
    assert read.quantization == "none"


def test_a_recipe_comes_back_from_its_own_document() -> None:
    read = recipe.from_document(MINIMAL)
    document = read.to_document()
    del document["training"]["max_steps"]  # TOML has no null
    assert recipe.from_document(document) == read


def test_overrides_win_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text('base_model = "a"\ndata = "d"\noutput = "o"\n')
    assert recipe.read(path, {"base_model": "b", "output": "p"}).base_model == "b"


@pytest.mark.parametrize(("change", "words"), [
    ({"colour": 1}, r"unknown key 'colour'; remove it or use one of base_model, data"),
    ({"lora": {"rnk": 8}}, r"unknown key 'lora\.rnk'; remove it or use one of rank"),
    ({"base_model": 3}, r"'base_model' is 3; make it text in quotes"),
    ({"data": ""}, r"'data' is ''; make it a path in quotes"),
    ({"lora": 8}, r"'lora' must be a table; write it as \[lora\]"),
    ({"lora": {"rank": 8.0}}, r"'lora\.rank' is 8\.0; make it a whole number"),
    ({"lora": {"rank": True}}, r"'lora\.rank' is True; make it a whole number"),
    ({"lora": {"rank": 0}}, r"'lora\.rank' is 0; make it 1 or more"),
    ({"lora": {"dropout": 1}}, r"'lora\.dropout' is 1\.0; make it at least 0 and below 1"),
    ({"lora": {"targets": "some"}}, r"'lora\.targets' is 'some'; make it \"all-linear\" or a list"),
    ({"lora": {"targets": []}}, r"'lora\.targets' is \(\)"),
    ({"lora": {"targets": [1]}}, r"'lora\.targets' is \[1\]; make it text in quotes or a list of texts"),
    ({"lora": {"rslora": 1}}, r"'lora\.rslora' is 1; make it true or false"),
    ({"quantization": "int8"}, r"'quantization' is 'int8'; make it \"nf4\" or \"none\""),
    ({"training": {"learning_rate": float("nan")}}, r"'training\.learning_rate' is nan; make it a number"),
    ({"training": {"learning_rate": -1}}, r"'training\.learning_rate' is -1\.0; make it more than 0"),
    ({"training": {"optimizer": "sgd"}}, r"'training\.optimizer' is 'sgd'; make it \"adamw\" or"),
    ({"training": {"max_steps": 0}}, r"'training\.max_steps' is 0; make it 1 or more"),
    ({"training": {"epochs": 0}}, r"'training\.epochs' is 0\.0; make it more than 0"),
])
def test_a_mistake_is_named_with_what_to_do(change: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        recipe.from_document({**MINIMAL, **change})


@pytest.mark.parametrize("key", sorted(MINIMAL))
def test_a_missing_key_is_named(key: str) -> None:
    with pytest.raises(RecipeError, match=f"the key '{key}' is missing; add it"):
        recipe.from_document({k: v for k, v in MINIMAL.items() if k != key})


def test_a_file_that_is_not_toml_is_named(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text("base_model = ")
    with pytest.raises(RecipeError, match=r"recipe\.toml is not TOML"):
        recipe.read(path)


def test_a_file_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"none\.toml cannot be read"):
        recipe.read(tmp_path / "none.toml")


@pytest.mark.parametrize("path", sorted((Path(adapters.__file__).parent / "recipes").glob("*.toml")), ids=str)
def test_a_shipped_recipe_is_valid_and_opens_with_its_command(path: Path) -> None:
    recipe.read(path)
    assert f"python -m adapters train adapters/recipes/{path.name}" in path.read_text()
