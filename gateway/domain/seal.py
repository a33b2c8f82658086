"""Signs evaluation records, so that one which no gateway wrote does not count."""

import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from gateway.domain.model import Secret, Snapshot

SECRET = "evaluation"
"""The registry's secret that records are signed with where the settings have none."""
_SCHEMA = "switchyard.evaluation/1"
_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False)


@dataclass(frozen=True, slots=True)
class Seal:
    """Whose secret signs: the settings', which all gateways of a registry must share, else the registry's own.

    The registry's own tells mistakes and hand-written records; who reads all of Redis could sign with it. The settings'
    is not in Redis, so that nobody who has Redis alone can sign.
    """

    given: str | None = field(default=None, repr=False)

    def secret(self, snapshot: Snapshot) -> str | None:
        """The secret as the snapshot has it; None while the registry has none."""
        if self.given is not None:
            return self.given
        kept = snapshot.entities.get(f"secret/{SECRET}")
        return kept.value if isinstance(kept, Secret) else None


SHARED = Seal()
"""Where the settings have no secret."""


def sign(document: Mapping[str, Any], secret: str) -> str:
    """HMAC-SHA256 (hex) of a record's document: its fields as canonical JSON, without `signature` and those unset.

    What is unset is left out so that a field which a later release adds does not break the signatures of today.
    """
    signed = {name: value for name, value in document.items() if name != "signature" and value is not None}
    key = hmac.new(secret.encode(), SECRET.encode(), sha256).digest()  # the settings' secret also makes cache salts
    return hmac.new(key, _CANONICAL.encode([_SCHEMA, signed]).encode("ascii"), sha256).hexdigest()


def is_signed(document: Mapping[str, Any], secret: str | None) -> bool:
    """Does the document carry the signature that the secret gives it?"""
    said = document.get("signature")
    if secret is None or not isinstance(said, str) or not said.isascii():
        return False
    try:
        return hmac.compare_digest(said, sign(document, secret))
    except (TypeError, ValueError):  # it holds what no gateway writes, such as NaN
        return False
