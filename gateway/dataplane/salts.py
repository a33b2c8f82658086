"""The salt that keeps tenants apart in an engine's prefix cache, so that timing tells nobody what others asked."""

import hmac
from collections.abc import Callable
from hashlib import sha256

from gateway.domain.model import Secret, Snapshot

SECRET = "cache-salt"


class Salts:
    """One salt per tenant, from a server secret: the settings', else the one all gateways share in the registry.

    Until the registry's is known, a secret of this process alone serves: isolation holds, only cache hits are fewer.
    """

    def __init__(self, snapshot: Callable[[], Snapshot], secret: str | None, fallback: str) -> None:
        self._snapshot = snapshot
        self._given = secret
        self._fallback = fallback
        self._made_with = ""
        self._salts: dict[str, str] = {}

    def __call__(self, tenant: str) -> str:
        """The tenant's salt: 32 hex digits, the same on every gateway of the registry."""
        secret = self._given or self._shared() or self._fallback
        if secret != self._made_with:
            self._made_with = secret
            self._salts.clear()
        salt = self._salts.get(tenant)
        if salt is None:
            salt = hmac.new(secret.encode(), f"cache-salt/{tenant}".encode(), sha256).hexdigest()[:32]
            self._salts[tenant] = salt
        return salt

    def _shared(self) -> str | None:
        entity = self._snapshot().entities.get(f"secret/{SECRET}")
        return entity.value if isinstance(entity, Secret) else None
