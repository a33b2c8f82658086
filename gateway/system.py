"""The one home of time and randomness; everything that needs them takes a `System`."""

import secrets
import time
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class System:
    """The machine's clocks and its source of randomness; tests pass a subclass that they steer."""

    def now(self) -> float:
        """Unix time, in seconds."""
        return time.time()

    def monotonic(self) -> float:
        """Seconds that never go back."""
        return time.monotonic()

    def token(self, size: int) -> str:
        """`size` random bytes, as URL-safe text."""
        return secrets.token_urlsafe(size)

    def hex(self, size: int) -> str:
        """`size` random bytes, as hex."""
        return secrets.token_hex(size)
