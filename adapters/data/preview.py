"""Which tokens of a row are learned, for people: coloured in a terminal, between marks elsewhere."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal, TypeAlias

from rich.console import Console
from rich.text import Text

from adapters.data.rows import Reject, Row
from adapters.data.template import IGNORED, Tokenizer, Tokens, tokenize

Use: TypeAlias = Literal["learned", "read", "cut"]
"""A token is learned, or only read as what comes before, or beyond the greatest length."""

STYLES = {"learned": "bold green", "read": "dim", "cut": "red strike"}
MARKS = {"learned": ("⟦", "⟧"), "read": ("", ""), "cut": ("⟦✂ ", " ✂⟧")}


@dataclass(frozen=True, slots=True)
class Preview:
    """A row's text in runs of one use; `tokens` and `learned` count tokens within the greatest length."""

    row: Row
    runs: tuple[tuple[Use, str], ...]
    tokens: int
    learned: int


def preview(row: Row, tokenizer: Tokenizer, max_length: int) -> Preview | Reject:
    """How the row would be trained on; the Reject where it would not be."""
    whole = tokenize(row, tokenizer)
    if isinstance(whole, Reject):
        return whole
    kept = whole.cut(max_length)
    if not kept.is_learned:
        return Reject(row.line, "row", f"nothing of the answer is within max_length = {max_length} tokens, so all "
                      "labels are masked", row.file)
    uses: list[Use] = ["read" if label == IGNORED else "learned" for label in kept.labels]
    learned = uses.count("learned")
    uses += ["cut"] * (len(whole.labels) - len(uses))
    return Preview(row, tuple(_runs(whole, uses)), len(kept.labels), learned)


def _runs(tokens: Tokens, uses: Sequence[Use]) -> Iterator[tuple[Use, str]]:
    """The text in pieces, each from where its first token begins to where the next piece's does."""
    at = 0
    for use, run in groupby(range(len(uses)), key=uses.__getitem__):
        after = [*run][-1] + 1
        end = tokens.starts[after] if after < len(uses) else len(tokens.text)
        yield use, tokens.text[at:end]
        at = end


def show(preview: Preview | Reject, console: Console) -> None:
    """Print it: coloured in a terminal, with marks where there are no colours."""
    if isinstance(preview, Reject):
        console.print(Text(f"{preview}\n", "red"), soft_wrap=True)
        return
    name = f"line {preview.row.line}: {preview.tokens} tokens, {preview.learned} learned"
    text = Text().append(f"{preview.row.file}{', ' if preview.row.file else ''}{name}\n", "bold")
    for use, words in preview.runs:
        before, after = ("", "") if console.is_terminal else MARKS[use]
        text.append(f"{before}{words}{after}", STYLES[use])
    console.print(text.append("\n"), soft_wrap=True)


def legend(console: Console) -> str:
    """What the colours or marks mean."""
    if console.is_terminal:
        return "green: learned; dim: only read; red: cut off"
    return "⟦learned⟧ only read ⟦✂ cut off ✂⟧"
