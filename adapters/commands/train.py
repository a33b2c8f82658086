"""The command that trains: a recipe → an artifact, and, if asked for, a registered version."""

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from adapters.commands.terminal import failed, say, settle

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

_Recipe = Annotated[Path, typer.Argument(help="The recipe, a TOML file.", exists=True, dir_okay=False)]
_Data = Annotated[Path | None, typer.Option(help="Instead of the recipe's: the rows.")]
_BaseModel = Annotated[str | None, typer.Option(help="Instead of the recipe's: a folder or a Hugging Face id.")]
_Output = Annotated[Path | None, typer.Option("--out", help="Instead of the recipe's: the folder to write.")]
_Set = Annotated[list[str] | None, typer.Option(
    "--set", metavar="KEY=VALUE", help="Instead of the recipe's: any value, such as training.batch=8. Repeatable.")]
_Resume = Annotated[bool, typer.Option(
    "--resume/--fresh", help="Go on with a run of this recipe that was killed, or forget it.")]
_Register = Annotated[str | None, typer.Option(metavar="TENANT/ADAPTER", help="Register the artifact at the end.")]
_Key = Annotated[str | None, typer.Option(envvar="SWITCHYARD_OPERATOR_KEY", help="The operator's key, to register.")]
_Url = Annotated[str, typer.Option(envvar="SWITCHYARD_URL", help="The gateway's address, to register.")]


@app.command()
def train(
    recipe: _Recipe, data: _Data = None, base_model: _BaseModel = None, out: _Output = None, values: _Set = None,
    resume: _Resume = True, register: _Register = None, key: _Key = None, url: _Url = "http://127.0.0.1:8080",
) -> None:
    """Train an adapter as a recipe says. A run that was killed goes on where it stood.

    Example: python -m adapters train adapters/recipes/tiny-cpu.toml --data rows.jsonl --out my-adapter
    """
    from adapters import recipe as recipes
    from adapters.data import DataError

    if register and not key:
        raise failed(ValueError("--register needs the operator's key: --key, or SWITCHYARD_OPERATOR_KEY."))
    given = {"data": data, "base_model": base_model, "output": out}
    try:
        plan = recipes.read(recipe, {
            **dict(recipes.parse_assignment(value) for value in values or ()),
            **{name: str(value) for name, value in given.items() if value is not None}})
    except recipes.RecipeError as error:
        raise failed(error) from error
    if plan.training.backend == "unsloth" and importlib.util.find_spec("unsloth"):
        importlib.import_module("unsloth")  # it changes what is imported after it
    settle()
    from adapters.train import TrainingError, leave
    from adapters.train import train as run

    try:
        described = run(plan, report=say, fresh=not resume)
    except (DataError, TrainingError) as error:
        raise failed(error) from error
    if register and key:
        _register(plan.output, described.outcome, register, url=url, key=key)
    leave()


def _register(folder: Path, outcome: str | None, name: str, *, url: str, key: str) -> None:
    """Register what a run left, on the first process alone; what diverged is for a person to decide."""
    from accelerate import PartialState

    from adapters import register as registering

    if not PartialState().is_main_process:
        return
    if outcome == "diverged":
        raise failed(ValueError(f"{folder} is not registered: its loss went astray. Look at it, then: "
                                f"python -m adapters register {folder} {name}"))
    try:
        version: Mapping[str, Any] = registering.register(folder, name, url=url, key=key)
    except registering.RegisterError as error:
        raise failed(error) from error
    say(json.dumps(version, indent=2))
