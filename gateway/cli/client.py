"""The admin API over HTTP: one method a verb, and every failure as one sentence with an exit code."""

from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, Self

import httpx

from gateway.cli.output import FAILED, UNREACHABLE, CommandFailed

PATIENCE = httpx.Timeout(30.0, read=900.0)  # seconds; a version is answered when every replica has loaded it


class AdminClient:
    """Calls of `/admin/v1` with the operator's key. Every method raises CommandFailed and nothing else."""

    def __init__(self, url: str, operator_key: str, *, transport: httpx.BaseTransport | None = None) -> None:
        self.url = url.rstrip("/")
        self._client = httpx.Client(
            base_url=f"{self.url}/admin/v1", timeout=PATIENCE, transport=transport,
            headers={"Authorization": f"Bearer {operator_key}", "User-Agent": "switchyard-cli"})

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None,
    ) -> None:
        self._client.close()

    def get(self, path: str, **params: str) -> Any:
        """The document at `path`."""
        return self.call("GET", path, params=params)

    def list(self, path: str) -> list[dict[str, Any]]:
        """The entities of the list at `path`."""
        entities: list[dict[str, Any]] = self.get(path)["data"]
        return entities

    def call(
        self, method: str, path: str, *, json: Any = None, params: Mapping[str, str] | None = None,
        content: Iterable[bytes] | None = None, headers: Mapping[str, str] | None = None,
    ) -> Any:
        """Send one request; the document that came back, or None when there is none."""
        try:
            answer = self._client.request(method, path, json=json, params=params, content=content, headers=headers)
        except httpx.InvalidURL as error:
            raise CommandFailed(f"{self.url} is not a URL: {error}.", exit_code=UNREACHABLE) from None
        except httpx.TransportError as error:
            raise unreachable(self.url, error) from None
        except OSError as error:
            raise CommandFailed(str(error)) from None
        if answer.is_success:
            return answer.json() if answer.content else None
        raise refused(answer)


def unreachable(url: str, error: Exception) -> CommandFailed:
    """What to say when the gateway does not answer."""
    return CommandFailed(
        f"No gateway answers at {url} ({error or type(error).__name__}). Start one with `switchyard serve`, or say "
        "where it is with --url or SWITCHYARD_URL.", exit_code=UNREACHABLE, code="gateway_unreachable")


def refused(answer: httpx.Response) -> CommandFailed:
    """The API's own words about why it said no."""
    try:
        error = answer.json()["error"]
        message, code = str(error["message"]), str(error["code"])
    except (ValueError, KeyError, TypeError):
        return CommandFailed(
            f"{answer.request.url} answered {answer.status_code}, not as a gateway does; is it Switchyard's address?",
            exit_code=UNREACHABLE if answer.status_code == httpx.codes.NOT_FOUND else FAILED)
    hint = " Give the gateway's with --operator-key or SWITCHYARD_OPERATOR_KEY." \
        if answer.status_code == httpx.codes.UNAUTHORIZED else ""
    return CommandFailed(message + hint, code=code)
