"""The commands on data: check what a file holds, prepare it for training, show which tokens would be learned."""

import dataclasses
import functools
import inspect
import shutil
import typing
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from adapters.commands.terminal import failed, say, settle
from adapters.data.settings import DataSettings

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
                  help="Check, prepare and preview the rows to train on.")

_Source = Annotated[Path | None, typer.Argument(
    metavar="FILE", help="JSONL, JSON, CSV, Parquet (also .gz .bz2 .xz .zst), or a folder of them.")]
_Recipe = Annotated[Path | None, typer.Option(help="Take the data settings of this recipe.", dir_okay=False)]
_Out = Annotated[Path, typer.Option(help="The folder to write; it must not exist.")]
_Rejects = Annotated[Path | None, typer.Option(help="List the bad rows in this file.")]
_BaseModel = Annotated[str | None, typer.Option(help="Count tokens as this folder or Hugging Face id does.")]
_ItsBaseModel = Annotated[str, typer.Option("--base-model", help="A folder or a Hugging Face id.")]
_MaxLength = Annotated[int, typer.Option(help="The length that rows are cut to, in tokens.", min=8)]
_Rows = Annotated[int, typer.Option(help="How many rows to show.", min=1)]

HELP = {
    "shape": "The rows' fields; auto looks at each row.",
    "subset": "The split of a data set that save_to_disk wrote.",
    "max_rejected_share": "The share of bad rows above which nothing is done.",
    "min_quality": "Leave out rows whose `quality` is lower.",
    "max_chars": "The longest row, in characters.",
    "duplicates": "Which duplicates to leave out.",
    "near_threshold": "How alike near-duplicates are, from 0.5 to 1.",
    "pii": "What to do about personal data.",
    "pii_finder": "What finds personal data; auto is Presidio where it is installed.",
    "validation_share": "The share of rows to validate with.",
    "golden_share": "The share of rows to make a golden set of.",
    "golden": "A golden set; no row near its items is trained on.",
    "leaked": "Remove rows near a golden item, or refuse the data.",
    "label": "The field that holds a row's class.",
}
"""The help of each setting's option."""


def _with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """The command with FILE, --recipe and an option for each field of DataSettings, in place of its first parameter."""
    hints = typing.get_type_hints(DataSettings)
    options = {name: Annotated[hints[name] | None, typer.Option(help=text)]
               for name, text in HELP.items()}
    _, *own = inspect.signature(command).parameters.values()
    given = {"source": _Source, "recipe": _Recipe, **options}

    @functools.wraps(command)
    def wrapped(**values: Any) -> None:
        settings = {name: values.pop(name) for name in given}
        command(_settings(settings.pop("recipe"), settings), **values)

    parameters = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=hint)
                  for name, hint in given.items()]
    parameters += [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]
    wrapped.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapped.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return wrapped


def _settings(recipe: Path | None, given: Mapping[str, Any]) -> DataSettings:
    """The recipe's settings, or the defaults, with what was given in their place."""
    from adapters.recipe import RecipeError, read

    chosen = {name: value for name, value in given.items() if value is not None}
    try:
        if recipe is not None:
            return dataclasses.replace(read(recipe).data, **chosen)
        if "source" not in chosen:
            raise ValueError("there is nothing to read; name a file, or give --recipe.")
        return DataSettings(**chosen)
    except (RecipeError, ValueError) as error:
        raise failed(error) from error


@app.command()
@_with_settings
def check(
    settings: DataSettings, rejects: _Rejects = None, base_model: _BaseModel = None, max_length: _MaxLength = 1024,
) -> None:
    """Say what would become of every row, and fail where training would be refused. Nothing else is kept.

    Example: python -m adapters data check rows.jsonl --base-model my-base
    """
    from adapters.data import DataError
    from adapters.data.prepare import examine

    with TemporaryDirectory() as folder:
        work = Path(folder)
        try:
            examine(settings, work, say)
            if base_model is not None:
                _count_tokens(work, base_model, max_length)
        except (DataError, OSError) as error:
            raise failed(error) from error
        finally:
            if rejects is not None and (work / "rejects.jsonl").exists():
                shutil.copyfile(work / "rejects.jsonl", rejects)
                say(f"data: the bad rows are listed in {rejects}")
    say("data: it can be trained on")


def _count_tokens(work: Path, base_model: str, max_length: int) -> None:
    """Tokenise the rows to train on, and draw how long they are."""
    from adapters.data import ChatTokenizer, load_tokenizer
    from adapters.data.tokens import tokenise

    settle()
    tokenizer = ChatTokenizer(load_tokenizer(base_model))
    for line in tokenise(work / "train.jsonl", tokenizer, max_length, work / "tokens").stats.describe():
        say(line)


@app.command()
@_with_settings
def prepare(settings: DataSettings, out: _Out) -> None:
    """Write checked, deduplicated rows, split for training, validation and evaluation, and a report.

    Example: python -m adapters data prepare rows.jsonl --golden-share 0.1 --pii mask --out prepared
    """
    from adapters.data import DataError
    from adapters.data import prepare as preparing

    try:
        done = preparing.prepare(settings, out, report=say)
    except (DataError, OSError) as error:
        raise failed(error) from error
    say(f"data: written to {done.folder}")


@app.command()
@_with_settings
def preview(
    settings: DataSettings, base_model: _ItsBaseModel, max_length: _MaxLength = 1024, rows: _Rows = 3,
) -> None:
    """Show the first rows in the base model's chat template, and which of their tokens are learned.

    Example: python -m adapters data preview rows.jsonl --base-model my-base
    """
    from rich.console import Console

    from adapters.data import ChatTokenizer, DataError, Reject, load_tokenizer
    from adapters.data import preview as previews
    from adapters.data.intake import judged_rows

    settle()
    console = Console(highlight=False)
    learned = 0
    try:
        tokenizer = ChatTokenizer(load_tokenizer(base_model))
        say(previews.legend(console))
        for row in islice(judged_rows(settings), rows):
            shown = row if isinstance(row, Reject) else previews.preview(row, tokenizer, max_length)
            previews.show(shown, console)
            learned += 0 if isinstance(shown, Reject) else shown.learned
    except DataError as error:
        raise failed(error) from error
    if not learned:
        raise failed(DataError(f"All labels of these rows are masked: nothing is learned within max_length = "
                               f"{max_length} tokens."))
