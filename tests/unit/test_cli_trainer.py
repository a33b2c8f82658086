"""The trainer's commands at the gateway's command line: handed on word for word, to a python that has its libraries."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.cli.output import USAGE, CommandFailed
from gateway.cli.trainer import COMMANDS, VARIABLE, trainer_python

ROOT = Path(__file__).parents[2]


def switchyard(*arguments: str, trainer: Path, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run the command line as a user does, from any folder, with the trainer's python named."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), VARIABLE: str(trainer)}
    return subprocess.run([sys.executable, "-m", "gateway", *arguments], capture_output=True, text=True, cwd=cwd,
                          env=environment, timeout=60, check=False)


@pytest.fixture
def telling(tmp_path: Path) -> Path:
    """A python that tells what it was asked to run, and exits with 7."""
    program = tmp_path / "python"
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\nexit 7\n')
    program.chmod(0o755)
    return program


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_handed_on_word_for_word_with_its_exit_code(command: str, telling: Path) -> None:
    words = ["a b", "--out", "x", "--help", "--json"]
    answer = switchyard(command, *words, trainer=telling)
    assert answer.returncode == 7
    assert answer.stdout.splitlines()[-6:] == [command, *words]


def test_the_trainer_runs_from_any_folder(tmp_path: Path) -> None:
    answer = switchyard("data", "--help", cwd=tmp_path, trainer=Path(sys.executable))
    assert answer.returncode == 0, answer.stderr
    assert "check" in answer.stdout


def test_the_python_beside_the_source_is_taken_where_this_one_has_no_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    for variable in (VARIABLE, "SWITCHYARD_ENGINE_PYTHON"):
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(CommandFailed, match=VARIABLE) as refused:
        trainer_python(light=False, source=tmp_path)
    assert refused.value.exit_code == USAGE
    assert trainer_python(light=True, source=tmp_path) == sys.executable
    beside = tmp_path / ".switchyard/engine/bin/python"
    beside.parent.mkdir(parents=True)
    beside.touch()
    assert trainer_python(light=False, source=tmp_path) == str(beside)
