"""Personal data in a row, found by patterns or by Presidio, and masked as `[KIND]`.

What the patterns find, in Presidio's words for the kinds. They find what has a form: no names, no street addresses.

    EMAIL_ADDRESS   name@host.tld
    IBAN_CODE       two letters, two check digits, 11 to 30 more, perhaps in groups; ISO 7064's mod 97 must be 1
    CREDIT_CARD     13 to 19 digits, perhaps in groups; Luhn's sum must be right, and the first digit is 2 to 6
    US_SSN          123-45-6789, without the numbers that are never given out
    IP_ADDRESS      IPv4, or IPv6, as Python's ipaddress reads it
    PHONE_NUMBER    +49 170 1234567, (030) 123-4567, 030 1234567, 555-123-4567 and their like: 8 to 15 digits in all
"""

import dataclasses
import importlib.util
import ipaddress
import logging
import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

from adapters.data.rows import DataError, Row
from adapters.data.settings import PiiFinder


class Found(NamedTuple):
    """Personal data at text[start:end]."""

    start: int
    end: int
    kind: str


Finder: TypeAlias = Callable[[str], list[Found]]


def find_by_patterns(text: str) -> list[Found]:
    """What the patterns find, in order, without overlaps; where two would, the kind named first above wins."""
    if not _HINT.search(text):
        return []
    taken: list[Found] = []
    for kind, pattern, is_real in _PATTERNS:
        for match in pattern.finditer(text):
            found = Found(match.start(), match.end(), kind)
            if is_real(match[0]) and not any(found.start < other.end and other.start < found.end for other in taken):
                taken.append(found)
    return sorted(taken)


def _passes_luhn(number: str) -> bool:
    """Luhn's check (US patent 2,950,048): every second digit from the right is doubled."""
    digits = [int(digit) for digit in number if digit.isdigit()]
    if not 13 <= len(digits) <= 19:
        return False
    total = sum(digits[-1::-2]) + sum(sum(divmod(2 * digit, 10)) for digit in digits[-2::-2])
    return total % 10 == 0


def _passes_mod_97(code: str) -> bool:
    """ISO 7064 as ISO 13616 (IBAN) uses it: the first four characters go last, letters count from 10."""
    plain = code.replace(" ", "").upper()
    if not 15 <= len(plain) <= 34:
        return False
    return int("".join(str(int(letter, 36)) for letter in plain[4:] + plain[:4])) % 97 == 1


def _is_address(text: str) -> bool:
    """An IPv6 address shorter than 7 letters, or without digits, is more likely something else, such as C++."""
    if ":" in text and (len(text) < 7 or not any(letter.isdigit() for letter in text)):
        return False
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _is_phone(text: str) -> bool:
    """8 to 15 digits (E.164's most), and no date such as 2024-05-17 or 17.05.2024."""
    return 8 <= sum(letter.isdigit() for letter in text) <= 15 and not _DATE.fullmatch(text)


_DATE = re.compile(r"(19|20)\d\d[-. /]\d\d?[-. /]\d\d?|\d\d?[-. /]\d\d?[-. /](19|20)\d\d")

_HINT = re.compile(r"[@\d]")
"""All that is found has one of these, and most texts have none."""

_PATTERNS: tuple[tuple[str, re.Pattern[str], Callable[[str], bool]], ...] = (
    ("EMAIL_ADDRESS",
     re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,8}[A-Za-z]{2,24}\b"),
     lambda found: True),
    ("IBAN_CODE", re.compile(r"\b[A-Za-z]{2}\d{2}(?: ?[A-Za-z0-9]{4}){2,7}(?: ?[A-Za-z0-9]{1,3})?\b"), _passes_mod_97),
    ("CREDIT_CARD", re.compile(r"(?<![\d.-])[2-6]\d{3}(?:[ -]?\d){9,15}(?![\d-])"), _passes_luhn),
    ("US_SSN", re.compile(r"(?<![\d-])(?!000|666|9\d\d)\d{3}-(?!00)\d\d-(?!0000)\d{4}(?![\d-])"), lambda found: True),
    ("IP_ADDRESS",
     re.compile(r"(?:(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}|(?<![\w.:])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{1,4})"
                r"(?![\w:]|\.\d)"),
     _is_address),
    ("PHONE_NUMBER",
     re.compile(r"(?<![\w.+-])(?:\+\d{1,3}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d{1,12}(?:[ .-]\d{2,8}){0,4}"
                r"|\(\d{2,5}\)[ .-]?\d{2,8}(?:[ .-]\d{2,8}){0,3}|\d{3}[ .-]\d{3}[ .-]\d{4}"
                r"|(?<!\d )0{1,2}[1-9]\d{0,3}[ /.-]\d{2,8}(?:[ .-]\d{2,8}){0,3})(?![\w-]|\.\d)"),
     _is_phone),
)


def make_finder(wanted: PiiFinder) -> tuple[str, Finder]:
    """The name of a finder and the finder: Presidio where it is installed, unless another is wanted.

    DataError when Presidio is wanted and not there.
    """
    is_there = all(importlib.util.find_spec(name) for name in ("presidio_analyzer", "spacy"))
    if wanted == "presidio" and not is_there:
        raise DataError("pii_finder is \"presidio\", which is not installed; install presidio-analyzer and a spaCy "
                        "model, or use \"patterns\".")
    if wanted == "patterns" or not is_there:
        return "patterns", find_by_patterns
    return _presidio()


PRESIDIO_KINDS = ("EMAIL_ADDRESS", "IBAN_CODE", "CREDIT_CARD", "US_SSN", "IP_ADDRESS", "PHONE_NUMBER", "PERSON")
MIN_SCORE = 0.4
"""Presidio's own example threshold: a telephone number without a word such as "call" near it scores this much."""


def _presidio() -> tuple[str, Finder]:
    """Presidio with the largest English spaCy model that is installed; without any it finds no names."""
    import spacy
    from presidio_analyzer import AnalyzerEngine
    from presidio_analyzer.nlp_engine import SpacyNlpEngine

    # Without a network it falls back to the list of domains that it brings, and logs a stack trace about it.
    logging.getLogger("tldextract").setLevel(logging.CRITICAL)
    models = [name for size in ("trf", "lg", "md", "sm") if spacy.util.is_package(name := f"en_core_web_{size}")]
    engine = SpacyNlpEngine([{"lang_code": "en", "model_name": models[0] if models else ""}])
    # Left to itself it would download a model.
    engine.nlp = {"en": spacy.load(models[0]) if models else spacy.blank("en")}
    analyzer = AnalyzerEngine(nlp_engine=engine)

    def find(text: str) -> list[Found]:
        results = analyzer.analyze(text, language="en", entities=list(PRESIDIO_KINDS), score_threshold=MIN_SCORE)
        kept: list[Found] = []
        for result in sorted(results, key=lambda result: (-result.score, result.start)):
            if not any(result.start < other.end and other.start < result.end for other in kept):
                kept.append(Found(result.start, result.end, result.entity_type))
        return sorted(kept)

    return f"presidio with {models[0] if models else 'no language model'}", find


def mask_row(row: Row, find: Finder) -> tuple[Row, Mapping[str, int]]:
    """The row with every text of it masked, and how often each kind was found; keys and names of fields stay."""
    counts: Counter[str] = Counter()
    masked = dataclasses.replace(
        row, messages=tuple(_masked(list(row.messages), find, counts, _STRUCTURE)),
        text=None if row.text is None else mask(row.text, find, counts))
    return (masked, counts) if counts else (row, counts)


def mask(text: str, find: Finder, counts: Counter[str]) -> str:
    """The text with `[KIND]` in place of what was found; counts it."""
    parts, end = [], 0
    for found in find(text):
        parts += [text[end:found.start], f"[{found.kind}]"]
        counts[found.kind] += 1
        end = found.end
    return "".join([*parts, text[end:]])


def _masked(value: Any, find: Finder, counts: Counter[str], kept: frozenset[str] = frozenset()) -> Any:
    """The value with its texts masked, but for those under the keys `kept`."""
    if isinstance(value, str):
        return mask(value, find, counts)
    if isinstance(value, list):
        return [_masked(inner, find, counts, kept) for inner in value]
    if isinstance(value, dict):
        return {key: inner if key in kept else _masked(inner, find, counts, frozenset() if key == "arguments" else kept)
                for key, inner in value.items()}
    return value


_STRUCTURE = frozenset({"role", "type", "id", "tool_call_id", "name"})
"""What a message hangs together by; masked, calls and their answers would no longer match."""
