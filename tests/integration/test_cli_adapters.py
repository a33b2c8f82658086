"""`switchyard adapters` against a real gateway with a fake replica: policies, evaluation records, parity."""

import asyncio
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.clients.registry import connect
from gateway.domain.evaluation import Evaluation
from gateway.domain.model import Change
from tests.fixtures.artifacts import write_adapter
from tests.fixtures.processes import Admin, fake_replica, gateway
from tests.fixtures.redis import RealValkey, free_port
from tests.integration.test_cli import Cli
from tests.integration.test_parity import trained

REGISTRY, NAME = "cli-adapters", "acme/support"
ADAPTER = f"/tenants/{NAME.replace('/', '/adapters/')}"


@pytest.fixture(scope="module")
def admin(shared_valkey: RealValkey, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Admin]:
    """A gateway with acme/support, whose version 1 was trained with a reference, and version 2 without."""
    port, adapters = free_port(), tmp_path_factory.mktemp("adapters")
    with tempfile.TemporaryDirectory(prefix="sy-") as made:
        folder = Path(made)
        with fake_replica(folder, "r0") as (replica, _), gateway(
            folder, port, replicas=f"r0={replica}", redis_url=shared_valkey.url, registry=REGISTRY,
        ):
            admin = Admin(port)
            admin.add_tenant("acme")
            admin.add_adapter("acme", "support", trained(adapters / "1"))
            admin.add_adapter("acme", "support", write_adapter(adapters / "2", seed=2))
            yield admin


@pytest.fixture(scope="module")
def cli(admin: Admin) -> Cli:
    return Cli(admin.url)


def evaluate(admin: Admin, version: int, value: float) -> Any:
    return admin("POST", f"{ADAPTER}/evaluations", json={
        "version": version, "golden_set": "d" * 64, "metric": "macro_f1", "value": value, "floor": 0.8,
        "latency_ms_p99": 812.0})


def test_the_policy_is_set_without_touching_the_rest(cli: Cli, admin: Admin) -> None:
    admin("PUT", ADAPTER, json={"replicas": 3})
    said = cli.ok("adapters", "policy", NAME, "--evaluation", "required")
    assert said == f"{NAME}: only versions with a passing evaluation take canary or stable traffic.\n"
    assert (admin("GET", ADAPTER)["evaluation"], admin("GET", ADAPTER)["replicas"]) == ("required", 3)
    assert cli.json("adapters", "policy", NAME, "--evaluation", "warn")["evaluation"] == "warn"
    for words, code in (([NAME], 2), ([NAME, "--evaluation", "maybe"], 2), ([f"{NAME}@1", "--evaluation", "off"], 2),
                        (["acme/nothing", "--evaluation", "off"], 1)):
        assert cli.run("adapters", "policy", *words).returncode == code


def test_records_are_listed_with_their_versions_and_those_that_do_not_count_say_why(
    cli: Cli, admin: Admin, shared_valkey: RealValkey,
) -> None:
    assert cli.ok("adapters", "evaluations", NAME) == "There is no evaluation record yet.\n"
    evaluate(admin, 1, 0.9)
    made = evaluate(admin, 2, 0.7)
    asyncio.run(slip_in(shared_valkey.url, made["digest"]))
    listed = cli.json("adapters", "evaluations", NAME)
    assert [record["verified"] for record in listed] == [False, True, True]
    assert cli.json("adapters", "evaluations", NAME, "--version", "1") == listed[2:]
    table = cli.ok("adapters", "evaluations", NAME)
    assert "macro_f1" in table and "812" in table and "d" * 12 in table and "d" * 13 not in table
    assert "is not signed, as those of earlier releases" in " ".join(table.split())
    assert cli.run("adapters", "evaluations", NAME, "--version", "9").returncode == 1


async def slip_in(url: str, digest: str) -> None:
    """A record as a release that did not sign would have left it."""
    registry = connect(url, REGISTRY)
    record = Evaluation(
        tenant="acme", adapter="support", digest=digest, id="0" * 16, golden_set="e" * 64, metric="macro_f1", value=1.0,
        floor=0.0, passed=True, by="operator", at=4e9)
    change = Change(actor="operator", action="evaluation.record", target=record.path, at=1.0, detail={})
    await registry.commit(change, {record.path: record}, {})
    await registry.close()


def test_show_tells_which_versions_were_compared_with_their_trainer(cli: Cli) -> None:
    table = cli.ok("adapters", "show", NAME)
    assert "PARITY" in table and " pass " in table and " absent " in table
    shown = cli.json("adapters", "show", NAME)["versions"]
    assert shown[0]["parity"]["numbers"]["base_trained"] == 0
    assert shown[1]["parity"] == {"verdict": "absent", "findings": [], "numbers": None, "tolerance": 0.5}


def test_registering_says_how_near_engine_and_trainer_are(cli: Cli, tmp_path: Path) -> None:
    said = cli.ok("adapters", "register", "acme/another", str(trained(tmp_path / "a")), "--base-model", "base")
    assert "The engine says what the trainer said: with it they are 0 nats apart, 0.5 at most." in said
    document = json.loads((tmp_path / "a" / "parity.json").read_text())
    for prompt in document["prompts"]:
        prompt["token_ids"] = prompt["token_ids"][1:]
    (tmp_path / "a" / "parity.json").write_text(json.dumps(document))
    said = cli.ok("adapters", "register", "acme/another", str(tmp_path / "a"), "--base-model", "base")
    assert "Warning: Template drift: the engine makes other tokens of 3 of 3 prompts" in said
