"""The registry's URLs: what each becomes, and what is refused without a word of the password."""

from typing import Any

import pytest
from redis.asyncio import RedisCluster, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.connection import Connection
from redis.asyncio.sentinel import SentinelConnectionPool, SentinelManagedSSLConnection

from gateway.clients.registry import connect
from gateway.clients.registry_urls import CONNECT_SECONDS, Clients, open_clients
from gateway.domain.errors import InvalidRequest


def pool_of(clients: Clients) -> tuple[type, dict[str, Any]]:
    assert not isinstance(clients.client, RedisCluster)
    pool = clients.client.connection_pool
    assert pool.connection_kwargs["socket_connect_timeout"] == CONNECT_SECONDS
    return pool.connection_class, pool.connection_kwargs


@pytest.mark.parametrize(("url", "kind", "expected"), [
    ("redis://h", Connection, {"host": "h", "port": 6379, "db": 0}),
    ("redis://h:7/3", Connection, {"host": "h", "port": 7, "db": 3}),
    ("redis://:p%40%2Fss@h", Connection, {"host": "h", "password": "p@/ss"}),
    ("redis://me:pw@[::1]:7", Connection, {"host": "::1", "port": 7, "username": "me", "password": "pw"}),
    ("redis://me:p@w@h", Connection, {"host": "h", "username": "me", "password": "p@w"}),
    ("rediss://h?ssl_ca_certs=/ca.pem&ssl_check_hostname=no", SSLConnection,
     {"host": "h", "ssl_ca_certs": "/ca.pem", "ssl_check_hostname": False}),
    ("unix:///run/a%20b.sock?db=2", UnixDomainSocketConnection, {"path": "/run/a b.sock", "db": 2}),
    ("unix://:pw@/run/r.sock", UnixDomainSocketConnection, {"path": "/run/r.sock", "password": "pw"}),
])
async def test_a_url_becomes_one_servers_client(url: str, kind: type, expected: dict[str, object]) -> None:
    clients = open_clients(url)
    found, options = pool_of(clients)
    assert found is kind
    assert {name: options[name] for name in expected} == expected
    await clients.close()


async def test_a_sentinel_url_names_every_sentinel_and_keeps_its_credentials_apart() -> None:
    clients = open_clients(
        "rediss+sentinel://me:pw@a,b:7/yard/2?sentinel_password=other&ssl_ca_certs=/ca.pem")
    kind, options = pool_of(clients)
    assert kind is SentinelManagedSSLConnection
    assert (options["username"], options["password"], options["db"]) == ("me", "pw", 2)
    assert not isinstance(clients.client, RedisCluster)
    assert isinstance(clients.client.connection_pool, SentinelConnectionPool)
    assert clients.client.connection_pool.service_name == "yard"
    assert clients.sentinel is not None
    asked = [s.connection_pool.connection_kwargs for s in clients.sentinel.sentinels]
    assert [(a["host"], a["port"], a["password"]) for a in asked] == [("a", 26379, "other"), ("b", 7, "other")]
    assert {s.connection_pool.connection_class for s in clients.sentinel.sentinels} == {SSLConnection}
    await clients.close()


async def test_a_cluster_url_names_every_start_node() -> None:
    clients = open_clients("rediss+cluster://:pw@10.0.0.1:7,10.0.0.2")
    assert isinstance(clients.client, RedisCluster)
    nodes = clients.client.nodes_manager.startup_nodes
    assert set(nodes) == {"10.0.0.1:7", "10.0.0.2:6379"}
    assert {node.connection_class for node in nodes.values()} == {SSLConnection}
    assert {node.connection_kwargs["password"] for node in nodes.values()} == {"pw"}
    await clients.close()


@pytest.mark.parametrize("url", [
    "", "redis", "http://:hunter2@h", "redis://", "redis://:hunter2@", "redis://:hunter2@h:0", "redis://:hunter2@h:70000",
    "redis://:hunter2@h:x", "redis://:hunter2@h/zero", "redis://:hunter2@a,b", "redis://:hunter2@[::1",
    "redis://:hunter2@h?hunter2=1", "redis://:hunter2@h?ssl_ca_certs=/x", "redis://me:1/hunter2@h",
    "redis://me:1#hunter2@h", "redis://me:1?hunter2=x@h", "unix://hunter2", "unix://", "redis+sentinel://:hunter2@h",
    "redis+sentinel://:hunter2@h/yard/x", "redis+sentinel://me:1/hunter2@h/yard", "redis+cluster://:hunter2@h/1",
    "redis+cluster://:hunter2@h, ", "redis+other://:hunter2@h", "redis://:hunter2@h o",
])
async def test_a_bad_url_is_refused_without_telling_the_password(url: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        open_clients(url)
    assert "hunter2" not in str(refused.value)
    assert refused.value.__cause__ is None


@pytest.mark.parametrize("name", ["", "a{b", "a}b"])
async def test_a_registry_name_that_would_break_the_hash_tag_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequest, match="name"):
        connect("redis://h", name)
