"""The command says what is wrong with what it was given before anything costly is imported."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from adapters.commands.train import app

RECIPE = 'base_model = "b"\ndata = "rows.jsonl"\noutput = "out"\n'


@pytest.mark.parametrize(("arguments", "words"), [
    (["--set", "training.batch"], "is no assignment; write key=value"),
    (["--set", "training.batch=0"], "'training.batch' is 0; make it 1 or more"),
    (["--set", "training.btch=1"], "unknown key 'training.btch'"),
    (["--set", "lora=8"], "'lora' must be a table"),
    (["--register", "acme/desk"], "--register needs the operator's key"),
])
def test_a_mistake_is_named_with_what_to_do(tmp_path: Path, arguments: list[str], words: str) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE)
    done = CliRunner(env={"SWITCHYARD_OPERATOR_KEY": None}).invoke(app, [str(path), *arguments])
    assert done.exit_code == 1
    assert words in done.stderr
