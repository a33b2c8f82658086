"""Unpacking what nobody vouches for: only plain files of known names come out, or nothing is accepted."""

import contextlib
import gzip
import io
import stat
import struct
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.clients.archives import MAX_ENTRIES, unpack
from gateway.domain.errors import ArtifactRefused

KEPT = frozenset({"config.json", "weights"})
FILES = {"config.json": b"{}", "weights": b"w" * 1000}
Pack = Callable[[Mapping[str, bytes]], bytes]


def tar(files: Mapping[str, bytes], *more: tarfile.TarInfo) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as opened:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            opened.addfile(member, io.BytesIO(content))
        for member in more:
            opened.addfile(member)
    return buffer.getvalue()


def tar_gz(files: Mapping[str, bytes]) -> bytes:
    return gzip.compress(tar(files), 1)


def zipped(files: Mapping[str, bytes], *more: tuple[zipfile.ZipInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, content in files.items():
            opened.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
        for member, content in more:
            opened.writestr(member, content)
    return buffer.getvalue()


PACKERS: list[Pack] = [tar, tar_gz, zipped]
every_kind = pytest.mark.parametrize("pack", PACKERS)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "files"
    made.mkdir()
    return made


def take(raw: bytes, folder: Path, max_bytes: int = 1 << 30) -> list[str]:
    archive = folder.parent / "archive"
    archive.write_bytes(raw)
    (folder.parent / "archive.tar").unlink(missing_ok=True)
    return unpack(archive, folder, folder.parent, wanted=KEPT.__contains__, anchor="config.json", max_bytes=max_bytes)


def came(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def refused(raw: bytes, folder: Path, words: str, max_bytes: int = 1 << 30) -> None:
    with pytest.raises(ArtifactRefused, match=words):
        take(raw, folder, max_bytes)


@every_kind
@pytest.mark.parametrize("top", ["", "./", "adapter/", "./adapter/"])
def test_wanted_files_come_out_from_the_top_or_one_folder(pack: Pack, top: str, folder: Path) -> None:
    assert take(pack({top + name: content for name, content in FILES.items()}), folder) == []
    assert came(folder) == FILES


@every_kind
def test_what_is_not_wanted_is_listed_and_never_written(pack: Pack, folder: Path) -> None:
    others = {"a/run.py": b"1", "a/deep/config.json": b"2", "__MACOSX/a/._weights": b"3", "weights": b"4"}
    ignored = take(pack({**{f"a/{name}": content for name, content in FILES.items()}, **others}), folder)
    assert ignored == sorted(others)
    assert came(folder) == FILES


def test_folders_are_no_files(folder: Path) -> None:
    directory = tarfile.TarInfo("a")
    directory.type = tarfile.DIRTYPE
    assert take(tar({"a/config.json": b"{}"}, directory), folder) == []
    (folder / "config.json").unlink()
    assert take(zipped({"b/": b"", "config.json": b"{}"}), folder) == []


@every_kind
@pytest.mark.parametrize("name", [
    "../config.json", "a/../../weights", "/etc/passwd", "//weights", "a/..", "..", "C:\\weights", "..\\weights", "c:w",
    "line\nbreak", "\u202ereversed", "x" * 1001,
])
def test_a_name_that_points_elsewhere_refuses_the_whole_archive(pack: Pack, name: str, folder: Path) -> None:
    refused(pack({**FILES, name: b"x"}), folder, "The archive has an entry")
    assert came(folder) == {}


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE,
                                  tarfile.GNUTYPE_SPARSE, tarfile.CONTTYPE])
def test_links_and_devices_in_a_tar_are_refused(kind: bytes, folder: Path) -> None:
    member = tarfile.TarInfo("weights")
    member.type, member.linkname = kind, "/etc/passwd"
    refused(tar({"config.json": b"{}"}, member), folder, "no plain file")
    assert came(folder) == {}


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO])
def test_links_and_devices_in_a_zip_are_refused(kind: int, folder: Path) -> None:
    member = zipfile.ZipInfo("weights")
    member.external_attr = (kind | 0o777) << 16
    refused(zipped({"config.json": b"{}"}, (member, b"/etc/passwd")), folder, "no plain file")


def test_two_files_of_one_name_are_refused(folder: Path) -> None:
    twice = tarfile.TarInfo("./weights")
    refused(tar(FILES, twice), folder, "two files called")
    refused(zipped(FILES, (zipfile.ZipInfo("./weights"), b"other")), folder, "two files called")


def test_an_encrypted_zip_is_refused(folder: Path) -> None:
    raw = bytearray(zipped(FILES))
    at = raw.index(b"PK\x01\x02")
    struct.pack_into("<H", raw, at + 8, 1)
    refused(bytes(raw), folder, "encrypted")


def test_an_uncommon_compression_is_refused(folder: Path) -> None:
    member = zipfile.ZipInfo("weights")
    member.compress_type = zipfile.ZIP_LZMA
    refused(zipped({"config.json": b"{}"}, (member, b"x")), folder, "uncommon compression")


@every_kind
def test_too_many_entries_are_refused(pack: Pack, folder: Path) -> None:
    refused(pack({**FILES, **{f"f{number}": b"" for number in range(MAX_ENTRIES)}}), folder, "more than 1000 entries")


@every_kind
def test_no_more_than_the_cap_is_unpacked(pack: Pack, folder: Path) -> None:
    refused(pack({**FILES, "weights": bytes(range(256)) * 1000}), folder, "unpacks to more than 50000 bytes", 50_000)
    assert sum(map(len, came(folder).values())) <= 50_000


@pytest.mark.parametrize("pack", [tar_gz, zipped])
def test_a_bomb_is_refused_by_its_ratio(pack: Pack, folder: Path) -> None:
    refused(pack({**FILES, "weights": bytes(40 << 20)}), folder, "unpacks to more than")
    assert sum(map(len, came(folder).values())) <= 17 << 20


def test_a_bomb_that_would_be_ignored_is_refused_too(folder: Path) -> None:
    refused(tar_gz({"bomb": bytes(40 << 20), **FILES}), folder, "unpacks to more than")


def test_a_tar_header_that_claims_gigabytes_is_refused_before_they_are_read(folder: Path) -> None:
    member = tarfile.TarInfo("x")
    member.type, member.size = tarfile.XHDTYPE, 1 << 32
    raw = member.tobuf(tarfile.USTAR_FORMAT) + tar(FILES)
    refused(raw, folder, "header or table of")


def test_a_zip_directory_that_claims_gigabytes_is_refused(folder: Path) -> None:
    raw = bytearray(zipped({**FILES, **{f"{'n' * 200}{number}": b"" for number in range(5000)}}))
    refused(bytes(raw), folder, "header or table of")


@pytest.mark.parametrize("raw", [b"", b"hello", b"\x28\xb5\x2f\xfd" + bytes(600), b"BZh9" + bytes(600),
                                 gzip.compress(b"hello"), bytes(1024)])
def test_what_is_no_archive_is_refused(raw: bytes, folder: Path) -> None:
    refused(raw, folder, "send a tar, a tar.gz or a zip")


@every_kind
def test_an_archive_without_a_config_is_refused(pack: Pack, folder: Path) -> None:
    refused(pack({"a/b/config.json": b"{}", "weights": b""}), folder, "holds no config.json")


@every_kind
def test_an_archive_of_two_adapters_is_refused(pack: Pack, folder: Path) -> None:
    refused(pack({"a/config.json": b"{}", "b/config.json": b"{}"}), folder, "more than one folder")


# --- properties ------------------------------------------------------------------------------------------------------

_in_one_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
_parts = st.sampled_from(["..", ".", "", "a", "weights", "config.json", "C:", "\\", "~", "\0", "…"])
_escaping = st.lists(_parts, max_size=5).map("/".join)


@_in_one_folder
@given(name=_escaping | st.text(min_size=1, max_size=20), kind=st.sampled_from(PACKERS))
def test_no_name_writes_outside_the_folder(tmp_path: Path, name: str, kind: Pack) -> None:
    folder = tmp_path / "jail" / "files"
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.iterdir():
        left.unlink()
    outside = {path for path in tmp_path.rglob("*") if folder not in path.parents}
    try:
        raw = kind({"config.json": b"{}", name: b"x"})
    except (ValueError, UnicodeError):  # a name that the packer itself will not take
        return
    try:
        take(raw, folder)
    except ArtifactRefused:
        pass
    else:
        packed = name.partition("\0")[0]  # the packers cut it there
        assert ".." not in packed.split("/") and not packed.startswith("/")
    spool = {folder.parent / "archive", folder.parent / "archive.tar"}
    assert {path for path in tmp_path.rglob("*") if folder not in path.parents} <= outside | spool
    for path in folder.iterdir():
        assert path.name in KEPT


@settings(_in_one_folder, max_examples=300)
@given(data=st.data(), kind=st.sampled_from(PACKERS))
def test_a_damaged_archive_is_refused_or_harmless(tmp_path: Path, data: st.DataObject, kind: Pack) -> None:
    folder = tmp_path / "files"
    folder.mkdir(exist_ok=True)
    raw = bytearray(kind({"a/config.json": b"{}", "a/weights": b"w" * 700}))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.none() | st.integers(0, len(raw)))
    with contextlib.suppress(ArtifactRefused):
        take(bytes(raw[:cut]), folder)
    for path in folder.iterdir():
        assert path.name in KEPT
        path.unlink()
