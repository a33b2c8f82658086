"""Commands for operators: who may use the admin API, and with which role."""

from typing import Annotated

import typer

from gateway.cli.admin import part
from gateway.cli.options import DEFAULT_URL, Json, OperatorKey, Url, connect, output
from gateway.cli.output import USAGE, CommandFailed

operators = typer.Typer(no_args_is_help=True, help="Who may use the admin API; for admins.")

OPERATOR_COLUMNS = {"name": "OPERATOR", "role": "ROLE", "prefix": "PREFIX", "created_at": "CREATED",
                    "revoked_at": "REVOKED"}
ROLES = ("viewer", "operator", "admin")


@operators.command("create")
def create_operator(
    name: Annotated[str, typer.Argument(help="The name that the audit gets.")],
    role: Annotated[str, typer.Option(
        help="viewer (reads), operator (tenants, keys, adapters, releases) or admin (everything).")] = "operator",
    url: Url = DEFAULT_URL, operator_key: OperatorKey = None, as_json: Json = False,
) -> None:
    """Create an operator with a key of their own. It is shown this once.

    Example: switchyard operators create alice --role viewer
    """
    if role not in ROLES:
        raise CommandFailed(f"--role is {role!r}; use {', '.join(ROLES)}.", exit_code=USAGE)
    with connect(url, operator_key) as client:
        made = client.call("POST", "/operators", json={"name": name, "role": role})
    output(as_json).done(made, f"{made['key']}\nThis is the only time that the key is shown. {name} gives it with "
                               "--operator-key or SWITCHYARD_OPERATOR_KEY.")


@operators.command("list")
def list_operators(url: Url = DEFAULT_URL, operator_key: OperatorKey = None, as_json: Json = False) -> None:
    """List the operators, never their keys.

    Example: switchyard operators list
    """
    with connect(url, operator_key) as client:
        found = client.list("/operators")
    output(as_json).rows(found, OPERATOR_COLUMNS,
                         empty="Only the settings' key opens the admin API: switchyard operators create alice")


@operators.command("revoke")
def revoke_operator(
    name: Annotated[str, typer.Argument(help="The operator's name.")],
    url: Url = DEFAULT_URL, operator_key: OperatorKey = None, as_json: Json = False,
) -> None:
    """Revoke an operator's key at once; the name stays in the audit.

    Example: switchyard operators revoke alice
    """
    with connect(url, operator_key) as client:
        revoked = client.call("DELETE", f"/operators/{part(name)}")
    output(as_json).done(revoked, f"Revoked the key of {name}.")
