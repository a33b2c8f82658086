"""The commands, put together, and how their failures become exit codes.

Exit codes: 0 done, 1 failed or refused, 2 wrong usage or settings, 3 no gateway answers, 130 interrupted.
"""

import sys

import typer

from gateway.cli.adapters import adapters
from gateway.cli.admin import keys, replicas, tenants
from gateway.cli.audit import audit
from gateway.cli.doctor import doctor
from gateway.cli.operators import operators
from gateway.cli.options import Json, load_settings
from gateway.cli.output import OK, CommandFailed, Output, report
from gateway.cli.quality import quality
from gateway.cli.release import release
from gateway.cli.serving import serve, up
from gateway.cli.trainer import add_trainer_commands

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich",
    help="Switchyard sends every request to the right LoRA adapter.",
    epilog="Exit codes: 0 done · 1 failed or refused · 2 wrong usage or settings · 3 no gateway answers")
app.command()(serve)
app.command()(up)
app.add_typer(tenants, name="tenants")
app.add_typer(keys, name="keys")
app.add_typer(adapters, name="adapters")
app.add_typer(release, name="release")
app.add_typer(quality, name="quality")
app.add_typer(replicas, name="replicas")
app.add_typer(audit, name="audit")
app.add_typer(operators, name="operators")
app.command()(doctor)
add_trainer_commands(app)


@app.command("settings")
def show_settings(as_json: Json = False) -> None:
    """Show every setting in force, with secrets masked.

    Example: SWITCHYARD_PORT=9000 switchyard settings
    """
    masked = load_settings().masked()
    if as_json:
        Output(as_json=True).document(masked)
        return
    from gateway.settings import PREFIX, table

    rows = [{"name": row.name, "value": masked[row.name.removeprefix(PREFIX).lower()], "meaning": row.meaning}
            for row in table()]
    Output(as_json=False).rows(rows, {"name": "SETTING", "value": "VALUE", "meaning": "MEANING"}, empty="")


def run() -> int:
    """Run the command line; its exit code."""
    try:
        app(standalone_mode=True)
    except CommandFailed as failure:
        return report(failure, as_json="--json" in sys.argv)
    return OK
