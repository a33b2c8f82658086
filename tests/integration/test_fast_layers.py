"""What makes training faster computes the same: losses, gradients and answers of changed and of plain layers."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
BF16 = 0.04  # two ways of rounding to 8 bits of mantissa, over two layers there and back

COMPARE = """
import json, sys
from types import SimpleNamespace
import torch, transformers
from peft import LoraConfig, get_peft_model
from adapters.training import fast

folder, quantised, dropout = sys.argv[1], sys.argv[2] == "nf4", float(sys.argv[3])
config = transformers.Qwen2Config(  # its attention has biases
    vocab_size=512, hidden_size=128, intermediate_size=384, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2)
torch.manual_seed(0)
transformers.Qwen2ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)

def make():
    nf4 = transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                                          bnb_4bit_compute_dtype=torch.bfloat16) if quantised else None
    base = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, quantization_config=nf4)
    torch.manual_seed(1)
    model = get_peft_model(base, LoraConfig(
        task_type="CAUSAL_LM", r=8, lora_alpha=16, lora_dropout=dropout, use_rslora=True,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
        if name.endswith("bias"):
            torch.nn.init.normal_(weight, std=0.5)
    return model.train()

plain, fast_one = make(), make()
told = []
fast.apply(fast_one, SimpleNamespace(attention="sdpa", lora="fused", kernels="plain", loss="chunked"), told.append)
ids = torch.randint(0, 512, (3, 40))
labels = ids.clone()
labels[:, :20] = -100
result = {"told": told, "losses": [], "gradients": {}, "logits": [], "base_logits": []}
gradients = []
for model in (plain, fast_one):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(input_ids=ids, labels=labels, num_items_in_batch=torch.tensor(30)).loss
    loss.backward()
    result["losses"].append(loss.item())
    gradients.append({name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None})
    model.eval()
    with torch.no_grad():
        result["logits"].append(model(input_ids=ids).logits.float().flatten()[:2000].tolist())
        with model.disable_adapter():
            result["base_logits"].append(model(input_ids=ids).logits.float().flatten()[:2000].tolist())
for name, one in gradients[0].items():
    result["gradients"][name] = ((one - gradients[1][name]).norm() / one.norm()).item()
whole = [torch.cat([gradient.flatten() for _, gradient in sorted(of.items())]) for of in gradients]
result["whole_gradient"] = ((whole[0] - whole[1]).norm() / whole[0].norm()).item()
result["same_weights"] = gradients[0].keys() == gradients[1].keys()
print(json.dumps(result))
"""

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]


def compare(folder: Path, quantisation: str, dropout: float = 0.0) -> dict[str, Any]:
    """Plain and changed layers on the same weights and tokens."""
    python = os.environ.get("SWITCHYARD_ENGINE_PYTHON")
    if not python:
        pytest.skip("SWITCHYARD_ENGINE_PYTHON names no python that has the trainer's libraries")
    done = subprocess.run(
        [python, "-c", COMPARE, str(folder), quantisation, str(dropout)], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def furthest(pair: list[list[float]]) -> float:
    """The greatest distance of two lists of numbers."""
    return max((abs(one - other) for one, other in zip(*pair, strict=True)), default=0.0)


@pytest.mark.parametrize("quantisation", ["nf4", "none"])
def test_fused_layers_and_the_chunked_loss_compute_what_the_plain_ones_do(tmp_path: Path, quantisation: str) -> None:
    found = compare(tmp_path, quantisation)
    assert found["told"] == ["speed: attention sdpa, 14 fused LoRA layers, chunked loss"]
    assert found["losses"][1] == pytest.approx(found["losses"][0], rel=1e-3)
    assert found["losses"][0] > 10, "the sum of 60 losses over 30 items: accumulated batches are not averaged twice"
    assert found["same_weights"]
    assert found["whole_gradient"] < BF16
    assert max(found["gradients"].values()) < 0.25, "of each weight; queries' and keys' are small, and mostly rounding"
    assert furthest(found["logits"]) < BF16
    assert furthest(found["base_logits"]) == 0, "with the adapter off the plain layers answer"


def test_layers_with_dropout_stay_as_they_are(tmp_path: Path) -> None:
    assert compare(tmp_path, "none", dropout=0.1)["told"] == [
        "speed: attention sdpa, 0 fused LoRA layers, chunked loss"]
