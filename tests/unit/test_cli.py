"""The command line by itself: what it asks of the admin API, how it fails, and that it starts at once."""

import io
import json
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import typer.main

from gateway.cli import adapters, doctor, output
from gateway.cli.archive import tar_stream
from gateway.cli.client import AdminClient
from gateway.cli.main import app
from gateway.cli.output import CommandFailed
from gateway.cli.serving import Teller, plan_engines
from gateway.cli.trainer import COMMANDS
from gateway.settings import PREFIX, load

ROOT = Path(__file__).parents[2]


def switchyard(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line as a user does."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(PREFIX)}
    return subprocess.run([sys.executable, "-m", "gateway", *arguments], capture_output=True, text=True, cwd=ROOT,
                          env=clean | environment, timeout=60, check=False)


def client(answer: httpx.Response | Exception) -> AdminClient:
    """A client of an admin API that always answers so."""
    def handle(request: httpx.Request) -> httpx.Response:
        if isinstance(answer, Exception):
            raise answer
        return answer

    return AdminClient("http://gateway", "key", transport=httpx.MockTransport(handle))


def commands() -> list[tuple[str, Any]]:
    """Every command, by its words; not those of the trainer, which have their own tests."""
    group: Any = typer.main.get_command(app)
    found: list[tuple[str, Any]] = []
    for name, command in group.commands.items():
        if name in COMMANDS:
            continue
        inner = getattr(command, "commands", None)
        found += [(name, command)] if inner is None else [(f"{name} {n}", c) for n, c in inner.items()]
    return found


@pytest.mark.parametrize(("words", "command"), commands(), ids=[words for words, _ in commands()])
def test_every_command_has_an_example_and_json(words: str, command: Any) -> None:
    assert f"Example: switchyard {words}" in command.help or "switchyard settings" in command.help
    assert "--json" in {option for parameter in command.params for option in parameter.opts}


def test_the_commands_are_those_that_are_promised() -> None:
    assert {words for words, _ in commands()} == {
        "serve", "up", "doctor", "settings", "tenants create", "tenants list", "keys create", "keys list",
        "keys revoke", "adapters register", "adapters list", "adapters show", "adapters retire", "adapters policy",
        "adapters evaluations", "replicas list", "replicas add", "replicas remove", "release start", "release shift",
        "release pause", "release resume", "release promote", "release abort", "release status", "release show",
        "release history", "audit verify", "operators create", "operators list", "operators revoke", "quality opt-in",
        "quality opt-out", "quality set", "quality show", "quality candidates", "quality approve", "quality reject",
        "quality export"}


def test_help_is_there_at_once_and_without_heavy_libraries() -> None:
    started = time.monotonic()
    assert switchyard("--help").returncode == 0
    assert time.monotonic() - started < 5  # a loaded machine; a quiet one needs a quarter of a second
    heavy = "{'torch', 'httpx', 'fastapi', 'pydantic', 'redis', 'uvicorn'}"
    script = f"import sys, gateway.cli.main; print(*{heavy} & set(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    assert loaded.stdout.strip() == ""


def test_no_gateway_exits_with_3_and_says_how_to_start_one() -> None:
    done = switchyard("tenants", "list", "--url", "http://127.0.0.1:1", "--operator-key", "k")
    assert done.returncode == 3
    assert "switchyard serve" in done.stderr
    assert "Traceback" not in done.stderr


def test_wrong_usage_exits_with_2() -> None:
    assert switchyard("tenants", "crate").returncode == 2
    assert switchyard("up").returncode == 2
    assert switchyard("adapters", "show", "acme", "--operator-key", "k").returncode == 2


def test_wrong_settings_exit_with_2_and_name_the_setting() -> None:
    done = switchyard("serve", SWITCHYARD_PORT="many")
    assert done.returncode == 2
    assert "SWITCHYARD_PORT" in done.stderr


def test_without_an_operator_key_it_says_where_one_was_looked_for(tmp_path: Path) -> None:
    done = switchyard("tenants", "list", "--json", SWITCHYARD_STATE_PATH=str(tmp_path))
    assert done.returncode == 2
    assert json.loads(done.stderr)["error"]["code"] == "no_operator_key"
    assert str(tmp_path / "operator.key") in done.stderr


def test_settings_are_shown_with_secrets_masked() -> None:
    done = switchyard("settings", "--json", SWITCHYARD_OPERATOR_KEY="hunter2", SWITCHYARD_PORT="9000")
    assert json.loads(done.stdout)["port"] == 9000
    assert json.loads(done.stdout)["operator_key"] == "********"
    assert "hunter2" not in switchyard("settings", SWITCHYARD_OPERATOR_KEY="hunter2").stdout


def test_an_error_of_the_api_is_its_own_message() -> None:
    body = {"error": {"message": "There is no tenant 'x'.", "type": "t", "param": None, "code": "not_found"}}
    with client(httpx.Response(404, json=body)) as api, pytest.raises(CommandFailed) as failure:
        api.get("/tenants/x")
    assert (failure.value.message, failure.value.code, failure.value.exit_code) == (
        "There is no tenant 'x'.", "not_found", 1)


def test_a_wrong_operator_key_says_where_the_right_one_goes() -> None:
    body = {"error": {"message": "Wrong.", "code": "invalid_api_key"}}
    with client(httpx.Response(401, json=body)) as api, pytest.raises(CommandFailed, match="SWITCHYARD_OPERATOR_KEY"):
        api.get("/tenants")


@pytest.mark.parametrize("answer", [httpx.Response(404, text="nginx"), httpx.ConnectError("refused")])
def test_something_that_is_no_gateway_exits_with_3(answer: httpx.Response | Exception) -> None:
    with client(answer) as api, pytest.raises(CommandFailed) as failure:
        api.get("/tenants")
    assert failure.value.exit_code == 3


def test_an_adapter_is_named_by_tenant_and_adapter_and_perhaps_a_version() -> None:
    assert adapters.parse_name("acme/support@3") == ("acme", "support", 3)
    assert adapters.parse_name("acme/support").number is None
    for wrong in ("acme", "acme/", "a/b/c", "acme/support@x"):
        with pytest.raises(CommandFailed, match="tenant/adapter"):
            adapters.parse_name(wrong)


def test_a_folder_becomes_a_tar_of_its_files_with_links_as_what_they_point_at(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(b"x" * 700)
    folder = tmp_path / "adapter"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub/empty").touch()
    (folder / "weights").symlink_to(tmp_path / "blob")
    with tarfile.open(fileobj=io.BytesIO(b"".join(tar_stream(folder)))) as archive:
        assert archive.getnames() == ["sub/empty", "weights"]
        assert all(member.isfile() for member in archive)
        extracted = archive.extractfile("weights")
        assert extracted is not None and extracted.read() == b"x" * 700


def test_a_source_that_is_nowhere_is_wrong_usage(tmp_path: Path) -> None:
    with pytest.raises(CommandFailed, match="--server-side") as failure:
        adapters.read_source(tmp_path / "nothing")
    assert failure.value.exit_code == 2


@pytest.mark.parametrize(("value", "text"), [
    (None, "-"), (True, "yes"), (False, "no"), ([], "-"), (["a", "b"], "a, b"), (0.5, "0.5"), ("[red]", r"\[red]"),
])
def test_values_are_written_for_people(value: Any, text: str) -> None:
    assert output.plain(value) == text


def test_replicas_that_nobody_asked_for_are_not_planned() -> None:
    assert plan_engines(None, load()) == []


def test_waiting_is_told_now_and_then_when_nobody_watches(capsys: pytest.CaptureFixture[str]) -> None:
    tell = Teller(as_json=False)
    for second in range(40):
        tell.waiting(float(second))
    assert capsys.readouterr().err.count("waiting") == 2


REPLICA = {"name": "r0", "url": "http://10.0.0.1:1", "healthy": True, "base_model": "base", "version": "0.32.0",
           "loaded": {"a": "/a"}, "slots": 4, "exposed": [], "last_error": None}


def test_the_doctor_warns_of_an_exposed_replica_but_not_of_a_socket_that_only_we_can_reach(tmp_path: Path) -> None:
    exposed = {**REPLICA, "exposed": ["POST /adapters"]}
    assert doctor.check_exposure("r0", exposed).outcome == "warning"
    tmp_path.chmod(0o700)
    assert doctor.check_exposure("r0", {**exposed, "url": f"unix:{tmp_path}/r0.sock"}).outcome == "ok"
    tmp_path.chmod(0o755)
    assert doctor.check_exposure("r0", {**exposed, "url": f"unix:{tmp_path}/r0.sock"}).outcome == "warning"


def test_the_doctor_warns_of_more_versions_than_slots_and_of_two_engine_versions() -> None:
    assert doctor.check_slots("r0", {**REPLICA, "slots": 0}).outcome == "warning"
    assert doctor.check_slots("r0", REPLICA).outcome == "ok"
    other = {**REPLICA, "version": "0.26.0"}
    assert [check.outcome for check in doctor.check_versions_agree([REPLICA, other])] == ["warning"]


def test_the_doctor_fails_without_a_gateway(tmp_path: Path) -> None:
    done = switchyard("doctor", "--json", "--url", "http://127.0.0.1:1", SWITCHYARD_STATE_PATH=str(tmp_path))
    found = {check["name"]: check["outcome"] for check in json.loads(done.stdout)}
    assert done.returncode == 1
    assert found == {"settings": "ok", "state folder": "ok", "registry": "skipped", "gateway": "failed"}


@pytest.mark.parametrize(("date", "outcome"), [("Thu, 01 Jan 1970 00:00:00 GMT", "failed"), ("?", "skipped")])
def test_the_doctor_compares_clocks(date: str, outcome: str) -> None:
    assert doctor.clock(httpx.Response(200, headers={"date": date})).outcome == outcome
