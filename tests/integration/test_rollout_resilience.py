"""A rollout under live traffic while Redis, a gateway or another operator interferes: consistent each time."""

import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from loadtests.canary import RELEASE, Traffic, behave
from tests.fixtures.artifacts import write_adapter
from tests.fixtures.processes import Admin, Process, fake_replica, gateway, is_ready, wait_until
from tests.fixtures.redis import RealValkey, free_port

CALLERS = 60


class Course:
    """A gateway with version 1 stable, version 2 ready, and callers who keep asking."""

    def __init__(self, folder: Path, port: int, process: Process) -> None:
        self.admin, self.process, self.port = Admin(port), process, port
        key = self.admin.add_tenant("acme")
        for seed in (1, 2):
            write_adapter(folder / f"v{seed}", seed=seed)
            self.admin.add_adapter("acme", "support", folder / f"v{seed}")
        self.traffic = Traffic(self.admin.url, key, CALLERS, 4)

    def start(self, plan: str = "50% gate, 100%") -> None:
        self.admin("POST", f"{RELEASE}/start", json={"canary": 2, "plan": plan})

    @property
    def release(self) -> dict[str, Any]:
        return dict(self.admin("GET", RELEASE))


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="sy-") as made:
        yield Path(made)


@pytest.fixture
def course(folder: Path, own_valkey: RealValkey) -> Iterator[Course]:
    port = free_port()
    with fake_replica(folder, "r0") as (url, _), gateway(
            folder, port, redis_url=own_valkey.url, replicas=f"r0={url}", workers="2", log_level="error") as process:
        yield Course(folder, port, process)


def test_the_whole_course_fails_no_request_and_sends_nobody_back(course: Course) -> None:
    course.start("5% gate, 50% gate, 100% gate")
    with course.traffic.running() as traffic:
        before = traffic.round()
        for weight in (50, 100):
            course.admin("POST", f"{RELEASE}/shift", json={"weight": weight})
            now = traffic.round()
            assert not [caller for caller in now if before[caller] == "2" != now[caller]]
            before = now
        course.admin("POST", f"{RELEASE}/promote", json={})
        assert set(traffic.round().values()) == {"2"}
    assert traffic.failed == 0
    assert (course.release["stable"], course.release["rollout"]["phase"]) == (2, "promoted")


def test_redis_lost_in_mid_rollout_leaves_every_caller_on_its_track(course: Course, own_valkey: RealValkey) -> None:
    course.start()
    with course.traffic.running() as traffic:
        before = traffic.round()
        assert set(before.values()) == {"1", "2"}
        own_valkey.kill()
        wait_until(lambda: not course.admin("GET", "/status")["registry"]["connected"])
        refused = course.admin.ask("POST", f"/admin/v1{RELEASE}/abort", json={"reason": "now"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "registry_unavailable")
        assert traffic.round() == before
        own_valkey.start()
        wait_until(lambda: course.admin("GET", "/status")["registry"]["connected"])
        assert traffic.round() == before
        assert course.release["rollout"]["phase"] in ("running", "waiting")
        wait_until(lambda: course.admin.ask("POST", f"/admin/v1{RELEASE}/abort", json={}).status_code == 200)
        # The other process may not have found Redis again yet.
        wait_until(lambda: set(traffic.round().values()) == {"1"})
    assert traffic.failed == 0


@pytest.mark.parametrize("delay", [0.0, 0.01, 0.05])
def test_a_gateway_killed_in_mid_promote_is_promoted_or_not_but_never_between(course: Course, delay: float) -> None:
    course.start()

    def promote() -> None:
        with suppress(httpx.HTTPError):
            course.admin.ask("POST", f"/admin/v1{RELEASE}/promote", json={})

    call = threading.Thread(target=promote)
    call.start()
    call.join(delay)
    course.process.kill()
    call.join()
    course.process.start()
    wait_until(lambda: is_ready(course.port))
    release = course.release
    promoted = release["rollout"]["phase"] == "promoted"
    assert release["stable"] == (2 if promoted else 1)
    rows = [row["action"] for row in course.admin("GET", "/changes")["data"]]
    assert ("release.promote" in rows) is promoted
    with course.traffic.running() as traffic:
        assert set(traffic.round().values()) == ({"2"} if promoted else {"1", "2"})


def test_of_two_operators_who_promote_and_abort_at_once_one_wins(course: Course) -> None:
    course.start()
    answers: dict[str, int] = {}

    def ask(move: str) -> None:
        answers[move] = course.admin.ask("POST", f"/admin/v1{RELEASE}/{move}", json={}).status_code

    calls = [threading.Thread(target=ask, args=(move,)) for move in ("promote", "abort")]
    for call in calls:
        call.start()
    for call in calls:
        call.join()
    assert sorted(answers.values()) == [200, 409]
    won = "promoted" if answers["promote"] == 200 else "aborted"
    assert (course.release["rollout"]["phase"], course.release["stable"]) == (won, 2 if won == "promoted" else 1)


def test_when_the_gateway_with_the_analyst_is_killed_another_rolls_back_within_15_seconds(
    folder: Path, own_valkey: RealValkey
) -> None:
    ports = free_port(), free_port()
    for name in ("a", "b"):
        (folder / name).mkdir()
    with fake_replica(folder, "r0") as (url, _):
        shared = {"redis_url": own_valkey.url, "replicas": f"r0={url}", "log_level": "error",
                  "artifacts_path": str(folder / "artifacts")}
        with gateway(folder / "a", ports[0], **shared) as leader:
            time.sleep(2)  # it is alone, so it takes the lease
            with gateway(folder / "b", ports[1], **shared) as other:
                course = Course(folder, ports[1], other)
                served = course.admin("GET", "/tenants/acme/adapters/support/versions")["data"][1]["served_name"]
                behave(folder, only=served, error_rate=0.5)
                leader.kill()
                course.start("50%, 100%")
                with course.traffic.running():
                    wait_until(lambda: course.release["rollout"]["phase"] == "aborted", 15)
