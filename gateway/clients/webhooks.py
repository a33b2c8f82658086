"""Sends signed JSON to operators' receivers, and again while a receiver cannot take it."""

import asyncio
import hashlib
import hmac
from dataclasses import dataclass
from typing import Final

import httpx
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_delay, wait_exponential, wait_random

from gateway.system import System

SIGNATURE: Final = "X-Switchyard-Signature"
ATTEMPT_SECONDS: Final = 10.0
GIVE_UP_SECONDS: Final = 300.0
FIRST_PAUSE_SECONDS: Final = 0.5
LONGEST_PAUSE_SECONDS: Final = 30.0
_TRY_AGAIN: Final = frozenset({408, 425, 429})


@dataclass(frozen=True, slots=True)
class Delivery:
    """What became of one: empty `failure` when it was taken, after so many attempts."""

    attempts: int
    failure: str = ""


class _NotNow(Exception):
    """The receiver did not take it, and may take it later."""


class _Refused(Exception):
    """The receiver will not take it."""


class WebhookClient:
    """Delivers, each attempt within ATTEMPT_SECONDS, the whole within `give_up_after` seconds or little more.

    Redirects are not followed, answers not read, and proxies of the environment not used.
    """

    def __init__(
        self, system: System, *, give_up_after: float = GIVE_UP_SECONDS, first_pause: float = FIRST_PAUSE_SECONDS,
        attempt_seconds: float = ATTEMPT_SECONDS,
    ) -> None:
        self._system = system
        self._give_up_after = give_up_after
        self._first_pause = first_pause
        self._attempt_seconds = attempt_seconds
        self._http = httpx.AsyncClient(follow_redirects=False, trust_env=False, timeout=attempt_seconds)

    async def deliver(self, url: str, secret: str, body: bytes) -> Delivery:
        """POST `body`, signed anew at each attempt. A receiver that is not there, is slow, or answers 5xx, 408, 425 or
        429 is asked again, after pauses that double; any other answer but 2xx ends it."""
        attempts = AsyncRetrying(
            retry=retry_if_exception_type(_NotNow), stop=stop_after_delay(self._give_up_after), reraise=True,
            wait=wait_exponential(self._first_pause, LONGEST_PAUSE_SECONDS) + wait_random(0, self._first_pause))
        made = 0
        try:
            async for attempt in attempts:
                with attempt:
                    made += 1
                    await self._post(url, secret, body)
        except (_NotNow, _Refused) as error:
            return Delivery(made, str(error))
        return Delivery(made)

    async def close(self) -> None:
        """Close every connection."""
        await self._http.aclose()

    async def _post(self, url: str, secret: str, body: bytes) -> None:
        headers = {"content-type": "application/json", "user-agent": "switchyard",
                   SIGNATURE: signature(secret, int(self._system.now()), body)}
        try:
            async with (
                asyncio.timeout(self._attempt_seconds),
                self._http.stream("POST", url, content=body, headers=headers) as answer,
            ):
                status = answer.status_code
        except TimeoutError:
            raise _NotNow(f"no answer within {self._attempt_seconds:g} s") from None
        except (httpx.HTTPError, OSError) as error:
            raise _NotNow(str(error) or type(error).__name__) from None
        except httpx.InvalidURL as error:
            raise _Refused(str(error)) from None
        if status >= 500 or status in _TRY_AGAIN:
            raise _NotNow(f"status {status}")
        if not 200 <= status < 300:
            raise _Refused(f"status {status}")


def signature(secret: str, timestamp: int, body: bytes) -> str:
    """`t=<timestamp>,v1=<hex HMAC-SHA256 of "<timestamp>.<body>" with the secret's UTF-8 bytes>`.

    A receiver computes it over the bytes it got, compares in constant time, and refuses an old timestamp.
    """
    signed = b"%d.%b" % (timestamp, body)
    return f"t={timestamp},v1={hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest()}"
