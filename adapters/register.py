"""An artifact folder → a version of `tenant/adapter`: streamed as a tar through the admin API."""

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

CHUNK = 1 << 20
REQUIRED = ("adapter_config.json", "adapter_model.safetensors")


class RegisterError(RuntimeError):
    """The version was not registered; the message says why and what to do, `status` is the gateway's if it answered."""

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


def register(
    folder: Path, name: str, *, url: str, key: str, timeout: float = 600.0,
) -> dict[str, Any]:
    """Register the artifact in `folder` as the next version of `name` (`tenant/adapter`) and return that version.

    `key` is the operator's; `timeout` in seconds covers the checks and the loads that the gateway makes before it
    answers. Registering the same bytes again returns the version that has them. RegisterError for all that goes wrong.
    """
    tenant, _, adapter = name.partition("/")
    if not tenant or not adapter:
        raise RegisterError(f"{name!r} is not a name; write tenant/adapter.")
    missing = [file for file in REQUIRED if not (folder / file).is_file()]
    if missing:
        raise RegisterError(f"{folder} is not an artifact: it lacks {' and '.join(missing)}.")
    path = f"/admin/v1/tenants/{quote(tenant, safe='')}/adapters/{quote(adapter, safe='')}/versions"
    try:
        answer = httpx.post(
            url.rstrip("/") + path, content=tar_stream(folder), timeout=httpx.Timeout(timeout, connect=5.0),
            headers={"Authorization": f"Bearer {key}", "Content-Type": "application/x-tar"})
    except httpx.ConnectError as error:
        raise RegisterError(f"No gateway answers at {url} ({error}); start it, or give its address.") from error
    except httpx.TimeoutException as error:
        raise RegisterError(f"The gateway at {url} did not answer within {timeout:g} s; ask it for the adapter's "
                            "versions before you try again.") from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise RegisterError(f"The gateway at {url} could not be asked: {error}.") from error
    return _version(answer, url)


def tar_stream(folder: Path) -> Iterator[bytes]:
    """The folder's files as a tar archive, a chunk at a time; equal folders give equal bytes. Hidden files stay."""
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if not path.is_file() or any(part.startswith(".") for part in inside.parts):
            continue
        info = tarfile.TarInfo(inside.as_posix())
        info.size = path.stat().st_size
        yield info.tobuf(tarfile.PAX_FORMAT)
        sent = 0
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                sent += len(chunk)
                yield chunk
        if sent != info.size:
            raise RegisterError(f"{path} changed while it was read; register again when nobody writes to it.")
        yield bytes(-sent % tarfile.BLOCKSIZE)
    yield bytes(2 * tarfile.BLOCKSIZE)


def _version(answer: httpx.Response, url: str) -> dict[str, Any]:
    try:
        document = answer.json()
    except ValueError:
        document = None
    if answer.is_success and isinstance(document, dict):
        return document
    error = document.get("error") if isinstance(document, dict) else None
    if isinstance(error, dict) and isinstance(error.get("message"), str):
        raise RegisterError(f"The gateway refused ({answer.status_code} {error.get('code')}): {error['message']}",
                            status=answer.status_code)
    raise RegisterError(f"{url} answered {answer.status_code} without saying why; is it a Switchyard gateway?",
                        status=answer.status_code)
