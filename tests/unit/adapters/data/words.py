"""A tokenizer that a test can count by hand."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from adapters.data import Message, TemplateRefused


class WordTokenizer:
    """A token for each word or mark, numbered by its place; the template is `[role]text[end]`, a text ends in [eos]."""

    eos_token = "[eos]"

    def apply_chat_template(
        self, conversation: Sequence[Message], *, tools: Sequence[Any] | None, tokenize: bool,
        add_generation_prompt: bool,
    ) -> str:
        """Refuses messages that say so."""
        if any(message["content"] == "refuse me" for message in conversation):
            raise TemplateRefused("roles must alternate")
        head = f"[tools]{len(tools)}" if tools else ""
        body = "".join(f"[{message['role']}]{message['content']}[end]" for message in conversation)
        return head + body + ("[assistant]" if add_generation_prompt else "")

    def __call__(self, text: str, *, add_special_tokens: bool, return_offsets_mapping: bool) -> Mapping[str, Any]:
        spans = [found.span() for found in re.finditer(r"\[\w+\]|\w+|[^\w\s]", text)]
        spans = [(0, 0), *spans] if add_special_tokens else spans
        return {"input_ids": list(range(len(spans))), "offset_mapping": spans}


class ForgetfulTokenizer(WordTokenizer):
    """Leaves all answers but the last out, as the templates of some thinking models do with thoughts."""

    def apply_chat_template(self, conversation: Sequence[Message], **options: Any) -> str:
        last = len(conversation) - 1
        kept = [message for at, message in enumerate(conversation) if message["role"] != "assistant" or at == last]
        return super().apply_chat_template(kept, **options)


class SecretiveTokenizer(WordTokenizer):
    """Asks for an answer in other words than it shows one."""

    def apply_chat_template(self, conversation: Sequence[Message], **options: Any) -> str:
        text = super().apply_chat_template(conversation, **options)
        return f"{text}[think]" if options["add_generation_prompt"] else text
