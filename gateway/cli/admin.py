"""Commands that change or show what the registry holds: tenants, keys, adapters, replicas."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer

from gateway.cli.options import DEFAULT_URL, Json, OperatorKey, Url, connect, output
from gateway.cli.output import USAGE, CommandFailed

tenants = typer.Typer(no_args_is_help=True, help="Who owns adapters and keys.")
keys = typer.Typer(no_args_is_help=True, help="The tenants' API keys.")
replicas = typer.Typer(no_args_is_help=True, help="The vLLM processes that serve.")

TENANT_COLUMNS = {"name": "TENANT", "base_access": "BASE MODEL", "created_at": "CREATED"}
KEY_COLUMNS = {"id": "ID", "name": "NAME", "prefix": "PREFIX", "adapters": "ADAPTERS", "created_at": "CREATED",
               "expires_at": "EXPIRES", "revoked_at": "REVOKED"}
REPLICA_COLUMNS = {"name": "REPLICA", "url": "URL", "healthy": "HEALTHY", "base_model": "BASE MODEL", "slots": "SLOTS",
                   "loaded": "LOADED", "exposed": "EXPOSED", "last_error": "LAST ERROR"}

Tenant = Annotated[str, typer.Argument(help="The tenant's name.")]


@tenants.command("create")
def create_tenant(
    tenant: Tenant,
    base_access: Annotated[bool, typer.Option(help="May its keys ask for the base model itself?")] = True,
    url: Url = DEFAULT_URL, operator_key: OperatorKey = None, as_json: Json = False,
) -> None:
    """Create a tenant.

    Example: switchyard tenants create acme
    """
    with connect(url, operator_key) as client:
        made = client.call("POST", "/tenants", json={"name": tenant, "base_access": base_access})
    output(as_json).done(
        made, f"Created the tenant {tenant}. Give it a key: switchyard keys create {tenant} --name laptop")


@tenants.command("list")
def list_tenants(url: Url = DEFAULT_URL, operator_key: OperatorKey = None, as_json: Json = False) -> None:
    """List the tenants.

    Example: switchyard tenants list
    """
    with connect(url, operator_key) as client:
        found = client.list("/tenants")
    output(as_json).rows(found, TENANT_COLUMNS, empty="There is no tenant yet: switchyard tenants create acme")


@keys.command("create")
def create_key(
    tenant: Tenant,
    name: Annotated[str, typer.Option(help="What the key is for, such as laptop.")],
    adapter: Annotated[list[str] | None, typer.Option(help="May use only this adapter; repeat for more.")] = None,
    days: Annotated[float | None, typer.Option(min=0, help="Expires after so many days.")] = None,
    may_pin: Annotated[bool, typer.Option("--may-pin", help="May name a version, as in support@3.")] = False,
    url: Url = DEFAULT_URL, operator_key: OperatorKey = None, as_json: Json = False,
) -> None:
    """Create an API key. It is shown this once.

    Example: switchyard keys create acme --name laptop --adapter support --days 90
    """
    wish: dict[str, Any] = {"name": name, "may_pin": may_pin}
    if adapter:
        wish["adapters"] = adapter
    if days is not None:
        wish["expires_at"] = (datetime.now(UTC) + timedelta(days=days)).isoformat(timespec="seconds")
    with connect(url, operator_key) as client:
        made = client.call("POST", f"/tenants/{part(tenant)}/keys", json=wish)
    output(as_json).done(made, f"{made['key']}\nThis is the only time that the key is shown.")


@keys.command("list")
def list_keys(tenant: Tenant, url: Url = DEFAULT_URL, operator_key: OperatorKey = None, as_json: Json = False) -> None:
    """List a tenant's keys, never their secret part.

    Example: switchyard keys list acme
    """
    with connect(url, operator_key) as client:
        found = client.list(f"/tenants/{part(tenant)}/keys")
    output(as_json).rows(
        found, KEY_COLUMNS, empty=f"{tenant} has no key: switchyard keys create {tenant} --name laptop")


@keys.command("revoke")
def revoke_key(
    tenant: Tenant, key: Annotated[str, typer.Argument(help="The key's id, as `keys list` shows it.")],
    url: Url = DEFAULT_URL, operator_key: OperatorKey = None, as_json: Json = False,
) -> None:
    """Revoke a key at once.

    Example: switchyard keys revoke acme 1f2e3d4c
    """
    with connect(url, operator_key) as client:
        revoked = client.call("DELETE", f"/tenants/{part(tenant)}/keys/{part(key)}")
    output(as_json).done(revoked, f"Revoked the key {key} of {tenant}.")


@replicas.command("list")
def list_replicas(url: Url = DEFAULT_URL, operator_key: OperatorKey = None, as_json: Json = False) -> None:
    """List the replicas, their health and what they have loaded.

    Example: switchyard replicas list
    """
    with connect(url, operator_key) as client:
        found = client.list("/replicas")
    out = output(as_json)
    shown = found if as_json else [{**replica, "loaded": list(replica.get("loaded") or ())} for replica in found]
    out.rows(shown, REPLICA_COLUMNS, empty="There is no replica: switchyard replicas add gpu-0 http://host:8000")


@replicas.command("add")
def add_replica(
    name: Annotated[str, typer.Argument(help="The replica's name.")],
    address: Annotated[str, typer.Argument(help="http://host:port or unix:/path/to.sock", metavar="ADDRESS")],
    api_key: Annotated[str | None, typer.Option(
        envvar="SWITCHYARD_REPLICA_API_KEY", help="The key that the replica asks for.")] = None,
    artifacts_path: Annotated[Path | None, typer.Option(
        help="Where the replica sees the artifact store, if elsewhere than the gateway.")] = None,
    max_in_flight: Annotated[int | None, typer.Option(
        min=1, help="So many requests at once before others are preferred.")] = None,
    url: Url = DEFAULT_URL, operator_key: OperatorKey = None, as_json: Json = False,
) -> None:
    """Add a running vLLM as a replica.

    Example: switchyard replicas add gpu-0 http://10.0.0.7:8000
    """
    wish = {"name": name, "url": address, "api_key": api_key, "max_in_flight": max_in_flight,
            "artifacts_path": str(artifacts_path) if artifacts_path else None}
    with connect(url, operator_key) as client:
        made = client.call("POST", "/replicas", json={k: v for k, v in wish.items() if v is not None})
    output(as_json).done(made, f"Added the replica {name} at {address}.")


@replicas.command("remove")
def remove_replica(
    name: Annotated[str, typer.Argument(help="The replica's name.")],
    url: Url = DEFAULT_URL, operator_key: OperatorKey = None, as_json: Json = False,
) -> None:
    """Send no more requests to a replica and forget it; its process goes on.

    Example: switchyard replicas remove gpu-0
    """
    with connect(url, operator_key) as client:
        gone = client.call("DELETE", f"/replicas/{part(name)}")
    output(as_json).done(gone, f"Removed the replica {name}.")


def part(text: str) -> str:
    """A name as one part of a URL's path."""
    if not text or text in (".", ".."):
        raise CommandFailed(f"{text!r} is not a name.", exit_code=USAGE)
    return quote(text, safe="")
