"""`switchyard doctor`: is everything as it should be, and if not, what to do about each thing?"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import typer

from gateway.cli.options import DEFAULT_URL, Json, OperatorKey, Url, find_operator_key, load_settings
from gateway.cli.output import FAILED, CommandFailed, Output

if TYPE_CHECKING:
    import httpx

    from gateway.settings import Settings

Outcome: TypeAlias = Literal["ok", "warning", "failed", "skipped"]
MARKS: dict[Outcome, str] = {"ok": "✓", "warning": "!", "failed": "✗", "skipped": "-"}
STYLES: dict[Outcome, str] = {"ok": "green", "warning": "yellow", "failed": "red", "skipped": "dim"}
CLOCK_SECONDS = 5.0  # apart by more than this, expiry times and records mislead
TIMEOUT = 5.0  # seconds


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at; `hint` says what to do when it is not ok."""

    name: str
    outcome: Outcome
    found: str
    hint: str = ""


def doctor(url: Url = DEFAULT_URL, operator_key: OperatorKey = None, as_json: Json = False) -> None:
    """Check settings, state folder, Redis, gateway and replicas; exits with 1 when something failed.

    Example: switchyard doctor --url http://127.0.0.1:8080
    """
    checks = list(examine(url, operator_key))
    out = Output(as_json=as_json)
    if as_json:
        out.document([asdict(check) for check in checks])
    else:
        for check in checks:
            _print(out, check)
    if any(check.outcome == "failed" for check in checks):
        raise typer.Exit(FAILED)


def _print(out: Output, check: Check) -> None:
    from rich.text import Text

    line = Text.assemble((MARKS[check.outcome], STYLES[check.outcome]), f" {check.name}: {check.found}")
    out.console.print(line, soft_wrap=True)
    if check.hint and check.outcome != "ok":
        out.console.print(Text(f"  → {check.hint}"), soft_wrap=True)


def examine(url: str, operator_key: str | None) -> Iterator[Check]:
    """Every check, in an order in which an early failure explains later ones."""
    try:
        settings = load_settings()
    except CommandFailed as failure:
        yield Check("settings", "failed", failure.message, "Correct them and run this again.")
        return
    yield Check("settings", "ok", "valid")
    yield check_state(settings)
    yield check_redis(settings)
    yield from check_gateway(url, operator_key)


def check_state(settings: "Settings") -> Check:
    """Can the state folder be written, and is there room for an artifact?"""
    path = settings.state_path
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        return Check("state folder", "failed", f"{path} cannot be written ({error.strerror})",
                     "Make it writable, or set SWITCHYARD_STATE_PATH to a folder that is.")
    free = shutil.disk_usage(path).free
    if free < settings.max_artifact_bytes:
        return Check("state folder", "warning", f"{path}, {free >> 20} MiB free",
                     "There is no room for an artifact of the largest allowed size (SWITCHYARD_MAX_ARTIFACT_BYTES).")
    return Check("state folder", "ok", f"{path}, writable")


def check_redis(settings: "Settings") -> Check:
    """Does the registry's Redis answer? The embedded Valkey runs only while a gateway does."""
    from gateway.clients.valkey import socket_path

    where = settings.masked()["redis_url"]
    if settings.redis_url is None:
        socket = socket_path(settings.state_path)
        if not socket.exists():
            return Check("registry", "skipped", "the embedded Valkey is not running; it starts with the gateway")
        where, address = "the embedded Valkey", f"unix://{socket}"
    else:
        address = settings.redis_url
    problem = ping(address)
    if problem is None:
        return Check("registry", "ok", f"{where} answers")
    return Check("registry", "failed", f"{where} does not answer ({problem})",
                 "Start it, or correct SWITCHYARD_REDIS_URL. Requests go on meanwhile; changes are refused.")


def ping(address: str) -> str | None:
    """Ask the registry at this URL for its revision; None when it answers, else why not."""
    import asyncio

    from gateway.clients.registry import connect
    from gateway.domain.errors import SwitchyardError

    async def ask() -> None:
        registry = connect(address, "doctor")
        try:
            await asyncio.wait_for(registry.load(), TIMEOUT)
        finally:
            await registry.close()

    try:
        asyncio.run(ask())
    except (SwitchyardError, TimeoutError, OSError, ValueError) as error:
        return str(error) or type(error).__name__
    return None


def check_gateway(url: str, operator_key: str | None) -> Iterator[Check]:
    """Does the gateway answer, is it ready, and what does it say of its replicas?"""
    import httpx

    try:
        answer = httpx.get(f"{url.rstrip('/')}/readyz", timeout=TIMEOUT)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        yield Check("gateway", "failed", f"{url} does not answer ({error})",
                    "Start it with `switchyard serve`, or say where it is with --url or SWITCHYARD_URL.")
        return
    yield readiness(url, answer)
    yield clock(answer)
    try:
        yield from check_admin(url, find_operator_key(operator_key))
    except CommandFailed as failure:
        yield Check("admin API", "failed", failure.message, "Nothing about replicas can be said without it.")


def readiness(url: str, answer: "httpx.Response") -> Check:
    """What /readyz said."""
    if not answer.is_success:
        return Check("gateway", "failed", f"{url} answers but is not ready: {answer.text[:300]}",
                     "It is ready when it has a snapshot of the registry and one healthy replica.")
    if "degraded" in answer.text:
        return Check("gateway", "warning", f"{url} is ready but degraded: {answer.text[:300]}",
                     "Requests go on; changes are refused until the registry answers.")
    return Check("gateway", "ok", f"{url} is ready")


def clock(answer: "httpx.Response") -> Check:
    """Do the gateway's clock and ours agree?"""
    try:
        there = parsedate_to_datetime(answer.headers["date"])
    except (KeyError, ValueError):
        return Check("clock", "skipped", "the gateway's answer has no date")
    apart = abs((datetime.now(UTC) - there).total_seconds())
    if apart > CLOCK_SECONDS:
        return Check("clock", "failed", f"the gateway's differs from this machine's by {apart:.0f} s",
                     "Synchronise both (NTP): keys expire, and releases are judged, by these clocks.")
    return Check("clock", "ok", "the gateway's agrees with this machine's")


def check_admin(url: str, operator_key: str) -> Iterator[Check]:
    """What the admin API tells of replicas and versions; CommandFailed when it does not answer."""
    from gateway.cli.client import AdminClient

    with AdminClient(url, operator_key) as client:
        status, replicas = client.get("/status"), client.list("/replicas")
    yield Check("admin API", "ok", f"answers, at revision {status['registry']['revision']}")
    if not replicas:
        yield Check("replicas", "failed", "there is none", "switchyard replicas add gpu-0 http://host:8000")
    for replica in replicas:
        yield from check_replica(replica)
    yield from check_versions_agree(replicas)


def check_replica(replica: dict[str, Any]) -> Iterator[Check]:
    """One replica: health, runtime updating, slots, exposure."""
    name = f"replica {replica['name']}"
    if not replica["healthy"]:
        yield Check(name, "failed", f"{replica['url']} is not healthy ({replica['last_error'] or 'no reason known'})",
                    "Look at its log; the gateway takes it back by itself.")
        return
    yield Check(name, "ok", f"healthy, serves {replica['base_model']}, vLLM {replica['version'] or 'unknown'}")
    yield check_updating(name, replica["url"])
    yield check_slots(name, replica)
    yield check_exposure(name, replica)


def check_exposure(name: str, replica: dict[str, Any]) -> Check:
    """Who else can reach the replica's management routes?"""
    socket = replica["url"].removeprefix("unix:")
    if replica["exposed"] and socket != replica["url"] and is_private(Path(socket).parent):
        return Check(f"{name}, exposure", "ok", "only this user can reach its socket")
    if replica["exposed"]:
        return Check(f"{name}, exposure", "warning", "answers without its key: " + ", ".join(replica["exposed"]),
                     "Who reaches it can go round the gateway: use a unix socket, or a network of the gateway's own.")
    return Check(f"{name}, exposure", "ok", "nothing answers without its key")


def is_private(folder: Path) -> bool:
    """May nobody but its owner enter this folder?"""
    return folder.is_dir() and not folder.stat().st_mode & 0o077


def check_slots(name: str, replica: dict[str, Any]) -> Check:
    """More versions than GPU slots means waits of seconds."""
    loaded, slots = len(replica["loaded"]), replica["slots"]
    if slots is None:
        return Check(f"{name}, slots", "skipped", f"{loaded} versions loaded; slots are known after its first request")
    if loaded > slots:
        return Check(f"{name}, slots", "warning", f"{loaded} versions loaded, {slots} slots",
                     "When more are busy at once than there are slots, requests wait: raise vLLM's --max-loras, add a "
                     "replica, or let fewer replicas hold each adapter.")
    return Check(f"{name}, slots", "ok", f"{loaded} versions loaded, {slots} slots")


def check_updating(name: str, url: str) -> Check:
    """Is vLLM's runtime LoRA updating on? Its own description says, if we can reach it from here."""
    import httpx

    named = f"{name}, runtime LoRA updating"
    socket = url.removeprefix("unix:") if url.startswith("unix:") else None
    if socket and not os.path.exists(socket):
        return Check(named, "skipped", "its socket is on another machine")
    transport = httpx.HTTPTransport(uds=socket) if socket else None
    try:
        with httpx.Client(transport=transport, timeout=TIMEOUT, trust_env=False) as client:
            paths = client.get(("http://localhost" if socket else url.rstrip("/")) + "/openapi.json").json()["paths"]
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, TypeError) as error:
        return Check(named, "skipped", f"cannot be told from here ({type(error).__name__})")
    if "/v1/load_lora_adapter" in paths:
        return Check(named, "ok", "on")
    return Check(named, "failed", "off", "Start it with VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 and --enable-lora.")


def check_versions_agree(replicas: list[dict[str, Any]]) -> Iterator[Check]:
    """Replicas of one base model should run one vLLM version, or the same request has two answers."""
    found: dict[str, set[str]] = {}
    for replica in replicas:
        if replica["version"] and replica["base_model"]:
            found.setdefault(replica["base_model"], set()).add(replica["version"])
    for base_model, versions in found.items():
        agree = len(versions) == 1
        yield Check(f"vLLM versions of {base_model}", "ok" if agree else "warning", ", ".join(sorted(versions)),
                    "" if agree else "Run one version on all replicas of a pool.")
