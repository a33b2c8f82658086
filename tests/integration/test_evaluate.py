"""Versions pass and fail golden sets through a real gateway, on evidence, and what was found is recorded."""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from adapters.commands.evaluate import app
from adapters.evaluation.golden import read
from tests.fakes.serving import serving
from tests.fakes.vllm.behaviour import Behaviour
from tests.fixtures.processes import running, wait_until
from tests.fixtures.redis import RealValkey
from tests.fixtures.yard import OPERATOR_KEY, Yard, open_yard

FLOOR = ("--floor", "0.5")
REGISTRY = "evaluate"


class Gate:
    """`evaluate` as an operator calls it, on a yard with acme/support: version 1 is stable, version 2 is new.

    Every version answers one word, its voice: so a golden set makes it as good as the share of its voice in it.
    """

    def __init__(self, yard: Yard) -> None:
        self.yard = yard
        self.folder = yard.folder
        yard.add_tenant("acme")
        self.versions = [yard.add_adapter("acme", "support", seed=seed) for seed in (1, 2)]
        yard.admin("PUT", "/tenants/acme/adapters/support/release", json={"stable": 1})
        self.old, self.new = map(self.voice, self.versions)

    def voice(self, version: dict[str, Any]) -> str:
        weights = Path(version["source"]) / "adapter_model.safetensors"
        return f"voice-{sha256(weights.read_bytes()).hexdigest()[:8]}"

    def golden(
        self, expected: Sequence[str], scorer: str = "label", slice_of: Callable[[int], str] = lambda number: "all",
    ) -> Path:
        """A golden set that expects one answer after the other."""
        path = self.folder / "golden.jsonl"
        path.write_text("".join(json.dumps({
            "id": f"q{number:03}", "messages": [{"role": "user", "content": f"Which train is number {number}?"}],
            "expected": answer, "scorer": scorer, "slice": slice_of(number)}) + "\n"
            for number, answer in enumerate(expected)))
        return path

    def run(self, golden: Path, *words: str, version: int = 2, url: str = "") -> Result:
        return CliRunner().invoke(app, self.words(golden, *words, version=version, url=url))

    def words(self, golden: Path, *words: str, version: int = 2, url: str = "") -> list[str]:
        return ["evaluate", f"acme/support@{version}", "--golden", str(golden), "--max-tokens", "1",
                "--concurrency", "4", "--url", url or f"unix:{self.yard.socket}", "--operator-key", OPERATOR_KEY,
                "--state", str(self.folder / "state"), *words]

    def report(self, golden: Path, *words: str, code: int = 0, version: int = 2) -> Any:
        done = self.run(golden, "--json", *words, version=version)
        assert done.exit_code == code, done.output
        return json.loads(done.stdout)

    def records(self) -> Any:
        """Newest first."""
        return self.yard.admin("GET", "/tenants/acme/adapters/support/evaluations")["data"]

    def behave(self, number: int | None, **changes: Any) -> None:
        """Change how the replica answers the version, or everything else's caller."""
        only = "" if number is None else self.versions[number - 1]["served_name"]
        self.yard.fakes["r0"].behave(only=only, **changes)


@pytest.fixture(scope="module")
def shared_gate(shared_valkey: RealValkey) -> Iterator[Gate]:
    with open_yard(shared_valkey, REGISTRY) as yard:
        yard.start_replica("r0")
        yard.start_gateway()
        yield Gate(yard)


@pytest.fixture
def gate(shared_gate: Gate, tmp_path: Path) -> Iterator[Gate]:
    shared_gate.folder = tmp_path
    yield shared_gate
    shared_gate.yard.fakes["r0"].behaviour = Behaviour()


def _checks(report: Any) -> dict[str, bool | None]:
    return {check["name"]: check["passed"] for check in report["decision"]["checks"]}


def test_a_better_version_passes_and_its_record_is_bound_to_what_was_evaluated(gate: Gate) -> None:
    golden = gate.golden([gate.new] * 24 + [gate.old] * 6)
    report = gate.report(golden, "--metric", "accuracy", *FLOOR)
    assert _checks(report) == {"floor": True, "baseline": True, "test": True}
    assert {role: each["metrics"]["accuracy"] for role, each in report["contenders"].items()} == {
        "version": 0.8, "stable": 0.2, "base": 0.0}
    assert report["decision"]["comparison"]["method"].startswith("McNemar")
    for each in report["contenders"].values():
        assert 0 < each["first_token_ms"]["p50"] <= each["latency_ms"]["p50"] <= each["latency_ms"]["p99"]
    record = gate.records()[0]
    assert record["id"] == report["record"]
    assert {name: record[name] for name in ("digest", "golden_set", "metric", "value", "passed", "base_model",
                                            "engine_version", "latency_ms_p99", "sampling")} == {
        "digest": gate.versions[1]["digest"], "golden_set": report["golden_set"]["digest"], "metric": "accuracy",
        "value": 0.8, "passed": True, "base_model": "base", "engine_version": "0.32.0",
        "latency_ms_p99": report["contenders"]["version"]["latency_ms"]["p99"],
        "sampling": {"temperature": 0.0, "top_p": 1.0, "max_tokens": 1, "seed": 0, "repeats": 1}}
    assert (record["floor"], record["verified"], record["ignored"]) == (0.5, True, None)
    assert json.loads(Path(report["report"]).read_text())["record"] == record["id"]


def test_people_are_shown_figures_slices_confusion_and_reasons(gate: Gate) -> None:
    golden = gate.golden([gate.new] * 30 + ["billing"] * 10, slice_of=lambda number: f"s{number % 2}")
    done = gate.run(golden, *FLOOR)
    assert done.exit_code == 1, done.output
    for words in ("version (support@2)  stable (support@1)  base (base)", "macro_f1 by slice", "first token p99 ms",
                  "(other)", "✗ macro_f1 0.4286 is below the floor 0.5.",
                  "✓ macro_f1 0.4286 reaches the stable version's 0.0000.", "acme/support@2 failed. Recorded as"):
        assert words in done.stdout
    assert "Asking support@2, support@1, base: 40 questions, 1 time each." in done.stderr


def test_a_version_that_equals_its_baseline_fails_and_is_recorded_as_failed(gate: Gate) -> None:
    golden = gate.golden([gate.new, gate.old] * 15)
    report = gate.report(golden, "--metric", "accuracy", code=1)
    assert _checks(report) == {"baseline": True, "test": False}
    assert "one-sided p = 0.5" in report["decision"]["message"]
    record = gate.records()[0]
    assert (record["passed"], record["value"], record["floor"]) == (False, 0.5, 0.5)


def test_a_version_may_be_a_little_worse_where_that_is_allowed(gate: Gate) -> None:
    golden = gate.golden([gate.new, gate.old] * 60)
    report = gate.report(golden, "--metric", "accuracy", "--threshold", "-0.3")
    assert report["decision"]["comparison"]["method"].startswith("Tango")


def test_a_slice_that_got_worse_closes_the_gate(gate: Gate) -> None:
    golden = gate.golden([gate.new] * 28 + [gate.old] * 12, slice_of=lambda number: "old" if number >= 28 else "new")
    report = gate.report(golden, "--metric", "accuracy", code=1)
    assert [check["reason"] for check in report["decision"]["checks"] if check["passed"] is False] == [
        "accuracy 0.0000 of the slice 'old' is more than 0.05 below 1.0000 of the stable version."]
    assert gate.report(golden, "--metric", "accuracy", "--slice-least", "13")["decision"]["passed"]


def test_errors_are_wrong_answers_and_a_failing_baseline_is_no_reason_to_pass(gate: Gate) -> None:
    golden = gate.golden([gate.new] * 30)
    gate.behave(2, error_rate=0.2, error_status=400)
    report = gate.report(golden, "--metric", "accuracy", "--baseline", "base", code=1)
    version = report["contenders"]["version"]
    assert (version["failed"], version["metrics"]["accuracy"]) == (6, 0.8)
    assert version["errors"][0]["calls"] == 6
    assert "6 of 30 calls of support@2 failed (20.0%, more than the 1.0% allowed)" in report["decision"]["message"]
    gate.behave(1, error_rate=0.2, error_status=400)
    report = gate.report(golden, "--metric", "accuracy", code=1)
    assert _checks(report) == {"baseline": True, "test": True, "errors": False}
    assert gate.report(golden, "--metric", "accuracy", "--max-errors", "0.2")["decision"]["passed"]


def test_a_slow_version_fails_by_its_latency(gate: Gate) -> None:
    golden = gate.golden([gate.new] * 20)
    gate.behave(2, latency=0.05)
    report = gate.report(golden, "--metric", "accuracy", "--latency-p99-ms", "40", code=1)
    assert _checks(report) == {"baseline": True, "test": True, "latency": False}
    assert report["contenders"]["version"]["first_token_ms"]["p50"] >= 50
    assert gate.report(golden, "--metric", "accuracy", "--latency-p99-ms", "100000")["decision"]["passed"]


def test_a_run_that_was_killed_goes_on_where_it_was(gate: Gate) -> None:
    golden = gate.golden([gate.new] * 20)
    gate.behave(None, latency=0.1)
    journal = gate.folder / "state/evaluations/acme/support@2" / read(golden).digest[:12] / "journal.jsonl"
    with running([sys.executable, "-c", "from adapters.commands.evaluate import app; app()",
                  *gate.words(golden, "--metric", "accuracy")], gate.folder / "run.log") as process:
        wait_until(lambda: journal.exists() and journal.read_bytes().count(b"\n") >= 12)
        process.kill()
    kept = journal.read_bytes().count(b"\n")
    seen = gate.yard.fakes["r0"].seen.by_served_name
    gate.behave(None, latency=0.0)
    wait_until(lambda: not gate.yard.fakes["r0"].seen.in_flight)
    before = seen.total()
    done = gate.run(golden, "--metric", "accuracy")
    assert done.exit_code == 0, done.output
    assert f"An interrupted run left {kept} answers" in done.stderr
    assert seen.total() - before == 3 * 20 - kept + 3  # each contender is asked once more to be warm
    assert gate.run(golden, "--metric", "accuracy").stderr.count("interrupted") == 0


def test_repeats_are_asked_with_seeds_of_their_own_and_answered_by_the_pinned_version(gate: Gate) -> None:
    seen = gate.yard.fakes["r0"].seen
    golden = gate.golden([gate.new] * 20)
    gate.report(golden, "--repeats", "2", "--temperature", "0.7", "--seed", "5", "--alone", *FLOOR)
    asked = [request["body"] for request in seen.requests if request["body"].get("temperature") == 0.7]
    assert len(asked) == 40
    assert {body["model"] for body in asked} == {gate.versions[1]["served_name"]}
    assert sorted(body["seed"] for body in asked) == [5] * 20 + [6] * 20


def test_the_key_of_a_run_is_gone_after_it(gate: Gate) -> None:
    gate.report(gate.golden([gate.new] * 20))
    keys = gate.yard.admin("GET", "/tenants/acme/keys")["data"]
    newest = max((key for key in keys if key["name"] == "evaluation"), key=lambda key: key["revision"])
    assert newest["revoked_at"] is not None


def test_a_tenant_without_base_access_is_told_how_to_get_it(gate: Gate) -> None:
    golden = gate.golden([gate.new] * 20)
    gate.yard.admin("PATCH", "/tenants/acme", json={"base_access": False})
    try:
        report, done = gate.report(golden), gate.run(golden, "--baseline", "base")
    finally:
        gate.yard.admin("PATCH", "/tenants/acme", json={"base_access": True})
    assert set(report["contenders"]) == {"version", "stable"}
    assert "needs base_access (PATCH /admin/v1/tenants/acme)" in report["notes"][0]
    assert (done.exit_code, "There is no base to compare with" in done.stderr) == (2, True)
    assert "base_access" in done.stderr


def test_a_key_that_may_not_pin_is_refused_with_the_command_that_makes_one(gate: Gate) -> None:
    key = gate.yard.add_tenant("acme")
    done = gate.run(gate.golden([gate.new] * 20), "--key", key)
    assert done.exit_code == 2
    assert "switchyard keys create acme --name evaluation --may-pin" in done.stderr
    pinning = gate.yard.add_tenant("acme", may_pin=True)
    assert gate.report(gate.golden([gate.new] * 20), "--key", pinning)["decision"]["passed"]


def test_the_stable_version_itself_is_compared_with_the_base(gate: Gate) -> None:
    report = gate.report(gate.golden([gate.old] * 20), version=1)
    assert report["decision"]["baseline_name"] == "the base model"
    done = gate.run(gate.golden([gate.old] * 20), "--baseline", "stable", version=1)
    assert (done.exit_code, "There is no stable to compare with" in done.stderr) == (2, True)


@pytest.mark.parametrize(("words", "said"), [
    (("--baseline", "best"), "neither auto, stable, base, none nor a number"),
    (("--baseline", "none"), "give a floor, or a baseline as a number"),
    (("--alone",), "give a floor, or a baseline as a number"),
    (("--alone", "--baseline", "base"), "alone has no base"),
    (("--metric", "rouge_l"), "has no items for the metric 'rouge_l'; take accuracy, label, macro_f1, score"),
    (("--temperature", "-1"), "sampling: temperature is -1.0; make it 0 to 2"),
    (("--confidence", "0.3"), "confidence is 0.3"),
    (("--judge-url", "http://judge"), "both --judge-url and --judge-model"),
    (("--operator-key", "wrong"), "operator's key is wrong"),
])
def test_what_cannot_be_evaluated_so_is_said_before_anything_is_asked(
    gate: Gate, words: tuple[str, ...], said: str,
) -> None:
    records, seen = gate.records(), gate.yard.fakes["r0"].seen.inferences
    done = gate.run(gate.golden([gate.new] * 20), *words)
    assert (done.exit_code, said in done.stderr) == (2, True), done.stderr
    assert gate.records() == records
    assert gate.yard.fakes["r0"].seen.inferences - seen <= 3  # whether they answer at all


def test_what_is_not_there_is_said(gate: Gate) -> None:
    golden = gate.golden([gate.new] * 20)
    assert "no version 9" in gate.run(golden, version=9).stderr
    unreachable = gate.run(golden, url="http://127.0.0.1:9")
    assert (unreachable.exit_code, "No gateway answers at http://127.0.0.1:9" in unreachable.stderr) == (3, True)
    golden.write_text("{}\n")
    bad = gate.run(golden)
    assert (bad.exit_code, "line 1, expected: is missing" in bad.stderr) == (2, True)


class JudgeModel:
    """An OpenAI-compatible server that likes answers with `liked` in them; the seed says which opinion it is."""

    def __init__(self, liked: str) -> None:
        self.liked = liked
        self.asked = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            for kind in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{kind}.complete"})
            return
        body = json.loads((await receive())["body"])
        self.asked += 1
        answer = json.loads(body["messages"][-1]["content"])["answer"]
        opinion = json.dumps({"reason": "I looked.", "score": 1.0 if self.liked in answer else 0.25})
        reply = {"model": "judge", "choices": [{"message": {"content": opinion}, "finish_reason": "stop"}],
                 "usage": {"prompt_tokens": 9, "completion_tokens": 5}}
        head = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        await send({"type": "http.response.body", "body": json.dumps(reply).encode()})


def test_a_judge_scores_what_no_rule_can(gate: Gate) -> None:
    golden = gate.golden([""] * 20, scorer="judge")
    assert "20 items of the golden set golden are for a judge" in gate.run(golden).stderr
    model = JudgeModel(gate.new)
    with serving(model, gate.folder / "judge.sock") as url:
        report = gate.report(golden, "--judge-url", url, "--judge-model", "judge", "--judge-repeats", "2")
    assert [each["metrics"]["score"] for each in report["contenders"].values()] == [1.0, 0.25, 0.25]
    assert model.asked == 2 * 20 * 3
    assert (report["judge"]["model"], report["decision"]["metric"]) == ("judge", "score")
    assert report["decision"]["comparison"]["low"] == 0.75
