"""The trainer's commands: handed on, word for word, to the `adapters` package under a python that has its libraries.

The gateway's environment has no torch. The trainer's python is the one that SWITCHYARD_TRAINER_PYTHON or
SWITCHYARD_ENGINE_PYTHON names, else this one if it has torch, else the environment that `deploy/quickstart` makes for
the engine and the trainer beside the source.
"""

import importlib.util
import os
import sys
from pathlib import Path
from typing import Final

import typer

from gateway.cli.output import USAGE, CommandFailed

VARIABLE: Final = "SWITCHYARD_TRAINER_PYTHON"
COMMANDS: Final = {
    "data": "Check, prepare, preview and augment training data.",
    "train": "Train an adapter as a recipe says.",
    "evaluate": "Run a golden set through the gateway and record what it made of a version.",
    "evaluate-server": "Serve the gate: POST /evaluate answers 200 when a version passes and 409 when it does not.",
    "merge": "Write the base model's weights with an adapter merged into them.",
    "compare": "Show the base model's and an adapter's answers side by side.",
}
"""The commands of `python -m adapters` that are this program's too, with what each is for."""
_RUN: Final = "import runpy, sys; sys.path.append(sys.argv.pop(1)); runpy.run_module('adapters', run_name='__main__')"
_SOURCE: Final = Path(__file__).resolve().parents[2]
_LIGHT: Final = ("data", "evaluate", "evaluate-server")  # what most of them do needs no torch


def add_trainer_commands(app: typer.Typer) -> None:
    """The trainer's commands, on `app`; `--help` is theirs too."""
    for name, purpose in COMMANDS.items():
        app.command(
            name, help=f"{purpose}\n\nExample: switchyard {name} --help", rich_help_panel="Trainer",
            add_help_option=False,
            context_settings={"ignore_unknown_options": True, "allow_extra_args": True})(_handing_on)


def _handing_on(context: typer.Context) -> None:
    name = context.info_name or ""
    python = trainer_python(light=name in _LIGHT)
    os.execv(python, [python, "-c", _RUN, str(_SOURCE), name, *context.args])


def trainer_python(*, light: bool, source: Path = _SOURCE) -> str:
    """The python that has the trainer's libraries; for a `light` command this one will do. CommandFailed without.

    `source`: the folder beside whose packages the quickstart's environments are.
    """
    named = os.environ.get(VARIABLE) or os.environ.get("SWITCHYARD_ENGINE_PYTHON")
    if named:
        return named
    if importlib.util.find_spec("torch") is not None:
        return sys.executable
    beside = source / ".switchyard" / "engine" / "bin" / "python"
    if beside.exists():
        return str(beside)
    if light:
        return sys.executable
    raise CommandFailed(
        f"The trainer's libraries are not in this python. Install switchyard[data,train] into another, and name that "
        f"python in {VARIABLE}.", exit_code=USAGE)
