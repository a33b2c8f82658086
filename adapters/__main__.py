"""The commands that make adapters: `python -m adapters --help`."""

import json
import logging
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
                  help="Make adapters: a tiny base model, demo data, training, registering.")

_Out = Annotated[Path, typer.Argument(help="The folder to write; it must not exist or be empty.")]
_Recipe = Annotated[Path, typer.Argument(help="The recipe, a TOML file.", exists=True, dir_okay=False)]
_BaseModel = Annotated[str | None, typer.Option(help="Instead of the recipe's: a folder or a Hugging Face id.")]
_Data = Annotated[Path | None, typer.Option(help="Instead of the recipe's: a JSONL file.")]
_Output = Annotated[Path | None, typer.Option("--out", help="Instead of the recipe's: the folder to write.")]
_Artifact = Annotated[Path, typer.Argument(help="The folder that `train` wrote.", exists=True, file_okay=False)]
_Key = Annotated[str, typer.Option(envvar="SWITCHYARD_OPERATOR_KEY", help="The operator's key.")]


@app.command()
def base(out: _Out, seed: Annotated[int, typer.Option(help="Equal seeds give equal weights.")] = 0) -> None:
    """Make a tiny real base model, with no download.

    Example: python -m adapters base tiny-base
    """
    from adapters.base import make_tiny_base

    _settle()
    try:
        make_tiny_base(out, seed, report=_say)
    except OSError as error:
        raise _failed(error) from error


@app.command()
def demo(out: Annotated[Path, typer.Argument(help="The folder to write into.")]) -> None:
    """Write two small data sets whose adapters answer visibly differently.

    Example: python -m adapters demo demo-data
    """
    from adapters.demo import write_demos

    for path in write_demos(out):
        _say(str(path))


@app.command()
def train(
    recipe: _Recipe, base_model: _BaseModel = None, data: _Data = None, out: _Output = None,
) -> None:
    """Train an adapter as a recipe says.

    Example: python -m adapters train adapters/recipes/tiny-cpu.toml --data rows.jsonl --out my-adapter
    """
    from adapters import recipe as recipes
    from adapters.data import DataError

    given = {"base_model": base_model, "data": data, "output": out}
    try:
        plan = recipes.read(recipe, {key: str(value) for key, value in given.items() if value is not None})
    except recipes.RecipeError as error:
        raise _failed(error) from error
    _settle()
    from adapters.train import TrainingError
    from adapters.train import train as run

    try:
        run(plan, report=_say)
    except (DataError, TrainingError) as error:
        raise _failed(error) from error


@app.command()
def register(
    folder: _Artifact, name: Annotated[str, typer.Argument(help="tenant/adapter")], key: _Key,
    url: Annotated[str, typer.Option(help="The gateway's address.")] = "http://127.0.0.1:8080",
) -> None:
    """Register an artifact as the next version of an adapter and print that version as JSON.

    Example: python -m adapters register my-adapter acme/railway-desk --key "$SWITCHYARD_OPERATOR_KEY"
    """
    from adapters import register as registering

    try:
        version = registering.register(folder, name, url=url, key=key)
    except registering.RegisterError as error:
        raise _failed(error) from error
    print(json.dumps(version, indent=2))


def _say(line: str) -> None:
    print(line, flush=True)


def _failed(error: Exception) -> typer.Exit:
    print(f"error: {error}", file=sys.stderr)
    return typer.Exit(1)


def _settle() -> None:
    """Leave the terminal to our own lines, and the other cores to others.

    One thread by default, like torchrun: a tiny model gains nothing from more, and loses tenfold on shared cores.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()


if __name__ == "__main__":
    app()
