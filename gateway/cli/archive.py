"""A folder as a tar stream, made while it is sent, so that an artifact of any size needs no second copy."""

import tarfile
from collections.abc import Iterator
from pathlib import Path

CHUNK = 1 << 20  # bytes
BLOCK = 512  # bytes; what a tar is made of


def tar_stream(folder: Path) -> Iterator[bytes]:
    """The tar of the regular files under `folder`, by name; links to files are sent as the files they point at."""
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        info = tarfile.TarInfo(path.relative_to(folder).as_posix())
        info.size = path.stat().st_size
        yield info.tobuf(tarfile.GNU_FORMAT)
        yield from _content(path, info.size)
    yield bytes(2 * BLOCK)


def _content(path: Path, size: int) -> Iterator[bytes]:
    """Exactly `size` bytes of the file, filled up to whole blocks; OSError when the file has become shorter."""
    left = size
    with path.open("rb") as file:
        while left:
            chunk = file.read(min(CHUNK, left))
            if not chunk:
                raise OSError(f"{path} became shorter while it was sent.")
            left -= len(chunk)
            yield chunk
    yield bytes(-size % BLOCK)
