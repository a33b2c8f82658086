"""Commands for releases: send a canary on its way, watch it, and say go, stop or back."""

import tomllib
from collections.abc import Iterator
from pathlib import Path
from time import sleep
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli.adapters import AdapterName, Name, adapter_alone
from gateway.cli.options import DEFAULT_URL, Json, OperatorKey, Url, connect, output
from gateway.cli.output import FAILED, OK, UNREACHABLE, USAGE, CommandFailed

if TYPE_CHECKING:
    from gateway.cli.client import AdminClient

release = typer.Typer(no_args_is_help=True, help="Which versions take traffic, and rollouts of new ones.")

Reason = Annotated[str, typer.Option(help="Why; it is kept in the audit.")]
IfMatch = Annotated[int | None, typer.Option(
    help="Only if the release still is at this revision, as `release status` shows it.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check and answer as if, but change nothing.")]
HISTORY_COLUMNS = {"revision": "REVISION", "at": "AT", "actor": "BY", "action": "CHANGE", "weight": "WEIGHT %",
                   "phase": "PHASE", "reason": "REASON"}
MOST_AT_ONCE = 1000


@release.command()
def start(
    name: Name,
    canary: Annotated[int, typer.Option(min=1, help="The version that gets some of the callers.")],
    plan: Annotated[str, typer.Option(
        help="default, a FILE.toml with `steps`, or text: '5% for 10m min 200, 25% for 10m gate, 100%'.")] = "default",
    force: Annotated[bool, typer.Option(
        "--force", help="Also if a replica has too few slots; needs the role admin, and the audit tells.")] = False,
    approvals: Annotated[int, typer.Option(
        min=0, max=10, help="So many other operators must promote, too, before it is.")] = 0,
    reason: Reason = "", if_match: IfMatch = None, dry_run: DryRun = False,
    url: Url = DEFAULT_URL, operator_key: OperatorKey = None, as_json: Json = False,
) -> None:
    """Send some callers to a new version, and more of them as the evidence allows.

    Example: switchyard release start acme/support --canary 4 --plan default
    """
    wish = {"canary": canary, "plan": read_plan(plan), "force": force, "approvals": approvals, "reason": reason}
    _move("start", name, wish, if_match, dry_run, url, operator_key, as_json)


@release.command()
def shift(
    name: Name,
    to: Annotated[float | None, typer.Option(min=0, max=100, help="Percent. Default: the plan's next weight.")] = None,
    reason: Reason = "", if_match: IfMatch = None, dry_run: DryRun = False,
    url: Url = DEFAULT_URL, operator_key: OperatorKey = None, as_json: Json = False,
) -> None:
    """Send more callers to the canary now; nobody is ever sent back but by an abort.

    Example: switchyard release shift acme/support --to 25 --reason "looks well"
    """
    wish = {"reason": reason, **({} if to is None else {"weight": to})}
    _move("shift", name, wish, if_match, dry_run, url, operator_key, as_json)


@release.command()
def pause(
    name: Name, reason: Reason = "", if_match: IfMatch = None, dry_run: DryRun = False,
    url: Url = DEFAULT_URL, operator_key: OperatorKey = None, as_json: Json = False,
) -> None:
    """Keep the canary's weight as it is until the rollout is resumed; a canary that fails is still taken away.

    Example: switchyard release pause acme/support --reason "over the weekend"
    """
    _move("pause", name, {"reason": reason}, if_match, dry_run, url, operator_key, as_json)


@release.command()
def resume(
    name: Name, reason: Reason = "", if_match: IfMatch = None, dry_run: DryRun = False,
    url: Url = DEFAULT_URL, operator_key: OperatorKey = None, as_json: Json = False,
) -> None:
    """Let a paused rollout go on.

    Example: switchyard release resume acme/support
    """
    _move("resume", name, {"reason": reason}, if_match, dry_run, url, operator_key, as_json)


@release.command()
def promote(
    name: Name, reason: Reason = "", if_match: IfMatch = None, dry_run: DryRun = False,
    url: Url = DEFAULT_URL, operator_key: OperatorKey = None, as_json: Json = False,
) -> None:
    """Make the canary the stable version; where approvals are asked for, by another than who started it, approve.

    Example: switchyard release promote acme/support --reason "checked by hand"
    """
    _move("promote", name, {"reason": reason}, if_match, dry_run, url, operator_key, as_json)


@release.command()
def abort(
    name: Name, reason: Reason = "", if_match: IfMatch = None, dry_run: DryRun = False,
    url: Url = DEFAULT_URL, operator_key: OperatorKey = None, as_json: Json = False,
) -> None:
    """Take the canary away: every caller gets the stable version, at once.

    Example: switchyard release abort acme/support --reason "answers are too short"
    """
    _move("abort", name, {"reason": reason}, if_match, dry_run, url, operator_key, as_json)


@release.command()
def status(
    name: Name,
    watch: Annotated[bool, typer.Option(
        "--watch", help="Look again and again until the rollout is over; exits with 1 if it was rolled back.")] = False,
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 1.0,
    url: Url = DEFAULT_URL, operator_key: OperatorKey = None, as_json: Json = False,
) -> None:
    """Show where the rollout stands: weight, phase, both tracks' numbers, the verdict, and what comes next.

    Example: switchyard release status acme/support --watch
    """
    from gateway.cli import release_view
    from gateway.system import System

    target, out, system = adapter_alone(name), output(as_json), System()
    with connect(url, operator_key) as client:
        if watch:
            screen = release_view.Screen(out, every, system, sleep)
            raise typer.Exit(OK if screen.follow(_looks(client, target)) else FAILED)
        found = look(client, target)
    if as_json:
        out.document(found)
    else:
        out.console.print(release_view.status(found, system.now()))


@release.command()
def show(name: Name, url: Url = DEFAULT_URL, operator_key: OperatorKey = None, as_json: Json = False) -> None:
    """Show the release and why it is so: who moved it last, the reason, and the numbers of the verdict behind it.

    Example: switchyard release show acme/support
    """
    from gateway.cli import release_view

    target, out = adapter_alone(name), output(as_json)
    with connect(url, operator_key) as client:
        found = client.get(f"{target.path}/release")
        moves = client.get(f"{target.path}/release/history", limit="20")["data"]
    if as_json:
        out.document({**found, "history": moves})
        return
    for part in release_view.story(found, moves):
        out.console.print(part, soft_wrap=isinstance(part, str), markup=not isinstance(part, str))


@release.command()
def history(
    name: Name,
    limit: Annotated[int, typer.Option(min=1, max=MOST_AT_ONCE, help="How many at most.")] = 50,
    url: Url = DEFAULT_URL, operator_key: OperatorKey = None, as_json: Json = False,
) -> None:
    """List what was done to the release, newest first: by whom, and why.

    Example: switchyard release history acme/support
    """
    target = adapter_alone(name)
    with connect(url, operator_key) as client:
        moves = client.get(f"{target.path}/release/history", limit=str(limit))["data"]
    shown = moves if as_json else [
        {**move, **{field: move["detail"].get(field) for field in ("weight", "phase", "reason")}} for move in moves]
    output(as_json).rows(shown, HISTORY_COLUMNS, empty="Nothing was done to it yet.")


def read_plan(text: str) -> str | dict[str, Any]:
    """What is sent as the plan: a TOML file's table, else the text itself, which the gateway understands."""
    if not text.endswith(".toml"):
        return text
    try:
        return tomllib.loads(Path(text).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CommandFailed(f"The plan {text} cannot be read: {error}.", exit_code=USAGE) from None


def look(client: "AdminClient", target: AdapterName) -> dict[str, Any]:
    """The release as it is now, with the latest analysis of its rollout as `analysis`."""
    found: dict[str, Any] = client.get(f"{target.path}/release")
    if found["rollout"] is not None:
        found["analysis"] = client.get(f"{target.path}/release/analysis")["analysis"]
    return found


def _looks(client: "AdminClient", target: AdapterName) -> Iterator[dict[str, Any] | CommandFailed]:
    """One look after the other for ever; a gateway that does not answer once may at the next."""
    answered = False
    while True:
        try:
            yield look(client, target)
            answered = True
        except CommandFailed as failure:
            if not answered or failure.exit_code != UNREACHABLE:
                raise
            yield failure


def _move(
    move: str, name: str, wish: dict[str, Any], if_match: int | None, dry_run: bool, url: str,
    operator_key: str | None, as_json: bool,
) -> None:
    from gateway.cli import release_view

    target = adapter_alone(name)
    headers = {} if if_match is None else {"If-Match": f'"{if_match}"'}
    params = {"dry_run": "true"} if dry_run else {}
    with connect(url, operator_key) as client:
        found = client.call("POST", f"{target.path}/release/{move}", json=wish, params=params, headers=headers)
    would = "It was a dry run; nothing was changed. After it:\n" if dry_run else ""
    lines = [would + release_view.headline(found), *(f"Warning: {warning}" for warning in found.get("warnings") or ())]
    output(as_json).done(found, "\n".join(lines))
