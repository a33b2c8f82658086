"""From rows of text to an adapter that has earned its traffic, as an operator does it, on a real vLLM.

A tiny base that knows plain facts learns to sort support tickets. The good version passes the gate; one that was taught
the wrong labels gets 409 at the gate and at the release; one that does nothing is not even registered.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from adapters.demo import LABELS, write_tickets
from tests.contract.conftest import KEY, real_vllm
from tests.fixtures.processes import OPERATOR_KEY, ROOT, Admin, gateway, running, wait_until
from tests.fixtures.redis import RealValkey, free_port

RECIPE = ROOT / "adapters/recipes/tickets-cpu.toml"
SERVICE_KEY = "the-services-key"
FLOOR = 0.85
STEPS_OF_THE_BAD = 150

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]


@dataclass(frozen=True)
class Shop:
    """A gateway in front of a real vLLM, and what was trained for it."""

    folder: Path
    python: str
    port: int
    admin: Admin

    def switchyard(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """The command line, as an operator runs it."""
        return switchyard(self.python, self.folder, *arguments)

    def register(self, artifact: str) -> dict[str, Any]:
        """Register by the trainer's own command, as the next version of acme/tickets."""
        done = subprocess.run(
            [self.python, "-m", "adapters", "register", str(self.folder / artifact), "acme/tickets", "--url",
             self.admin.url], cwd=ROOT, capture_output=True, text=True, check=False,
            env={**os.environ, "SWITCHYARD_OPERATOR_KEY": OPERATOR_KEY})
        assert done.returncode == 0, done.stderr
        version: dict[str, Any] = json.loads(done.stdout)
        return version

    def evaluate(self, number: int) -> tuple[int, dict[str, Any]]:
        """`switchyard evaluate`: its exit code and its report."""
        done = self.switchyard(
            "evaluate", f"acme/tickets@{number}", "--golden", self.folder / "tickets-golden.jsonl", "--json",
            "--floor", str(FLOOR), "--max-tokens", "8", "--url", self.admin.url,
            "--state", self.folder / "evaluations")
        assert done.stdout, done.stderr
        report: dict[str, Any] = json.loads(done.stdout)
        return done.returncode, report


def switchyard(python: str, folder: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the command line, with the trainer's commands under `python`."""
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT), "SWITCHYARD_TRAINER_PYTHON": python, "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1", "SWITCHYARD_OPERATOR_KEY": OPERATOR_KEY}
    return subprocess.run([sys.executable, "-m", "gateway", *map(str, arguments)], cwd=folder, env=environment,
                          capture_output=True, text=True, check=False)


def train(python: str, folder: Path, rows: str, out: str, *values: str) -> None:
    """Train the recipe's adapter on other rows into another folder."""
    done = switchyard(
        python, folder, "train", RECIPE, "--base-model", folder / "tiny-base", "--data", folder / rows,
        "--out", folder / out, "--set", f"data.golden={folder}/tickets-golden.jsonl",
        *(word for value in values for word in ("--set", value)))
    assert done.returncode == 0, done.stdout + done.stderr


def write_wrong_rows(folder: Path) -> None:
    """The same tickets, each with the label that comes after its own."""
    with (folder / "tickets.jsonl").open() as rows, (folder / "wrong.jsonl").open("w") as wrong:
        for line in rows:
            row = json.loads(line)
            row["label"] = LABELS[(LABELS.index(row["label"]) + 1) % len(LABELS)]
            row["messages"][-1]["content"] = row["label"]
            wrong.write(json.dumps(row) + "\n")


def write_no_op(folder: Path) -> None:
    """The good adapter with its B matrices so small that the engine's bfloat16 drops what they add."""
    shutil.copytree(folder / "good", folder / "idle")
    path = folder / "idle" / "adapter_model.safetensors"
    weights = {name: (weight * np.float32(1e-9) if "lora_B" in name else weight)
               for name, weight in load_file(path).items()}
    save_file(weights, path)


def prepare(python: str, folder: Path) -> None:
    """A base model, the tickets, and three adapters."""
    write_tickets(folder)
    write_wrong_rows(folder)
    train(python, folder, "tickets.jsonl", "good")
    train(python, folder, "wrong.jsonl", "bad", f"training.max_steps={STEPS_OF_THE_BAD}")
    write_no_op(folder)


@pytest.fixture(scope="module")
def shop(shared_valkey: RealValkey) -> Iterator[Shop]:
    python = os.environ.get("SWITCHYARD_ENGINE_PYTHON")
    if not python:
        pytest.skip("SWITCHYARD_ENGINE_PYTHON names no python that has vLLM and the trainer's libraries")
    with tempfile.TemporaryDirectory(prefix="sy-") as made, ThreadPoolExecutor(1) as beside:
        folder = Path(made)
        subprocess.run([python, "-m", "adapters", "base", str(folder / "tiny-base")], cwd=ROOT, check=True,
                       capture_output=True)
        trained = beside.submit(prepare, python, folder)  # while the engine starts
        with open_shop(folder, python, shared_valkey) as shop:
            trained.result()
            yield shop


@contextmanager
def open_shop(folder: Path, python: str, valkey: RealValkey) -> Iterator[Shop]:
    """The engine, the gateway in front of it, and acme's adapter, which takes traffic only with an evaluation."""
    port = free_port()
    with real_vllm(python, folder, folder / "tiny-base", context=1024) as engine, gateway(
            folder, port, redis_url=valkey.url, registry="earning", replicas=f"r0={engine.url}", replica_api_key=KEY,
            log_level="error"):
        admin = Admin(port)
        admin("POST", "/tenants", json={"name": "acme"})
        admin("PUT", "/tenants/acme/adapters/tickets", json={"evaluation": "required"})
        yield Shop(folder, python, port, admin)


def test_a_good_version_earns_its_traffic_and_a_bad_one_does_not(
    shop: Shop, capsys: pytest.CaptureFixture[str],
) -> None:
    version = shop.register("good")
    assert version["parity"]["verdict"] == "pass", version["parity"]
    path = "/tenants/acme/adapters/tickets/release"
    refused = shop.admin.ask("PUT", f"/admin/v1{path}", json={"stable": version["number"]})
    assert refused.status_code == 409, refused.text

    code, report = shop.evaluate(version["number"])
    scores = {name: contender["metrics"]["macro_f1"] for name, contender in report["contenders"].items()}
    with capsys.disabled():
        print(f"\nmacro-F1 on {report['golden_set']['items']} held-out tickets: {scores}")
    assert code == 0, report["decision"]
    assert scores["version"] > 0.9
    assert scores["base"] < 0.3
    assert shop.admin("PUT", path, json={"stable": version["number"]})["stable"] == version["number"]

    bad = shop.register("bad")
    code, report = shop.evaluate(bad["number"])
    assert code == 1
    assert report["contenders"]["version"]["metrics"]["macro_f1"] < 0.3
    assert report["contenders"]["stable"]["metrics"]["macro_f1"] == scores["version"]
    refused = shop.admin.ask("POST", f"/admin/v1{path}/start", json={"canary": bad["number"]})
    assert refused.status_code == 409
    assert "did not pass" in refused.json()["error"]["message"]


def test_the_gates_service_answers_200_to_a_good_version_and_409_to_others(shop: Shop) -> None:
    port = free_port()
    command = [shop.python, "-m", "adapters", "evaluate-server", "--golden-dir", str(shop.folder), "--port", str(port),
               "--models-dir", str(shop.folder), "--adapter", "acme/tickets", "--url", shop.admin.url, "--state",
               str(shop.folder / "evaluations"), "--max-tokens", "8"]
    keys = {"SWITCHYARD_EVALUATION_KEY": SERVICE_KEY, "SWITCHYARD_OPERATOR_KEY": OPERATOR_KEY}
    with running(command, shop.folder / "service.log", **keys), httpx.Client(
            base_url=f"http://127.0.0.1:{port}", timeout=300,
            headers={"authorization": f"Bearer {SERVICE_KEY}"}) as client:
        wait_until(lambda: is_up(client))
        answers = {
            name: client.post("/evaluate", json={
                "model_path": name, "golden_set_id": "tickets-golden", "baseline_f1": 0.7, "threshold": 0.02})
            for name in ("good", "bad", "idle")}
    assert {name: answer.status_code for name, answer in answers.items()} == {"good": 200, "bad": 409, "idle": 409}
    good, bad, idle = (answers[name].json() for name in ("good", "bad", "idle"))
    assert good["pass"]
    assert good["f1_score"] > 0.9
    assert good["latency_ms_p99"] > 0
    assert not bad["pass"]
    assert bad["f1_score"] < 0.3
    assert not idle["pass"]
    assert "does not change what the base model says" in idle["message"]


def is_up(client: httpx.Client) -> bool:
    try:
        return client.get("/healthz").is_success
    except httpx.HTTPError:
        return False
