"""A canary's course on each subject: stable and canary answer visibly differently, and every caller can be followed."""

import math
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.contract.conftest import KEY, Subject
from tests.fixtures.artifacts import write_adapter
from tests.fixtures.redis import RealValkey
from tests.fixtures.yard import Yard, open_yard

CALLERS = [f"caller-{n}" for n in range(80)]
CLIENTS = 4
ASK = {"model": "support", "prompt": "abc", "max_tokens": 6, "temperature": 0}


class Course:
    """A gateway in front of the subject, and a tenant whose `support` has version 1 stable and version 2 ready."""

    def __init__(self, yard: Yard, tenant: str, folder: Path) -> None:
        self.yard, self.adapter = yard, f"/tenants/{tenant}/adapters/support"
        self.key = yard.add_tenant(tenant)
        for seed in (21, 22):
            write_adapter(folder / str(seed), seed=seed, scale=0.5)
            yard.admin("POST", f"{self.adapter}/versions",
                       json={"source": str(folder / str(seed)), "base_model": "base"}, timeout=120)

    def move(self, move: str, **body: object) -> None:
        self.yard.admin("POST", f"{self.adapter}/release/{move}", json=body, timeout=120)


@pytest.fixture
def course(
    subject: Subject, shared_valkey: RealValkey, registry_name: str, tmp_path: Path
) -> Iterator[Course]:
    with open_yard(shared_valkey, registry_name) as made:
        made.urls["r0"] = subject.url
        made.start_gateway(replica_api_key=KEY)
        yield Course(made, registry_name, tmp_path)


def text_of(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["text"])


def ask_once(course: Course) -> str:
    return text_of(course.yard.caller(course.key).post("/v1/completions", json=ASK, timeout=60))


def asked(course: Course) -> dict[str, tuple[str, str]]:
    """Every caller asks once, several at a time: which version it was told, and what it was answered."""
    found: dict[str, tuple[str, str]] = {}

    def ask(callers: list[str]) -> None:
        client = course.yard.caller(course.key)
        for name in callers:
            answer = client.post("/v1/completions", json=ASK, headers={"x-switchyard-session": name}, timeout=60)
            found[name] = answer.headers["x-switchyard-version"], text_of(answer)

    threads = [threading.Thread(target=ask, args=(CALLERS[n::CLIENTS],)) for n in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == len(CALLERS), "a request failed"
    return found


def test_a_canary_goes_from_5_to_100_percent_and_the_answers_show_it(course: Course) -> None:
    stable_text = ask_once(course)
    course.move("start", canary=2, plan="5% gate, 50% gate, 100% gate")
    on_canary: set[str] = set()
    for weight in (5, 50, 100):
        if weight > 5:
            course.move("shift", weight=weight)
        found = asked(course)
        now = {name for name, (_, text) in found.items() if text != stable_text}
        assert now == {name for name, (number, _) in found.items() if number == "2"}
        spread = 3.29 * math.sqrt(len(CALLERS) * weight / 100 * (1 - weight / 100))
        assert abs(len(now) - len(CALLERS) * weight / 100) <= spread + 1
        assert on_canary <= now, "a caller went back"
        on_canary = now
    assert len({text for _, text in asked(course).values()}) == 1
    course.move("promote", reason="it answers well")
    assert {number for number, _ in asked(course).values()} == {"2"}


def test_an_aborted_canary_gives_its_callers_back_to_the_stable_version(course: Course) -> None:
    stable_text = ask_once(course)
    course.move("start", canary=2, plan="50% gate, 100%")
    assert {number for number, _ in asked(course).values()} == {"1", "2"}
    course.move("abort", reason="a test")
    assert {text for _, text in asked(course).values()} == {stable_text}
    assert course.yard.admin("GET", f"{course.adapter}/release")["rollout"]["reason"] == "a test"
