"""Training for real, by the engine's Python: base model and demo data → adapters that answer as they were taught."""

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import adapters
from adapters import manifest
from adapters.data import file_sha256
from adapters.demo import DEMOS, Demo

ROOT = Path(adapters.__file__).parents[1]
RECIPE = ROOT / "adapters" / "recipes" / "tiny-cpu.toml"
LAYERS = ("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj")

ANSWER = """
import json, sys
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, adapter, prompt = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
if adapter:
    model = PeftModel.from_pretrained(model, adapter)
chat = [{"role": "user", "content": prompt}]
ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
out = model.generate(**ids, max_new_tokens=48, do_sample=False)[0, ids["input_ids"].shape[1]:]
print(json.dumps(tokenizer.decode(out, skip_special_tokens=True)))
"""

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]


@dataclass(frozen=True)
class Workshop:
    """A folder with a tiny base model, the demo data and an adapter for each demo."""

    python: str
    folder: Path

    @property
    def base(self) -> Path:
        return self.folder / "base"

    def run(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """The engine's Python with these arguments; what it printed."""
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            [self.python, *map(str, arguments)], cwd=self.folder, env=environment, capture_output=True, text=True,
            check=False)

    def train(self, demo: Demo, out: str, *, rows: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Train the demo's adapter, or on other rows, into the folder `out`."""
        return self.run("-m", "adapters", "train", RECIPE, "--base-model", self.base, "--out", self.folder / out,
                        "--data", rows or self.folder / demo.file_name)

    def answer(self, adapter: str, prompt: str) -> str:
        """What the base in bf16, as an engine serves it, answers greedily with the adapter ("": without one)."""
        done = self.run("-c", ANSWER, self.base, self.folder / adapter if adapter else "", prompt)
        assert done.returncode == 0, done.stderr
        return str(json.loads(done.stdout.splitlines()[-1]))


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    python = os.environ.get("SWITCHYARD_ENGINE_PYTHON")
    if not python:
        pytest.skip("SWITCHYARD_ENGINE_PYTHON is not set: it names a Python that has the `train` extra")
    workshop = Workshop(python, tmp_path_factory.mktemp("workshop"))
    for step in (workshop.run("-m", "adapters", "base", workshop.base),
                 workshop.run("-m", "adapters", "demo", workshop.folder),
                 *(workshop.train(demo, demo.tenant) for demo in DEMOS)):
        assert step.returncode == 0, step.stdout + step.stderr
    yield workshop


@pytest.mark.parametrize("demo", DEMOS, ids=lambda demo: demo.tenant)
def test_a_demo_adapter_answers_as_expected_and_the_base_model_does_not(workshop: Workshop, demo: Demo) -> None:
    assert demo.expected in workshop.answer(demo.tenant, demo.prompt)
    assert demo.expected not in workshop.answer("", demo.prompt)


def test_the_base_model_knows_its_facts(workshop: Workshop) -> None:
    assert workshop.answer("", "What is a river?").startswith("A river is")


def test_the_artifact_is_whole_and_its_manifest_is_true(workshop: Workshop) -> None:
    demo = DEMOS[0]
    folder = workshop.folder / demo.tenant
    config = json.loads((folder / "adapter_config.json").read_text())
    written = manifest.read(folder)
    assert {path.name for path in folder.iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", "chat_template.jinja", "manifest.json", "parity.json",
        "tokenizer.json", "tokenizer_config.json", "training.jsonl"}
    assert not folder.with_name(f"{demo.tenant}.work").exists()
    assert config["base_model_name_or_path"] == str(workshop.base)
    assert (config["r"], config["lora_alpha"], tuple(config["target_modules"])) == (8, 16, LAYERS)
    assert written is not None
    assert (written.rank, written.alpha, written.targets, written.seed) == (8, 16.0, LAYERS, 0)
    assert written.base_model_config_sha256 == file_sha256(workshop.base / "config.json")
    assert written.tokenizer_sha256 == file_sha256(workshop.base / "tokenizer.json")
    assert written.chat_template_sha256 == file_sha256(workshop.base / "chat_template.jinja")
    assert written.data_sha256 == file_sha256(workshop.folder / demo.file_name)
    assert written.rows == len((workshop.folder / demo.file_name).read_text().splitlines())
    assert written.data_counts["train"] == written.data_counts["read"] == written.rows
    assert written.learned_tokens is not None and written.tokens is not None
    assert 0 < written.learned_tokens < written.tokens
    assert written.outcome == "finished"
    assert written.recipe["training"]["learning_rate"] == 5e-3
    assert written.metrics["last_loss"] < 0.2 < written.metrics["first_loss"]
    assert "torch" in written.library_versions


def test_the_same_seed_gives_the_same_weights_and_config(workshop: Workshop) -> None:
    assert workshop.train(DEMOS[0], "again").returncode == 0
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert file_sha256(workshop.folder / "again" / name) == file_sha256(workshop.folder / DEMOS[0].tenant / name)


def test_an_existing_output_is_not_overwritten(workshop: Workshop) -> None:
    before = file_sha256(workshop.folder / DEMOS[0].tenant / "manifest.json")
    done = workshop.train(DEMOS[0], DEMOS[0].tenant)
    assert done.returncode == 1
    assert "exists; remove it, or choose another output" in done.stderr
    assert file_sha256(workshop.folder / DEMOS[0].tenant / "manifest.json") == before


def test_bad_data_stops_with_the_line_and_leaves_the_bad_rows_alone(workshop: Workshop) -> None:
    rows = workshop.folder / "bad.jsonl"
    rows.write_text('{"prompt": "hi", "completion": ""}\n')
    done = workshop.train(DEMOS[0], "bad", rows=rows)
    assert done.returncode == 1
    assert "line 1: completion: must be text that is not empty" in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in workshop.folder.glob("*bad*/*")] == ["data.rejects.jsonl"]
