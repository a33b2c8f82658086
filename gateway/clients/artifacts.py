"""The artifact store: adapters' files under the digest of their bytes, never changed once kept.

    root/sha256/<digest>/adapter_model.safetensors …    kept: read-only files; vLLM loads from here
    root/.staging/<process>/<work>/files/…              being fetched, checked, or taken away

`stage` brings files in and says what they are, `keep` moves them to their place in one step, `discard` removes them. So
what is refused leaves nothing behind, and what is under a digest was complete before it came there.
"""

import hashlib
import json
import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from errno import EEXIST, ENOTEMPTY
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from adapters import manifest
from gateway.clients import archives, parity_file, safetensors, sources
from gateway.clients.sources import CONFIG, KEPT_FILES, MANIFEST, PARITY, WEIGHTS, in_thread
from gateway.clients.staging import Staging
from gateway.domain.errors import ArtifactRefused, BodyTooLarge, InvalidRequest, Unavailable
from gateway.domain.names import DIGEST
from gateway.domain.parity import Reference
from gateway.domain.preflight import AdapterFacts

_MAX_JSON_BYTES = 1 << 20
_MAX_IGNORED = 100
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Staged:
    """An adapter that was brought in but not kept yet. `folder` holds `files`, `size_bytes` in all.

    `ignored_files` were left where they came from (the first 100 are named). `facts` are what its files say, unjudged.
    """

    digest: str
    folder: Path
    size_bytes: int
    files: tuple[str, ...]
    ignored_files: tuple[str, ...]
    facts: AdapterFacts


class ArtifactStore:
    """Keeps artifacts of at most `max_bytes` each under `root`, on one disk; several processes may share it.

    Every method may raise Unavailable when the disk fails.
    """

    def __init__(self, root: Path, *, max_bytes: int) -> None:
        root = root.absolute()  # engines run elsewhere
        self._kept = root / "sha256"
        self._kept.mkdir(parents=True, exist_ok=True)
        self._staging = Staging(root / ".staging")
        self._max_bytes = max_bytes

    async def stage(self, source: str) -> Staged:
        """Bring an adapter in: a folder, an archive file, hf://owner/name[@revision][/folder] or s3://bucket/prefix.

        InvalidRequest: there is no such thing. ArtifactRefused: it is no adapter, or too large. Unavailable: the source
        does not answer.
        """
        if "://" not in source and Path(source).is_file():
            return await self._bring(lambda work: in_thread(self._unpack, Path(source), work))
        return await self._bring(lambda work: sources.fetch(source, work / "files", self._max_bytes))

    async def stage_stream(self, chunks: AsyncIterator[bytes]) -> Staged:
        """Bring an adapter in as a tar, tar.gz or zip; BodyTooLarge or ArtifactRefused."""

        async def receive(work: Path) -> list[str]:
            await self._spool(chunks, work / "archive")
            return await in_thread(self._unpack, work / "archive", work)

        return await self._bring(receive)

    async def keep(self, staged: Staged) -> Path:
        """Move a staged adapter to its place and return that; the same bytes twice, also at once, are kept once."""
        return await self._guarded(in_thread(self._keep, staged))

    async def discard(self, staged: Staged) -> None:
        """Remove a staged adapter; nothing happens if it is gone already."""
        await self._guarded(in_thread(_remove, staged.folder.parent))

    async def verify(self, digest: str) -> Path:
        """The artifact's folder, after hashing every byte again; ArtifactRefused when they are not the digest's.

        No result is remembered: a time stamp does not tell of a failing disk, and hashing takes no longer than loading.
        """
        return await self._guarded(in_thread(self._verify, digest))

    async def parity(self, digest: str) -> Reference | None:
        """What the trainer computed, as the kept artifact has it; None when it has none. ArtifactRefused."""
        return await self._guarded(in_thread(_read_parity, self.path_of(digest)))

    def path_of(self, digest: str) -> Path:
        """Where the artifact is, or would be; InvalidRequest when `digest` is none."""
        if not DIGEST.fullmatch(digest):
            raise InvalidRequest(f"{digest[:80]!r} is no digest: it has 64 hexadecimal digits.", param="digest")
        return self._kept / digest

    async def delete(self, digest: str) -> None:
        """Remove the artifact, at once and whole; nothing happens if it is gone already.

        A replica that has it registered dies of this, so see first that none has.
        """
        await self._guarded(in_thread(self._staging.bury, self.path_of(digest)))

    def digests(self) -> list[str]:
        """Of all kept artifacts, sorted."""
        return sorted(path.name for path in self._kept.iterdir() if DIGEST.fullmatch(path.name))

    def close(self) -> None:
        """Remove what is staged and let go of the staging folder."""
        self._staging.close()

    async def _bring(self, fetch: Callable[[Path], Awaitable[list[str]]]) -> Staged:
        """Fetch into a new folder and look at what came; removed again whatever goes wrong."""
        with _disk_errors():
            work = self._staging.new()
            (work / "files").mkdir()
        try:
            with _disk_errors():
                ignored = await fetch(work)
                return await in_thread(_inspect, work / "files", ignored)
        except BaseException:
            await in_thread(_remove, work)
            raise

    async def _spool(self, chunks: AsyncIterator[bytes], path: Path) -> None:
        left = self._max_bytes
        with path.open("xb") as file:
            async for chunk in chunks:
                left -= len(chunk)
                if left < 0:
                    raise BodyTooLarge(f"The archive has more than {self._max_bytes} bytes: send a smaller one, or "
                                       "raise max_artifact_bytes.")
                await in_thread(file.write, chunk)

    def _unpack(self, archive: Path, work: Path) -> list[str]:
        return archives.unpack(archive, work / "files", work, wanted=KEPT_FILES.__contains__, anchor=CONFIG,
                               max_bytes=self._max_bytes)

    async def _guarded(self, work: Awaitable[_T]) -> _T:
        with _disk_errors():
            return await work

    def _keep(self, staged: Staged) -> Path:
        place = self.path_of(staged.digest)
        if not staged.folder.exists() and place.exists():
            return place
        _make_lasting(staged.folder)
        while not _moved(staged.folder, place):
            if _is_digest_of(place, staged.digest):
                break
            self._staging.bury(place)  # what is there is not what its name says: put it right
        _sync(self._kept)
        _remove(staged.folder.parent)
        return place

    def _verify(self, digest: str) -> Path:
        place = self.path_of(digest)
        if not place.is_dir():
            raise ArtifactRefused([f"The artifact {digest} is not in the store: register the version again."])
        if not _is_digest_of(place, digest):
            raise ArtifactRefused([f"The files of the artifact {digest} are no longer what they were when it was "
                                   "registered: register the version again."])
        return place


@contextmanager
def _disk_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Unavailable(f"The artifact store's disk fails: {error.strerror or error}.", retry_after=5) from error


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


# --- what came -------------------------------------------------------------------------------------------------------


class _Listing(NamedTuple):
    """A folder's files, their size in all, and their digest."""

    files: tuple[str, ...]
    size_bytes: int
    digest: str


def _listing(folder: Path) -> _Listing:
    """Hash the folder's plain files; ArtifactRefused when it holds anything else.

    The digest is the SHA-256 of this text in UTF-8: a line `switchyard.artifact/1`, then for each file, by name, a line
    `<name> <size in bytes> <SHA-256 of its bytes in hex>`; each line ends with a newline. No name has a space in it.
    """
    lines, total = ["switchyard.artifact/1"], 0
    with os.scandir(folder) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    for entry in found:
        if not entry.is_file(follow_symlinks=False) or entry.name not in KEPT_FILES:
            raise ArtifactRefused([f"The artifact holds {entry.name!r}, which does not belong there."])
        with open(entry.path, "rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            size = file.tell()
        lines.append(f"{entry.name} {size} {sha256}")
        total += size
    text = "".join(line + "\n" for line in lines)
    return _Listing(tuple(entry.name for entry in found), total, hashlib.sha256(text.encode()).hexdigest())


def _is_digest_of(place: Path, digest: str) -> bool:
    try:
        return _listing(place).digest == digest
    except (ArtifactRefused, FileNotFoundError):
        return False


def _inspect(folder: Path, ignored: list[str]) -> Staged:
    files = {path.name for path in folder.iterdir()}
    if CONFIG not in files:
        raise ArtifactRefused([f"There is no {CONFIG}: give the folder that PEFT's save_pretrained wrote."])
    if WEIGHTS not in files:
        pickles = [name for name in ignored if name.endswith(_PICKLES)]
        raise ArtifactRefused([
            f"The weights are a pickle ({pickles[0][:200]}), which can run code when it is read: save them again with "
            "safe_serialization=True." if pickles else f"There is no {WEIGHTS}: save the adapter again."])
    facts = _facts(folder)
    listing = _listing(folder)
    more = len(ignored) - _MAX_IGNORED
    named = (*ignored[:_MAX_IGNORED], *([f"… and {more} more"] if more > 0 else []))
    return Staged(listing.digest, folder, listing.size_bytes, listing.files, named, facts)


def _facts(folder: Path) -> AdapterFacts:
    config = _read_json(folder / CONFIG)
    known = _read_manifest(folder)
    said = config.get("base_model_name_or_path")
    _read_parity(folder)
    return AdapterFacts(
        config=config,
        tensors=safetensors.read_tensors(folder / WEIGHTS),
        base_model=known.base_model if known else said if isinstance(said, str) else None,
        base_config_sha256=known.base_model_config_sha256 if known else None,
        chat_template_sha256=known.chat_template_sha256 if known else None,
    )


def _read_json(path: Path) -> dict[str, Any]:
    _check_size(path)
    try:
        document = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ArtifactRefused([f"{path.name} is not JSON: save the adapter again."]) from error
    if not isinstance(document, dict):
        raise ArtifactRefused([f"{path.name} is not a JSON object: save the adapter again."])
    return document


def _read_manifest(folder: Path) -> manifest.Manifest | None:
    path = folder / MANIFEST
    if not path.exists():
        return None
    _check_size(path)
    try:
        return manifest.read(folder)
    except (ValueError, RecursionError) as error:
        words = str(error).replace(f"{folder}/", "")
        raise ArtifactRefused([f"The manifest cannot be understood: {words[:300]}"]) from error


def _read_parity(folder: Path) -> Reference | None:
    path = folder / PARITY
    if not path.exists():
        return None
    _check_size(path)
    return parity_file.parse(path.read_bytes())


def _check_size(path: Path) -> None:
    if path.stat().st_size > _MAX_JSON_BYTES:
        raise ArtifactRefused([f"{path.name} has more than {_MAX_JSON_BYTES} bytes; no adapter needs that."])


# --- keeping ---------------------------------------------------------------------------------------------------------


def _make_lasting(folder: Path) -> None:
    """Files read-only for all, and on the disk before their name is."""
    for path in folder.iterdir():
        path.chmod(0o444)
        _sync(path)
    folder.chmod(0o755)
    _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _moved(folder: Path, place: Path) -> bool:
    """Did the folder move to its place? False when something is there already."""
    try:
        folder.rename(place)
    except OSError as error:
        if error.errno not in (EEXIST, ENOTEMPTY):
            raise
        return False
    return True
