"""Options that many commands share, and what they stand for."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from gateway.cli.output import USAGE, CommandFailed, Output

if TYPE_CHECKING:
    from gateway.cli.client import AdminClient
    from gateway.settings import Settings

Url: TypeAlias = Annotated[str, typer.Option(
    "--url", envvar="SWITCHYARD_URL", help="The gateway's address.", rich_help_panel="Gateway")]
OperatorKey: TypeAlias = Annotated[str | None, typer.Option(
    "--operator-key", envvar="SWITCHYARD_OPERATOR_KEY", show_envvar=True, rich_help_panel="Gateway",
    help="The operator's key. Default: the one in the state folder's operator.key.")]
Json: TypeAlias = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
State: TypeAlias = Annotated[Path | None, typer.Option(
    "--state", help="State folder. Default: SWITCHYARD_STATE_PATH, else .switchyard/state.")]

DEFAULT_URL = f"http://127.0.0.1:{os.environ.get('SWITCHYARD_PORT') or 8080}"


def load_settings(**given: object) -> "Settings":
    """The settings, with those of `given` that are not None in front; CommandFailed says what is wrong."""
    from gateway import settings

    try:
        return settings.load(**given)
    except settings.SettingsError as error:
        raise CommandFailed(str(error), exit_code=USAGE, code="invalid_settings") from None


def find_operator_key(given: str | None) -> str:
    """The key that was given, else the one a gateway on this machine keeps in its state folder."""
    if given:
        return given
    path = load_settings().operator_key_path
    try:
        return path.read_text().strip()
    except OSError as error:
        raise CommandFailed(
            f"There is no operator key: {path} cannot be read ({error.strerror}). Give one with --operator-key or "
            "SWITCHYARD_OPERATOR_KEY, or run this where the gateway's state folder is.",
            exit_code=USAGE, code="no_operator_key") from None


def connect(url: str, operator_key: str | None) -> "AdminClient":
    """A client of the admin API."""
    from gateway.cli.client import AdminClient

    return AdminClient(url, find_operator_key(operator_key))


def output(as_json: bool) -> Output:
    """Where the command prints its result."""
    return Output(as_json=as_json)
