"""Only the assistant's words are learned, and a row that the template cannot show is reported."""

from collections.abc import Sequence
from typing import Any

import pytest

from adapters.data import IGNORED, ChatTokenizer, Message, Reject, Row, TemplateRefused, Tokens, tokenize
from tests.unit.adapters.data.words import ForgetfulTokenizer, SecretiveTokenizer, WordTokenizer


def _chat(*turns: tuple[str, str], tools: tuple[Any, ...] | None = None) -> Row:
    return Row(3, tuple({"role": role, "content": text} for role, text in turns), tools)


def _tokens(row: Row) -> Tokens:
    tokens = tokenize(row, WordTokenizer())
    assert isinstance(tokens, Tokens)
    return tokens


def _learned(row: Row) -> list[int]:
    return [label for label in _tokens(row).labels if label != IGNORED]


def test_only_the_answer_and_its_end_are_learned() -> None:
    # [user] hi you [end] [assistant] yes sir [end]
    assert _learned(_chat(("user", "hi you"), ("assistant", "yes sir"))) == [5, 6, 7]


def test_every_answer_of_a_long_chat_is_learned() -> None:
    # [system] be brief [end] [user] a [end] [assistant] b [end] [user] c [end] [assistant] d [end]
    row = _chat(("system", "be brief"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))
    assert _learned(row) == [8, 9, 14, 15]


def test_an_answer_of_weight_0_is_read_and_not_learned() -> None:
    row = _chat(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))
    messages = [dict(message) for message in row.messages]
    messages[1]["weight"] = 0
    assert _learned(Row(3, tuple(messages))) == [10, 11]


def test_tools_are_part_of_the_prompt() -> None:
    # [tools] 1 [user] hi [end] [assistant] yes [end]
    assert _learned(_chat(("user", "hi"), ("assistant", "yes"), tools=({"name": "find"},))) == [6, 7]


def test_a_plain_text_is_learned_whole_with_its_end() -> None:
    tokens = _tokens(Row(1, text="once upon"))
    assert tokens.text == "once upon[eos]"
    assert tokens.labels == (0, 1, 2, 3)  # the first is the tokenizer's own beginning of a text


def test_what_is_cut_off_is_not_learned() -> None:
    tokens = _tokens(_chat(("user", "hi you"), ("assistant", "yes sir")))
    assert tokens.is_learned
    assert tokens.cut(6).labels == (*[IGNORED] * 5, 5)
    assert not tokens.cut(5).is_learned


def test_a_label_on_the_first_token_teaches_nothing() -> None:
    assert not Tokens((1, 2), (1, IGNORED), 1).is_learned


def test_a_row_that_the_template_refuses_is_reported() -> None:
    reject = tokenize(_chat(("user", "refuse me"), ("assistant", "no")), WordTokenizer())
    assert reject == Reject(3, "messages", "the base model's chat template refused them: roles must alternate")


def test_an_answer_that_the_template_drops_once_the_chat_goes_on_is_not_learned_and_counted() -> None:
    # [user] a [end] [user] c [end] [assistant] d [end]
    row = _chat(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))
    tokens = tokenize(row, ForgetfulTokenizer())
    assert isinstance(tokens, Tokens)
    assert [label for label in tokens.labels if label != IGNORED] == [7, 8]
    assert tokens.passed_over == 1


def test_a_row_whose_last_answer_the_template_changes_is_reported() -> None:
    reject = tokenize(_chat(("user", "a"), ("assistant", "b")), SecretiveTokenizer())
    assert isinstance(reject, Reject)
    assert "the last answer differently in the whole chat" in reject.reason


class _Jinja:
    """A transformers tokenizer with a template that does not take the messages."""

    eos_token = None

    def __init__(self, error: Exception) -> None:
        self._error = error

    def apply_chat_template(self, conversation: Sequence[Message], **options: Any) -> str:
        raise self._error


def test_a_templates_complaint_is_about_the_row() -> None:
    jinja2 = pytest.importorskip("jinja2")
    tokenizer = ChatTokenizer(_Jinja(jinja2.TemplateError("roles must alternate")))
    with pytest.raises(TemplateRefused, match="roles must alternate"):
        tokenizer.apply_chat_template([], tools=None, tokenize=False, add_generation_prompt=False)
    assert tokenizer.eos_token is None
