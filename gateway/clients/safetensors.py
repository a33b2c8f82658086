"""Reads a safetensors file without torch and without trust: its header, and the largest number of each tensor.

A safetensors file is eight bytes of header length (little endian), a header in JSON, and the tensors' bytes one after
the other with no gap: https://huggingface.co/docs/safetensors. The file is read in pieces, never mapped: a file that
shrinks under a map kills the process.
"""

import json
import os
import struct
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from gateway.domain.errors import ArtifactRefused
from gateway.domain.preflight import Tensor

MAX_HEADER_BYTES = 16 << 20
_CHUNK_BYTES = 4 << 20
_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "C64": 64, "I64": 64, "U64": 64, "F64": 64,
}


class _Span(NamedTuple):
    """Where a tensor lies in the file, in bytes from its beginning."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class _Malformed(Exception):
    """What is wrong with the file, as the end of a sentence."""


def read_tensors(path: Path) -> tuple[Tensor, ...]:
    """Every tensor with its peak, in the order of their bytes; ArtifactRefused when it is no well-formed file.

    Blocks for as long as reading takes (about a second per gigabyte): call it in a thread. Memory: some megabytes.
    """
    try:
        with path.open("rb") as file:
            spans = _read_header(file)
            return tuple(Tensor(s.name, s.dtype, s.shape, _peak(file, s)) for s in spans)
    except _Malformed as error:
        raise ArtifactRefused([f"{path.name} is not a well-formed safetensors file: {error}. "
                               "Save or upload it again."]) from error


def _read_header(file: BinaryIO) -> list[_Span]:
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or not 2 <= length <= size - 8:
        raise _Malformed("its header is missing or longer than the file")
    if length > MAX_HEADER_BYTES:
        raise _Malformed(f"its header has {length} bytes, more than {MAX_HEADER_BYTES}")
    header = _parse(file.read(length))
    spans = sorted((_span(name, entry, 8 + length) for name, entry in header.items()),
                   key=lambda span: (span.begin, span.end))
    expected = 8 + length
    for span in spans:
        if span.begin != expected:
            raise _Malformed(f"there is a gap or an overlap before {span.name[:200]!r}")
        expected = span.end
    if expected != size:
        raise _Malformed(f"its tensors end at byte {expected}, but the file has {size} bytes")
    return spans


def _parse(raw: bytes) -> dict[str, Any]:
    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise _Malformed("its header is not JSON") from error
    if not isinstance(header, dict) or not raw.startswith(b"{"):
        raise _Malformed("its header is not a JSON object")
    notes = header.pop("__metadata__", {})
    if not isinstance(notes, dict) or not all(isinstance(note, str) for note in notes.values()):
        raise _Malformed("its __metadata__ is not text by name")
    return header


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise _Malformed("its header names something twice")
    return made


def _span(name: str, entry: Any, data_begin: int) -> _Span:
    """The tensor's place, if its entry is complete and its size is that of its shape."""
    fault = _Malformed(f"the entry of {name[:200]!r} in its header makes no sense")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise fault
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BITS or not _are_sizes(shape) or not _are_sizes(offsets):
        raise fault
    if len(offsets) != 2 or (offsets[1] - offsets[0]) * 8 != prod(shape) * _BITS[dtype]:
        raise fault
    return _Span(name, dtype, tuple(shape), data_begin + offsets[0], data_begin + offsets[1])


def _are_sizes(value: Any) -> bool:
    return (isinstance(value, list) and len(value) <= 8
            and all(type(size) is int and 0 <= size < 1 << 63 for size in value))


# --- numbers ---------------------------------------------------------------------------------------------------------

class _Float(NamedTuple):
    """How a kind of float is read: as words of bits, and one word as a number after `shift` bits to the left."""

    word: np.dtype[Any]
    shift: int
    format: str


_FLOATS = {
    "F16": _Float(np.dtype("<u2"), 0, "<e"),
    "BF16": _Float(np.dtype("<u2"), 16, "<f"),  # the upper half of a float32
    "F32": _Float(np.dtype("<u4"), 0, "<f"),
    "F64": _Float(np.dtype("<u8"), 0, "<d"),
}


def _peak(file: BinaryIO, span: _Span) -> float | None:
    """The largest magnitude in the tensor (0 when it is empty), None when it holds no floats that are read here.

    Without their sign the bits of IEEE numbers order as the numbers do, infinity above all and NaN above infinity: the
    largest bit pattern tells at once whether all is finite, whether all is zero, and how large it gets.
    """
    kind = _FLOATS.get(span.dtype)
    if kind is None:
        return None
    unsigned = kind.word.type((1 << (8 * kind.word.itemsize - 1)) - 1)
    largest = max((int((np.frombuffer(chunk, kind.word) & unsigned).max()) for chunk in _chunks(file, span)), default=0)
    raw = (largest << kind.shift).to_bytes(struct.calcsize(kind.format), "little")
    number: float = struct.unpack(kind.format, raw)[0]
    return number


def _chunks(file: BinaryIO, span: _Span) -> Iterator[bytes]:
    file.seek(span.begin)
    left = span.end - span.begin
    while left:
        chunk = file.read(min(left, _CHUNK_BYTES))
        if len(chunk) < min(left, _CHUNK_BYTES):
            raise _Malformed("it became shorter while it was read")
        left -= len(chunk)
        yield chunk
