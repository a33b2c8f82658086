"""Commands for the quality of production answers: who is sampled, how versions stand, what failed."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli.adapters import AdapterName, Name, parse_name
from gateway.cli.admin import Tenant, part
from gateway.cli.options import DEFAULT_URL, Json, OperatorKey, Url, connect, output
from gateway.cli.output import USAGE, CommandFailed, Output

if TYPE_CHECKING:
    from gateway.cli.client import AdminClient

quality = typer.Typer(no_args_is_help=True, help="How well adapters answer in production, and golden items from there.")

VERSION_COLUMNS = {"version": "VERSION", "quality": "QUALITY", "samples": "SAMPLES", "failures": "FAILED",
                   "below": "BELOW ITS FLOOR"}
CANDIDATE_COLUMNS = {"id": "CANDIDATE", "at": "AT", "version": "VERSION", "rule": "FAILED", "asked": "ASKED",
                     "answered": "ANSWERED"}
AT_ONCE = 100
SHOWN_CHARS = 60

Candidate = Annotated[str, typer.Argument(help="The candidate's id, as `quality candidates` shows it.")]
Reason = Annotated[str, typer.Option(help="Why; it is kept in the audit, so name no person.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check and answer as if, but change nothing.")]


@quality.command("opt-in")
def opt_in(
    tenant: Tenant,
    share: Annotated[float | None, typer.Option(min=0, max=100, help="Percent. Default: the setting's.")] = None,
    url: Url = DEFAULT_URL, operator_key: OperatorKey = None, as_json: Json = False,
) -> None:
    """Sample a share of a tenant's answers, redacted, and score them in the background; for admins.

    Example: switchyard quality opt-in acme --share 1
    """
    with connect(url, operator_key) as client:
        made = client.call("PUT", f"/tenants/{part(tenant)}/quality", json={"share": share})
    part_of = "the gateway's usual share" if share is None else f"{share:g}%"
    output(as_json).done(made, f"Of {tenant}'s answers {part_of} is sampled from now on.")


@quality.command("opt-out")
def opt_out(
    tenant: Tenant, url: Url = DEFAULT_URL, operator_key: OperatorKey = None, as_json: Json = False,
) -> None:
    """Sample a tenant no more, and delete what was kept of its answers, approved items too; for admins.

    Example: switchyard quality opt-out acme
    """
    with connect(url, operator_key) as client:
        gone = client.call("DELETE", f"/tenants/{part(tenant)}/quality")
    output(as_json).done(gone, f"Nothing of {tenant}'s answers is sampled or kept any more.")


@quality.command("set")
def set_policy(
    name: Name,
    policy: Annotated[Path, typer.Argument(
        help="JSON: rules, judge, pass_at, floor, min_samples.", exists=True, dir_okay=False, metavar="POLICY.json")],
    dry_run: DryRun = False,
    url: Url = DEFAULT_URL, operator_key: OperatorKey = None, as_json: Json = False,
) -> None:
    """Say what an adapter's answers must be, and the floor that their mean score must keep.

    {"rules": [{"kind": "json", "value": ["label"]}, {"kind": "forbidden", "value": "(?i)as an ai"}], "floor": 0.9}

    Example: switchyard quality set acme/support policy.json
    """
    target = _adapter(name)
    with connect(url, operator_key) as client:
        made = client.call("PUT", f"{target.path}/quality", json=_document(policy), params=_dry(dry_run))
    _show(output(as_json), made)


@quality.command("show")
def show(name: Name, url: Url = DEFAULT_URL, operator_key: OperatorKey = None, as_json: Json = False) -> None:
    """Show what an adapter's answers must be, and how its versions stand.

    Example: switchyard quality show acme/support
    """
    with connect(url, operator_key) as client:
        _show(output(as_json), client.get(f"{_adapter(name).path}/quality"))


@quality.command("candidates")
def candidates(
    name: Name,
    approved: Annotated[bool, typer.Option("--approved", help="Those that were approved.")] = False,
    url: Url = DEFAULT_URL, operator_key: OperatorKey = None, as_json: Json = False,
) -> None:
    """List answers that failed, redacted, and wait for a person; newest first. --json shows them whole.

    Example: switchyard quality candidates acme/support
    """
    with connect(url, operator_key) as client:
        found = _all(client, f"{_adapter(name).path}/quality/candidates", approved=str(approved).lower())
    out = output(as_json)
    shown = found if as_json else [
        {**each, "asked": _short(each["messages"][-1].get("content")), "answered": _short(each["answer"])}
        for each in found]
    out.rows(shown, CANDIDATE_COLUMNS, empty=f"{name} has no candidate.")


@quality.command("approve")
def approve(
    name: Name, candidate: Candidate,
    expected: Annotated[str | None, typer.Option(
        help="What the answer should have been; JSON, or else text. Default: as the broken rule says.")] = None,
    scorer: Annotated[str | None, typer.Option(
        help="How answers are compared with it: exact, normalised, label, contains, regex, json_schema, json_fields, "
             "numeric, rouge_l, judge. Default: normalised.")] = None,
    slice_name: Annotated[str, typer.Option("--slice", help="The part of the golden set.")] = "drift",
    reason: Reason = "", dry_run: DryRun = False,
    url: Url = DEFAULT_URL, operator_key: OperatorKey = None, as_json: Json = False,
) -> None:
    """Make a golden item of a candidate.

    Example: switchyard quality approve acme/support 1f2e3d4c5b6a7988 --expected "It is on its way."
    """
    wish = {"expected": None if expected is None else read_expected(expected, scorer), "scorer": scorer,
            "slice": slice_name, "reason": reason}
    made = _decide("approve", name, candidate, wish, dry_run, url, operator_key)
    output(as_json).done(made, f"Approved {candidate} as the golden item {made['item']['id']}. Take all of them: "
                               f"switchyard quality export {name} --to golden.jsonl")


@quality.command("reject")
def reject(
    name: Name, candidate: Candidate, reason: Reason = "", dry_run: DryRun = False,
    url: Url = DEFAULT_URL, operator_key: OperatorKey = None, as_json: Json = False,
) -> None:
    """Forget a candidate, approved or not; its question does not come back.

    Example: switchyard quality reject acme/support 1f2e3d4c5b6a7988 --reason "no sensible question"
    """
    gone = _decide("reject", name, candidate, {"reason": reason}, dry_run, url, operator_key)
    output(as_json).done(gone, f"Rejected {candidate}.")


@quality.command("export")
def export(
    name: Name,
    to: Annotated[Path | None, typer.Option(help="A file to write. Default: standard output.")] = None,
    url: Url = DEFAULT_URL, operator_key: OperatorKey = None, as_json: Json = False,
) -> None:
    """Write the approved items as a golden set: JSONL, one item a line, ordered by id.

    Example: switchyard quality export acme/support --to golden.jsonl
    """
    with connect(url, operator_key) as client:
        items = _all(client, f"{_adapter(name).path}/quality/golden")
    items.sort(key=lambda item: str(item["id"]))
    if as_json:
        output(as_json).document(items)
        return
    lines = "".join(json.dumps(item, ensure_ascii=False, sort_keys=True) + "\n" for item in items)
    if to is None:
        print(lines, end="")
        return
    try:
        to.write_text(lines, encoding="utf-8")
    except OSError as error:
        raise CommandFailed(f"{to} cannot be written: {error.strerror}.") from None
    output(as_json).done(items, f"Wrote {len(items)} items to {to}.")


def read_expected(text: str, scorer: str | None) -> Any:
    """JSON where the scorer takes more than text, else the text as it is."""
    if scorer not in ("json_schema", "json_fields", "numeric", "judge") and not text.startswith("["):
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text


def _decide(
    verb: str, name: str, candidate: str, wish: dict[str, Any], dry_run: bool, url: str, operator_key: str | None,
) -> Any:
    path = f"{_adapter(name).path}/quality/candidates/{part(candidate)}/{verb}"
    with connect(url, operator_key) as client:
        return client.call("POST", path, json=wish, params=_dry(dry_run))


def _show(out: Output, found: dict[str, Any]) -> None:
    if out.as_json:
        out.document(found)
        return
    name = f"{found['tenant']}/{found['adapter']}"
    if not found["opted_in"]:
        out.console.print(f"{found['tenant']} has not opted in, so nothing is sampled: switchyard quality opt-in "
                          f"{found['tenant']}", markup=False, soft_wrap=True)
    rules = ", ".join(
        rule["kind"] + ("" if rule["value"] is None else f" {rule['value']!r}") for rule in found["rules"])
    floor = "no floor" if found["floor"] is None else f"floor {found['floor']:g} from {found['min_samples']} samples on"
    judged = f"; a judge scores by: {found['judge']}" if found["judge"] else ""
    out.console.print(f"{name}: rules {rules or 'none'}{judged}; {floor}; {found['approved']} approved, "
                      f"{found['rejected']} rejected.", markup=False, soft_wrap=True)
    out.rows(found["versions"], VERSION_COLUMNS, empty="No version has a sample in the window.")


def _all(client: "AdminClient", path: str, **params: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    while True:
        answer = client.get(path, offset=str(len(found)), limit=str(AT_ONCE), **params)
        found += answer["data"]
        if not answer["has_more"] or not answer["data"]:
            return found


def _document(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CommandFailed(f"{path} is no JSON that can be read: {error}.", exit_code=USAGE) from None


def _short(text: Any) -> str:
    words = " ".join(str(text or "").split())
    return words if len(words) <= SHOWN_CHARS else words[:SHOWN_CHARS - 1] + "…"


def _dry(dry_run: bool) -> dict[str, str]:
    return {"dry_run": "true"} if dry_run else {}


def _adapter(name: str) -> AdapterName:
    target = parse_name(name)
    if target.number is not None:
        raise CommandFailed(f"Quality is of an adapter: write {target.tenant}/{target.adapter}, without a version.",
                            exit_code=USAGE)
    return target
