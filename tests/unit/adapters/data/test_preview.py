"""What is learned is told apart: by colour in a terminal, by marks where it is piped."""

from io import StringIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from adapters.data import Reject, Row
from adapters.data.preview import Preview, legend, preview, show
from tests.unit.adapters.data.words import WordTokenizer


def _chat(*turns: tuple[str, str]) -> Row:
    return Row(3, tuple({"role": role, "content": text} for role, text in turns))


def _preview(row: Row, max_length: int = 64) -> Preview:
    shown = preview(row, WordTokenizer(), max_length)
    assert isinstance(shown, Preview)
    return shown


def _shown(shown: Preview | Reject, *, is_terminal: bool) -> str:
    out = StringIO()
    show(shown, Console(file=out, force_terminal=is_terminal, color_system="standard" if is_terminal else None,
                        width=20, highlight=False))
    return out.getvalue()


def test_runs_are_those_of_the_labels() -> None:
    shown = _preview(_chat(("user", "hi you"), ("assistant", "yes sir"), ("user", "and"), ("assistant", "now")), 12)
    assert shown.runs == (
        ("read", "[user]hi you[end][assistant]"), ("learned", "yes sir[end]"), ("read", "[user]and[end][assistant]"),
        ("cut", "now[end]"))
    assert (shown.tokens, shown.learned) == (12, 3)


def test_a_row_of_which_nothing_is_learned_says_so() -> None:
    reject = preview(_chat(("user", "hi you"), ("assistant", "yes sir")), WordTokenizer(), 5)
    assert isinstance(reject, Reject)
    assert "nothing of the answer is within max_length = 5" in reject.reason
    assert "so all labels are masked" in _shown(reject, is_terminal=False).replace("\n", " ")


def test_it_is_marked_where_it_is_piped_and_no_line_is_broken() -> None:
    text = _shown(_preview(_chat(("user", "hi you"), ("assistant", "yes sir, of course")), 9), is_terminal=False)
    assert text == ("line 3: 9 tokens, 4 learned\n"
                    "[user]hi you[end][assistant]⟦yes sir, of ⟧⟦✂ course[end] ✂⟧\n\n")


def test_it_is_coloured_in_a_terminal() -> None:
    text = _shown(_preview(_chat(("user", "hi"), ("assistant", "yes"))), is_terminal=True)
    assert "\x1b[2m[user]hi[end][assistant]\x1b[0m\x1b[1;32myes[end]\x1b[0m" in text
    assert "⟦" not in text


@pytest.mark.parametrize(("is_terminal", "word"), [(True, "green: learned"), (False, "⟦learned⟧")])
def test_the_legend_fits_what_is_shown(is_terminal: bool, word: str) -> None:
    assert word in legend(Console(force_terminal=is_terminal))


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])).filter(str.strip), min_size=2, max_size=4),
       st.integers(3, 40))
def test_the_runs_are_the_whole_text(texts: list[str], max_length: int) -> None:
    row = _chat(*((("user", "assistant")[at % 2], text) for at, text in enumerate(texts)), ("assistant", "end"))
    shown = preview(row, WordTokenizer(), max_length)
    if isinstance(shown, Preview):
        whole = "".join(words for _, words in shown.runs)
        assert whole == WordTokenizer().apply_chat_template(
            row.messages, tools=None, tokenize=False, add_generation_prompt=False)
