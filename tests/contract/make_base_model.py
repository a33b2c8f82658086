"""Makes a tiny random Llama that writes plain letters; run by the engine's Python: `PYTHON make_base_model.py FOLDER`.

The tokenizer has one token a byte, and a chat template. The weights come from one seed.
"""

import json
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIALS = ("<|end|>", "<|user|>", "<|assistant|>", "<|system|>")
TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, and the special ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate((*SPECIALS, *alphabet))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIALS))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=SPECIALS[0], pad_token=SPECIALS[0])
    fast.chat_template = TEMPLATE
    return fast


def main(folder: Path) -> None:
    """Write the model and its tokenizer; `config.json` in the folder, if there, overrides fields of the config."""
    torch.manual_seed(7)
    tokenizer = make_tokenizer()
    given = json.loads((folder / "config.json").read_text())
    config = LlamaConfig(**{
        **given, "vocab_size": len(tokenizer), "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
        "initializer_range": 0.2,
    })
    model = LlamaForCausalLM(config)
    written = [tokenizer.decode([token]) for token in range(len(tokenizer))]
    silent = [token for token, text in enumerate(written) if not (len(text) == 1 and " " <= text <= "~")]
    model.lm_head.weight.data[silent] = 0  # never the likeliest, so that greedy answers are text and do not end
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
