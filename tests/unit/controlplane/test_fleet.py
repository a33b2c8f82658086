"""Which addresses can be a replica's, and that none is there twice."""

import pytest

from gateway.controlplane.changes import Changes
from gateway.controlplane.fleet import Replicas, check_url
from gateway.domain.errors import Conflict, InvalidRequest, NotFound
from gateway.system import System
from tests.fixtures.memory import MemoryRegistry


@pytest.mark.parametrize("url", [
    "http://127.0.0.1:8000", "https://gpu-0.example", "http://gpu_0:8000", "http://[::1]:8000", "unix:/run/vllm.sock",
])
def test_an_address_of_a_replica_is_taken_as_it_is(url: str) -> None:
    assert check_url(url) == url


def test_a_last_slash_does_not_make_another_address() -> None:
    assert check_url("http://h:1/") == "http://h:1"


@pytest.mark.parametrize("url", [
    "", "h:8000", "ftp://h", "http://", "http://h/v1", "http://h?x=1", "http://h#x", "http://u:p@h", "http://h:0",
    "http://h:99999", "http://h:x", "http://h h", "http://h\n", "unix:relative.sock", "unix://host/x", "unix:/a\nb",
    "http://[::1", "http://é", "http://h\\@evil",
])
def test_what_cannot_be_an_address_is_refused(url: str) -> None:
    with pytest.raises(InvalidRequest):
        check_url(url)


async def test_neither_a_name_nor_an_address_is_there_twice() -> None:
    registry = MemoryRegistry()
    replicas = Replicas(Changes(registry, registry, System()), System())
    await replicas.add("alice", "one", "http://h:1", api_key="very-secret")
    for name, url in (("one", "http://h:2"), ("two", "http://h:1/")):
        with pytest.raises(Conflict):
            await replicas.add("alice", name, url)
    assert "very-secret" not in str(registry.changes)
    await replicas.remove("alice", "one")
    with pytest.raises(NotFound):
        await replicas.remove("alice", "one")
    assert replicas.all() == []
