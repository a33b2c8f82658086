"""Commands for the audit: is it still what was written?"""

from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli.options import DEFAULT_URL, Json, OperatorKey, Url, connect, output
from gateway.cli.output import FAILED, USAGE, CommandFailed

if TYPE_CHECKING:
    from gateway.cli.client import AdminClient
    from gateway.domain.audit import Report
    from gateway.domain.model import Change

audit = typer.Typer(no_args_is_help=True, help="Who changed what, and proof that nobody altered it.")

AT_ONCE = 1000  # changes; the most that the API answers


@audit.callback()
def _group() -> None:
    """Who changed what, and proof that nobody altered it."""


@audit.command()
def verify(
    since: Annotated[int, typer.Option(min=1, help="Only the changes from this revision on.")] = 1,
    expect: Annotated[str | None, typer.Option(
        metavar="REVISION:HASH", help="A hash that an earlier run told: it must still be that change's.")] = None,
    url: Url = DEFAULT_URL, operator_key: OperatorKey = None, as_json: Json = False,
) -> None:
    """Check the audit's hash chain; exits with 1 and names the first broken change if it was tampered with.

    Who may write Redis could make the whole chain anew: keep the hash that this tells, and give it back by --expect.

    Example: switchyard audit verify --json
    """
    from gateway.domain import audit as chain

    expected = None if expect is None else parse_expected(expect)
    with connect(url, operator_key) as client:
        until = int(client.get("/status")["registry"]["revision"])
        report = chain.verify(_changes(client), since=since, until=until, expected=expected)
    output(as_json).done(asdict(report), describe(report))
    if report.broken is not None:
        raise typer.Exit(FAILED)


def parse_expected(text: str) -> tuple[int, str]:
    """The parts of `REVISION:HASH`."""
    revision, _, digest = text.partition(":")
    if not revision.isdecimal() or not digest:
        raise CommandFailed(f"--expect {text!r} is not REVISION:HASH.", exit_code=USAGE)
    return int(revision), digest.lower()


def describe(report: "Report") -> str:
    """What a verification found, for people."""
    if report.broken is not None:
        return f"The audit is broken at revision {report.broken.revision}. {report.broken.reason}"
    total = report.chained + report.unchained
    lines = [f"The audit holds: {total} changes, revisions {report.first_revision} to {report.last_revision}."
             if total else "There is no change to check."]
    if report.unchained:
        lines.append(f"{report.unchained} of them were made before the audit was chained, and have no hash.")
    if report.head:
        lines.append(f"Keep this, for a later --expect: {report.last_revision}:{report.head}")
    return "\n".join(lines)


def _changes(client: "AdminClient") -> Iterator["Change"]:
    """All changes, newest first, page by page."""
    before: dict[str, str] = {}
    while True:
        page = client.get("/changes", limit=str(AT_ONCE), **before)
        yield from map(_change, page["data"])
        if not page["has_more"]:
            return
        before = {"before": str(page["data"][-1]["revision"])}


def _change(row: dict[str, Any]) -> "Change":
    from gateway.domain.model import Change

    return Change(
        actor=row["actor"], action=row["action"], target=row["target"], detail=row["detail"],
        at=datetime.fromisoformat(row["at"]).timestamp(), revision=row["revision"],
        writes_digest=row["writes_digest"], previous=row["previous"] or "", hash=row["hash"] or "")
