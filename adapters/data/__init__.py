"""Rows of anything → checked rows → tokens with labels: read as a stream, and nothing dropped in silence.

    prepare.py     settings → prepared files and a report: read it first
    settings.py    what is read and what is asked of it
    rows.py        a good row, a bad one, the error

    readers.py     files of any format, plain or compressed → records
    shapes.py      a record in any of the known shapes → a chat or a plain text, strictly checked
    pii.py         personal data found and masked
    intake.py      all three on every row; the good ones go on
    spool.py       rows on their way, on disk, each content once
    duplicates.py  texts that are nearly the same
    split.py       train, validation or golden: by the prompt
    sharing.py     where each row goes, near ones together
    golden.py      rows held back, as golden items
    leaks.py       nothing near what is evaluated with is trained on
    balance.py     how many rows each class has
    ledger.py      what became of every row

    template.py    one row → tokens, of which the assistant's are learned
    tokens.py      prepared rows → tokens on disk
    preview.py     which tokens are learned, shown in the terminal
"""

from adapters.data.rows import (
    ROLES,
    DataError,
    Message,
    Reject,
    Row,
    file_sha256,
    read_prepared,
    text_sha256,
)
from adapters.data.settings import DataSettings
from adapters.data.template import (
    IGNORED,
    ChatTokenizer,
    TemplateRefused,
    Tokenizer,
    Tokens,
    load_tokenizer,
    tokenize,
)

__all__ = [
    "IGNORED",
    "ROLES",
    "ChatTokenizer",
    "DataError",
    "DataSettings",
    "Message",
    "Reject",
    "Row",
    "TemplateRefused",
    "Tokenizer",
    "Tokens",
    "file_sha256",
    "load_tokenizer",
    "read_prepared",
    "text_sha256",
    "tokenize",
]
