"""A recipe is read whole, and every mistake in it is named with what to do."""

import json
from pathlib import Path
from typing import Any

import pytest

import adapters
from adapters import recipe
from adapters.data.settings import DataSettings
from adapters.recipe import Guards, Lora, RecipeError, Report, Speed, Training

MINIMAL: dict[str, Any] = {"base_model": "tiny", "data": "rows.jsonl", "output": "out"}


def test_a_minimal_recipe_has_the_documented_defaults() -> None:
    read = recipe.from_document(MINIMAL)
    assert (read.base_model, read.output) == ("tiny", Path("out"))
    assert read.data == DataSettings(source=Path("rows.jsonl"))
    assert (read.quantization, read.base_revision, read.parent_version) == ("nf4", None, None)
    assert (read.lora, read.training, read.speed, read.guards, read.report) == (
        Lora(), Training(), Speed(), Guards(), Report())


def test_every_value_of_a_file_arrives(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text("""
        base_model = "b"
        base_revision = "main"
        parent_version = "acme/desk@3"
        output = "o"
        quantization = "none"
        [data]
        source = "d.parquet"
        shape = "alpaca"
        pii = "mask"
        golden = "g.jsonl"
        [lora]
        rank = 4
        alpha = 8
        dropout = 0.1
        targets = ["q_proj", "v_proj"]
        rslora = true
        [training]
        backend = "unsloth"
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
        packing = true
        pack_length = 500
        gradient_checkpointing = true
        log_every = 1
        validate_every = 2
        checkpoint_every = 3
        keep_checkpoints = 4
        keep_work = true
        seed = 5
        [speed]
        attention = "sdpa"
        lora = "plain"
        kernels = "liger"
        loss = "chunked"
        checkpoint_layers = 12
        [guards]
        max_loss = 9
        max_rise = 1
        on_divergence = "stop"
        retries = 0
        retry_factor = 0.1
        patience = 3
        min_improvement = 0.01
        max_minutes = 60
        price_per_hour = 4.5
        max_cost = 20
        [report]
        page = false
        tensorboard = true
        data_prompts = true
    """)
    read = recipe.read(path)
    assert read.lora == Lora(rank=4, alpha=8.0, dropout=0.1, targets=("q_proj", "v_proj"), rslora=True)
    assert read.training == Training(
        optimizer="paged_adamw_8bit", learning_rate=1e-3, schedule="linear", warmup=0.0, max_grad_norm=1.0, epochs=2.0,
        max_steps=7, batch=2, accumulation=3, max_length=99, gradient_checkpointing=True, seed=5, backend="unsloth",
        packing=True, pack_length=500, log_every=1, validate_every=2, checkpoint_every=3, keep_checkpoints=4,
        keep_work=True)
    assert read.data == DataSettings(source=Path("d.parquet"), shape="alpaca", pii="mask", golden=Path("g.jsonl"))
    assert read.speed == Speed(attention="sdpa", lora="plain", kernels="liger", loss="chunked", checkpoint_layers=12)
    assert read.guards == Guards(
        max_loss=9.0, max_rise=1.0, on_divergence="stop", retries=0, retry_factor=0.1, patience=3, min_improvement=0.01,
        max_minutes=60.0, price_per_hour=4.5, max_cost=20.0)
    assert read.report == Report(page=False, tensorboard=True, data_prompts=True)
    assert (read.quantization, read.base_revision, read.parent_version) == ("none", "main", "acme/desk@3")


def test_a_recipe_comes_back_from_its_own_document() -> None:
    read = recipe.from_document({**MINIMAL, "lora": {"targets": ["q_proj"]}, "speed": {"checkpoint_layers": 2}})
    assert recipe.from_document(json.loads(json.dumps(read.to_document()))) == read


def test_overrides_win_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text('base_model = "a"\ndata = "d"\noutput = "o"\n')
    read = recipe.read(path, {"base_model": "b", "training.batch": 3, "data.shape": "alpaca"})
    assert (read.base_model, read.output, read.training.batch) == ("b", Path("o"), 3)
    assert read.data == DataSettings(source=Path("d"), shape="alpaca")


def test_another_source_leaves_the_rest_of_the_data_table(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text('base_model = "a"\noutput = "o"\n[data]\nsource = "d"\npii = "drop"\n')
    assert recipe.read(path, {"data": "e"}).data == DataSettings(source=Path("e"), pii="drop")


def test_a_value_cannot_be_set_inside_a_value(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text('base_model = "a"\ndata = "d"\noutput = "o"\n')
    with pytest.raises(RecipeError, match=r"'output\.x' cannot be set: 'output' is no table"):
        recipe.read(path, {"output.x": 1})


@pytest.mark.parametrize(("text", "key", "value"), [
    ("training.batch=8", "training.batch", 8),
    ("training.learning_rate = 1e-3", "training.learning_rate", 1e-3),
    ('lora.targets=["q_proj"]', "lora.targets", ["q_proj"]),
    ("report.page=false", "report.page", False),
    ("output=models/desk", "output", "models/desk"),
    ("base_model=a=b", "base_model", "a=b"),
])
def test_an_assignment_is_toml_or_else_text(text: str, key: str, value: Any) -> None:
    assert recipe.parse_assignment(text) == (key, value)


@pytest.mark.parametrize("text", ["training.batch", "=3"])
def test_what_assigns_nothing_is_refused(text: str) -> None:
    with pytest.raises(RecipeError, match="is no assignment; write key=value"):
        recipe.parse_assignment(text)


@pytest.mark.parametrize(("training", "length"), [
    ({}, None), ({"packing": True, "max_length": 100}, 400), ({"packing": True, "pack_length": 2000}, 2000),
    ({"pack_length": 2000}, None),
])
def test_packs_hold_four_of_the_longest_rows_unless_told(training: dict[str, Any], length: int | None) -> None:
    assert recipe.from_document({**MINIMAL, "training": training}).training.packed_length == length


@pytest.mark.parametrize(("change", "words"), [
    ({"colour": 1}, r"unknown key 'colour'; remove it or use one of base_model, data"),
    ({"lora": {"rnk": 8}}, r"unknown key 'lora\.rnk'; remove it or use one of rank"),
    ({"base_model": 3}, r"'base_model' is 3; make it text in quotes"),
    ({"data": ""}, r"'data\.source' is ''; make it a path in quotes"),
    ({"data": 3}, r"'data' must be a table; write it as \[data\]"),
    ({"data": {}}, r"the key 'data\.source' is missing; add it"),
    ({"data": {"source": "d", "shape": "odd"}}, r"'data\.shape' is 'odd'; make it \"auto\" or \"messages\""),
    ({"data": {"source": "d", "validation_share": 2}}, r"\[data\] 'validation_share' is 2\.0; make it at least 0"),
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
    ({"training": {"pack_length": 64}}, r"'training\.pack_length' is 64; make it at least max_length, 1024"),
    ({"training": {"checkpoint_every": 0}}, r"'training\.checkpoint_every' is 0; make it 1 or more"),
    ({"speed": {"checkpoint_layers": "some"}}, r"make it \"all\" or \"none\" or a whole number"),
    ({"speed": {"checkpoint_layers": -1}}, r"'speed\.checkpoint_layers' is -1; make it \"all\", \"none\" or 0 or more"),
    ({"guards": {"max_rise": 0}}, r"'guards\.max_rise' is 0\.0; make it more than 0"),
    ({"guards": {"retry_factor": 1}}, r"'guards\.retry_factor' is 1\.0; make it more than 0 and below 1"),
    ({"guards": {"max_cost": 3}}, r"'guards\.max_cost' needs 'guards\.price_per_hour'; add it"),
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
