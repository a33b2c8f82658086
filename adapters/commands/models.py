"""The commands on trained adapters: merge one into its base model, compare the two side by side."""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from adapters.commands.terminal import failed, say, settle
from adapters.compare import Chat, CompareError, Comparison

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

_Artifact = Annotated[Path, typer.Argument(help="The folder that `train` wrote.", exists=True, file_okay=False)]
_Subject = Annotated[str | None, typer.Argument(
    metavar="ADAPTER", help="The folder that `train` wrote (by default the recipe's output); with --gateway its name.")]
_Out = Annotated[Path, typer.Argument(help="The folder to write; it must not exist.")]
_BaseModel = Annotated[str | None, typer.Option(
    help="A folder or Hugging Face id, by default the artifact's own; with --gateway its name there.")]
_Merged = Annotated[Path | None, typer.Option(
    help="Compare this folder, which `merge` wrote, in place of an adapter.", exists=True, file_okay=False)]
_Prompt = Annotated[list[str] | None, typer.Option(help="A prompt; may be given several times.")]
_Prompts = Annotated[Path | None, typer.Option(help="A JSONL file: `messages`, or `prompt`.")]
_Recipe = Annotated[Path | None, typer.Option(help="Take the validation rows of this recipe.", exists=True)]
_Limit = Annotated[int, typer.Option(help="The most prompts to take.", min=1)]
_MaxTokens = Annotated[int, typer.Option(help="The longest answer, in tokens.", min=1)]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
_Html = Annotated[Path | None, typer.Option(help="Write an HTML page too.")]
_Gateway = Annotated[str | None, typer.Option(help="Ask this gateway instead of running the models here.")]
_Key = Annotated[str | None, typer.Option(envvar="SWITCHYARD_API_KEY", help="A tenant's API key, for --gateway.")]


@app.command()
def merge(adapter: _Artifact, out: _Out, base_model: _BaseModel = None) -> None:
    """Write the base model with an adapter merged into its weights, to serve without LoRA.

    Example: python -m adapters merge my-adapter my-merged-model
    """
    settle()
    from adapters import merge as merging

    try:
        merging.merge(adapter, out, base_model=base_model, report=say)
    except (merging.MergeError, OSError) as error:
        raise failed(error) from error


@app.command()
def compare(
    adapter: _Subject = None, base_model: _BaseModel = None, merged: _Merged = None, prompt: _Prompt = None,
    prompts: _Prompts = None, recipe: _Recipe = None, limit: _Limit = 8, max_tokens: _MaxTokens = 128,
    as_json: _Json = False, html: _Html = None, gateway: _Gateway = None, key: _Key = None,
) -> None:
    """Show the greedy answers of base model and adapter side by side.

    Example: python -m adapters compare my-adapter --prompt "When does the next train leave?"
    """
    try:
        chats = list(islice(_chats(prompt or [], prompts, recipe), limit))
        if not chats:
            raise CompareError("There is nothing to ask; give --prompt, --prompts or --recipe.")
        if gateway:
            found = _through_gateway(chats, gateway, key, base_model, adapter, max_tokens)
        else:
            found = _here(chats, adapter, merged, recipe, base_model, max_tokens)
        rows = list(found)
        _show(rows, as_json, html)
    except (CompareError, OSError) as error:
        raise failed(error) from error


def _chats(prompt: list[str], prompts: Path | None, recipe: Path | None) -> Iterator[Chat]:
    from adapters import compare as comparing

    for text in prompt:
        yield Chat(({"role": "user", "content": text},))
    if prompts is not None:
        yield from comparing.read_chats(prompts)
    if recipe is not None:
        yield from _validation_chats(recipe)


def _validation_chats(path: Path) -> list[Chat]:
    """The recipe's validation rows: the split is by content, so that it is the one that was trained with."""
    from adapters import recipe as recipes
    from adapters.compare import chats_of
    from adapters.data import DataError, read_prepared
    from adapters.data.prepare import prepare

    try:
        with TemporaryDirectory() as folder:
            prepared = prepare(recipes.read(path).data, Path(folder) / "data", report=lambda line: None)
            if prepared.validation is None:
                raise CompareError(f"{path} sets no rows aside for validation; set data.validation_share.")
            return list(chats_of(read_prepared(prepared.validation)))
    except (DataError, recipes.RecipeError) as error:
        raise CompareError(str(error)) from error


def _through_gateway(
    chats: list[Chat], url: str, key: str | None, base: str | None, adapter: str | None, max_tokens: int,
) -> Iterator[Comparison]:
    from adapters.compare import through_gateway

    if not (key and base and adapter):
        raise CompareError("--gateway needs the adapter's name, --base-model and --key: the names by which the gateway "
                           "knows both, and a tenant's API key.")
    return through_gateway(chats, url=url, key=key, base=base, adapter=adapter, max_tokens=max_tokens)


def _here(
    chats: list[Chat], adapter: str | None, merged: Path | None, recipe: Path | None, base_model: str | None,
    max_tokens: int,
) -> Iterator[Comparison]:
    from adapters.compare import BaseName, base_of
    from adapters.recipe import read

    subject = merged or (Path(adapter) if adapter else read(recipe).output if recipe else None)
    if subject is None:
        raise CompareError("Name the adapter's folder, or --merged or --recipe.")
    base = BaseName(base_model) if base_model else base_of(subject)
    settle()
    from adapters.training import answers

    if merged is not None:
        return answers.with_merged(base, merged, chats, max_tokens)
    return answers.with_adapter(base, subject, chats, max_tokens)


def _show(rows: list[Comparison], as_json: bool, html: Path | None) -> None:
    from rich.console import Console

    from adapters import compare as comparing

    if html is not None:
        html.write_text(comparing.page(rows, "Base model and adapter"), encoding="utf-8")
    if as_json:
        print(json.dumps([row.to_document() for row in rows], indent=2, ensure_ascii=False))
    else:
        Console().print(comparing.table(rows))

