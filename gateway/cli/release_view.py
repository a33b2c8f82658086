"""How a release looks to people: one sentence, a live table, and the story of why it is as it is."""

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from gateway.cli.output import CommandFailed, Output
from gateway.system import System

OVER = ("promoted", "aborted")
COLOURS = {"pass": "green", "fail": "bold red", "inconclusive": "yellow", "no_traffic": "yellow"}
LATENCIES = {"time_to_first_token": "FIRST TOKEN p50 / p95", "seconds_per_output_token": "PER TOKEN p50 / p95"}
IN_PERCENT = ("error_rate", "empty_outputs", "length_finishes", "json_invalid", "split")
IN_TOKENS = "output_tokens"
DAY, HOUR, MINUTE = 86_400, 3_600, 60

Document = Mapping[str, Any]


def headline(release: Document) -> str:
    """Where the release stands, in a sentence."""
    name = f"{release['tenant']}/{release['adapter']}"
    stable = f"version {release['stable']} is stable" if release["stable"] else "no version takes traffic"
    rollout = release["rollout"]
    if rollout is None:
        return f"{name}: {stable}, and there is no rollout."
    canary, why = f"version {rollout['canary']}", f": {rollout['reason']}" if rollout["reason"] else "."
    match rollout["phase"]:
        case "promoted":
            return f"{name}: {stable}; it was promoted{why}"
        case "aborted":
            return f"{name}: {stable}; {canary} was rolled back{why}"
    missing = rollout["approvals_missing"]
    approvals = f", {missing} more approval{'s' * (missing > 1)} needed" if missing else ""
    return f"{name}: {stable}; {canary} gets {rollout['weight']:g}% ({rollout['phase']}{approvals}){why}"


def status(release: Document, now: float) -> RenderableType:
    """The whole of it on a few lines; `now` in Unix seconds."""
    rollout, analysis = release["rollout"], release["analysis"]
    if rollout is None:
        return Text(headline(release))
    parts: list[RenderableType] = [Text(headline(release), style="bold"), Text(_step(rollout), style="dim"),
                                   _tracks(release, rollout, analysis)]
    if analysis is not None:
        verdict = str(analysis["verdict"])
        parts.append(Text.assemble("verdict  ", (verdict, COLOURS.get(verdict, "")), f"  {analysis['reason']}"))
    if rollout["phase"] not in OVER:
        parts.append(Text(f"next     {_next(rollout, analysis, now)}"))
    parts.append(Text(f"revision {release['revision']}", style="dim"))
    return Group(*parts)


def story(release: Document, moves: Sequence[Document]) -> Iterator[RenderableType]:
    """Why the release is as it is: the sentence, who did what, and the numbers of the verdict behind it."""
    yield headline(release)
    rollout = release["rollout"]
    if rollout is None:
        return
    last = next((m for m in moves if m["action"].startswith("release.") and m["action"] != "release.verdict"), None)
    if last is not None:
        before = last["detail"].get("before")
        at = f" at {before['weight']:g}%" if isinstance(before, Mapping) and "weight" in before else ""
        yield f"Last move: {last['action'].removeprefix('release.')} by {last['actor']}, {last['at']}{at}."
    yield f"Plan: {rollout['plan']['text']}; started by {rollout['started_by']}, {rollout['started_at']}" + (
        ", forced although slots were lacking." if rollout["forced"] else ".")
    if rollout["approved_by"]:
        yield f"Approved by {', '.join(rollout['approved_by'])}."
    yield from (f"Warning: {warning}" for warning in release["warnings"])
    analysis = release["analysis"]
    if analysis is None:
        yield "No verdict was noted."
        return
    yield f"Verdict noted last: {analysis['verdict']}, at {analysis['weight']:g}%. {analysis['reason']}"
    yield _tracks(release, rollout, analysis)
    yield _findings(analysis["findings"])


class Screen:
    """Shows one look after the other: a table in place on a terminal, else one after the other; JSON line by line."""

    def __init__(self, out: Output, every: float, system: System, sleep: Callable[[float], None]) -> None:
        self._out = out
        self._every = every
        self._system = system
        self._sleep = sleep

    def follow(self, looks: Iterable[Document | CommandFailed]) -> bool:
        """Until the rollout is over, or there is none: False when it was rolled back."""
        if self._out.as_json:
            return self._lines(looks)
        with Live(console=self._out.console, auto_refresh=False, vertical_overflow="visible") as live:
            for look in looks:
                if isinstance(look, CommandFailed):
                    live.update(Text(look.message, style="red"), refresh=True)
                else:
                    live.update(status(look, self._system.now()), refresh=True)
                    if _is_over(look):
                        return _went_well(look)
                self._sleep(self._every)
        return True

    def _lines(self, looks: Iterable[Document | CommandFailed]) -> bool:
        for look in looks:
            if isinstance(look, CommandFailed):
                print(json.dumps({"error": {"message": look.message, "code": look.code}}), file=sys.stderr, flush=True)
            else:
                print(json.dumps(look, ensure_ascii=False), flush=True)
                if _is_over(look):
                    return _went_well(look)
            self._sleep(self._every)
        return True


def _is_over(release: Document) -> bool:
    return release["rollout"] is None or release["rollout"]["phase"] in OVER


def _went_well(release: Document) -> bool:
    return release["rollout"] is None or release["rollout"]["phase"] == "promoted"


def _step(rollout: Document) -> str:
    steps = rollout["plan"]["steps"]
    return f"step {rollout['step'] + 1} of {len(steps)} of the plan {rollout['plan']['text']}"


def _next(rollout: Document, analysis: Document | None, now: float) -> str:
    """What comes next, and when, as the analyst sees it; before its first look, as the plan has it."""
    decision = (analysis or {}).get("decision")
    if decision is not None:
        reason, until = str(decision["refused"] or decision["reason"]), decision["until"]
    else:
        step = rollout["plan"]["steps"][rollout["step"]]
        reason, until = "The step takes its time.", _unix(rollout["step_since"]) + step["min_time"]
    left = 0.0 if until is None else until - now
    return f"{reason} ({_duration(left)} left)" if left > 0 else reason


def _tracks(release: Document, rollout: Document, analysis: Document | None) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for heading in ("TRACK", "VERSION", "WEIGHT", "REQUESTS", "ERRORS", *LATENCIES.values()):
        table.add_column(heading, justify="left" if heading in ("TRACK", "VERSION") else "right")
    canary = rollout["weight"]
    tracks = (analysis or {}).get("tracks") or {}
    for track, version, weight in (("stable", rollout["baseline"], 100 - canary),
                                   ("canary", rollout["canary"], canary)):
        table.add_row(track, str(version), f"{weight:g}%", *_numbers(tracks.get(track)))
    if release["shadow"]:
        table.add_row("shadow", str(release["shadow"]["version"]), f"{release['shadow']['share']:g}% copied")
    return table


def _numbers(track: Document | None) -> list[str]:
    if track is None:
        return ["-"] * (2 + len(LATENCIES))
    requests, errors = track["requests"], track["errors"]
    share = f" ({errors / requests:.1%})" if requests else ""
    spreads = [track.get(name) or {} for name in LATENCIES]
    return [f"{requests:,}", f"{errors:,}{share}",
            *(f"{_seconds(spread.get('p50'))} / {_seconds(spread.get('p95'))}" for spread in spreads)]


def _findings(findings: Sequence[Document]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for heading in ("METRIC", "STABLE", "CANARY", "SAMPLES", "EVIDENCE / THRESHOLD", "VERDICT", "WHY"):
        table.add_column(heading, overflow="fold")
    for found in findings:
        metric, verdict = str(found["metric"]), str(found["verdict"])
        table.add_row(
            metric, _measure(metric, found["stable"]), _measure(metric, found["canary"]),
            f"{found['stable_samples']:,} / {found['canary_samples']:,}",
            f"{found['statistic']:.2f} / {found['threshold']:.2f}",
            Text(verdict, style=COLOURS.get(verdict, "")), Text(str(found["reason"])))
    return table


def _measure(metric: str, value: float | None) -> str:
    if value is None:
        return "-"
    if metric in IN_PERCENT:
        return f"{value:.2%}"
    return f"{value:.0f} tokens" if metric == IN_TOKENS else _seconds(value)


def _seconds(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.2f} s"


def _duration(seconds: float) -> str:
    """Whole seconds as people say them: `2h 05m`, `9m 30s`, `12s`."""
    left = max(1, round(seconds))
    if left >= DAY:
        return f"{left // DAY}d {left % DAY // HOUR}h"
    if left >= HOUR:
        return f"{left // HOUR}h {left % HOUR // MINUTE:02}m"
    return f"{left // MINUTE}m {left % MINUTE:02}s" if left >= MINUTE else f"{left}s"


def _unix(text: str) -> float:
    return datetime.fromisoformat(text).astimezone(UTC).timestamp()
