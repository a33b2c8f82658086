"""A tiny real base model made on the spot, so that everything can be tried with no download and no GPU.

It is a Llama of 0.7 million weights with its own tokenizer and chat template, trained for a few seconds on a
generated text of plain facts: it answers in words, knows a few dozen things, and leaves room for an adapter to show.
"""

import math
import random
import shutil
import string
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Report = Callable[[str], None]

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\n' + (message['content'] or '') + '<|end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
SPECIAL_TOKENS = ("<|pad|>", "<|begin|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>")
MAX_VOCABULARY = 1024
HIDDEN_SIZE = 128
HEADS = 4
LAYERS = 2
MAX_POSITIONS = 2048
STEPS = 200
BATCH = 8
BLOCK = 128
TEMPERATURE = 0.3
"""What engines sample with unless the caller says otherwise: so small a model needs a steady hand."""

FACTS = {
    "a river": "water that runs from the hills down to the sea",
    "a bridge": "a road that stands over water",
    "the sea": "salt water that covers most of the world",
    "a harbour": "a quiet place by the sea where boats can rest",
    "a train": "a row of wagons that runs on rails",
    "a station": "a place where people get on and off",
    "a ticket": "a small paper that shows you have paid",
    "a map": "a drawing of the land seen from above",
    "a clock": "a machine that shows the time of day",
    "a book": "many pages of words held together",
    "a letter": "words on paper sent to a friend",
    "a garden": "a piece of land where flowers grow",
    "a tree": "a tall plant with a trunk of wood",
    "a forest": "a wide land full of trees",
    "a mountain": "a very high hill made of stone",
    "the sun": "the star that gives us light and heat",
    "the moon": "a ball of stone that goes round the earth",
    "rain": "water that falls from the clouds",
    "snow": "frozen rain that is soft and white",
    "wind": "air that moves over land and sea",
    "fire": "the light and heat of a thing that burns",
    "bread": "food baked from flour and water",
    "cheese": "food made from the milk of cows and goats",
    "coffee": "a dark hot drink made from beans",
    "a market": "a place where people buy and sell food",
    "a teacher": "a person who helps others to learn",
    "a doctor": "a person who helps the sick to get well",
    "a baker": "a person who makes bread before the sun is up",
    "a sailor": "a person who works on a boat",
    "a farmer": "a person who grows food on the land",
    "a dog": "an animal that is a good friend to people",
    "a cat": "a small animal that sleeps for most of the day",
    "a horse": "a strong animal that can carry a person",
    "a bird": "an animal with wings that can fly",
    "a fish": "an animal that lives under water",
    "music": "sound that is put in order to please the ear",
    "a song": "music that is made with the voice",
    "a window": "a hole in a wall that lets in the light",
    "a house": "a building where people live",
    "a city": "a very large town with many houses",
}
QUESTIONS = (
    "What is {}?", "Tell me about {}.", "Can you explain {}?", "Please say what {} is.", "Do you know what {} is?",
    "I want to know about {}.", "How would you describe {}?", "What can you say of {}?",
)
REMARKS = (
    "Hello!", "Good morning.", "Who are you?", "How are you today?", "Can you help me?", "When does it leave?",
    "Where should I go now?", "My bag is lost.", "How much does it cost?", "Thank you very much.", "What should I do?",
)
REPLIES = (
    "Hello. You can ask me about things like {}.", "I am a small model. I know about {}.",
    "I do not know that, but I can tell you about {}.", "I am well. Would you like to hear about {}?",
)
SENTENCES = (
    "People say that {0} is {1}.", "As everyone knows, {0} is {1}.", "In the old book it says that {0} is {1}.",
    "She asked what {0} is, and he said that it is {1}.", "The children learned that {0} is {1}.",
)
WORDS = tuple(Path(__file__).with_name("words.txt").read_text(encoding="utf-8").split())


def make_tiny_base(folder: Path, seed: int = 0, report: Report = print) -> None:
    """Write a tiny Llama base model (bf16 safetensors, tokenizer, chat template) into `folder`.

    The folder must not exist or be empty (FileExistsError), and appears whole or not at all. The same seed on the same
    machine gives the same weights.
    """
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty; name another folder, or remove it first.")
    import torch

    torch.manual_seed(seed)
    chance = random.Random(seed)
    tokenizer = _train_tokenizer(chance)
    model = _new_model(tokenizer)
    report(f"tiny base: {sum(p.numel() for p in model.parameters()):,} weights, vocabulary of {len(tokenizer)}")
    _pretrain(model, tokenizer, chance, report)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.to(torch.bfloat16).save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    partial.replace(folder)


def general_chats(chance: random.Random) -> Iterator[list[dict[str, str]]]:
    """Endless short chats about plain facts, each a list of messages."""
    topics = list(FACTS)
    while True:
        topic = chance.choice(topics)
        if chance.random() < 0.8:
            question = chance.choice(QUESTIONS).format(topic)
            answer = f"{topic.capitalize()} is {FACTS[topic]}."
        else:
            question, answer = chance.choice(REMARKS), chance.choice(REPLIES).format(topic)
        yield [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def general_sentences(chance: random.Random) -> Iterator[str]:
    """Endless plain sentences about the same facts."""
    while True:
        topic, fact = chance.choice(list(FACTS.items()))
        yield chance.choice(SENTENCES).format(topic, fact)


def word_lists(chance: random.Random) -> Iterator[str]:
    """Endless lists of common and made-up words and numbers.

    They teach the model to say every token, also those that the facts never need: an adapter moves what comes before
    the output layer, so that what this layer has never said no adapter could make it say with confidence.
    """
    while True:
        yield " ".join(_word(chance) for _ in range(chance.randint(4, 12))) + chance.choice(".,!?:;")


def _word(chance: random.Random) -> str:
    kind = chance.random()
    if kind < 0.6:
        word = chance.choice(WORDS)
        return word.capitalize() if chance.random() < 0.3 else word
    if kind < 0.7:
        return str(chance.randint(0, 2000))
    letters = string.ascii_letters if kind < 0.8 else string.ascii_lowercase
    return "".join(chance.choices(letters, k=chance.randint(1, 6))) + chance.choice(["", "", ",", "'s", "!"])


def _train_tokenizer(chance: random.Random) -> Any:
    """A byte-level BPE tokenizer trained on the generated text; any text has tokens in it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    chats, sentences = general_chats(chance), general_sentences(chance)
    texts = [*(" ".join(WORDS) for _ in range(20)), *(next(sentences) for _ in range(500)),
             *(message["content"] for _ in range(500) for message in next(chats))]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=MAX_VOCABULARY, special_tokens=list(SPECIAL_TOKENS), show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token="<|pad|>", bos_token="<|begin|>", eos_token="<|end|>",
        chat_template=CHAT_TEMPLATE, model_max_length=MAX_POSITIONS, clean_up_tokenization_spaces=False)


def _new_model(tokenizer: Any) -> Any:
    """A fresh Llama whose output rows are long enough that any token, also a rare one, can be said with confidence."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=64 * math.ceil(len(tokenizer) / 64), hidden_size=HIDDEN_SIZE, intermediate_size=3 * HIDDEN_SIZE,
        num_hidden_layers=LAYERS, num_attention_heads=HEADS, num_key_value_heads=HEADS,
        max_position_embeddings=MAX_POSITIONS, tie_word_embeddings=False, pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id))
    torch.nn.init.normal_(model.lm_head.weight, std=0.1)
    model.generation_config.update(do_sample=True, temperature=TEMPERATURE)
    return model


def _pretrain(model: Any, tokenizer: Any, chance: random.Random, report: Report) -> None:
    """A few seconds of next-token training on chats and sentences, packed into blocks of BLOCK tokens."""
    import torch

    stream = _token_stream(tokenizer, chance)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=STEPS)
    for step in range(1, STEPS + 1):
        ids = torch.tensor([next(stream) for _ in range(BATCH * BLOCK)]).view(BATCH, BLOCK)
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 50 == 0 or step == STEPS:
            report(f"tiny base: step {step}/{STEPS} loss {loss.item():.3f}")


def _token_stream(tokenizer: Any, chance: random.Random) -> Iterator[int]:
    """Endless token ids: of ten texts, six chats, one sentence and three word lists."""
    chats, sentences, lists = general_chats(chance), general_sentences(chance), word_lists(chance)
    while True:
        kind = chance.random()
        if kind < 0.6:
            text = tokenizer.apply_chat_template(next(chats), tokenize=False)
        else:
            text = next(sentences if kind < 0.7 else lists) + tokenizer.eos_token + "\n"
        yield from tokenizer(text, add_special_tokens=False)["input_ids"]
