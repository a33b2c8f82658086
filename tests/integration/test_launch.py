"""The launcher with real processes: what it starts, what it starts again, and that nothing is left of it."""

import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.settings import PREFIX
from tests.fixtures.artifacts import write_adapter
from tests.fixtures.processes import OPERATOR_KEY, ROOT, Process, descendants, is_alive, is_ready, running, wait_until
from tests.fixtures.redis import free_port

DRAINABLE = [sys.executable, "-m", "tests.fakes.launch"]

FAKE_ENGINE_PYTHON = """#!{python}
import os, subprocess, sys
words = sys.argv
subprocess.Popen(["sleep", "1000"])  # as vLLM's engine is a child of its API server
if "--fail" in words:
    sys.exit("this engine cannot start")
os.execv("{python}", ["{python}", "-m", "tests.fakes.vllm", "--uds", words[words.index("--uds") + 1],
                      "--base-model", words[words.index("--served-model-name") + 1]])
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="sy-") as made:
        yield Path(made)


@contextmanager
def drainable(folder: Path, **settings: str) -> Iterator[tuple[Process, str]]:
    """The launcher around the small app: its process and the app's address."""
    port = free_port()
    given = {"STATE_PATH": str(folder / "state"), "PORT": str(port), "DRAIN_SECONDS": "0.2", "SHUTDOWN_SECONDS": "20",
             **settings}
    with running(DRAINABLE, folder / "log", **{PREFIX + name: value for name, value in given.items()}) as process:
        wait_until(lambda: process.popen.poll() is not None or is_ready(port))
        yield process, f"http://127.0.0.1:{port}"


def worker_pids(url: str, wanted: int) -> set[int]:
    """The workers that answer; asks until there are `wanted` of them."""
    found: set[int] = set()

    def ask() -> bool:
        found.add(int(httpx.get(f"{url}/pid").text))
        return len(found) >= wanted

    wait_until(ask)
    return found


def valkey_of(process: Process) -> int:
    """The embedded Valkey's process."""
    return next(pid for pid in descendants(process.pid) if "valkey-server" in command_of(pid))


def command_of(pid: int) -> str:
    """A process' command line."""
    return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")


def serve(*words: str) -> subprocess.CompletedProcess[str]:
    """`switchyard serve`, which is expected to end by itself."""
    return subprocess.run([sys.executable, "-m", "gateway", "serve", *words], capture_output=True, text=True, cwd=ROOT,
                          timeout=30, check=False)


def is_cut(answer: Future[httpx.Response]) -> bool:
    """Did the request end without its answer?"""
    return isinstance(answer.exception(), httpx.HTTPError) or answer.result().is_server_error


def wait_until_gone(pids: set[int]) -> None:
    wait_until(lambda: not any(map(is_alive, pids)))


def test_sigterm_ends_everything_with_status_0(folder: Path) -> None:
    with drainable(folder) as (process, url):
        family = descendants(process.pid)
        assert len(family) == 2  # a worker and Valkey
        assert process.stop() == 0
        wait_until_gone(family)
        with pytest.raises(httpx.ConnectError):
            httpx.get(url)


def test_while_it_drains_it_answers_and_says_that_it_is_not_ready(folder: Path) -> None:
    with drainable(folder, DRAIN_SECONDS="2") as (process, url):
        process.send(signal.SIGTERM)
        wait_until(lambda: httpx.get(f"{url}/readyz").status_code == 503)
        assert process.popen.wait(20) == 0


def test_a_request_in_flight_is_answered_after_sigterm(folder: Path) -> None:
    with drainable(folder) as (process, url), ThreadPoolExecutor() as pool:
        answer = pool.submit(httpx.get, f"{url}/slow?2", timeout=20)
        time.sleep(0.5)
        process.send(signal.SIGTERM)
        assert answer.result().text == "done"
        assert process.popen.wait(20) == 0


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_does_not_wait_for_requests(folder: Path, second: signal.Signals) -> None:
    with drainable(folder) as (process, url), ThreadPoolExecutor() as pool:
        answer = pool.submit(httpx.get, f"{url}/slow?15", timeout=20)
        time.sleep(0.5)
        process.send(signal.SIGINT)
        time.sleep(0.5)
        started = time.monotonic()
        process.send(second)
        assert process.popen.wait(20) == 0
        assert time.monotonic() - started < 8
        assert is_cut(answer)


def test_requests_that_outlast_the_shutdown_are_cut(folder: Path) -> None:
    with drainable(folder, SHUTDOWN_SECONDS="1") as (process, url), ThreadPoolExecutor() as pool:
        answer = pool.submit(httpx.get, f"{url}/slow?30", timeout=40)
        time.sleep(0.5)
        assert process.stop() == 0
        assert is_cut(answer)


def test_a_worker_that_dies_is_started_again_and_the_other_answers_meanwhile(folder: Path) -> None:
    with drainable(folder, WORKERS="2") as (_, url):
        before = worker_pids(url, 2)
        victim = before.pop()
        os.kill(victim, signal.SIGKILL)
        assert httpx.get(f"{url}/readyz").status_code == 200
        wait_until(lambda: worker_pids(url, 2) - before - {victim})


def test_killing_the_parent_leaves_nothing(folder: Path) -> None:
    with drainable(folder, WORKERS="2") as (process, url):
        family = descendants(process.pid)
        assert len(family) == 3
        process.kill()
        wait_until_gone(family)
        with pytest.raises(httpx.ConnectError):
            httpx.get(url)


def test_after_a_kill_it_starts_again_on_the_same_state(folder: Path) -> None:
    with drainable(folder) as (process, url):
        process.kill()
        process.start()
        wait_until(lambda: is_ready(int(url.rpartition(":")[2])))


def test_a_killed_valkey_is_started_again(folder: Path) -> None:
    with drainable(folder) as (process, _):
        valkey = valkey_of(process)
        os.kill(valkey, signal.SIGKILL)
        wait_until(lambda: not is_alive(valkey) and any(
            "valkey-server" in command_of(pid) for pid in descendants(process.pid)))


def test_an_app_that_cannot_be_built_ends_the_launch_and_leaves_nothing(folder: Path) -> None:
    with drainable(folder, REGISTRY="broken") as (process, _):
        assert process.popen.wait(20) == 1
        said = (folder / "log").read_text()
        assert "this registry is broken" in said
        assert "ended before it served" in said
        assert descendants(process.pid) == set()


def test_a_taken_port_is_said_before_anything_is_started(folder: Path) -> None:
    with drainable(folder) as (_, url):
        port = url.rpartition(":")[2]
        done = serve("--port", port, "--state", str(folder / "other"))
        assert done.returncode == 1
        assert f"127.0.0.1:{port}" in done.stderr and "--port" in done.stderr
        assert not (folder / "other/valkey/valkey.lock").exists()


def test_a_state_folder_in_use_is_said(folder: Path) -> None:
    with drainable(folder):
        done = serve("--port", str(free_port()), "--state", str(folder / "state"))
        assert done.returncode == 1
        assert "another state folder" in done.stderr


def test_metrics_are_shared_in_a_fresh_folder_that_goes_with_the_gateway(folder: Path) -> None:
    left = folder / "state/metrics/999999999"
    left.mkdir(parents=True)
    with drainable(folder, WORKERS="2") as (process, _):
        assert [path.name for path in (folder / "state/metrics").iterdir()] == [str(process.pid)]
        assert process.stop() == 0
        assert list((folder / "state/metrics").iterdir()) == []


class Up:
    """`switchyard up` on a fake engine, with the command line to go with it."""

    def __init__(self, folder: Path, process: Process, port: int) -> None:
        self.folder, self.process, self.port = folder, process, port
        self.url = f"http://127.0.0.1:{port}"

    def run(self, *words: str, code: int = 0) -> Any:
        """A command that must exit with `code`; what it printed as JSON."""
        done = subprocess.run(
            [sys.executable, "-m", "gateway", *words, "--json", "--url", self.url], capture_output=True, text=True,
            cwd=ROOT, timeout=60, check=False,
            env={**os.environ, "SWITCHYARD_OPERATOR_KEY": OPERATOR_KEY,
                 "SWITCHYARD_STATE_PATH": str(self.folder / "state")})
        assert done.returncode == code, done.stderr + done.stdout
        return json.loads(done.stdout or done.stderr)

    def is_serving(self) -> bool:
        """Are all replicas up, as the gateway sees them?"""
        try:
            return bool(httpx.get(f"{self.url}/readyz").json()["status"] == "ok")
        except httpx.HTTPError:
            return False


@contextmanager
def up(folder: Path, *words: str) -> Iterator[Up]:
    """`switchyard up` while the block runs."""
    python = folder / "engine-python"
    python.write_text(FAKE_ENGINE_PYTHON.format(python=sys.executable))
    python.chmod(0o700)
    base = folder / "base"
    base.mkdir(exist_ok=True)
    port = free_port()
    command = [sys.executable, "-m", "gateway", "up", "--base-model", str(base), "--engine-python", str(python),
               "--port", str(port), "--state", str(folder / "state"), "--device", "cpu", *words]
    with running(command, folder / "up.log", SWITCHYARD_OPERATOR_KEY=OPERATOR_KEY, SWITCHYARD_DRAIN_SECONDS="0.2",
                 SWITCHYARD_HEALTH_INTERVAL_SECONDS="0.2") as process:
        yield Up(folder, process, port)


def family_of(one: Up) -> set[int]:
    """All its processes, once it says that it serves."""
    wait_until(lambda: "Switchyard serves at" in (one.folder / "up.log").read_text(), 40)
    return descendants(one.process.pid)


def test_the_main_job_by_the_command_line(folder: Path) -> None:
    with up(folder) as one:
        family_of(one)
        artifact = folder / "artifact"
        artifact.mkdir()
        write_adapter(artifact, seed=1)
        one.run("tenants", "create", "acme")
        key = one.run("keys", "create", "acme", "--name", "laptop", "--adapter", "support", "--days", "1")["key"]
        version = one.run("adapters", "register", "acme/support", str(artifact), "--base-model", "base")
        assert (version["number"], version["phase"]) == (1, "ready")
        answer = httpx.post(f"{one.url}/v1/chat/completions", headers={"authorization": f"Bearer {key}"}, timeout=20,
                            json={"model": "support", "messages": [{"role": "user", "content": "hi"}]})
        assert answer.status_code == 200, answer.text
        assert one.run("adapters", "list")[0]["stable"] == 1
        assert [v["number"] for v in one.run("adapters", "show", "acme/support")["versions"]] == [1]
        assert one.run("replicas", "list")[0]["name"] == "local-0"
        assert one.run("tenants", "create", "acme", code=1)["error"]["code"] == "conflict"
        assert {check["outcome"] for check in one.run("doctor")} <= {"ok", "skipped", "warning"}
        key_id = one.run("keys", "list", "acme")[0]["id"]
        assert one.run("keys", "revoke", "acme", key_id)["revoked_at"]


def test_a_version_without_traffic_is_retired_by_the_command_line(folder: Path) -> None:
    with up(folder) as one:
        family_of(one)
        one.run("tenants", "create", "acme")
        for seed in (1, 2):
            artifact = folder / f"artifact-{seed}"
            artifact.mkdir()
            write_adapter(artifact, seed=seed)
            one.run("adapters", "register", "acme/support", str(artifact), "--base-model", "base", "--server-side")
        assert one.run("adapters", "retire", "acme/support@2")["phase"] in ("retiring", "retired")
        assert one.run("adapters", "retire", "acme/support@1", code=1)["error"]["code"] == "conflict"


def test_killing_up_leaves_nothing_not_even_the_engine(folder: Path) -> None:
    with up(folder, "--replicas", "2") as one:
        family = family_of(one)
        assert sum(Path(f"/proc/{pid}/comm").read_text().strip() == "sleep" for pid in family) == 2
        one.process.kill()
        wait_until_gone(family)


def test_sigint_stops_the_gateway_then_the_replicas_then_valkey(folder: Path) -> None:
    with up(folder) as one:
        family = family_of(one)
        gone_at: dict[str, float] = {}

        def watch(name: str, pid: int) -> None:
            wait_until(lambda: not is_alive(pid))
            gone_at[name] = time.monotonic()

        names = {"worker": "gateway worker", "replica": "tests.fakes.vllm", "valkey": "valkey-server"}
        pids = {name: next(p for p in family if part in command_of(p)) for name, part in names.items()}
        watchers = [threading.Thread(target=watch, args=item) for item in pids.items()]
        for watcher in watchers:
            watcher.start()
        one.process.send(signal.SIGINT)
        assert one.process.popen.wait(30) == 0
        for watcher in watchers:
            watcher.join()
        assert gone_at["worker"] < gone_at["replica"] < gone_at["valkey"]
        wait_until_gone(family)


def test_a_replica_that_dies_is_started_again_with_nothing_left_of_its_engine(folder: Path) -> None:
    with up(folder) as one:
        family = family_of(one)
        server = next(pid for pid in family if "tests.fakes.vllm" in command_of(pid))
        engine = next(pid for pid in family if Path(f"/proc/{pid}/comm").read_text().strip() == "sleep")
        os.kill(server, signal.SIGKILL)
        wait_until_gone({server, engine})
        wait_until(lambda: descendants(one.process.pid) - family and one.is_serving(), 40)
        assert "replica local-0 ended (SIGKILL); starting it again" in (folder / "up.log").read_text()


def test_a_replica_that_never_comes_up_ends_the_launch_with_the_end_of_its_log(folder: Path) -> None:
    with up(folder, "--vllm-arg=--fail") as one:
        assert one.process.popen.wait(30) == 1
        assert "this engine cannot start" in (folder / "up.log").read_text()
        assert descendants(one.process.pid) == set()


def test_the_replicas_sockets_are_for_this_user_only(folder: Path) -> None:
    with up(folder) as one:
        family_of(one)
        assert stat.S_IMODE((folder / "state/run").stat().st_mode) == 0o700
