"""The commands that give something to start from, and the one that registers: base, demo, register."""

import json
from pathlib import Path
from typing import Annotated

import typer

from adapters.commands.terminal import failed, say, settle

_Out = Annotated[Path, typer.Argument(help="The folder to write; it must not exist or be empty.")]
_Artifact = Annotated[Path, typer.Argument(help="The folder that `train` wrote.", exists=True, file_okay=False)]
_Key = Annotated[str, typer.Option(envvar="SWITCHYARD_OPERATOR_KEY", help="The operator's key.")]
_Url = Annotated[str, typer.Option(envvar="SWITCHYARD_URL", help="The gateway's address.")]


def base(out: _Out, seed: Annotated[int, typer.Option(help="Equal seeds give equal weights.")] = 0) -> None:
    """Make a tiny real base model, with no download.

    Example: python -m adapters base tiny-base
    """
    from adapters.base import make_tiny_base

    settle()
    try:
        make_tiny_base(out, seed, report=say)
    except OSError as error:
        raise failed(error) from error


def demo(out: Annotated[Path, typer.Argument(help="The folder to write into.")]) -> None:
    """Write data to try everything with: two chats that answer visibly differently, and labelled support tickets.

    Example: python -m adapters demo demo-data
    """
    from adapters.demo import write_demos, write_tickets

    tickets = write_tickets(out)
    for path in (*write_demos(out), tickets.rows, tickets.golden):
        say(str(path))


def register(
    folder: _Artifact, name: Annotated[str, typer.Argument(help="tenant/adapter")], key: _Key,
    url: _Url = "http://127.0.0.1:8080",
) -> None:
    """Register an artifact as the next version of an adapter and print that version as JSON.

    Example: python -m adapters register my-adapter acme/railway-desk --key "$SWITCHYARD_OPERATOR_KEY"
    """
    from adapters import register as registering

    try:
        version = registering.register(folder, name, url=url, key=key)
    except registering.RegisterError as error:
        raise failed(error) from error
    print(json.dumps(version, indent=2))
