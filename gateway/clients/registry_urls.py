"""Turns the registry's URL into a Redis client: one server, Sentinel or Cluster, with or without TLS, or a socket."""

import re
from dataclasses import dataclass
from typing import Any, Final, TypeAlias
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from redis.asyncio import Redis, RedisCluster, Sentinel, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import Connection, ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as BrokenConnection

from gateway.domain.errors import InvalidRequest

Client: TypeAlias = Redis | RedisCluster

# Short, so that a caller hears 503 soon. How long an answer may take is for the caller to watch: redis-py does it with
# asyncio.wait_for, which up to Python 3.11 can swallow a cancellation (cpython#86296).
CONNECT_SECONDS: Final = 1.0
_SENTINEL_SECONDS: Final = 0.5
_PORT: Final = 6379
_SENTINEL_PORT: Final = 26379
_MAX_PORT: Final = 65535

_SCHEMES: Final = (
    "redis://, rediss://, unix://, redis+sentinel://, rediss+sentinel://, redis+cluster:// or rediss+cluster://"
)
_TLS_OPTIONS: Final = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs", "ssl_check_hostname")
_HOST: Final = re.compile(r"(\[[0-9A-Fa-f:.%]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?")


@dataclass(frozen=True, slots=True)
class Clients:
    """The client to talk to, and the Sentinel clients that must be closed after it."""

    client: Client
    sentinel: Sentinel | None = None

    async def close(self) -> None:
        """Close every connection."""
        await self.client.aclose()
        if self.sentinel:
            await self.sentinel.aclose()


def open_clients(url: str) -> Clients:
    """A client for `url`; nothing is sent yet. InvalidRequest when the URL cannot be understood.

    The refusals quote nothing of the URL: what stands in the wrong place may be the password.

    `redis[s]://[[user]:password@]host[:port][/db]`, `unix:///path/to.sock[?db=0]`,
    `redis[s]+sentinel://[[user]:password@]host[:port],host[:port]/service[/db][?sentinel_username=&sentinel_password=]`,
    `redis[s]+cluster://[[user]:password@]host[:port],host[:port]`. With TLS also `ssl_ca_certs`, `ssl_certfile`,
    `ssl_keyfile`, `ssl_cert_reqs` and `ssl_check_hostname` as query parameters.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        raise _refusal("it is not a URL; percent-encode special characters in the password") from None
    if parts.fragment:
        raise _refusal("it holds a '#'; percent-encode special characters in the password")
    kind, _, topology = parts.scheme.partition("+")
    if parts.scheme == "unix":
        return _socket(parts)
    if kind not in ("redis", "rediss") or topology not in ("", "sentinel", "cluster"):
        raise _refusal(f"it must begin with {_SCHEMES}")
    if topology == "sentinel":
        return _sentinel(parts, tls=kind == "rediss")
    if topology == "cluster":
        return _cluster(parts, tls=kind == "rediss")
    return _single(parts, tls=kind == "rediss")


def _single(parts: SplitResult, *, tls: bool) -> Clients:
    [(host, port), *others] = _hosts(parts, _PORT)
    if others:
        raise _refusal("more than one host needs redis+sentinel:// or redis+cluster://")
    options = _options(parts, tls=tls)
    pool = ConnectionPool(
        connection_class=SSLConnection if tls else Connection, host=host, port=port,
        db=_database(parts.path.strip("/")), **options, **_credentials(parts), **_common(),
    )
    return Clients(Redis.from_pool(pool))


def _socket(parts: SplitResult) -> Clients:
    if not parts.path.startswith("/"):
        raise _refusal("unix:// needs an absolute path: unix:///path/to.sock")
    options = _options(parts, tls=False, also=("db",))
    pool = ConnectionPool(
        connection_class=UnixDomainSocketConnection, path=unquote(parts.path),
        db=_database(options.get("db", "")), **_credentials(parts), **_common(),
    )
    return Clients(Redis.from_pool(pool))


def _sentinel(parts: SplitResult, *, tls: bool) -> Clients:
    service, _, database = parts.path.strip("/").partition("/")
    if not service or "@" in service:
        raise _refusal("Sentinel needs the service's name: redis+sentinel://host:26379/service")
    options = _options(parts, tls=tls, also=("sentinel_username", "sentinel_password"))
    sentinel_options = {
        "username": options.pop("sentinel_username", None), "password": options.pop("sentinel_password", None),
        "socket_timeout": _SENTINEL_SECONDS, "socket_connect_timeout": _SENTINEL_SECONDS, "protocol": 2,
        "retry": Retry(NoBackoff(), 0), "ssl": tls, **options,
    }
    sentinel = Sentinel(_hosts(parts, _SENTINEL_PORT), sentinel_kwargs=sentinel_options)  # type: ignore[no-untyped-call]
    master_options = {"db": _database(database), "ssl": tls, **options, **_credentials(parts), **_common()}
    client: Redis = sentinel.master_for(unquote(service), **master_options)
    return Clients(client, sentinel)


def _cluster(parts: SplitResult, *, tls: bool) -> Clients:
    if parts.path.strip("/") not in ("", "0"):
        raise _refusal("a Cluster has database 0 only, and no path")
    client = RedisCluster(
        startup_nodes=[ClusterNode(host, port) for host, port in _hosts(parts, _PORT)], ssl=tls,
        require_full_coverage=False,  # the registry lives in one slot; what the others lack does not matter to it
        **_options(parts, tls=tls), **_credentials(parts), **_common(),
    )
    return Clients(client)


def _common() -> dict[str, Any]:
    """Every client alike: one repeat, since a pooled connection may have died unnoticed or a slot have moved.

    That is safe because all that the registry sends may be sent twice; time-outs are not repeated, to fail soon.
    """
    return {
        "socket_timeout": None, "socket_connect_timeout": CONNECT_SECONDS, "decode_responses": True,
        "protocol": 2, "retry": Retry(NoBackoff(), 1, (BrokenConnection,)),
    }


def _hosts(parts: SplitResult, default_port: int) -> list[tuple[str, int]]:
    found = []
    for text in parts.netloc.rpartition("@")[2].split(","):
        match = _HOST.fullmatch(text.strip())
        if not match or int(match[2] or default_port) not in range(1, _MAX_PORT + 1):
            raise _refusal("its hosts must read host:port,host:port; percent-encode special characters in the password")
        found.append((match[1].strip("[]"), int(match[2] or default_port)))
    return found


def _credentials(parts: SplitResult) -> dict[str, Any]:
    user, _, password = parts.netloc.rpartition("@")[0].partition(":")
    found = {"username": unquote(user), "password": unquote(password)}
    return {name: value for name, value in found.items() if value}


def _options(parts: SplitResult, *, tls: bool, also: tuple[str, ...] = ()) -> dict[str, Any]:
    allowed = (_TLS_OPTIONS if tls else ()) + also
    options: dict[str, Any] = dict(parse_qsl(parts.query, keep_blank_values=True))
    if not set(options) <= set(allowed):
        raise _refusal(f"it has an option that is unknown; known here are: {', '.join(allowed) or 'none'}")
    if "ssl_check_hostname" in options:
        options["ssl_check_hostname"] = options["ssl_check_hostname"].lower() in ("true", "yes", "1")
    return options


def _database(text: str) -> int:
    if text and not re.fullmatch(r"[0-9]{1,5}", text):
        raise _refusal("the database must be a number; percent-encode special characters in the password")
    return int(text or 0)


def _refusal(why: str) -> InvalidRequest:
    return InvalidRequest(f"The registry's URL cannot be used: {why}.", param="redis_url")
