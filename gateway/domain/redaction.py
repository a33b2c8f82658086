"""Takes personal data out of text before it is kept or sent anywhere: patterns, no language, rather too much.

    [EMAIL]   an e-mail address, also with %40 for its @
    [IBAN]    a bank account that its check digits confirm, with or without spaces
    [IP]      an IPv4 or IPv6 address
    [CARD]    13 to 19 digits that Luhn's check confirms, with spaces, dashes, dots or slashes between them or not
    [PHONE]   7 to 15 digits that begin with + or have such signs between them
    [NUMBER]  any other run of 7 digits or more: account, customer and passport numbers

Names and addresses of people have no pattern and stay; so do numbers of fewer digits, and dates as 2026-01-31. Every
pattern takes time linear in the text: each begins only where a run of its characters begins, and never gives back.
"""

import re
from collections.abc import Mapping
from ipaddress import ip_address
from typing import Any, Final

MIN_DIGITS: Final = 7
_PHONE_DIGITS: Final = 15
_CARD_DIGITS: Final = range(13, 20)
_SHORTEST_IBAN: Final = 15

# A look-behind that stands after the first character lets the search skip to such characters at full speed.
_EMAIL: Final = re.compile(r"(?<![\w.%+'-])[\w.%+'-]++@[\w-]++(?:\.[\w-]++)+")
_IBAN: Final = re.compile(
    r"[A-Z](?<![^\W_].)[A-Z][0-9]{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?![^\W_])", re.IGNORECASE | re.ASCII)
_IPV6: Final = re.compile(
    r"[0-9A-Fa-f:](?<![\w.].)[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){1,7}(?:(?:\.[0-9]{1,3}){3})?(?!\w)")
_IPV4: Final = re.compile(r"[0-9](?<![\w.].)[0-9]{0,2}(?:\.[0-9]{1,3}){3}(?![\w]|\.[0-9])")
_DIGITS: Final = re.compile(r"\d(?<!\d\d)(?:[ \u00a0\u202f()./-]{0,3}\d)++")
_DATE: Final = re.compile(r"(?<![0-9])((?:19|20)[0-9]{2}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12][0-9]|3[01]))(?![0-9])")
_DIGIT: Final = re.compile(r"\d")


def redact(text: str) -> str:
    """The text with marks in place of personal data, and of what is no Unicode."""
    text = text.encode(errors="replace").decode()
    text = text.replace("%40", "@").replace(r"\u0040", "@")
    if "@" in text:
        text = _EMAIL.sub("[EMAIL]", text)
    if "::" in text or text.count(":") > 1:
        text = _IPV6.sub(_ip, text)
    if _DIGIT.search(text) is None:
        return text
    text = _IBAN.sub(_iban, text)
    text = _IPV4.sub(_ip, text)
    between = _DATE.split(text)  # dates are at the odd places
    return "".join(part if place % 2 else _DIGITS.sub(_number, part) for place, part in enumerate(between))


def redacted(value: Any) -> Any:
    """JSON data with every text in it redacted, keys too; a number that would be a mark as text becomes that mark."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {redact(str(name)): redacted(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [redacted(inner) for inner in value]
    if isinstance(value, int | float) and not isinstance(value, bool):
        shown = repr(value)
        return value if redact(shown) == shown else redact(shown)
    return value


def _iban(found: re.Match[str]) -> str:
    """The mark, and what words were taken for more of the account; the text as it was when it is no account.

    ISO 7064 MOD 97-10: the country and check digits moved to the end, and letters read as 10 to 35, leave 1.
    """
    text = found[0]
    head = int("".join(str(int(char, 36)) for char in text[:4]))
    remainder = end = 0
    for place, char in enumerate(text[4:], 5):
        if char != " ":
            value = int(char, 36)
            remainder = (remainder * (100 if value > 9 else 10) + value) % 97
        is_whole = place >= _SHORTEST_IBAN and text[place:place + 1] in ("", " ")
        if is_whole and (remainder * 10**6 + head) % 97 == 1:
            end = place
    return "[IBAN]" + text[end:] if end else text


def _ip(found: re.Match[str]) -> str:
    """The mark, and a colon that came after the address; the text as it was when it is none."""
    text = found[0]
    for address in (text, text.rstrip(":")):
        if address.strip(":") and _is_ip(address):
            return "[IP]" + text[len(address):]
    return text


def _is_ip(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _number(found: re.Match[str]) -> str:
    digits = [int(c) for c in found[0] if c.isdecimal()]
    if len(digits) < MIN_DIGITS:
        return found[0]
    if len(digits) in _CARD_DIGITS and _passes_luhn(digits):
        return "[CARD]"
    is_signed = len(digits) < len(found[0]) or found.string[:found.start()].endswith("+")
    is_phone = is_signed and len(digits) <= _PHONE_DIGITS
    return "[PHONE]" if is_phone else "[NUMBER]"


def _passes_luhn(digits: list[int]) -> bool:
    """ISO/IEC 7812-1: every second digit from the right doubled, their digits' sum divides by 10."""
    doubled = (digit if place % 2 == 0 else (2 * digit - 9 if digit > 4 else 2 * digit)
               for place, digit in enumerate(reversed(digits)))
    return sum(doubled) % 10 == 0
