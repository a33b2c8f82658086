"""What a model answers, and how likely it finds an answer: greedily, one chat at a time."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from adapters.compare import BaseName, Chat, CompareError, Comparison, Side
from adapters.training.sharding import is_sharded

MAX_TOKENS = 128


@dataclass(frozen=True, slots=True)
class Answer:
    """A greedy answer. `logprob`: the mean over its tokens, its end mark included, in nats a token."""

    text: str
    token_ids: tuple[int, ...]
    logprob: float

    def side(self) -> Side:
        return Side(self.text, self.logprob)


def before_and_after(
    model: Any, tokenizer: Any, chats: Iterable[Chat], max_tokens: int = MAX_TOKENS,
) -> Iterator[Comparison]:
    """The answers of a PEFT model with and without its adapter."""
    with at_rest(model):
        for chat in chats:
            prompt = prompt_ids(tokenizer, chat.messages, chat.tools)
            after = answer(model, tokenizer, prompt, max_tokens)
            with model.disable_adapter():
                yield _comparison(chat, prompt, answer(model, tokenizer, prompt, max_tokens), after, model)


def with_adapter(base_model: BaseName, adapter: Path, chats: Sequence[Chat], max_tokens: int) -> Iterator[Comparison]:
    """Base model and base model + adapter, in bf16 as engines serve them. CompareError when one cannot be read."""
    model, tokenizer = _load(base_model)
    try:
        with_lora = PeftModel.from_pretrained(model, str(adapter))
    except (OSError, ValueError, RuntimeError) as error:
        raise CompareError(f"The adapter {adapter} does not fit {base_model.name!r}: {error}") from error
    yield from before_and_after(with_lora, tokenizer, chats, max_tokens)


def with_merged(base_model: BaseName, merged: Path, chats: Sequence[Chat], max_tokens: int) -> Iterator[Comparison]:
    """Base model and merged model, of which only one is in memory at a time."""
    model, tokenizer = _load(BaseName(str(merged)))
    prompts = [prompt_ids(tokenizer, chat.messages, chat.tools) for chat in chats]
    after = [answer(model, tokenizer, prompt, max_tokens) for prompt in prompts]
    del model
    model, tokenizer = _load(base_model)
    for chat, prompt, merged_answer in zip(chats, prompts, after, strict=True):
        yield _comparison(chat, prompt, answer(model, tokenizer, prompt, max_tokens), merged_answer, model)


def prompt_ids(tokenizer: Any, messages: Sequence[Mapping[str, Any]], tools: Sequence[Any] | None = None) -> list[int]:
    """The chat in the base model's template up to where the answer begins, as engines render it."""
    text = tokenizer.apply_chat_template(
        list(messages), tools=list(tools) if tools else None, tokenize=False, add_generation_prompt=True)
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


@torch.no_grad()  # type: ignore[untyped-decorator]
def answer(model: Any, tokenizer: Any, prompt: Sequence[int], max_tokens: int = MAX_TOKENS) -> Answer:
    """The model's greedy answer to the token ids of a prompt, cut at `max_tokens` tokens."""
    ids = torch.tensor([list(prompt)], device=model.device)
    ends = model.generation_config.eos_token_id or tokenizer.eos_token_id
    out = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_tokens, use_cache=True,
        do_sample=False, temperature=None, top_p=None, top_k=None, eos_token_id=ends, synced_gpus=is_sharded(),
        pad_token_id=ends[0] if isinstance(ends, list) else ends)
    tokens = out[0, len(prompt):].tolist()
    text = tokenizer.decode(tokens, skip_special_tokens=True)
    return Answer(text, tuple(tokens), mean_logprob(model, prompt, tokens))


@torch.no_grad()  # type: ignore[untyped-decorator]
def mean_logprob(model: Any, prompt: Sequence[int], tokens: Sequence[int]) -> float:
    """How likely the model finds these tokens after the prompt: the mean of their log-probabilities, in nats."""
    ids = torch.tensor([[*prompt, *tokens]], device=model.device)
    logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1:-1].float()
    wanted = ids[0, len(prompt):, None]
    return float(logits.log_softmax(dim=-1).gather(-1, wanted).mean())


@torch.no_grad()  # type: ignore[untyped-decorator]
def top_next(model: Any, prompt: Sequence[int], count: int = 5) -> list[tuple[int, float]]:
    """The likeliest next tokens after the prompt as (token id, log-probability in nats), the likeliest first."""
    ids = torch.tensor([list(prompt)], device=model.device)
    logits = model(input_ids=ids, use_cache=False).logits[0, -1].float()
    best = logits.log_softmax(dim=-1).topk(count)
    return list(zip(best.indices.tolist(), best.values.tolist(), strict=True))


@contextlib.contextmanager
def at_rest(model: Any) -> Iterator[None]:
    """Without dropout for as long as the block lasts; then as the model was."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _comparison(chat: Chat, prompt: Sequence[int], before: Answer, after: Answer, base: Any) -> Comparison:
    """`base` is the base model, or one whose adapter is switched off."""
    return Comparison(
        messages=chat.messages, expected=chat.expected, base=before.side(), adapter=after.side(),
        lift=after.logprob - mean_logprob(base, prompt, after.token_ids))


def _load(base_model: BaseName) -> tuple[Any, Any]:
    """A model in bf16 on the GPU if there is one, and its tokenizer."""
    name, revision = base_model.name, base_model.revision or "main"
    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    try:
        model = AutoModelForCausalLM.from_pretrained(
            name, revision=revision, dtype=torch.bfloat16, device_map={"": device})
        return model.eval(), AutoTokenizer.from_pretrained(name, revision=revision)
    except (OSError, ValueError) as error:
        raise CompareError(f"The model {name!r} cannot be read: {error}") from error
