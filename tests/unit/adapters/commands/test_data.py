"""The data commands say what they did, and end with 1 and one sentence where the data is refused."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from adapters.commands.data import HELP, app
from adapters.data import DataSettings


def _rows(path: Path, *rows: Any) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


GOOD = {"prompt": "When does the train leave?", "completion": "At noon."}


def _run(*arguments: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def test_every_setting_has_an_option() -> None:
    assert {"source", *HELP} == {field.name for field in dataclasses.fields(DataSettings)}


def test_good_data_is_checked_and_nothing_is_left(tmp_path: Path) -> None:
    code, output = _run("check", _rows(tmp_path / "rows.jsonl", GOOD))
    assert code == 0
    assert "1 rows: 1 train" in output
    assert output.endswith("data: it can be trained on\n")
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_bad_data_fails_the_check_with_its_rows_listed(tmp_path: Path) -> None:
    rejects = tmp_path / "rejects.jsonl"
    code, output = _run("check", _rows(tmp_path / "rows.jsonl", GOOD, "{"), "--rejects", rejects)
    assert code == 1
    assert "error: 1 of 2 rows in" in output
    assert "line 2: row: is not JSON" in output
    assert "it can be trained on" not in output
    assert json.loads(rejects.read_text())["line"] == 2


def test_options_are_settings(tmp_path: Path) -> None:
    source = _rows(tmp_path / "rows.jsonl", GOOD, "{", {"prompt": "write to a@example.com", "completion": "x"})
    code, output = _run("prepare", source, "--out", tmp_path / "out", "--max-rejected-share", "0.5", "--pii", "drop",
                        "--pii-finder", "patterns")
    assert code == 0
    assert f"data: written to {tmp_path / 'out'}" in output
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (report["counts"]["rejected"], report["counts"]["personal_data"]) == (1, 1)
    assert report["settings"]["pii"] == "drop"


def test_a_recipe_gives_settings_and_options_replace_them(tmp_path: Path) -> None:
    _rows(tmp_path / "rows.jsonl", {**GOOD, "quality": 0.5}, {**GOOD, "prompt": "And back?"})
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(f'base_model = "x"\noutput = "y"\n[data]\nsource = "{tmp_path}/rows.jsonl"\nmin_quality = 0.9\n')
    assert "1 train" in _run("check", "--recipe", recipe)[1]
    assert "2 train" in _run("check", "--recipe", recipe, "--min-quality", "0.1")[1]


@pytest.mark.parametrize(("arguments", "message"), [
    ([], "there is nothing to read; name a file, or give --recipe"),
    (["none.jsonl"], "none.jsonl cannot be read: No such file"),
    (["rows.jsonl", "--near-threshold", "0.1"], "'near_threshold' is 0.1; make it from 0.5 to 1"),
])
def test_a_mistake_is_told_in_one_sentence(arguments: list[str], message: str) -> None:
    code, output = _run("check", *arguments)
    assert code == 1
    assert f"error: {message}" in output.replace("The data ", "")


def test_what_is_there_is_not_overwritten(tmp_path: Path) -> None:
    source = _rows(tmp_path / "rows.jsonl", GOOD)
    assert _run("prepare", source, "--out", tmp_path / "out")[0] == 0
    code, output = _run("prepare", source, "--out", tmp_path / "out")
    assert (code, "exists; remove it" in output) == (1, True)
