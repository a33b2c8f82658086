"""Operators' expressions match in linear time, or are refused in words."""

import pytest

from gateway.clients.patterns import Patterns
from gateway.domain.errors import InvalidRequest


@pytest.mark.parametrize(("pattern", "text", "found"), [
    ("b+", "abbc", True), ("^b", "abbc", False), (r"(?i)SORRY\b", "so sorry!", True), (r"^\{.*\}$", '{"a":1}', True),
    ("ü", "für", True), ("x", "", False),
])
def test_an_expression_is_found_anywhere_in_the_text(pattern: str, text: str, found: bool) -> None:
    patterns = Patterns()
    patterns.check(pattern)
    assert patterns.matches(pattern, text) is found


def test_an_expression_that_drives_backtracking_mad_ends_at_once() -> None:
    assert not Patterns().matches("(a+)+$", "a" * 100_000 + "b")


@pytest.mark.parametrize("pattern", ["(", "(?=a)", r"(a)\1", "(a{1000}){1000}", "[z-a]"])
def test_an_expression_that_cannot_be_used_is_refused_and_never_found(pattern: str) -> None:
    with pytest.raises(InvalidRequest, match=r"cannot be used: \w") as refused:
        Patterns().check(pattern)
    assert refused.value.param == "rules"
    assert not Patterns().matches(pattern, "a")
