"""What a whole Switchyard survives: Redis, replicas and gateways killed under load, and being told to stop."""

import json
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from tests.fixtures.artifacts import write_adapter
from tests.fixtures.processes import (
    Admin,
    descendants,
    fake_replica,
    gateway,
    is_alive,
    is_ready,
    wait_until,
)
from tests.fixtures.redis import RealValkey, free_port

CHAT = {"model": "support", "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="sy-") as made:
        yield Path(made)


@dataclass
class Load:
    """Callers that ask one question after another until they are told to stop; what became of each is counted."""

    url: str
    key: str
    stream: bool = False
    results: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(4)]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        wait_until(lambda: self.results["200"] >= 20)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def go_on(self, requests: int) -> None:
        """Wait for that many more good answers."""
        before = self.results["200"]
        wait_until(lambda: self.results["200"] >= before + requests)

    def _ask(self) -> None:
        with httpx.Client(base_url=self.url, timeout=20, headers={"authorization": f"Bearer {self.key}"}) as client:
            while not self._stop.is_set():
                try:
                    answer = client.post("/v1/chat/completions", json={**CHAT, "stream": self.stream})
                except httpx.HTTPError as error:
                    self.failures.append(repr(error))
                    continue
                self.results[str(answer.status_code)] += 1
                if answer.status_code != 200 or (self.stream and "[DONE]" not in answer.text):
                    self.failures.append(f"{answer.status_code} {answer.text[-300:]}")


def test_redis_killed_and_restarted_under_load_fails_no_request(folder: Path, own_valkey: RealValkey) -> None:
    write_adapter(folder / "adapter")
    port = free_port()
    with fake_replica(folder, "r0") as (url, _), gateway(folder, port, redis_url=own_valkey.url, replicas=f"r0={url}"):
        admin = Admin(port)
        key = admin.add_tenant("acme")
        admin.add_adapter("acme", "support", folder / "adapter")
        revision = admin("GET", "/status")["registry"]["revision"]
        with Load(admin.url, key) as load:
            own_valkey.kill()
            wait_until(lambda: not admin("GET", "/status")["registry"]["connected"])
            refused = admin.ask("POST", "/admin/v1/tenants", json={"name": "late"})
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "registry_unavailable")
            assert int(refused.headers["retry-after"]) > 0
            ready = httpx.get(f"{admin.url}/readyz")
            assert (ready.status_code, ready.json()["status"]) == (200, "degraded")
            assert admin("GET", "/tenants/acme/adapters")["data"][0]["name"] == "support"
            load.go_on(50)
            own_valkey.start()
            wait_until(lambda: admin("GET", "/status")["registry"]["connected"])
            load.go_on(20)
        assert load.failures == []
        assert admin("GET", "/status")["registry"]["revision"] >= revision
        assert admin("POST", "/tenants", json={"name": "late"})["name"] == "late"
        assert httpx.get(f"{admin.url}/readyz").json()["status"] == "ok"


def test_a_gateway_started_while_redis_is_down_serves_the_last_snapshot(folder: Path, own_valkey: RealValkey) -> None:
    write_adapter(folder / "adapter")
    port = free_port()
    with fake_replica(folder, "r0") as (url, _):
        settings = {"redis_url": own_valkey.url, "replicas": f"r0={url}"}
        with gateway(folder, port, **settings):
            key = Admin(port).add_tenant("acme")
            Admin(port).add_adapter("acme", "support", folder / "adapter")
            wait_until(lambda: '"stable": 1' in (folder / "state" / "snapshot-default.json").read_text())
        own_valkey.kill()
        with gateway(folder, port, **settings):
            answer = httpx.post(f"http://127.0.0.1:{port}/v1/chat/completions", json=CHAT,
                                headers={"authorization": f"Bearer {key}"}, timeout=20)
            assert answer.status_code == 200, answer.text
            own_valkey.start()
            wait_until(lambda: Admin(port)("GET", "/status")["registry"]["connected"])


@pytest.mark.parametrize("stream", [False, True])
def test_a_replica_killed_under_load_fails_only_what_was_streaming(
    folder: Path, own_valkey: RealValkey, stream: bool
) -> None:
    write_adapter(folder / "adapter")
    port = free_port()
    with fake_replica(folder, "r0", "--token-delay", "0.005") as (one, first), \
            fake_replica(folder, "r1", "--token-delay", "0.005") as (two, second), \
            gateway(folder, port, redis_url=own_valkey.url, replicas=f"r0={one},r1={two}"):
        admin = Admin(port)
        wait_until(lambda: all(r["healthy"] for r in admin("GET", "/replicas")["data"]))
        key = admin.add_tenant("acme")
        admin.add_adapter("acme", "support", folder / "adapter")
        with Load(admin.url, key, stream) as load:
            used = httpx.post(f"{admin.url}/v1/chat/completions", json=CHAT,
                              headers={"authorization": f"Bearer {key}"}).headers["x-switchyard-replica"]
            (first if used == "r0" else second).kill()
            load.go_on(100)
        if stream:  # at most the four that were streaming, and each was told
            assert len(load.failures) <= 4
            assert all('"code":"upstream_failed"' in failure for failure in load.failures)
        else:
            assert load.failures == []
        (first if used == "r0" else second).start()
        wait_until(lambda: all(r["healthy"] and r["loaded"] for r in admin("GET", "/replicas")["data"]))


def test_a_gateway_killed_with_9_leaves_no_process_and_loses_no_change(folder: Path) -> None:
    port = free_port()
    with gateway(folder, port, workers="2") as process:
        admin = Admin(port)
        names = [f"t{n}" for n in range(20)]
        for name in names:
            admin("POST", "/tenants", json={"name": name})
        family = descendants(process.pid)
        assert len(family) >= 3  # two workers and the embedded Valkey
        process.kill()
        wait_until(lambda: not any(is_alive(pid) for pid in family), 5)
        process.start()
        wait_until(lambda: is_ready(port))
        assert {t["name"] for t in Admin(port)("GET", "/tenants")["data"]} == set(names)
        assert process.stop() == 0


def test_told_to_stop_a_gateway_finishes_what_it_has_begun(folder: Path, own_valkey: RealValkey) -> None:
    write_adapter(folder / "adapter")
    port = free_port()
    with fake_replica(folder, "r0", "--token-delay", "0.1", "--tokens", "20") as (url, _), \
            gateway(folder, port, redis_url=own_valkey.url, replicas=f"r0={url}", drain_seconds="0.5") as process:
        admin = Admin(port)
        key = admin.add_tenant("acme")
        admin.add_adapter("acme", "support", folder / "adapter")
        texts: list[str] = []

        def ask(stream: bool) -> None:
            texts.append(httpx.post(f"{admin.url}/v1/chat/completions", json={**CHAT, "stream": stream}, timeout=30,
                                    headers={"authorization": f"Bearer {key}"}).text)

        threads = [threading.Thread(target=ask, args=(n % 2 == 0,)) for n in range(6)]
        for thread in threads:
            thread.start()
        time.sleep(0.5)
        process.send(signal.SIGTERM)
        wait_until(lambda: not is_ready(port), 2)
        assert process.popen.wait(20) == 0
        for thread in threads:
            thread.join()
        whole = [text for text in texts if "[DONE]" in text or json.loads(text)["usage"]["completion_tokens"] == 20]
        assert len(whole) == 6


def test_several_workers_count_into_one_metric(folder: Path, own_valkey: RealValkey) -> None:
    write_adapter(folder / "adapter")
    port = free_port()
    with fake_replica(folder, "r0") as (url, _), \
            gateway(folder, port, redis_url=own_valkey.url, replicas=f"r0={url}", workers="2"):
        admin = Admin(port)
        key = admin.add_tenant("acme")
        admin.add_adapter("acme", "support", folder / "adapter")
        for _ in range(30):  # each on a connection of its own, so that both workers get some
            answer = httpx.post(
                f"{admin.url}/v1/chat/completions", json=CHAT, headers={"authorization": f"Bearer {key}"})
            assert answer.status_code == 200
        for _ in range(4):
            text = admin.ask("GET", "/metrics").text
            counts = [line for line in text.splitlines() if line.startswith("switchyard_requests_total{")
                      and 'adapter="support"' in line]
            assert [line.rsplit(" ", 1)[1] for line in counts] == ["30.0"]
