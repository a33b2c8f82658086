"""Files of rows → records, one in memory at a time: JSONL, JSON, CSV, Parquet, Arrow, also compressed."""

import bz2
import csv
import gzip
import io
import json
import lzma
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn

from adapters.data.rows import DataError, Reject

MAX_LINE_BYTES = 16 << 20
"""A longer line is a bad row: one line must not fill the memory."""
BATCH = 256
"""Rows of Parquet decoded at once."""


@dataclass(frozen=True, slots=True)
class Record:
    """One object of the source. `line` counts from 1, or rows where the format has no lines; `file` as in Reject."""

    line: int
    value: Mapping[str, Any]
    file: str = ""


Records = Iterator[Record | Reject]


def read_records(source: Path, subset: str | None = None) -> Records:
    """The source's records as they come, with the bad ones in their places.

    `source` is a file, a folder of files (read in the order of their names), or what Hugging Face's `save_to_disk`
    wrote, of which `subset` names a split. DataError when it cannot be read.
    """
    for path in files_of(source, subset):
        name = path.name if source.is_dir() else ""
        with _Named(path, _kinds(path)):
            for record in _FORMATS[_format(path)](path):
                yield _in_file(record, name) if name else record


def files_of(source: Path, subset: str | None = None) -> list[Path]:
    """The files that hold the source's rows, in order; DataError when there are none."""
    if not source.is_dir():
        if not source.exists():
            raise DataError(f"The data {source} cannot be read: No such file or directory.")
        if subset is not None:
            raise DataError(f"'subset' is {subset!r}, but {source} is a file; leave it out.")
        return [source]
    if (source / "dataset_dict.json").is_file() or (source / "state.json").is_file():
        return _saved_files(source, subset)
    if subset is not None:
        raise DataError(f"'subset' is {subset!r}, but {source} was not written by save_to_disk; leave it out.")
    found = sorted(path for path in source.iterdir() if path.is_file() and _suffixes(path)[0] in _FORMATS)
    if not found:
        raise DataError(f"The folder {source} has no {' '.join(_FORMATS)} file; name a file or another folder.")
    return found


def _saved_files(folder: Path, subset: str | None) -> list[Path]:
    """The Arrow files of a dataset that `save_to_disk` wrote, as its state names them."""
    with _Named(folder, ()):
        if (folder / "dataset_dict.json").is_file():
            splits = json.loads((folder / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
            chosen = subset or (splits[0] if len(splits) == 1 else None)
            if chosen not in splits:
                raise DataError(f"{folder} has the splits {', '.join(splits)}; name one of them as 'subset'.")
            folder = folder / str(chosen)
        elif subset is not None:
            raise DataError(f"'subset' is {subset!r}, but {folder} holds one dataset without splits; leave it out.")
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        return [folder / entry["filename"] for entry in state["_data_files"]]


class _Named:
    """Faults of reading, as DataError that names the file."""

    def __init__(self, path: Path, kinds: tuple[type[Exception], ...]) -> None:
        self._path = path
        self._kinds: tuple[type[Exception], ...] = (
            OSError, EOFError, ValueError, KeyError, csv.Error, zlib.error, lzma.LZMAError, *kinds)

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, DataError):
            return
        if isinstance(error, OSError) and error.strerror:
            raise DataError(f"The data {self._path} cannot be read: {error.strerror}.") from error
        if isinstance(error, self._kinds):
            raise DataError(f"The data {self._path} cannot be read to its end: {error}. Mend or convert it.") from error


def _kinds(path: Path) -> tuple[type[Exception], ...]:
    """What the libraries that read this file raise, besides the usual."""
    if _suffixes(path)[0] == ".json":
        from ijson import JSONError

        return (JSONError,)
    if _suffixes(path)[0] in (".parquet", ".arrow"):
        from pyarrow import ArrowException

        return (ArrowException,)
    return ()


def _suffixes(path: Path) -> tuple[str, str]:
    """(".jsonl", ".gz"): the format's and the compression's; the latter may be ""."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    packed = suffixes.pop() if suffixes and suffixes[-1] in _OPENERS else ""
    return suffixes[-1] if suffixes else "", packed


def _format(path: Path) -> str:
    found = _suffixes(path)[0]
    if found not in _FORMATS:
        raise DataError(f"The data {path} is of no known format; its name must end in {' '.join(_FORMATS)}, and then "
                        f"perhaps {' '.join(_OPENERS)}.")
    return found


def _in_file(record: Record | Reject, name: str) -> Record | Reject:
    if isinstance(record, Reject):
        return Reject(record.line, record.field, record.reason, name)
    return Record(record.line, record.value, name)


def _open_zst(path: Path) -> IO[bytes]:
    """By pyarrow, which tells a stream that breaks off from one that ends; python-zstandard does not."""
    import pyarrow

    return io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"))


_BEFORE = b" \t\r\n\xef\xbb\xbf"
"""What may come before the first value: spaces and a byte order mark."""

_OPENERS: Mapping[str, Callable[[Path], Any]] = {
    ".gz": gzip.GzipFile, ".bz2": bz2.BZ2File, ".xz": lzma.LZMAFile, ".zst": _open_zst,
}


def _open(path: Path) -> IO[bytes]:
    """The file's bytes, unpacked."""
    opener = _OPENERS.get(_suffixes(path)[1])
    stream: IO[bytes] = opener(path) if opener else path.open("rb")
    return stream


def _jsonl(path: Path) -> Records:
    """One object a line; empty lines are passed over."""
    with _open(path) as stream:
        line = 0
        while text := stream.readline(MAX_LINE_BYTES):
            line += 1
            if len(text) == MAX_LINE_BYTES and not text.endswith(b"\n"):
                while text and not text.endswith(b"\n"):
                    text = stream.readline(MAX_LINE_BYTES)
                yield Reject(line, "row", f"is longer than {MAX_LINE_BYTES >> 20} MiB")
                continue
            if text.strip():
                yield _parsed(line, text)


def _parsed(line: int, text: bytes) -> Record | Reject:
    try:
        return _record(line, json.loads(text, parse_constant=_refuse))
    except ValueError as error:  # not JSON, or not UTF-8
        return Reject(line, "row", f"is not JSON: {error}")
    except RecursionError:
        return Reject(line, "row", "is nested too deeply")


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON value")


def _record(line: int, value: Any) -> Record | Reject:
    if isinstance(value, dict):
        return Record(line, value)
    return Reject(line, "row", f"must be a JSON object, not {type(value).__name__}")


def _json(path: Path) -> Records:
    """An array of objects, read piece by piece; a .json file that opens with an object is taken as JSONL."""
    import ijson

    with _open(path) as stream:
        while (first := stream.read(1)) in _BEFORE and first:
            pass
    if first != b"[":
        yield from _jsonl(path)
        return
    with _open(path) as stream:
        for line, value in enumerate(ijson.items(stream, "item", use_float=True), start=1):
            yield _record(line, value)


def _csv(path: Path, delimiter: str = ",") -> Records:
    """A header, then a row a record; `messages`, `conversations` and `tools` hold JSON. An empty field is absent."""
    csv.field_size_limit(MAX_LINE_BYTES)
    with _open(path) as stream, io.TextIOWrapper(stream, "utf-8-sig", newline="") as text:
        reader = csv.reader(text, delimiter=delimiter, strict=True)
        names = next(reader, [])
        line = reader.line_num + 1
        for values in reader:
            if values:
                yield _from_cells(line, names, values)
            line = reader.line_num + 1


def _from_cells(line: int, names: list[str], values: list[str]) -> Record | Reject:
    if len(values) != len(names):
        return Reject(line, "row", f"has {len(values)} fields, and the header {len(names)}")
    value: dict[str, Any] = {name: cell for name, cell in zip(names, values, strict=True) if cell}
    for name in ("messages", "conversations", "tools"):
        if name in value:
            try:
                value[name] = json.loads(value[name], parse_constant=_refuse)
            except ValueError as error:
                return Reject(line, name, f"is not JSON: {error}")
    return Record(line, value)


def _parquet(path: Path) -> Records:
    """Each row of each group. A compressed file is unpacked to a temporary one: Parquet is read from its end."""
    import pyarrow.parquet

    with tempfile.TemporaryFile() as unpacked:
        if _suffixes(path)[1]:
            with _open(path) as stream:
                shutil.copyfileobj(stream, unpacked)
        source: Any = unpacked if _suffixes(path)[1] else path
        with pyarrow.parquet.ParquetFile(source, pre_buffer=False, buffer_size=1 << 20) as file:
            yield from _from_batches(file.iter_batches(batch_size=BATCH))


def _arrow(path: Path) -> Records:
    """The stream format, as `save_to_disk` writes it. Read, not mapped: pages of a mapping would count as memory."""
    import pyarrow

    with pyarrow.OSFile(str(path), "rb") as file, pyarrow.ipc.open_stream(file) as stream:
        yield from _from_batches(stream)


def _from_batches(batches: Any) -> Records:
    line = 0
    for batch in batches:
        kinds = dict(zip(batch.schema.names, batch.schema.types, strict=True))
        for start in range(0, batch.num_rows, BATCH):
            for value in batch.slice(start, BATCH).to_pylist():
                line += 1
                yield Record(line, {
                    name: _plain(inner, kinds[name]) for name, inner in value.items() if inner is not None})


def _plain(value: Any, kind: Any) -> Any:
    """The value of an Arrow type as it was before it came there.

    Arrow gives every object all the fields that any of them has: what is null was not there. Hugging Face keeps objects
    that differ too much as texts of JSON, and says so in the type.
    """
    import pyarrow

    if isinstance(kind, pyarrow.JsonType):
        return json.loads(value)
    if isinstance(value, dict) and pyarrow.types.is_struct(kind):
        return {field.name: _plain(value[field.name], field.type) for field in kind if value[field.name] is not None}
    if isinstance(value, list) and not pyarrow.types.is_map(kind):
        return [None if inner is None else _plain(inner, kind.value_type) for inner in value]
    return value


_FORMATS: Mapping[str, Callable[[Path], Records]] = {
    ".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".tsv": lambda path: _csv(path, "\t"), ".parquet": _parquet,
    ".arrow": _arrow,
}
