"""The command line against a real gateway with a fake replica: releases, operators and the audit, as they are used."""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from gateway.clients.registry import connect
from gateway.domain.model import Change, Tenant
from gateway.settings import PREFIX
from tests.fixtures.artifacts import write_adapter
from tests.fixtures.processes import OPERATOR_KEY, ROOT, Admin, fake_replica, gateway
from tests.fixtures.redis import RealValkey, free_port

NAME = "acme/support"
REGISTRY = "cli"


class Cli:
    """`switchyard` as an operator calls it; a new tenant's adapter per test, so that they do not meet."""

    def __init__(self, url: str, key: str = OPERATOR_KEY) -> None:
        self.url = url
        self.key = key

    def run(self, *words: str, key: str | None = None) -> subprocess.CompletedProcess[str]:
        environment = {k: v for k, v in os.environ.items() if not k.startswith(PREFIX)}
        environment |= {f"{PREFIX}URL": self.url, f"{PREFIX}OPERATOR_KEY": key or self.key}
        return subprocess.run([sys.executable, "-m", "gateway", *words], capture_output=True, text=True, cwd=ROOT,
                              env=environment, timeout=60, check=False)

    def ok(self, *words: str, key: str | None = None) -> str:
        done = self.run(*words, key=key)
        assert (done.returncode, done.stderr) == (0, ""), (done.stdout, done.stderr)
        return done.stdout

    def json(self, *words: str, key: str | None = None) -> Any:
        return json.loads(self.ok(*words, "--json", key=key))


@pytest.fixture(scope="module")
def admin(shared_valkey: RealValkey) -> Iterator[Admin]:
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="sy-") as made:
        folder = Path(made)
        with fake_replica(folder, "r0", "--max-loras", "32") as (replica, _), gateway(
            folder, port, replicas=f"r0={replica}", redis_url=shared_valkey.url, registry=REGISTRY,
        ):
            yield Admin(port)


@pytest.fixture(scope="module")
def cli(admin: Admin) -> Cli:
    return Cli(admin.url)


@pytest.fixture
def adapter(admin: Admin, tmp_path: Path, request: pytest.FixtureRequest) -> str:
    """`acme/<the test's own>` with version 1 stable and version 2 ready."""
    name = f"a{abs(hash(request.node.name)) % 10**9}"
    if not any(tenant["name"] == "acme" for tenant in admin("GET", "/tenants")["data"]):
        admin.add_tenant("acme")
    for seed in (1, 2):
        admin.add_adapter("acme", name, write_adapter(tmp_path / str(seed), seed=seed + hash(name) % 10_000))
    return f"acme/{name}"


def test_a_rollout_from_start_to_promote(cli: Cli, adapter: str) -> None:
    assert cli.ok("release", "status", adapter) == f"{adapter}: version 1 is stable, and there is no rollout.\n"
    said = cli.ok("release", "start", adapter, "--canary", "2", "--plan", "5% for 1h, 25%, 100%", "--reason", "better")
    assert f"{adapter}: version 1 is stable; version 2 gets 5% (running): better" in said
    seen = cli.ok("release", "status", adapter)
    assert "step 1 of 3 of the plan 5% for 1h, 25%, 100%" in seen
    assert "left)" in seen
    assert "version 2 gets 25% (running)" in cli.ok("release", "shift", adapter)
    assert "version 2 gets 50% (running)" in cli.ok("release", "shift", adapter, "--to", "50")
    assert "(paused): lunch" in cli.ok("release", "pause", adapter, "--reason", "lunch")
    assert cli.json("release", "resume", adapter)["rollout"]["phase"] == "running"
    assert "version 2 is stable; it was promoted: done" in cli.ok("release", "promote", adapter, "--reason", "done")
    watched = cli.run("release", "status", adapter, "--watch")
    assert (watched.returncode, "it was promoted" in watched.stdout) == (0, True)
    told = [row["action"].removeprefix("release.") for row in cli.json("release", "history", adapter)]
    moves = [action for action in told if action != "verdict"]  # the analyst's, when it comes to one in between
    assert moves[:6] == ["promote", "resume", "pause", "shift", "shift", "start"]
    table = cli.ok("release", "history", adapter, "--limit", "1")
    assert "release.promote" in table and "done" in table and "release.resume" not in table


def test_show_answers_why_it_was_rolled_back(cli: Cli, adapter: str) -> None:
    cli.ok("release", "start", adapter, "--canary", "2")
    cli.ok("release", "abort", adapter, "--reason", "answers are too short")
    said = cli.ok("release", "show", adapter)
    assert "version 2 was rolled back: answers are too short" in said
    assert "Last move: abort by operator" in said and "at 5%" in said
    assert "Plan: 5% for 10m min 200" in said
    shown = cli.json("release", "show", adapter)
    assert (shown["rollout"]["phase"], shown["history"][0]["detail"]["reason"]) == ("aborted", "answers are too short")
    watched = cli.run("release", "status", adapter, "--watch", "--json")
    assert watched.returncode == 1, "scripts that wait hear that it was rolled back"
    assert json.loads(watched.stdout)["rollout"]["phase"] == "aborted"


def test_a_plan_can_be_a_toml_file(cli: Cli, adapter: str, tmp_path: Path) -> None:
    plan = tmp_path / "plan.toml"
    plan.write_text('deadline = "2h"\nat_deadline = "hold"\n'
                    'steps = [{weight = 10, min_time = "5m", gate = true}, "100%"]')
    found = cli.json("release", "start", adapter, "--canary", "2", "--plan", str(plan))
    assert found["rollout"]["plan"]["text"] == "10% for 5m gate, 100%; within 2h else hold"
    assert found["rollout"]["weight"] == 10


def test_a_dry_run_tells_what_would_be_and_changes_nothing(cli: Cli, adapter: str) -> None:
    said = cli.ok("release", "start", adapter, "--canary", "2", "--dry-run")
    assert "nothing was changed" in said and "version 2 gets 5%" in said
    assert cli.json("release", "status", adapter)["rollout"] is None


def test_a_move_upon_another_revision_is_refused(cli: Cli, adapter: str) -> None:
    seen = cli.json("release", "status", adapter)["revision"]
    cli.ok("release", "start", adapter, "--canary", "2", "--if-match", str(seen))
    refused = cli.run("release", "abort", adapter, "--if-match", str(seen), "--json")
    assert refused.returncode == 1
    assert json.loads(refused.stderr)["error"]["code"] == "revision_mismatch"


@pytest.mark.parametrize(("words", "exit_code", "said"), [
    (["start", NAME, "--canary", "2", "--plan", "/nowhere/plan.toml"], 2, "cannot be read"),
    (["start", f"{NAME}@2", "--canary", "2"], 2, "without a version"),
    (["start", "support", "--canary", "2"], 2, "tenant/adapter"),
    (["start", NAME], 2, "--canary"),
    (["start", NAME, "--canary", "2"], 1, "no adapter"),
    (["status", NAME, "--watch"], 1, "no adapter"),
])
def test_what_cannot_be_is_refused_with_its_exit_code(cli: Cli, words: list[str], exit_code: int, said: str) -> None:
    done = cli.run("release", *words)
    assert done.returncode == exit_code
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_illegal_moves_and_wrong_plans_say_what_is_possible(cli: Cli, adapter: str) -> None:
    assert "has no rollout" in cli.run("release", "pause", adapter).stderr
    wrong = cli.run("release", "start", adapter, "--canary", "2", "--plan", "50%, 5%")
    assert (wrong.returncode, "does not raise the weight" in wrong.stderr) == (1, True)


def test_operators_work_under_their_own_names_within_their_roles(cli: Cli, adapter: str) -> None:
    viewer = cli.json("operators", "create", "vera", "--role", "viewer")["key"]
    colleague = cli.ok("operators", "create", "carl").splitlines()[0]
    refused = cli.run("release", "start", adapter, "--canary", "2", key=viewer)
    assert refused.returncode == 1
    assert "needs the role operator; vera has the role viewer" in refused.stderr
    assert "there is no rollout" in cli.ok("release", "status", adapter, key=viewer)
    cli.ok("release", "start", adapter, "--canary", "2", "--approvals", "1", key=colleague)
    assert "one more operator must approve" in cli.run("release", "promote", adapter, key=colleague).stderr
    assert "it was promoted" in cli.ok("release", "promote", adapter)
    assert {m["actor"] for m in cli.json("release", "history", adapter)} >= {"carl", "operator"}
    listed = {o["name"]: o["role"] for o in cli.json("operators", "list")}
    assert listed["vera"] == "viewer" and listed["carl"] == "operator"
    assert viewer not in cli.ok("operators", "list")
    assert "Revoked the key of vera." in cli.ok("operators", "revoke", "vera")
    assert cli.run("release", "status", adapter, key=viewer).returncode == 1
    assert cli.run("operators", "create", "x", "--role", "king").returncode == 2
    assert cli.run("operators", "list", key=colleague).returncode == 1


def test_a_forced_start_is_for_admins(cli: Cli, adapter: str) -> None:
    key = cli.json("operators", "create", "otto", "--role", "operator")["key"]
    refused = cli.run("release", "start", adapter, "--canary", "2", "--force", "--json", key=key)
    assert json.loads(refused.stderr)["error"]["code"] == "permission_denied"
    assert "gets 5%" in cli.ok("release", "start", adapter, "--canary", "2", "--force")


def test_the_audit_is_verified_page_by_page_and_tampering_is_named(
    cli: Cli, admin: Admin, shared_valkey: RealValkey,
) -> None:
    admin("POST", "/tenants", json={"name": "many"})
    asyncio.run(change_often(shared_valkey.url, 1000))
    newest = admin("POST", "/tenants", json={"name": "newest"})["revision"]
    report = cli.json("audit", "verify")
    assert report["broken"] is None
    assert report["chained"] == report["last_revision"] == newest > 1000, "more than one page"
    kept = f"{report['last_revision']}:{report['head']}"
    assert f"Keep this, for a later --expect: {kept}" in cli.ok("audit", "verify")

    redis = Redis(unix_socket_path=str(shared_valkey.socket_path), decode_responses=True)
    stream, victim = f"switchyard:{{{REGISTRY}}}:changes", 40
    rows: Any = redis.xrange(stream)
    forged = {**rows[victim - 1][1], "change": rows[victim - 1][1]["change"].replace('"operator"', '"mallory"')}
    tampered = [*rows[:victim - 1], (rows[victim - 1][0], forged), *rows[victim:]]
    try:
        rewrite(redis, stream, tampered)
        broken = cli.run("audit", "verify")
        assert broken.returncode == 1
        assert f"broken at revision {victim}" in broken.stdout and "altered" in broken.stdout
        assert cli.ok("audit", "verify", "--since", str(victim + 1))
        assert json.loads(cli.run("audit", "verify", "--json").stdout)["broken"]["revision"] == victim
        rewrite(redis, stream, rows[:-1])
        assert cli.run("audit", "verify").returncode == 1, "the end was cut off"
    finally:
        rewrite(redis, stream, rows)
        redis.close()
    assert cli.run("audit", "verify", "--expect", kept).returncode == 0
    assert cli.run("audit", "verify", "--expect", f"{victim}:{'0' * 64}").returncode == 1
    assert cli.run("audit", "verify", "--expect", "latest").returncode == 2


async def change_often(url: str, times: int) -> None:
    """Changes as another gateway would make them."""
    registry = connect(url, REGISTRY)
    for number in range(times):
        tenant = Tenant(name="many", created_at=float(number))
        change = Change(actor="operator", action="tenant.patch", target=tenant.path, at=1.0, detail={})
        await registry.commit(change, {tenant.path: tenant}, {})
    await registry.close()


def rewrite(redis: "Redis", stream: str, rows: list[Any]) -> None:
    """The stream anew, in one step, so that followers see it whole."""
    with redis.pipeline(transaction=True) as steps:
        steps.delete(stream)
        for stream_id, fields in rows:
            steps.xadd(stream, fields, id=stream_id)
        steps.execute()
