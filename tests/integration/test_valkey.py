"""The embedded Valkey: private, durable, alone on its data, and gone with its owner."""

import asyncio
import os
import signal
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gateway.clients.registry import connect
from gateway.clients.valkey import EmbeddedValkey, socket_path
from gateway.domain.errors import Conflict, RegistryUnavailable
from gateway.domain.model import Change, Tenant
from tests.fixtures.redis import until

OWNER = """
import asyncio, sys, time
from pathlib import Path
from gateway.clients.registry import connect
from gateway.clients.valkey import EmbeddedValkey
from gateway.domain.model import Change, Tenant

async def write(url):
    registry = connect(url, "default")
    tenant = Tenant(name="acme", created_at=1.0)
    change = Change(actor="a", action="b", target=tenant.path, at=1.0, detail={})
    await registry.commit(change, {tenant.path: tenant}, {})
    await registry.close()

valkey = EmbeddedValkey(Path(sys.argv[1]))
valkey.start()
asyncio.run(write(valkey.url))
print(valkey.pid, flush=True)
time.sleep(600)
"""


@pytest.fixture
def state_path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="sy-") as folder:
        yield Path(folder) / "state"


@contextmanager
def owned(state_path: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process that owns an EmbeddedValkey with one tenant in it, and the server's process id."""
    command = [sys.executable, "-c", OWNER, str(state_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        try:
            yield owner, int(owner.stdout.readline())
        finally:
            owner.kill()


async def write(url: str, name: str) -> int:
    registry = connect(url, "default")
    tenant = Tenant(name=name, created_at=1.0)
    change = Change(actor="a", action="b", target=tenant.path, at=1.0, detail={})
    revision = await registry.commit(change, {tenant.path: tenant}, {})
    await registry.close()
    return revision


async def tenants(url: str) -> list[str]:
    registry = connect(url, "default")
    snapshot = await registry.load()
    await registry.close()
    return list(snapshot.tenants)


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    # A zombie whose new parent has not asked for it yet has ended all the same.
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


async def test_it_keeps_its_data_over_a_stop_and_is_private(state_path: Path) -> None:
    with EmbeddedValkey(state_path) as valkey:
        await write(valkey.url, "acme")
        assert stat.S_IMODE((state_path / "valkey").stat().st_mode) == 0o700
        assert stat.S_IMODE(valkey.socket_path.stat().st_mode) == 0o700
        assert listening_ports(valkey.pid) == set()
    assert valkey.pid is None
    with EmbeddedValkey(state_path) as valkey:
        assert await tenants(valkey.url) == ["acme"]


def listening_ports(pid: int | None) -> set[str]:
    """The local addresses of the process' listening TCP sockets."""
    inodes = {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}
    lines = [line for file in ("tcp", "tcp6") for line in Path(f"/proc/{pid}/net/{file}").read_text().splitlines()]
    rows = [line.split() for line in lines]
    return {row[1] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in inodes}


async def test_a_second_one_on_the_same_data_is_refused_and_the_owner_is_named(state_path: Path) -> None:
    with EmbeddedValkey(state_path) as valkey:
        with pytest.raises(Conflict, match=rf"Process {os.getpid()} runs a Switchyard .*process {valkey.pid}"):
            EmbeddedValkey(state_path).start()
        await write(valkey.url, "acme")


async def test_an_owner_killed_with_9_leaves_no_server_behind_and_its_data_whole(state_path: Path) -> None:
    with owned(state_path) as (owner, server):
        assert not is_gone(server)
        owner.kill()
        with EmbeddedValkey(state_path) as valkey:  # at once: it waits for the old server to let go of the data
            assert await tenants(valkey.url) == ["acme"]
        await until(lambda: is_gone(server), 5)


async def test_a_server_that_outlived_its_owner_is_named(state_path: Path) -> None:
    """A server that hangs does not follow the kernel's signal."""
    with owned(state_path) as (owner, server):
        os.kill(server, signal.SIGSTOP)
        owner.kill()
        owner.wait()
        try:
            with pytest.raises(Conflict, match=rf"process {server}\) still runs"):
                EmbeddedValkey(state_path, lock_seconds=0.1).start()
        finally:
            os.kill(server, signal.SIGCONT)
    await until(lambda: is_gone(server), 5)


async def test_a_folder_too_deep_for_a_socket_gets_a_short_private_one(state_path: Path) -> None:
    deep = state_path / ("deep" * 20) / ("deeper" * 10)
    with EmbeddedValkey(deep) as valkey:
        assert await write(valkey.url, "acme") == 1
        assert valkey.socket_path == socket_path(deep)
        assert stat.S_IMODE(valkey.socket_path.parent.stat().st_mode) == 0o700
    valkey.socket_path.parent.rmdir()


async def test_a_socket_folder_that_others_may_enter_is_refused(state_path: Path) -> None:
    deep = state_path / ("deep" * 20) / ("deeper" * 10)
    socket_path(deep).parent.mkdir()
    socket_path(deep).parent.chmod(0o755)
    with pytest.raises(Conflict, match="not a private folder"):
        EmbeddedValkey(deep).start()
    socket_path(deep).parent.rmdir()


async def test_data_that_cannot_be_read_are_reported_with_the_log(state_path: Path) -> None:
    with EmbeddedValkey(state_path) as valkey:
        await write(valkey.url, "acme")
    [manifest] = (state_path / "valkey" / "appendonlydir").glob("*.manifest")
    manifest.write_text("nonsense")
    with pytest.raises(RegistryUnavailable, match=r"(?s)did not come up.*manifest"):
        EmbeddedValkey(state_path).start()


async def test_a_torn_last_write_does_not_stop_it(state_path: Path) -> None:
    with EmbeddedValkey(state_path) as valkey:
        await write(valkey.url, "acme")
        await write(valkey.url, "zeta")
    [log] = (state_path / "valkey" / "appendonlydir").glob("*.incr.aof")
    log.write_bytes(log.read_bytes()[:-7])
    with EmbeddedValkey(state_path) as valkey:
        assert await tenants(valkey.url) == ["acme"]


async def test_it_starts_from_the_main_thread_only(state_path: Path) -> None:
    errors: list[RuntimeError] = []

    def start() -> None:
        try:
            EmbeddedValkey(state_path).start()
        except RuntimeError as error:
            errors.append(error)

    thread = threading.Thread(target=start)
    thread.start()
    await asyncio.to_thread(thread.join)
    assert "main thread" in str(errors[0])
