"""What a trainer says after a few prompts; run by the engine's Python: `PYTHON make_parity.py BASE ADAPTER FILE`.

FILE holds the conversations as JSON, and then what became of them. Computed by transformers and PEFT, in bfloat16.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

TOP = 5
OTHER_TEMPLATE = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}[assistant] "


def tops(model: Any, prompts: list[list[int]]) -> list[list[tuple[int, float]]]:
    """The likeliest next tokens after each prompt, with their log probabilities."""
    found = []
    for ids in prompts:
        with torch.no_grad():
            last = model(torch.tensor([ids])).logits[0, -1].float().log_softmax(-1).topk(TOP)
        found.append(list(zip(last.indices.tolist(), last.values.tolist(), strict=True)))
    return found


def main(base: str, adapter: str, file: Path) -> None:
    """Say it of the base, of the adapter on it, of another base, and render in another template."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    chats = json.loads(file.read_text())

    def rendered(template: str | None = None) -> list[list[int]]:
        return [tokenizer.apply_chat_template(chat, add_generation_prompt=True, chat_template=template,
                                              return_dict=False) for chat in chats]

    prompts, others = rendered(), rendered(OTHER_TEMPLATE)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    torch.manual_seed(8)
    said = {"token_ids": prompts, "templated_token_ids": others, "base": tops(model, prompts),
            "templated_base": tops(model, others),
            "other_base": tops(LlamaForCausalLM(model.config).to(torch.bfloat16), prompts)}
    adapted = PeftModel.from_pretrained(model, adapter).to(torch.bfloat16)
    said |= {"adapter": tops(adapted, prompts), "templated_adapter": tops(adapted, others)}
    file.write_text(json.dumps(said))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
