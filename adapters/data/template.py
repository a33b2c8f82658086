"""One row in the base model's own chat template, as tokens labelled so that only the assistant's words are learned."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from adapters.data.rows import DataError, Message, Reject, Row

IGNORED = -100
"""The label of a token that is not learned from, as torch's cross entropy has it."""


class TemplateRefused(Exception):
    """The base model's chat template does not take these messages; the text says why."""


class Tokenizer(Protocol):
    """What of a base model's tokenizer is used here, in the words of transformers' fast tokenizers."""

    @property
    def eos_token(self) -> str | None:
        """What ends a plain text."""

    def apply_chat_template(
        self, conversation: Sequence[Message], *, tools: Sequence[Any] | None, tokenize: bool,
        add_generation_prompt: bool,
    ) -> str:
        """The messages as the one text that the base model reads, or TemplateRefused."""

    def __call__(self, text: str, *, add_special_tokens: bool, return_offsets_mapping: bool) -> Mapping[str, Any]:
        """`input_ids`, and for each its (start, end) in the text as `offset_mapping`."""


class ChatTokenizer:
    """A transformers tokenizer as it is wanted here: a template's complaint is about the row, not about us."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    @property
    def eos_token(self) -> str | None:
        token = self._tokenizer.eos_token
        return None if token is None else str(token)

    def apply_chat_template(self, conversation: Sequence[Message], **options: Any) -> str:
        import jinja2

        try:
            text: str = self._tokenizer.apply_chat_template(conversation, **options)
        except (jinja2.TemplateError, TypeError) as error:
            raise TemplateRefused(str(error)) from error
        return text

    def __call__(self, text: str, **options: Any) -> Mapping[str, Any]:
        tokens: Mapping[str, Any] = self._tokenizer(text, **options)
        return tokens


def load_tokenizer(base_model: str, revision: str | None = None) -> Any:
    """The transformers tokenizer of a folder or a Hugging Face id, at a commit, branch or tag of the latter.

    DataError without one that has a chat template.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(base_model, revision=revision or "main")
    except (OSError, ValueError) as error:
        raise DataError(f"The base model {base_model!r} cannot be read: {error}") from error
    if not tokenizer.chat_template:
        raise DataError(f"The base model {base_model!r} has no chat template; take its instruct variant.")
    return tokenizer


@dataclass(frozen=True, slots=True)
class Tokens:
    """One row as tokens; `labels` has the token itself where it is learned and IGNORED elsewhere.

    `text` is what the base model reads, and `starts` where each token begins in it. `passed_over` counts answers that
    the template shows differently, or not at all, once the chat goes on: they are not learned.
    """

    input_ids: tuple[int, ...]
    labels: tuple[int, ...]
    line: int
    text: str = ""
    starts: tuple[int, ...] = ()
    passed_over: int = 0

    @property
    def is_learned(self) -> bool:
        """Is there a token to learn? The first label teaches nothing: each token is learned from those before it."""
        return any(label != IGNORED for label in self.labels[1:])

    def cut(self, max_length: int) -> "Tokens":
        """The first `max_length` tokens."""
        return dataclasses.replace(
            self, input_ids=self.input_ids[:max_length], labels=self.labels[:max_length],
            starts=self.starts[:max_length])


def tokenize(row: Row, tokenizer: Tokenizer) -> Tokens | Reject:
    """The row's tokens; of a chat what the assistant says is learned, of a plain text all of it.

    What the assistant says is what the template adds between the prompt for it and its end, end-of-turn mark included.
    A message with `weight` 0 is not learned.
    """
    try:
        text, spans, passed_over = _render(row, tokenizer)
    except TemplateRefused as refusal:
        return Reject(row.line, "messages", f"the base model's chat template refused them: {refusal}")
    # A template writes the special tokens itself; a plain text gets the tokenizer's own beginning.
    tokens = tokenizer(text, add_special_tokens=row.text is not None, return_offsets_mapping=True)
    ids, offsets = tokens["input_ids"], tokens["offset_mapping"]
    starts = tuple(at for at, _ in offsets)
    labels = (
        token if any(start <= at < end for start, end in spans) else IGNORED
        for token, at in zip(ids, starts, strict=True)
    )
    return Tokens(tuple(ids), tuple(labels), row.line, text, starts, passed_over)


def _render(row: Row, tokenizer: Tokenizer) -> tuple[str, list[tuple[int, int]], int]:
    """The row's text, the (start, end) of each part to learn in it, in characters, and how many answers are no part.

    Templates of thinking models drop an answer's thoughts once the chat goes on: only what the whole chat shows can be
    learned as it will be asked for. TemplateRefused when this goes for the last answer too.
    """
    if row.text is not None:
        text = row.text + (tokenizer.eos_token or "")
        return text, [(0, len(text))], 0

    def chat(count: int, prompt: bool) -> str:
        return tokenizer.apply_chat_template(
            row.messages[:count], tools=row.tools, tokenize=False, add_generation_prompt=prompt)

    text = chat(len(row.messages), False)
    spans, passed_over = [], 0
    for index, message in enumerate(row.messages):
        if message["role"] != "assistant" or message.get("weight") == 0:
            continue
        is_last = index + 1 == len(row.messages)
        before, after = chat(index, True), text if is_last else chat(index + 1, False)
        if after.startswith(before) and text.startswith(after):
            spans.append((len(before), len(after)))
        elif is_last:
            raise TemplateRefused("it renders the last answer differently in the whole chat than after its prompt, so "
                                  "that it cannot be told which tokens are the answer")
        else:
            passed_over += 1
    return text, spans, passed_over
