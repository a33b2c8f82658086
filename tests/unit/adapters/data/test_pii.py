"""Personal data that has a form is found, what only looks like it is not, and a masked row keeps its structure."""

from collections import Counter
from importlib.util import find_spec
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.data import DataError, Row
from adapters.data.pii import find_by_patterns, make_finder, mask, mask_row


def _kinds(text: str) -> list[str]:
    return [found.kind for found in find_by_patterns(text)]


@pytest.mark.parametrize(("kind", "text"), [
    ("EMAIL_ADDRESS", "jane.doe+news@mail.example.co.uk"),
    ("EMAIL_ADDRESS", "jürgen@example.de"),
    ("IBAN_CODE", "DE89 3704 0044 0532 0130 00"),
    ("IBAN_CODE", "GB82WEST12345698765432"),
    ("IBAN_CODE", "NO93 8601 1117 947"),
    ("CREDIT_CARD", "4111 1111 1111 1111"),
    ("CREDIT_CARD", "5500-0000-0000-0004"),
    ("CREDIT_CARD", "378282246310005"),
    ("US_SSN", "536-90-4399"),
    ("IP_ADDRESS", "192.168.17.4"),
    ("IP_ADDRESS", "10.0.0.1"),
    ("IP_ADDRESS", "2001:db8::8a2e:370:7334"),
    ("PHONE_NUMBER", "+49 170 1234567"),
    ("PHONE_NUMBER", "+14155552671"),
    ("PHONE_NUMBER", "+44 (0)20 7946 0958"),
    ("PHONE_NUMBER", "(030) 123-4567"),
    ("PHONE_NUMBER", "030 1234567"),
    ("PHONE_NUMBER", "415-555-2671"),
])
@pytest.mark.parametrize("around", ["{}", "Write to {}.", "({}), please", "it:\t{}!"])
def test_it_is_found_whole_whatever_is_around_it(kind: str, text: str, around: str) -> None:
    sentence = around.format(text)
    [found] = find_by_patterns(sentence)
    assert (found.kind, sentence[found.start:found.end]) == (kind, text)


@pytest.mark.parametrize("text", [
    "on 2024-05-17 and 01.02.2024", "version 1.2.3", "300.1.2.3", "4111 1111 1111 1112", "DE00 3704 0044 0532 0130 00",
    "000-12-3456", "666-12-3456", "order 123456789", "1,000,000 rows", "10:30:00", "a::b", "$ 1 234.50", "x@y",
    "3.14159265358979", "the years 1999 2000 2001", "no digits at all", "std::vector<int>", "1234-5678",
])
def test_what_only_looks_like_it_is_left_alone(text: str) -> None:
    assert _kinds(text) == []


def test_an_address_after_a_colon_is_found() -> None:
    assert _kinds("host:10.0.0.1") == ["IP_ADDRESS"]


def test_several_are_masked_in_one_text_and_counted() -> None:
    counts: Counter[str] = Counter()
    text = mask("jane@example.com or joe@example.com, from 10.0.0.1", find_by_patterns, counts)
    assert text == "[EMAIL_ADDRESS] or [EMAIL_ADDRESS], from [IP_ADDRESS]"
    assert counts == {"EMAIL_ADDRESS": 2, "IP_ADDRESS": 1}


def test_every_text_of_a_chat_is_masked_and_its_structure_kept() -> None:
    mail = "jane@example.com"
    row = Row(1, (
        {"role": "system", "content": f"You serve {mail}."}, {"role": "user", "content": "hi", "name": mail},
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": mail, "type": "function", "function": {"name": "send", "arguments": {"id": mail, "to": [mail]}}}]},
        {"role": "tool", "tool_call_id": mail, "content": mail}, {"role": "assistant", "content": "done"}))
    masked, counts = mask_row(row, find_by_patterns)
    assert counts == {"EMAIL_ADDRESS": 4}
    assert masked.messages[0]["content"] == "You serve [EMAIL_ADDRESS]."
    call = masked.messages[2]["tool_calls"][0]
    assert call["id"] == masked.messages[3]["tool_call_id"] == mail
    assert call["function"] == {"name": "send", "arguments": {"id": "[EMAIL_ADDRESS]", "to": ["[EMAIL_ADDRESS]"]}}
    assert masked.messages[3]["content"] == "[EMAIL_ADDRESS]"


def test_a_plain_text_is_masked_and_a_clean_row_is_the_same() -> None:
    assert mask_row(Row(1, text="call 415-555-2671"), find_by_patterns)[0].text == "call [PHONE_NUMBER]"
    clean = Row(1, text="call me")
    assert mask_row(clean, find_by_patterns)[0] is clean


@given(st.text(st.sampled_from("0123456789+-. @:()abDE"), max_size=80))
def test_what_is_found_is_in_order_without_overlaps_and_gone_when_masked(text: str) -> None:
    found = find_by_patterns(text)
    assert all(0 <= one.start < one.end <= len(text) for one in found)
    assert all(one.end <= other.start for one, other in pairwise(found))
    masked = mask(text, find_by_patterns, Counter())
    assert all(text[one.start:one.end] not in masked or text.count(text[one.start:one.end]) > 1 for one in found)


def test_presidio_finds_what_has_a_form_where_it_is_installed() -> None:
    if not (find_spec("presidio_analyzer") and find_spec("spacy")):
        pytest.skip("Presidio is not installed")
    name, find = make_finder("auto")
    assert name.startswith("presidio with ")
    text = "jane@example.com paid with 4111 1111 1111 1111, +49 170 1234567, from 192.168.17.4"
    assert [found.kind for found in find(text)] == ["EMAIL_ADDRESS", "CREDIT_CARD", "PHONE_NUMBER", "IP_ADDRESS"]
    assert make_finder("patterns") == ("patterns", find_by_patterns)


def test_presidio_is_refused_where_it_is_not_installed() -> None:
    if find_spec("presidio_analyzer") and find_spec("spacy"):
        pytest.skip("Presidio is installed")
    assert make_finder("auto") == make_finder("patterns") == ("patterns", find_by_patterns)
    with pytest.raises(DataError, match="is not installed; install presidio-analyzer"):
        make_finder("presidio")
