"""Regular expressions of operators, matched in time linear in the text: Rust's engine, which has no backtracking.

Python's own `re` takes exponential time for some expressions, and holds the whole process up meanwhile. The engine is
the one that pydantic has for the patterns of its fields; it knows neither look-around nor back-references.
"""

from functools import lru_cache
from typing import Final

from pydantic_core import SchemaError, SchemaValidator, core_schema

from gateway.domain.errors import InvalidRequest

_KEPT: Final = 1024


class Patterns:
    """Compiles each expression once, and keeps the latest."""

    def __init__(self) -> None:
        self._compiled = lru_cache(_KEPT)(_compile)

    def check(self, pattern: str) -> None:
        """InvalidRequest, in the engine's own words, unless the expression can be used."""
        try:
            self._compiled(pattern)
        except SchemaError as error:
            reason = " ".join(str(error).split()).partition("SchemaError: ")[2]
            raise InvalidRequest(f"The regular expression {pattern[:80]!r} cannot be used: {reason[:300]}.",
                                 param="rules") from None

    def matches(self, pattern: str, text: str) -> bool:
        """Is the expression found in the text? Never, where it cannot be used."""
        try:
            return bool(self._compiled(pattern).isinstance_python(text))
        except SchemaError:
            return False


def _compile(pattern: str) -> SchemaValidator:
    return SchemaValidator(core_schema.str_schema(pattern=pattern, regex_engine="rust-regex"))
