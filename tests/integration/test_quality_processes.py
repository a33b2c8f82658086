"""Quality over several gateway processes, as operators see it on the command line, and with Redis lost and found."""

import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from adapters.evaluation import golden
from tests.fixtures.artifacts import write_adapter
from tests.fixtures.processes import Admin, fake_replica, gateway, wait_until
from tests.fixtures.redis import RealValkey, free_port
from tests.integration.test_cli import Cli

QUALITY = "/tenants/acme/adapters/support/quality"


class Place:
    """A gateway of two processes in front of acme's support, in `folder`."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder, self.admin = folder, Admin(port)
        self.key = self.admin.add_tenant("acme")
        self.admin.add_adapter("acme", "support", write_adapter(folder / "adapter", seed=1))
        self.cli = Cli(self.admin.url)

    def ask(self, content: str, times: int = 1) -> None:
        """Ask on a connection of its own each time, so that both processes get some."""
        for _ in range(times):
            body = {"model": "support", "messages": [{"role": "user", "content": content}]}
            answer = httpx.post(f"{self.admin.url}/v1/chat/completions", json=body, timeout=20,
                                headers={"authorization": f"Bearer {self.key}"})
            assert answer.status_code == 200, answer.text

    def metric(self, name: str) -> dict[str, float]:
        text = self.admin.ask("GET", "/metrics").text
        found = re.findall(rf"^switchyard_{name}(\{{.*\}}) (\S+)$", text, re.MULTILINE)
        return {labels: float(value) for labels, value in found}

    def samples(self, result: str) -> float:
        return self.metric("quality_samples_total").get(f'{{result="{result}"}}', 0.0)

    def policy(self, **policy: Any) -> str:
        path = self.folder / "policy.json"
        path.write_text(json.dumps(policy))
        return str(path)


@pytest.fixture
def place(own_valkey: RealValkey) -> Iterator[Place]:
    with tempfile.TemporaryDirectory(prefix="sy-") as made:
        folder, port = Path(made), free_port()
        with fake_replica(folder, "r0") as (url, _), gateway(
                folder, port, redis_url=own_valkey.url, replicas=f"r0={url}", workers="2", log_level="info",
                quality_samples_a_second="1000"):
            yield Place(folder, port)


def test_from_opt_in_to_golden_set_on_the_command_line(place: Place) -> None:
    cli, name = place.cli, "acme/support"
    assert "has not opted in" in cli.ok("quality", "show", name)
    assert "100% is sampled" in cli.ok("quality", "opt-in", "acme", "--share", "100")
    said = cli.ok("quality", "set", name, place.policy(rules=[{"kind": "max_chars", "value": 3}], floor=0.5,
                                                       min_samples=5))
    assert "rules max_chars 3; floor 0.5 from 5 samples on; 0 approved, 0 rejected." in said
    place.ask("Where is my parcel, I am bob@example.com?", 10)
    place.ask("Is it late?")
    wait_until(lambda: place.samples("failed") == 11)
    assert re.search(r"1\s+0\s+11\s+11", cli.ok("quality", "show", name))
    wait_until(lambda: place.metric("adapter_quality") == {'{adapter="support",tenant="acme",version="1"}': 0.0})
    assert place.metric("adapter_quality_floor") == {'{adapter="support",tenant="acme"}': 0.5}
    wait_until(lambda: re.search(r"1\s+0\s+11\s+11\s+yes", cli.ok("quality", "show", name)) is not None)

    late, parcel = cli.json("quality", "candidates", name)
    assert parcel["messages"][0]["content"] == "Where is my parcel, I am [EMAIL]?"
    assert "Is it late?" in cli.ok("quality", "candidates", name)
    lacking = cli.run("quality", "approve", name, parcel["id"])
    assert lacking.returncode == 1 and "give it with expected" in lacking.stderr
    assert "It was" not in cli.ok("quality", "approve", name, parcel["id"], "--expected", "At home.", "--dry-run")
    assert f"golden item drift-{parcel['id']}" in cli.ok(
        "quality", "approve", name, parcel["id"], "--expected", "At home.", "--reason", "it was there")
    assert cli.ok("quality", "reject", name, late["id"]) == f"Rejected {late['id']}.\n"
    assert cli.ok("quality", "candidates", name) == f"{name} has no candidate.\n"

    golden_set = place.folder / "golden.jsonl"
    assert "Wrote 1 items" in cli.ok("quality", "export", name, "--to", str(golden_set))
    [item] = golden.read(golden_set).items
    assert (item.expected, item.scorer, item.slice) == ("At home.", "normalised", "drift")
    assert cli.ok("quality", "export", name) == golden_set.read_text()
    assert [each["id"] for each in cli.json("quality", "export", name)] == [item.id]
    log = (place.folder / "gateway.log").read_text()
    assert "parcel" not in log and "bob@" not in log
    assert "is sampled or kept any more" in cli.ok("quality", "opt-out", "acme")
    assert cli.run("quality", "export", name).returncode == 1
    wait_until(lambda: all(value != value for value in place.metric("adapter_quality").values()))


def test_with_redis_away_samples_are_dropped_and_counted_and_no_request_notices(
    place: Place, own_valkey: RealValkey,
) -> None:
    place.admin("PUT", "/tenants/acme/quality", json={"share": 100})
    place.ask("hi", 4)
    wait_until(lambda: place.samples("passed") == 4)
    own_valkey.kill()
    place.ask("hi", 10)
    wait_until(lambda: place.samples("dropped") == 10)
    assert place.admin.ask("GET", f"/admin/v1{QUALITY}/candidates").status_code == 503
    own_valkey.start()
    wait_until(lambda: place.admin("GET", "/status")["registry"]["connected"])
    place.ask("hi", 4)
    wait_until(lambda: place.samples("passed") + place.samples("dropped") == 18)
