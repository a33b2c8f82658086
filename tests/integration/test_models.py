"""Trained adapters by the engine's Python: merged, compared with their base, and their reference for parity."""

import json
import math
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import adapters
from adapters import manifest
from adapters.data.rows import file_sha256
from adapters.manifest import Manifest
from tests.fixtures.artifacts import TINY_BASE_CONFIG, tensor_name, write_adapter, write_base_model

ROOT = Path(adapters.__file__).parents[1]
MAKER = ROOT / "tests" / "contract" / "make_base_model.py"
RSLORA = {"use_rslora": True, "alpha_pattern": {"o_proj": 40}, "lora_dropout": 0.5}

MERGE = """
import json, sys
from pathlib import Path
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
from adapters.merge import MergeError, merge

folder = Path(sys.argv[1])
result = {"refused": {}}
merged = merge(folder / "good", folder / "merged", shard_bytes=200_000, report=print)

ids = torch.arange(40).view(2, 20) + 10
def logits(model):
    with torch.no_grad():
        return model.float().eval()(input_ids=ids).logits
base = AutoModelForCausalLM.from_pretrained(folder / "base")
result["change"] = float(logits(base).std())
plain = logits(base)
tuned = logits(PeftModel.from_pretrained(base, folder / "good"))
both = logits(AutoModelForCausalLM.from_pretrained(folder / "merged"))
result.update(change=float((tuned - plain).abs().mean()), error=float((both - tuned).abs().mean()))

def fails(report):
    raise OSError("the disk is full")
try:
    merge(folder / "good", folder / "full", report=fails)
except OSError as error:
    result["full"] = str(error)

for name in sys.argv[2:]:
    try:
        merge(folder / name, folder / "refused", base_model=str(folder / ("quantised" if name == "q" else "base")))
    except MergeError as error:
        result["refused"][name] = str(error)
print(json.dumps(result))
"""

PARITY = """
import json, sys
from dataclasses import replace
from pathlib import Path
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from adapters import recipe as recipes
from adapters.training import parity

folder = Path(sys.argv[1])
nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
tokenizer = AutoTokenizer.from_pretrained(folder / "base")
chats = [[{"role": "user", "content": f"secret {number}"}] for number in range(9)]
for kind in ("nf4", "none"):
    model = AutoModelForCausalLM.from_pretrained(
        folder / "base", dtype=torch.bfloat16, device_map={"": "cpu"},
        quantization_config=nf4 if kind == "nf4" else None)
    model = PeftModel.from_pretrained(model, folder / "good").train()
    recipe = recipes.from_document({
        "base_model": str(folder / "base"), "data": "d", "output": "o", "quantization": kind,
        "report": {"data_prompts": kind == "none"}})
    path = parity.write(parity.reference(folder / "good", recipe, tokenizer, model, chats), folder / "good")
    path.rename(folder / f"{kind}.json")
    assert model.training
"""

COMMANDS = """
import json, sys
from typer.testing import CliRunner
from adapters.commands.models import app
results = [CliRunner().invoke(app, arguments) for arguments in json.loads(sys.argv[1])]
print(json.dumps([[result.exit_code, result.stdout, result.stderr] for result in results]))
"""

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]


@dataclass(frozen=True)
class Workshop:
    """A folder with a tiny base model and adapters for it, good and bad."""

    python: str
    folder: Path

    def run(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """The engine's Python with these arguments; what it printed."""
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            [self.python, *map(str, arguments)], cwd=self.folder, env=environment, capture_output=True, text=True,
            check=False)

    def commands(self, *commands: Sequence[str | Path]) -> list[tuple[int, str, str]]:
        """Commands on models, one after another: exit code, output and errors of each."""
        done = self.run("-c", COMMANDS, json.dumps([[str(part) for part in command] for command in commands]))
        assert done.returncode == 0, done.stderr
        return [(code, out, err) for code, out, err in json.loads(done.stdout.splitlines()[-1])]


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    python = os.environ.get("SWITCHYARD_ENGINE_PYTHON")
    if not python:
        pytest.skip("SWITCHYARD_ENGINE_PYTHON is not set: it names a Python that has the `train` extra")
    made = Workshop(python, tmp_path_factory.mktemp("models"))
    base = write_base_model(made.folder / "base")
    done = made.run(MAKER, base)
    assert done.returncode == 0, done.stderr
    write_adapter(made.folder / "good", base_model=str(base), seed=1, scale=0.3, config=RSLORA)
    manifest.write(_manifest(base, file_sha256(base / "config.json")), made.folder / "good")
    yield made


@pytest.fixture(scope="module")
def merged(workshop: Workshop) -> Mapping[str, Any]:
    """What merging the good adapter, and many bad ones, came to."""
    folder = workshop.folder
    strange = tensor_name(0, "q_proj", "A")
    bad: dict[str, dict[str, Any]] = {
        "dora": {"config": {"use_dora": True}},
        "magnitude": {"tensors": {strange.replace("lora_A", "lora_magnitude_vector"): _ones(256)}},
        "head": {"tensors": {"base_model.model.lm_head.weight": _ones(512, 128)}},
        "half": {"tensors": {strange: None}},
        "pissa": {"config": {"init_lora_weights": "pissa"}},
        "kind": {"config": {"peft_type": "VERA"}},
        "no_op": {"zero_b": True},
        "rank": {"config": {"r": 4}},
        "layer": {"tensors": {
            tensor_name(7, "q_proj", "A"): _ones(8, 128), tensor_name(7, "q_proj", "B"): _ones(128, 8)}},
        "shape": {"tensors": {strange: _ones(8, 64)}},
        "other_base": {}, "corrupt": {}, "q": {},
    }
    for name, fields in bad.items():
        write_adapter(folder / name, base_model=str(folder / "base"), **fields)
    manifest.write(_manifest(folder / "base", "0" * 64), folder / "other_base")
    (folder / "corrupt" / "adapter_model.safetensors").write_bytes(b"\xff" * 64)
    write_base_model(folder / "quantised", {**TINY_BASE_CONFIG, "quantization_config": {"quant_method": "fp8"}})
    done = workshop.run("-c", MERGE, folder, *bad, "absent")
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


@pytest.fixture(scope="module")
def references(workshop: Workshop) -> Mapping[str, Any]:
    """The reference for parity, of a model trained on NF4 without and one on bf16 with prompts of the data."""
    done = workshop.run("-c", PARITY, workshop.folder)
    assert done.returncode == 0, done.stderr
    return {kind: json.loads((workshop.folder / f"{kind}.json").read_text()) for kind in ("nf4", "none")}


def test_the_merged_model_computes_what_base_and_adapter_compute(merged: Mapping[str, Any]) -> None:
    """Only the rounding of the merged weights to bf16 lies between the two."""
    assert merged["change"] > 0.5
    assert merged["error"] < 0.02 * merged["change"]


def test_the_merged_folder_is_whole_and_says_where_it_comes_from(workshop: Workshop, merged: Mapping[str, Any]) -> None:
    folder = workshop.folder / "merged"
    told = json.loads((folder / "merge.json").read_text())
    config = json.loads((folder / "config.json").read_text())
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert told["schema"] == "switchyard.merge/1"
    assert told["base_model_config_sha256"] == file_sha256(workshop.folder / "base" / "config.json")
    assert told["adapter_sha256"] == file_sha256(workshop.folder / "good" / "adapter_model.safetensors")
    assert told["files"] == {path.name: file_sha256(path) for path in folder.iterdir() if path.name != "merge.json"}
    assert told["layers"] == 14 and 0 < told["rounding"] < 0.1
    assert config["dtype"] == "bfloat16"
    assert len(set(index["weight_map"].values())) > 1
    assert {"tokenizer.json", "tokenizer_config.json", "generation_config.json"} <= set(told["files"])


def test_a_merge_that_fails_leaves_nothing_behind(workshop: Workshop, merged: Mapping[str, Any]) -> None:
    assert merged["full"] == "the disk is full"
    assert not [path.name for path in workshop.folder.iterdir() if "full" in path.name or "refused" in path.name]


@pytest.mark.parametrize(("adapter", "words"), [
    ("dora", "is no plain LoRA: its config sets use_dora"),
    ("magnitude", "lora_magnitude_vector.weight', which is no part of a plain LoRA"),
    ("head", "'base_model.model.lm_head.weight', which is no part of a plain LoRA"),
    ("half", "has only half of its LoRA pair"),
    ("pissa", "began with 'pissa', which changes the base model's weights too"),
    ("kind", "only LoRA can be merged"),
    ("no_op", "changes nothing: all its B matrices are zero"),
    ("rank", "its config says 4; the artifact is broken"),
    ("layer", "changes 'model.layers.7.self_attn.q_proj.weight', which"),
    ("shape", "name the right base"),
    ("other_base", "was trained on another base model than"),
    ("corrupt", "cannot be read"),
    ("q", "is quantised; name the one in bf16"),
    ("absent", "is not an artifact: it lacks adapter_config.json"),
])
def test_what_cannot_be_merged_is_refused_with_the_reason(
    merged: Mapping[str, Any], adapter: str, words: str,
) -> None:
    assert words in merged["refused"].get(adapter, "it was merged")


@pytest.mark.parametrize("kind", ["nf4", "none"])
def test_a_reference_tells_what_trained_and_served_model_say_next(references: Mapping[str, Any], kind: str) -> None:
    reference = references[kind]
    assert (reference["schema"], reference["quantization"]) == ("switchyard.parity/1", kind)
    assert len(reference["prompts"]) == 8
    for prompt in reference["prompts"]:
        assert prompt["token_ids"][-1] == 2  # <|assistant|>: the answer comes next
        for side in ("base", "adapter"):
            for tops in (prompt[side]["trained"], prompt[side]["served"]):
                logprobs = [logprob for _, logprob in tops]
                assert len(tops) == 5 and len({token for token, _ in tops}) == 5
                assert logprobs == sorted(logprobs, reverse=True)
                assert sum(map(math.exp, logprobs)) <= 1.0001
        assert prompt["base"]["served"] != prompt["adapter"]["served"]


def test_served_is_what_a_bf16_base_says_and_trained_is_what_nf4_made_of_it(references: Mapping[str, Any]) -> None:
    """The second reference is of a model that was never quantised, whose own forward pass is the served one."""
    unquantised = {str(prompt["messages"]): prompt for prompt in references["none"]["prompts"]}
    shared = [prompt for prompt in references["nf4"]["prompts"] if str(prompt["messages"]) in unquantised]
    assert len(shared) == 4
    for prompt in shared:
        for side in ("base", "adapter"):
            truth = unquantised[str(prompt["messages"])][side]["trained"]
            assert _distance(prompt[side]["served"], truth) < 0.08
            assert _distance(prompt[side]["trained"], truth) > 0.2


def test_prompts_of_the_data_are_in_the_reference_only_where_the_recipe_says_so(
    references: Mapping[str, Any],
) -> None:
    def secrets(kind: str) -> int:
        return sum("secret" in prompt["messages"][0]["content"] for prompt in references[kind]["prompts"])

    assert (secrets("nf4"), secrets("none")) == (0, 4)


def test_the_commands_merge_and_compare(workshop: Workshop) -> None:
    good, out, page = workshop.folder / "good", workshop.folder / "by-command", workshop.folder / "compare.html"
    asked = ("--prompt", "Hello!", "--max-tokens", "8", "--json")
    made, again, tuned, merged, nothing = workshop.commands(
        ("merge", good, out), ("merge", good, out), ("compare", good, "--html", page, *asked),
        ("compare", "--merged", out, *asked), ("compare", good))
    assert made[0] == 0 and f"done: {out}, 14 weights changed" in made[1]
    assert again == (1, "", f"error: {out} exists; remove it, or name another folder.\n")
    assert nothing == (1, "", "error: There is nothing to ask; give --prompt, --prompts or --recipe.\n")
    (with_adapter,), (with_merged,) = json.loads(tuned[1]), json.loads(merged[1])
    assert with_adapter["base"] == with_merged["base"]
    assert with_adapter["base"]["text"] != with_adapter["adapter"]["text"]
    assert with_adapter["lift"] > with_adapter["difference"] + 0.1  # the base finds its own answer likelier
    assert with_merged["adapter"]["logprob"] == pytest.approx(with_adapter["adapter"]["logprob"], abs=0.05)
    assert "Hello!" in page.read_text()


def _manifest(base: Path, config_sha256: str) -> Manifest:
    return Manifest(
        base_model=str(base), rank=8, alpha=16.0, targets=("q_proj",), data_sha256="0" * 64, rows=1, seed=0,
        created_at="2026-01-01T00:00:00+00:00", base_model_config_sha256=config_sha256)


def _ones(*shape: int) -> Any:
    return np.ones(shape, np.float32)


def _distance(some: list[list[float]], others: list[list[float]]) -> float:
    """Between two lists of the likeliest tokens: the sum of the differences of their probabilities."""
    one, other = ({int(token): math.exp(logprob) for token, logprob in tops} for tops in (some, others))
    return sum(abs(one.get(token, 0) - other.get(token, 0)) for token in {*one, *other})
