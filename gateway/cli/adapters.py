"""Commands for adapters and their versions."""

import re
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from gateway.cli.admin import part
from gateway.cli.archive import tar_stream
from gateway.cli.options import DEFAULT_URL, Json, OperatorKey, Url, connect, output
from gateway.cli.output import USAGE, CommandFailed, Output

if TYPE_CHECKING:
    from gateway.cli.client import AdminClient

adapters = typer.Typer(no_args_is_help=True, help="Adapters and their versions.")

ADAPTER_COLUMNS = {"tenant": "TENANT", "name": "ADAPTER", "stable": "STABLE", "last_number": "NEWEST",
                   "replicas": "REPLICAS", "created_at": "CREATED"}
VERSION_COLUMNS = {"number": "VERSION", "phase": "PHASE", "digest": "DIGEST", "base_model": "BASE MODEL",
                   "rank": "RANK", "size_bytes": "BYTES", "effect": "EFFECT", "parity": "PARITY",
                   "warnings": "WARNINGS", "created_at": "CREATED"}
EVALUATION_COLUMNS = {"at": "AT", "versions": "VERSION", "golden_set": "GOLDEN SET", "metric": "METRIC",
                      "value": "VALUE", "floor": "FLOOR", "passed": "PASSED", "verified": "VERIFIED",
                      "latency_ms_p99": "P99 MS", "engine_version": "ENGINE", "by": "BY",
                      "ignored": "IGNORED BECAUSE IT"}
MOST_EVALUATIONS = 1000
DIGEST_SHOWN = 12
REMOTE = ("hf://", "s3://")


class Policy(StrEnum):
    """What a version needs before it takes traffic; the API's `evaluation`."""

    REQUIRED = "required"
    WARN = "warn"
    OFF = "off"


POLICIES = {
    Policy.REQUIRED: "only versions with a passing evaluation take canary or stable traffic",
    Policy.WARN: "versions without a passing evaluation take traffic, with a warning",
    Policy.OFF: "versions take traffic without any evaluation",
}
Name = Annotated[str, typer.Argument(help="tenant/adapter", metavar="TENANT/ADAPTER")]


class AdapterName(NamedTuple):
    """`acme/support`, or `acme/support@3` with a version's number."""

    tenant: str
    adapter: str
    number: int | None

    @property
    def path(self) -> str:
        return f"/tenants/{part(self.tenant)}/adapters/{part(self.adapter)}"


def parse_name(text: str) -> AdapterName:
    """The parts of `tenant/adapter[@number]`."""
    found = re.fullmatch(r"([^/@]+)/([^/@]+)(?:@([0-9]{1,9}))?", text)
    if found is None:
        raise CommandFailed(f"{text!r} is not an adapter's name: write tenant/adapter, such as acme/support.",
                            exit_code=USAGE)
    return AdapterName(found[1], found[2], int(found[3]) if found[3] else None)


@adapters.command()
def register(
    name: Name,
    source: Annotated[str, typer.Argument(help="A folder or archive, hf://owner/name[@revision] or s3://bucket/prefix")],
    base_model: Annotated[str | None, typer.Option(help="The base model it is for, if its files do not say.")] = None,
    wait: Annotated[bool, typer.Option(help="Wait until it is ready, or refused.")] = True,
    server_side: Annotated[bool, typer.Option(
        "--server-side", help="SOURCE is a path on the gateway's machine: send the path, not the files.")] = False,
    url: Url = DEFAULT_URL, operator_key: OperatorKey = None, as_json: Json = False,
) -> None:
    """Register an artifact as the next version of an adapter; a local folder is uploaded.

    Example: switchyard adapters register acme/support ./my-adapter
    """
    target = parse_name(name)
    params = {} if wait else {"wait": "false"}
    with connect(url, operator_key) as client:
        if server_side or source.startswith(REMOTE):
            wish = {"source": source, **({"base_model": base_model} if base_model else {})}
            version = client.call("POST", f"{target.path}/versions", json=wish, params=params)
        else:
            params |= {"base_model": base_model} if base_model else {}
            version = client.call("POST", f"{target.path}/versions", content=read_source(Path(source)), params=params,
                                  headers={"Content-Type": "application/octet-stream"})
    output(as_json).done(version, describe(target, version))


def read_source(source: Path) -> Iterable[bytes]:
    """What is uploaded for a local path: a folder as a tar, an archive as it is."""
    if source.is_dir():
        return tar_stream(source)
    if source.is_file():
        return _chunks(source)
    raise CommandFailed(
        f"There is no folder or archive {source}. For a path on the gateway's machine add --server-side.",
        exit_code=USAGE)


def _chunks(path: Path) -> Iterable[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            yield chunk


def describe(target: AdapterName, version: dict[str, Any]) -> str:
    """One sentence about a version that was registered, and its warnings."""
    lines = [f"{target.tenant}/{target.adapter}@{version['number']} is {version['phase']} "
             f"(digest {version['digest'][:DIGEST_SHOWN]})."]
    if version.get("effect") is not None:
        lines.append(f"It changes the base model's log probabilities by {version['effect']:.3g} nats.")
    parity = version.get("parity")
    if parity and parity["verdict"] == "pass":
        lines.append(f"The engine says what the trainer said: with it they are {parity['numbers']['adapter']:.3g} nats "
                     f"apart, {parity['tolerance']:g} at most.")
    lines += [f"Warning: {warning}" for warning in version.get("warnings") or ()]
    return "\n".join(lines)


@adapters.command("list")
def list_adapters(
    tenant: Annotated[str | None, typer.Argument(help="Only this tenant's.")] = None,
    url: Url = DEFAULT_URL, operator_key: OperatorKey = None, as_json: Json = False,
) -> None:
    """List adapters and the version that takes their traffic.

    Example: switchyard adapters list acme
    """
    with connect(url, operator_key) as client:
        owners = [tenant] if tenant else [each["name"] for each in client.list("/tenants")]
        found = [with_stable(client, adapter) for owner in owners
                 for adapter in client.list(f"/tenants/{part(owner)}/adapters")]
    output(as_json).rows(found, ADAPTER_COLUMNS,
                         empty="There is no adapter yet: switchyard adapters register acme/support ./my-adapter")


def with_stable(client: "AdminClient", adapter: dict[str, Any]) -> dict[str, Any]:
    """The adapter with its stable version's number, where the API has not put it in already."""
    if "stable" in adapter:
        return adapter
    name = AdapterName(adapter["tenant"], adapter["name"], None)
    return {**adapter, "stable": client.get(f"{name.path}/release").get("stable")}


@adapters.command()
def show(name: Name, url: Url = DEFAULT_URL, operator_key: OperatorKey = None, as_json: Json = False) -> None:
    """Show an adapter, its release and its versions.

    Example: switchyard adapters show acme/support
    """
    target = parse_name(name)
    with connect(url, operator_key) as client:
        adapter = with_stable(client, client.get(target.path))
        versions = client.list(f"{target.path}/versions")
    out = output(as_json)
    if as_json:
        out.document({**adapter, "versions": versions})
        return
    stable = f"version {adapter['stable']} takes its traffic" if adapter["stable"] else "no version takes traffic yet"
    out.console.print(f"{name}: {stable}.", markup=False)
    _print_versions(out, versions)


def _print_versions(out: Output, versions: list[dict[str, Any]]) -> None:
    short = [{**version, "digest": version["digest"][:DIGEST_SHOWN], "parity": (version.get("parity") or {}).get(
        "verdict")} for version in versions]
    out.rows(short, VERSION_COLUMNS, empty="It has no version.")


@adapters.command()
def retire(
    name: Annotated[str, typer.Argument(help="tenant/adapter@version", metavar="TENANT/ADAPTER@VERSION")],
    url: Url = DEFAULT_URL, operator_key: OperatorKey = None, as_json: Json = False,
) -> None:
    """Take a version that has no traffic off the replicas, and delete its files when no replica lists it.

    Example: switchyard adapters retire acme/support@2
    """
    target = parse_name(name)
    if target.number is None:
        raise CommandFailed(f"Say which version: {name}@1, for example.", exit_code=USAGE)
    with connect(url, operator_key) as client:
        version = client.call("DELETE", f"{target.path}/versions/{target.number}")
    output(as_json).done(version, f"{name} is being retired.")


@adapters.command()
def policy(
    name: Name,
    evaluation: Annotated[Policy, typer.Option(help="Must a version pass its evaluation before it takes traffic?")],
    url: Url = DEFAULT_URL, operator_key: OperatorKey = None, as_json: Json = False,
) -> None:
    """Say what an adapter's versions need before they take canary or stable traffic.

    Example: switchyard adapters policy acme/support --evaluation required
    """
    target = adapter_alone(name)
    with connect(url, operator_key) as client:
        adapter = client.get(target.path)
        changed = client.call(
            "PUT", target.path, json={"replicas": adapter["replicas"], "evaluation": evaluation.value},
            headers={"If-Match": f'"{adapter["revision"]}"'})
    output(as_json).done(changed, f"{name}: {POLICIES[evaluation]}.")


@adapters.command()
def evaluations(
    name: Name,
    version: Annotated[int | None, typer.Option(min=1, help="Only of this version's bytes.")] = None,
    url: Url = DEFAULT_URL, operator_key: OperatorKey = None, as_json: Json = False,
) -> None:
    """List what golden sets made of an adapter's versions, newest first, and which records do not count.

    Example: switchyard adapters evaluations acme/support --version 3
    """
    target = adapter_alone(name)
    params = {"limit": str(MOST_EVALUATIONS), **({} if version is None else {"version": str(version)})}
    with connect(url, operator_key) as client:
        found = client.get(f"{target.path}/evaluations", **params)["data"]
        versions = [] if as_json else client.list(f"{target.path}/versions")
    shown = found if as_json else [
        {**record, "golden_set": record["golden_set"][:DIGEST_SHOWN],
         "versions": [each["number"] for each in versions if each["digest"] == record["digest"]]} for record in found]
    output(as_json).rows(shown, EVALUATION_COLUMNS, empty="There is no evaluation record yet.")


def adapter_alone(name: str) -> AdapterName:
    """The parts of `tenant/adapter`; with a version it is refused."""
    target = parse_name(name)
    if target.number is not None:
        raise CommandFailed(f"Write {target.tenant}/{target.adapter}, without a version.", exit_code=USAGE)
    return target
