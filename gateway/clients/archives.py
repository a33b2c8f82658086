"""Takes a tar, tar.gz or zip that nobody vouches for apart into a folder, or refuses it whole.

Nothing is extracted by its own name: an entry is written only if it is one of the files asked for, under that plain
name. All entries are looked at before the first byte is written; what they unpack to is counted as it is written.
"""

import gzip
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, BinaryIO, NoReturn, cast

from gateway.domain.errors import ArtifactRefused

MAX_ENTRIES = 1000
MAX_RATIO = 100
_RATIO_FREE_BYTES = 16 << 20
_CHUNK_BYTES = 64 << 10
_BROKEN = (tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, EOFError, struct.error, ValueError,
           NotImplementedError, OverflowError, RecursionError, LookupError)


@dataclass(frozen=True, slots=True)
class _Entry:
    """A file of an archive: its path in parts, and how to open it."""

    path: tuple[str, ...]
    open: Callable[[], IO[bytes]]


def unpack(
    archive: Path, folder: Path, scratch: Path, *, wanted: Callable[[str], bool], anchor: str, max_bytes: int,
) -> list[str]:
    """Write the wanted files of `archive` into `folder`; returns the names of all others, sorted.

    Files are taken from the one folder, the archive's own top or a folder in it, that holds a file called `anchor`. At
    most `max_bytes` are unpacked, and at most `MAX_RATIO` times the archive's size once that is worth a thought.
    ArtifactRefused for anything else; `folder` and `scratch` may then hold a part. Blocks: call it in a thread.
    """
    limit = min(max_bytes, max(_RATIO_FREE_BYTES, MAX_RATIO * archive.stat().st_size))
    try:
        plain = _without_gzip(archive, scratch / "archive.tar", _Budget(limit))
        with plain.open("rb") as file, _opened(file) as entries:
            return _take(entries, folder, wanted, anchor, _Budget(limit))
    except _BROKEN as error:
        raise ArtifactRefused([f"The archive cannot be read ({type(error).__name__}: {str(error)[:200]}): "
                               "pack and upload it again."]) from error


class _Budget:
    """How many bytes may be unpacked."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._left = limit

    def copy(self, source: IO[bytes], target: BinaryIO) -> None:
        """Copy all of `source`, or refuse the archive when the budget is spent."""
        while chunk := source.read(_CHUNK_BYTES):
            self._left -= len(chunk)
            if self._left < 0:
                _refuse(f"unpacks to more than {self._limit} bytes: send a smaller one, or raise max_artifact_bytes")
            target.write(chunk)


def _refuse(what: str) -> NoReturn:
    raise ArtifactRefused([f"The archive {what}."])


def _without_gzip(archive: Path, unzipped: Path, budget: _Budget) -> Path:
    """The archive itself, or `unzipped` made from it when it is gzip."""
    with archive.open("rb") as file:
        if file.read(2) != b"\x1f\x8b":
            return archive
    with gzip.open(archive) as source, unzipped.open("xb") as target:
        budget.copy(cast(IO[bytes], source), target)
    return unzipped


def _opened(file: BinaryIO) -> AbstractContextManager[list[_Entry]]:
    """The archive's files, each of a safe and different name; its kind is told by its first bytes."""
    head = file.read(512)
    file.seek(0)
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _zip_entries(_Guarded(file, 1 << 20))
    if head[257:262] == b"ustar":
        return _tar_entries(_Guarded(file, _CHUNK_BYTES))
    _refuse("is none: send a tar, a tar.gz or a zip")


def _take(
    entries: list[_Entry], folder: Path, wanted: Callable[[str], bool], anchor: str, budget: _Budget,
) -> list[str]:
    tops = {entry.path[:-1] for entry in entries if entry.path[-1] == anchor and len(entry.path) <= 2}
    top = min(tops, key=len, default=None)
    if top is None:
        _refuse(f"holds no {anchor}, neither at its top nor in one folder there")
    if top and len(tops) > 1:
        _refuse(f"holds more than one folder with {anchor}: pack one adapter")
    ignored = []
    for entry in entries:
        if entry.path[:-1] != top or not wanted(entry.path[-1]):
            ignored.append("/".join(entry.path))
            continue
        with entry.open() as source, (folder / entry.path[-1]).open("xb") as target:
            budget.copy(source, target)
    return sorted(ignored)


class _Guarded:
    """A file that gives no more than `max_read` bytes at once.

    The libraries read an archive's own tables whole, however long these claim to be: this bounds their memory.
    """

    def __init__(self, file: BinaryIO, max_read: int) -> None:
        self._file = file
        self._max_read = max_read

    def read(self, size: int = -1) -> bytes:
        if size > self._max_read:
            _refuse(f"has a header or table of {size} bytes; no adapter needs that")
        data = self._file.read(self._max_read + 1 if size < 0 else size)
        if len(data) > self._max_read:
            _refuse("has an oversized table; no adapter needs that")
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        if whence == 0 and offset < 0:
            _refuse("points before its own beginning")
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def seekable(self) -> bool:
        return True


class _Names:
    """Checks each entry's name; refuses what escapes, comes twice or is one too many."""

    def __init__(self) -> None:
        self._seen: set[tuple[str, ...]] = set()
        self._count = 0

    def path(self, name: str) -> tuple[str, ...]:
        """The name's parts, () for the archive's own top."""
        self._count += 1
        if self._count > MAX_ENTRIES:
            _refuse(f"has more than {MAX_ENTRIES} entries: pack only the adapter's files")
        if not name.isprintable() or "\\" in name or name.startswith("/") or name[1:2] == ":" or len(name) > 1000:
            _refuse(f"has an entry with the forbidden name {name[:200]!r}: use plain relative names")
        parts = tuple(part for part in name.split("/") if part not in ("", "."))
        if ".." in parts:
            _refuse(f"has an entry that points out of it, {name[:200]!r}: use plain relative names")
        return parts

    def file(self, name: str) -> tuple[str, ...]:
        """Likewise for a file, which must have a name that no other file has."""
        parts = self.path(name)
        if not parts or parts in self._seen:
            _refuse(f"has two files called {name[:200]!r}, or one without a name")
        self._seen.add(parts)
        return parts


@contextmanager
def _tar_entries(file: _Guarded) -> Iterator[list[_Entry]]:
    names, entries = _Names(), []
    with tarfile.open(fileobj=cast(IO[bytes], file), mode="r:") as opened:
        for member in opened:
            if member.isdir():
                names.path(member.name)
            elif member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.issparse() or member.size < 0:
                _refuse(f"has an entry that is no plain file, {member.name[:200]!r}: links and devices are not allowed")
            else:
                entries.append(_Entry(names.file(member.name), partial(_open_member, opened, member)))
        yield entries


def _open_member(opened: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    return cast(IO[bytes], opened.extractfile(member))  # None only for what is no plain file


@contextmanager
def _zip_entries(file: _Guarded) -> Iterator[list[_Entry]]:
    names, entries = _Names(), []
    with zipfile.ZipFile(cast(IO[bytes], file)) as opened:
        for member in opened.infolist():
            kind = stat.S_IFMT(member.external_attr >> 16)
            if member.is_dir():
                names.path(member.orig_filename)
            elif kind not in (0, stat.S_IFREG):
                _refuse(f"has an entry that is no plain file, {member.filename[:200]!r}: links are not allowed")
            elif member.flag_bits & 1:
                _refuse(f"is encrypted ({member.filename[:200]!r}): pack it without a password")
            elif member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                _refuse(f"uses an uncommon compression for {member.filename[:200]!r}: pack it with deflate")
            else:
                entries.append(_Entry(names.file(member.orig_filename), partial(opened.open, member)))
        yield entries
