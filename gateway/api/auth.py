"""Who is calling: a tenant's API key on the request path, the operator's key on the admin API and the metrics."""

import hmac
from collections.abc import Callable, Iterable
from hashlib import sha256

from gateway.domain.errors import NotAuthenticated
from gateway.domain.model import ApiKey, Snapshot
from gateway.system import System

Headers = Iterable[tuple[bytes, bytes]]

_NO_KEY = "No API key was given. Send it as 'Authorization: Bearer <key>'."
_WRONG_KEY = "The API key is wrong, expired or revoked."


def presented(headers: Headers) -> bytes:
    """The key that a request carries: `Authorization: Bearer`, else `X-Api-Key` (Anthropic's clients); else
    NotAuthenticated."""
    other = b""
    for name, value in headers:
        if name == b"authorization" and value[:7].lower() == b"bearer ":
            return value[7:].strip()
        if name == b"x-api-key":
            other = value.strip()
    if not other:
        raise NotAuthenticated(_NO_KEY)
    return other


class Callers:
    """Tells a request's API key by the SHA-256 of what it presents; the key's text is kept nowhere."""

    def __init__(self, snapshot: Callable[[], Snapshot], system: System) -> None:
        self._snapshot = snapshot
        self._system = system

    def identify(self, headers: Headers) -> ApiKey:
        """The valid key that was presented, else NotAuthenticated."""
        digest = sha256(presented(headers)).hexdigest()
        key = self._snapshot().keys_by_sha256.get(digest)
        if key is None or not hmac.compare_digest(key.sha256, digest) or not key.is_valid_at(self._system.now()):
            raise NotAuthenticated(_WRONG_KEY)
        return key


class Operators:
    """Tells operators by their key; `reader` is a key that may read the metrics and no more."""

    def __init__(self, key: str, *, reader: str | None = None) -> None:
        self._operator = sha256(key.encode()).digest()
        self._reader = sha256(reader.encode()).digest() if reader else self._operator

    def actor(self, headers: Headers) -> str:
        """The operator's name for the audit, else NotAuthenticated."""
        if not hmac.compare_digest(sha256(presented(headers)).digest(), self._operator):
            raise NotAuthenticated("The operator's key is wrong. Take it from SWITCHYARD_OPERATOR_KEY or operator.key.")
        return "operator"

    def check_reader(self, headers: Headers) -> None:
        """Raises NotAuthenticated unless the operator's or the metrics key was presented."""
        digest = sha256(presented(headers)).digest()
        operator, reader = (hmac.compare_digest(digest, known) for known in (self._operator, self._reader))
        if not (operator or reader):
            raise NotAuthenticated("The key is wrong. Metrics need the operator's key or SWITCHYARD_METRICS_KEY.")
