"""How things are named, and how a served name is built and taken apart."""

import re
from typing import NamedTuple

from gateway.domain.errors import InvalidRequest

TENANT = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
ADAPTER = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9])?")
REPLICA = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9])?")
OPERATOR = REPLICA
DIGEST = re.compile(r"[0-9a-f]{64}")
_PINNED = re.compile(rf"({ADAPTER.pattern})(?:@([1-9][0-9]{{0,8}}|latest))?")
_SERVED = re.compile(rf"({TENANT.pattern})/({ADAPTER.pattern})@([1-9][0-9]{{0,8}})-([0-9a-f]{{12}})")


class ServedName(NamedTuple):
    """The parts of what vLLM calls a version."""

    tenant: str
    adapter: str
    number: int
    digest12: str


class ModelName(NamedTuple):
    """What a model name, or an alias, means: an adapter, and perhaps one version of it (a number, or `latest`)."""

    adapter: str
    pin: str | None


def parse_model(text: str) -> ModelName | None:
    """The parts of `support`, `support@3` or `support@latest`; None when it is none of these."""
    found = _PINNED.fullmatch(text)
    return ModelName(found[1], found[2]) if found else None


def served_name(tenant: str, adapter: str, number: int, digest: str) -> str:
    """`tenant/adapter@3-<first 12 of digest>`."""
    return f"{tenant}/{adapter}@{number}-{digest[:12]}"


def parse_served_name(text: str) -> ServedName | None:
    """The parts of a served name, or None when Switchyard did not make it."""
    found = _SERVED.fullmatch(text)
    return ServedName(found[1], found[2], int(found[3]), found[4]) if found else None


def check_name(kind: str, pattern: re.Pattern[str], text: str) -> str:
    """The name itself if it is well formed, else InvalidRequest that says what a name looks like."""
    if not pattern.fullmatch(text):
        letters = "lower-case letters, digits and '-'" if pattern is TENANT else "letters, digits, '.', '_' and '-'"
        raise InvalidRequest(
            f"{kind} name {text[:80]!r} is not allowed: use 1 to {63 if pattern is TENANT else 64} {letters}, "
            "beginning and ending with a letter or digit.",
            param=kind,
        )
    return text
