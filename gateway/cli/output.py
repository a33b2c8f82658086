"""What commands print: tables and sentences for people, one JSON document for programs; errors on stderr."""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

OK, FAILED, USAGE, UNREACHABLE = 0, 1, 2, 3
WIDTH_OF_A_PIPE = 200  # columns; people's terminals say their own


class CommandFailed(Exception):
    """A command cannot do what was asked; `exit_code` says of which kind, `code` is the API's if it gave one."""

    def __init__(self, message: str, *, exit_code: int = FAILED, code: str = "failed") -> None:
        super().__init__(message)
        self.message = message
        self.exit_code = exit_code
        self.code = code


class Output:
    """Prints results: as JSON when `as_json`, else for people."""

    def __init__(self, *, as_json: bool) -> None:
        from rich.console import Console

        self.as_json = as_json
        self.console = Console(width=None if sys.stdout.isatty() else WIDTH_OF_A_PIPE, highlight=False)

    def document(self, document: Any) -> None:
        """One JSON document on stdout."""
        print(json.dumps(document, indent=2, ensure_ascii=False))

    def done(self, document: Any, sentence: str) -> None:
        """The result of a change: the document for programs, the sentence for people."""
        if self.as_json:
            self.document(document)
        else:
            self.console.print(sentence, markup=False, soft_wrap=True)

    def rows(self, documents: Sequence[Mapping[str, Any]], columns: Mapping[str, str], *, empty: str) -> None:
        """A list: `columns` maps a field to its heading; `empty` is said when there is none."""
        if self.as_json:
            self.document(list(documents))
            return
        if not documents:
            self.console.print(empty, markup=False)
            return
        from rich.table import Table

        table = Table(box=None, pad_edge=False, header_style="bold")
        for heading in columns.values():
            table.add_column(heading, overflow="fold")
        for document in documents:
            table.add_row(*(plain(document.get(field)) for field in columns))
        self.console.print(table)


def plain(value: Any) -> str:
    """A JSON value as a person would write it."""
    from rich.markup import escape

    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case list() | tuple():
            return escape(", ".join(map(str, value))) or "-"
        case dict():
            return escape(", ".join(f"{k}: {v}" for k, v in value.items())) or "-"
        case float():
            return f"{value:g}"
        case _:
            return escape(str(value))


def report(failure: CommandFailed, *, as_json: bool) -> int:
    """Print the failure to stderr; its exit code."""
    if as_json:
        print(json.dumps({"error": {"message": failure.message, "code": failure.code}}), file=sys.stderr)
    else:
        print(f"error: {failure.message}", file=sys.stderr)
    return failure.exit_code
