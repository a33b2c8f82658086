"""Training under faults, by the engine's python: what goes wrong is caught, told, and gone on from."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import adapters

ROOT = Path(adapters.__file__).parents[1]
SCRIPT = Path(__file__).with_name("training_scenarios.py")
FSDP = Path(__file__).with_name("fsdp_on_cpu.py")
TWO_PROCESSES = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
IN_SHARDS = ("in shards", "shards best", "shards resumed", "shards not killed")
IN_ONE_PROCESS = (
    "plain", "accumulated", "logits", "memory", "little memory", "no memory", "nan", "nan again",
    "nan and stop", "nan at once", "poisoned", "early", "best", "budget", "masked", "unsloth", "sharded", "resumed",
    "not killed", "whole", "validated often", "validated at the end")

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]


@dataclass(frozen=True)
class Engine:
    """The engine's python, a tiny base model and a folder to work in."""

    python: str
    folder: Path

    def run(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1",
                       "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
        return subprocess.run([self.python, *map(str, arguments)], cwd=self.folder, env=environment,
                              capture_output=True, text=True, check=False)

    def scenarios(self, *names: str, launcher: Sequence[str | Path] = ()) -> Mapping[str, Any]:
        done = self.run(*launcher, SCRIPT, "base", ".", *names)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    python = os.environ.get("SWITCHYARD_ENGINE_PYTHON")
    if not python:
        pytest.skip("SWITCHYARD_ENGINE_PYTHON is not set: it names a Python that has the `train` extra")
    engine = Engine(python, tmp_path_factory.mktemp("training"))
    made = engine.run("-m", "adapters", "base", "base")
    assert made.returncode == 0, made.stderr
    yield engine


@pytest.fixture(scope="module")
def came(engine: Engine) -> Mapping[str, Any]:
    """What came of each scenario, after a process that was killed."""
    killed = engine.run(SCRIPT, "base", ".", "killed")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (engine.folder / "long").exists()
    return engine.scenarios(*IN_ONE_PROCESS)


def told(outcome: Mapping[str, Any], words: str) -> bool:
    return any(words in line for line in outcome["told"])


def test_accumulation_does_not_change_what_is_learned(came: Mapping[str, Any]) -> None:
    assert came["accumulated"]["losses"] == pytest.approx(came["plain"]["losses"], rel=2e-3)
    assert came["plain"]["losses"][-1] < 0.7 * came["plain"]["losses"][0]


def test_rows_in_a_pack_do_not_see_one_another(came: Mapping[str, Any]) -> None:
    found = came["logits"]
    assert found["logits"] < 1e-3 < 1.0 < found["contaminated"]
    assert found["loss"] == pytest.approx(found["loss_alone"], rel=1e-5)


def test_too_little_memory_makes_batches_smaller_and_changes_nothing_else(came: Mapping[str, Any]) -> None:
    found = came["memory"]
    assert told(found, "out of memory: batch 4 × accumulation 1 becomes 2 × 2")
    assert told(found, "out of memory: batch 2 × accumulation 2 becomes 1 × 4")
    assert found["losses"] == pytest.approx(came["plain"]["losses"], rel=2e-3)


def test_with_even_less_memory_layers_are_checkpointed_and_packs_shortened(came: Mapping[str, Any]) -> None:
    found = came["little memory"]
    assert told(found, "all layers now compute their activations twice")
    assert told(found, "packs of 256 tokens become packs of 128, 4 a step for 2")
    assert found["steps"] == list(range(1, 13))
    assert found["losses"][-1] < 0.7 * found["losses"][0]


def test_with_no_memory_training_ends_with_advice_and_no_artifact(came: Mapping[str, Any]) -> None:
    assert "Out of memory even with single rows" in came["no memory"]["error"]
    assert not came["no memory"]["exists"]


def test_a_loss_that_is_no_number_goes_back_and_on_at_a_lower_rate(came: Mapping[str, Any]) -> None:
    found = came["nan"]
    assert told(found, "at step 8 the loss is no longer a number: back to step 6, at a learning rate of 0.0025")
    assert found["outcome"] == "finished" and found["is_finite"]
    assert found["losses"][:7] == pytest.approx(came["plain"]["losses"][:7], rel=1e-5)
    assert found["rates"][8:] == pytest.approx([rate / 2 for rate in came["plain"]["rates"][8:]])


def test_a_checkpoint_that_leads_astray_again_is_left_for_the_one_before(came: Mapping[str, Any]) -> None:
    found = came["nan again"]
    assert told(found, "back to step 6, at a learning rate of 0.0025")
    assert told(found, "back to step 3, at a learning rate of 0.00125")
    assert found["outcome"] == "finished" and found["is_finite"]


def test_a_run_may_stop_on_its_last_good_checkpoint_instead(came: Mapping[str, Any]) -> None:
    found = came["nan and stop"]
    assert (found["outcome"], found["metrics"]["kept_step"], found["checkpoints"]) == ("diverged", 6, [6])
    assert found["is_finite"]


def test_without_a_checkpoint_to_go_back_to_there_is_an_error_and_no_artifact(came: Mapping[str, Any]) -> None:
    assert "there is no checkpoint to go back to; lower training.learning_rate" in came["nan at once"]["error"]
    assert not came["nan at once"]["exists"]


def test_a_poisoned_row_is_named(came: Mapping[str, Any]) -> None:
    found = came["poisoned"]
    assert found["outcome"] == "diverged" and found["is_finite"]
    suspects = [line for line in found["told"] if line.startswith("suspect")]
    assert len(suspects) == 1 and "row 65" in suspects[0] and "The poisoned row" in suspects[0]


def test_validation_stops_a_run_early(came: Mapping[str, Any]) -> None:
    assert (came["early"]["outcome"], came["early"]["steps"][-1]) == ("early_stop", 4)


def test_the_weights_that_validation_found_best_are_kept(came: Mapping[str, Any]) -> None:
    found = came["best"]
    best = min(found["validation"], key=found["validation"].get)
    assert int(best) < 12
    assert (found["metrics"]["kept_step"], found["checkpoints"]) == (int(best), [int(best)])


def test_a_spent_budget_ends_a_run_with_what_it_has(came: Mapping[str, Any]) -> None:
    assert (came["budget"]["outcome"], came["budget"]["steps"], came["budget"]["is_finite"]) == ("max_cost", [1], True)


def test_masked_data_and_a_missing_back_end_are_refused(came: Mapping[str, Any]) -> None:
    assert "All labels" in came["masked"]["error"] and "max_length = 8" in came["masked"]["error"]
    assert came["unsloth"]["error"].startswith('training.backend = "unsloth" needs the package unsloth')


def test_under_fsdp_weights_are_stored_so_that_they_can_be_shared_out(came: Mapping[str, Any]) -> None:
    found = came["sharded"]
    assert found["alone"] == {"storage": "torch.uint8", "placed": True}
    assert found["under fsdp"] == {"storage": "torch.float32", "placed": False}
    assert "FSDP" in found["fused"] and 'use "auto"' in found["fused"]
    assert "does not run under FSDP" in found["unsloth"]


def test_a_killed_run_goes_on_exactly_where_it_stood(came: Mapping[str, Any]) -> None:
    resumed, whole = came["resumed"], came["not killed"]
    assert told(resumed, "step 9/20") and not told(resumed, "step 8/20") and told(whole, "step 1/20")
    assert resumed["steps"] == whole["steps"] == list(range(1, 21))
    for figures in ("losses", "validation", "rates"):
        assert resumed[figures] == pytest.approx(whole[figures], rel=1e-6)


def test_validating_often_changes_nothing(came: Mapping[str, Any]) -> None:
    often, rarely = came["validated often"], came["validated at the end"]
    assert len(often["validation"]) == 6 and len(rarely["validation"]) == 1
    assert often["losses"] == rarely["losses"]


def test_two_processes_learn_what_one_learns_with_twice_the_batch(engine: Engine, came: Mapping[str, Any]) -> None:
    found = engine.scenarios("two processes", launcher=TWO_PROCESSES)["two processes"]
    assert found["losses"] == pytest.approx(came["plain"]["losses"], rel=2e-3)
    assert sum(line.startswith("step 1/12") for line in found["told"]) == 1


def test_processes_out_of_memory_go_on_in_a_smaller_shape_when_they_are_started_again(
    engine: Engine, came: Mapping[str, Any],
) -> None:
    name = "two processes, little memory"
    assert engine.run(*TWO_PROCESSES, SCRIPT, "base", ".", name).returncode == 1
    found = engine.scenarios(name, launcher=TWO_PROCESSES)[name]
    assert found["losses"] == pytest.approx(came["plain"]["losses"], rel=2e-3)


@pytest.fixture(scope="module")
def in_shards(engine: Engine) -> Mapping[str, Any]:
    """What came of the scenarios of two processes that share the base model, after both were killed."""
    launcher = (*TWO_PROCESSES, FSDP)
    killed = engine.run(*launcher, SCRIPT, "base", ".", "shards killed")
    assert killed.returncode == 1 and "Signal 9 (SIGKILL)" in killed.stderr, killed.stderr
    assert not (engine.folder / "shards-long").exists()
    return engine.scenarios(*IN_SHARDS, launcher=launcher)


def test_a_base_model_in_shards_learns_what_a_whole_one_learns(
    came: Mapping[str, Any], in_shards: Mapping[str, Any],
) -> None:
    found = in_shards["in shards"]
    assert found["losses"] == pytest.approx(came["whole"]["losses"], rel=1e-3)
    assert found["checkpoints"] == [12] and found["is_finite"] and found["weights"] == came["whole"]["weights"]
    assert told(found, "under FSDP the optimizer is adamw, not paged_adamw_8bit")


def test_what_was_in_shards_says_what_an_engine_should_answer(engine: Engine, in_shards: Mapping[str, Any]) -> None:
    assert in_shards["in shards"]["outcome"] == "finished"
    found = json.loads((engine.folder / "in-shards" / "parity.json").read_text())
    assert all(prompt["adapter"]["trained"] and prompt["adapter"]["served"] for prompt in found["prompts"])
    assert (engine.folder / "in-shards.report" / "report.html").exists()


def test_a_killed_run_in_shards_goes_on_exactly_where_it_stood(in_shards: Mapping[str, Any]) -> None:
    resumed, whole = in_shards["shards resumed"], in_shards["shards not killed"]
    assert told(resumed, "step 13/20") and not told(resumed, "step 12/20") and told(whole, "step 1/20")
    for figures in ("losses", "validation", "rates"):
        assert resumed[figures] == pytest.approx(whole[figures], rel=1e-6)


def test_in_shards_too_the_best_weights_are_kept(in_shards: Mapping[str, Any]) -> None:
    found = in_shards["shards best"]
    best = min(found["validation"], key=found["validation"].get)
    assert int(best) < 6
    assert (found["metrics"]["kept_step"], found["checkpoints"]) == (int(best), [int(best)])


@pytest.mark.parametrize(("setting", "advice"), [
    ({"FSDP_VERSION": "1"}, "fsdp_version: 2"),
    ({"FSDP_ACTIVATION_CHECKPOINTING": "true"}, "training.gradient_checkpointing = true"),
])
def test_an_fsdp_configuration_that_does_not_fit_is_refused(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, setting: Mapping[str, str], advice: str,
) -> None:
    for name, value in {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", **setting}.items():
        monkeypatch.setenv(name, value)
    assert advice in engine.scenarios("refused")["refused"]["error"]
