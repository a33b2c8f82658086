"""Who is calling: a tenant's API key on the request path, an operator's key on the admin API and the metrics."""

import hmac
from collections.abc import Callable, Iterable
from hashlib import sha256

from gateway.domain.errors import NotAuthenticated
from gateway.domain.model import ApiKey, Snapshot
from gateway.domain.operators import SETTINGS_OPERATOR, Asker, Operator, Role, operators_of
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
    """Tells operators by the SHA-256 of their key: an admin by the settings' own, the others by the registry's.

    `reader` is a key that may read the metrics and no more.
    """

    def __init__(self, key: str, snapshot: Callable[[], Snapshot], *, reader: str | None = None) -> None:
        self._own = sha256(key.encode()).hexdigest()
        self._reader = sha256(reader.encode()).hexdigest() if reader else self._own
        self._snapshot = snapshot
        self._indexed: Snapshot | None = None
        self._by_sha256: dict[str, Operator] = {}

    def identify(self, headers: Headers) -> Asker:
        """Who holds the key that was presented, else NotAuthenticated."""
        asker = self._find(sha256(presented(headers)).hexdigest())
        if asker is None:
            raise NotAuthenticated("The operator's key is wrong or revoked. An admin's is SWITCHYARD_OPERATOR_KEY, or "
                                   "in operator.key.")
        return asker

    def check_reader(self, headers: Headers) -> None:
        """Raises NotAuthenticated unless an operator's or the metrics key was presented."""
        digest = sha256(presented(headers)).hexdigest()
        if not hmac.compare_digest(digest, self._reader) and self._find(digest) is None:
            raise NotAuthenticated("The key is wrong. Metrics need an operator's key or SWITCHYARD_METRICS_KEY.")

    def _find(self, digest: str) -> Asker | None:
        if hmac.compare_digest(digest, self._own):
            return Asker(SETTINGS_OPERATOR, Role.ADMIN)
        snapshot = self._snapshot()
        if snapshot is not self._indexed:
            self._by_sha256 = {operator.sha256: operator for operator in operators_of(snapshot)}
            self._indexed = snapshot
        found = self._by_sha256.get(digest)
        return Asker(found.name, found.role) if found and found.revoked_at is None else None
