"""A small client of a gateway's admin API: one method a verb, every failure in words."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx

TIMEOUT = httpx.Timeout(30.0, connect=5.0)


class GatewayUnreachable(RuntimeError):
    """No gateway answers there; the message says what to do."""


class GatewayRefused(RuntimeError):
    """The gateway said no, in its own words: `status`, `code`."""

    def __init__(self, message: str, *, status: int, code: str | None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


@dataclass(frozen=True, slots=True)
class Door:
    """Where a gateway is: http(s)://host:port, or unix:/path/to.sock."""

    url: str

    def client(self, key: str, *, timeout: httpx.Timeout = TIMEOUT, at_once: int = 100) -> httpx.AsyncClient:
        """An HTTP client with that key and at most `at_once` connections; GatewayUnreachable for what is no URL."""
        limits = httpx.Limits(max_connections=at_once, max_keepalive_connections=at_once)
        headers = {"Authorization": f"Bearer {key}", "User-Agent": "switchyard-adapters"}
        try:
            if self.url.startswith("unix:"):
                transport = httpx.AsyncHTTPTransport(uds=self.url.removeprefix("unix:"), limits=limits)
                return httpx.AsyncClient(base_url="http://gateway", transport=transport, headers=headers,
                                         timeout=timeout)
            return httpx.AsyncClient(base_url=self.url.rstrip("/"), headers=headers, timeout=timeout, limits=limits)
        except (httpx.InvalidURL, UnicodeEncodeError) as error:
            raise GatewayUnreachable(f"{self.url} or its key cannot be used: {error}.") from error

    def lost(self, error: Exception) -> GatewayUnreachable:
        """What to say when nobody answers."""
        return GatewayUnreachable(f"No gateway answers at {self.url} ({str(error) or type(error).__name__}); start it "
                                  "with `switchyard serve`, or give its address with --url.")


class Admin:
    """Calls of `/admin/v1` with an operator's key; use it as an async context manager.

    Every method raises GatewayUnreachable or GatewayRefused and nothing else.
    """

    def __init__(self, door: Door, key: str) -> None:
        self._door = door
        self._client = door.client(key)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None,
    ) -> None:
        await self._client.aclose()

    async def get(self, *parts: str | int, **params: str) -> Any:
        """The document at a path."""
        return await self._call("GET", parts, params=params)

    async def post(self, *parts: str | int, json: Mapping[str, Any]) -> Any:
        """What came of posting a document."""
        return await self._call("POST", parts, json=json)

    async def delete(self, *parts: str | int) -> Any:
        """What came of deleting what is at a path."""
        return await self._call("DELETE", parts)

    async def _call(self, method: str, parts: tuple[str | int, ...], **arguments: Any) -> Any:
        path = "/admin/v1/" + "/".join(quote(str(part), safe="") for part in parts)
        try:
            answer = await self._client.request(method, path, **arguments)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise self._door.lost(error) from error
        if not answer.is_success:
            raise refusal(answer)
        try:
            return answer.json() if answer.content else None
        except ValueError as error:
            raise self._door.lost(error) from error


def refusal(answer: httpx.Response) -> GatewayRefused:
    """Why an answer that was read whole is a no: the gateway's words, or that they are not a gateway's."""
    try:
        error = answer.json()["error"]
        message, code = str(error["message"]), error.get("code")
    except (ValueError, KeyError, TypeError, AttributeError):
        return GatewayRefused(f"{answer.request.url} answered {answer.status_code} without saying why; is it a "
                              "Switchyard gateway?", status=answer.status_code, code=None)
    return GatewayRefused(message, status=answer.status_code, code=code)
