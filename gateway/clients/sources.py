"""Brings an adapter's files from where they lie, a folder, Hugging Face or S3, into a folder of ours."""

import asyncio
import os
import re
import shutil
import stat
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import BinaryIO, NamedTuple, ParamSpec, TypeVar
from urllib.parse import unquote

import obstore
from obstore.exceptions import BaseError as StoreError
from obstore.exceptions import NotFoundError, PermissionDeniedError, UnauthenticatedError
from obstore.store import S3Store

from gateway.domain.errors import ArtifactRefused, InvalidRequest, SwitchyardError, Unavailable

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
MANIFEST = "manifest.json"
PARITY = "parity.json"
KEPT_FILES = frozenset({
    CONFIG, WEIGHTS, MANIFEST, PARITY, "README.md",
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "vocab.txt", "merges.txt", "chat_template.json", "chat_template.jinja",
})
MAX_LISTED = 1000
_CHUNK_BYTES = 1 << 20
_HF = re.compile(r"hf://(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w.%-]+))?(?:/(?P<folder>[\w./-]+?))?/?")
_S3 = re.compile(r"s3://(?P<bucket>[a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:/(?P<prefix>[^?#]*))?")
_STATUS = re.compile(r"status code: ([0-9]{3})")
_P = ParamSpec("_P")
_T = TypeVar("_T")


async def in_thread(work: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Run `work` in a thread. A cancelled caller waits for its end, so that nothing writes where one cleans up."""
    task = asyncio.ensure_future(asyncio.to_thread(work, *args, **kwargs))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # looked at, so that it is not reported as forgotten
        raise


async def fetch(source: str, folder: Path, max_bytes: int) -> list[str]:
    """Copy the files worth keeping from `source` into `folder`; returns the names of the others, sorted.

    InvalidRequest: no such thing, or it may not be read. ArtifactRefused: more than `max_bytes`. Unavailable: the
    source does not answer.
    """
    if found := _HF.fullmatch(source):
        return await in_thread(_from_hub, found["repo"], found["revision"], found["folder"] or "", folder, max_bytes)
    if found := _S3.fullmatch(source):
        return await _from_s3(found["bucket"], (found["prefix"] or "").strip("/"), folder, max_bytes)
    if "://" in source or "\0" in source:
        raise _invalid(f"{source[:200]!r} is no source: write a path, hf://owner/name[@revision][/folder] or "
                       "s3://bucket/prefix.")
    return await in_thread(_from_folder, Path(source), folder, max_bytes)


def too_large(max_bytes: int) -> ArtifactRefused:
    """The refusal of more than `max_bytes`."""
    return ArtifactRefused([f"The artifact has more than {max_bytes} bytes: send a smaller one, or raise "
                            "max_artifact_bytes."])


def _invalid(message: str) -> InvalidRequest:
    return InvalidRequest(message, param="source")


class _Cap:
    """How many more bytes may come."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._left = max_bytes

    def spend(self, count: int) -> None:
        self._left -= count
        if self._left < 0:
            raise too_large(self._max_bytes)


# --- a folder --------------------------------------------------------------------------------------------------------


def _from_folder(source: Path, folder: Path, max_bytes: int) -> list[str]:
    try:
        with os.scandir(source) as entries:
            names = sorted(entry.name for entry in entries)
    except OSError as error:
        raise _invalid(f"{str(source)[:200]!r} cannot be read: {error.strerror}. For Hugging Face write "
                       "hf://owner/name.") from error
    cap = _Cap(max_bytes)
    for name in KEPT_FILES.intersection(names):
        with _open_plain(source / name) as from_file, (folder / name).open("xb") as to_file:
            while chunk := from_file.read(_CHUNK_BYTES):
                cap.spend(len(chunk))
                to_file.write(chunk)
    return [name if name.isprintable() else ascii(name) for name in names if name not in KEPT_FILES]


def _open_plain(path: Path) -> BinaryIO:
    """The file, links followed (Hugging Face's cache is made of them), if it is one; a pipe would block for ever."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        raise _invalid(f"{str(path)[:200]!r} cannot be read: {error.strerror}.") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _invalid(f"{str(path)[:200]!r} is no plain file.")
    return open(descriptor, "rb")


# --- Hugging Face ----------------------------------------------------------------------------------------------------


class _Remote(NamedTuple):
    """A file that a source offers, by its name in the adapter's folder."""

    name: str
    size: int


def _choose(files: list[_Remote], max_bytes: int) -> tuple[list[str], list[str]]:
    """(kept, ignored) names; refused before any byte comes when the kept ones are too large."""
    cap = _Cap(max_bytes)
    for file in files:
        cap.spend(file.size if file.name in KEPT_FILES else 0)
    names = sorted(file.name for file in files)
    return [n for n in names if n in KEPT_FILES], [n for n in names if n not in KEPT_FILES]


def _from_hub(repo: str, revision: str | None, subfolder: str, folder: Path, max_bytes: int) -> list[str]:
    """Through a folder of its own rather than the shared cache: what is refused leaves nothing behind there either."""
    from huggingface_hub import HfApi, errors

    api, name = HfApi(), f"hf://{repo}"
    path, scratch = f"{subfolder}/" if subfolder else "", folder.parent / "hub"
    try:
        commit = api.model_info(repo, revision=unquote(revision) if revision else None).sha
        entries = api.list_repo_tree(repo, subfolder or None, revision=commit)
        offered = [_Remote(entry.path.rpartition("/")[2], getattr(entry, "size", 0)) for entry in entries]
        kept, ignored = _choose(offered, max_bytes)
        api.snapshot_download(repo, revision=commit, local_dir=scratch, allow_patterns=[path + file for file in kept])
    except errors.OfflineModeIsEnabled as error:
        raise Unavailable(f"{name} cannot be had: HF_HUB_OFFLINE is set.") from error
    except errors.HFValidationError as error:
        raise _invalid(f"{name} is no name of a repository: {error}") from error
    except errors.HfHubHTTPError as error:
        raise _hub_answer(name, error.response.status_code) from error
    except (
        errors.HTTPError,  # type: ignore[attr-defined]  # of httpx or httpx2: whichever the hub's client speaks through
        errors.EntryNotFoundError, errors.FileMetadataError, ConnectionError, RuntimeError,  # the last: hf_xet's
    ) as error:
        raise Unavailable(f"Hugging Face does not answer for {name}: {type(error).__name__}.", retry_after=5) from error
    for file in kept:
        (scratch / path / file).replace(folder / file)
    shutil.rmtree(scratch)
    return ignored


def _hub_answer(name: str, status: int) -> SwitchyardError:
    if status in (401, 403, 404):
        return _invalid(f"Hugging Face has no {name} of that revision and folder, or this gateway's HF_TOKEN may not "
                        "read it.")
    return Unavailable(f"Hugging Face answered {status} for {name}.", retry_after=5)


# --- S3 --------------------------------------------------------------------------------------------------------------


async def _from_s3(bucket: str, prefix: str, folder: Path, max_bytes: int) -> list[str]:
    """Endpoint (http too), region and credentials come from the usual AWS_* variables."""
    name = f"s3://{bucket}/{prefix}"
    try:
        store = S3Store(
            bucket, prefix=prefix or None,
            client_options={"allow_http": True, "connect_timeout": timedelta(seconds=10)},
            retry_config={"max_retries": 3, "retry_timeout": timedelta(seconds=30)},
        )
        kept, ignored = _choose(await _listed(store, name), max_bytes)
        cap = _Cap(max_bytes)
        for file in kept:
            await _download(store, file, folder / file, cap)
    except StoreError as error:
        raise _store_answer(name, error) from error
    return ignored


async def _listed(store: S3Store, name: str) -> list[_Remote]:
    files: list[_Remote] = []
    async for batch in store.list():
        files += [_Remote(entry["path"], entry["size"]) for entry in batch]
        if len(files) > MAX_LISTED:
            raise _invalid(f"There are more than {MAX_LISTED} objects under {name}: name the adapter's own folder.")
    if not files:
        raise _invalid(f"There is nothing under {name}.")
    return files


async def _download(store: S3Store, name: str, path: Path, cap: _Cap) -> None:
    reply = await obstore.get_async(store, name)
    with path.open("xb") as file:
        async for chunk in reply.stream(min_chunk_size=_CHUNK_BYTES):
            cap.spend(len(chunk))
            await in_thread(file.write, chunk)


def _store_answer(name: str, error: StoreError) -> SwitchyardError:
    """What went wrong, by its class or, for a listing, whose errors have none, by the HTTP status in its words."""
    words = str(error).partition("\n")[0][:300]
    found = _STATUS.search(words)
    status = int(found[1]) if found else None
    if isinstance(error, NotFoundError) or status == 404:
        return _invalid(f"There is no {name}.")
    if isinstance(error, PermissionDeniedError | UnauthenticatedError) or status in (401, 403):
        return _invalid(f"This gateway's AWS credentials may not read {name}.")
    return Unavailable(f"{name} cannot be read: {words}", retry_after=5)
