"""The artifact store: what comes in, what is kept under which digest, and that what is refused leaves nothing."""

import asyncio
import hashlib
import json
import os
import stat
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

from adapters import manifest
from gateway.clients import base_model
from gateway.clients.artifacts import ArtifactStore, Staged
from gateway.clients.parity_file import parse
from gateway.domain.errors import ArtifactRefused, BodyTooLarge, InvalidRequest, SwitchyardError, Unavailable
from gateway.domain.preflight import Findings, Limits, check
from tests.fixtures.artifacts import TINY_BASE_MODEL, archive, write_adapter, write_base_model
from tests.unit.clients.test_parity_file import DOCUMENT

CAP = 1 << 20
Kind = Literal["tar", "tar.gz", "zip"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "artifacts"


@pytest.fixture
def store(root: Path) -> Iterator[ArtifactStore]:
    made = ArtifactStore(root, max_bytes=CAP)
    yield made
    made.close()


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "adapter")


def tree(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*")}


async def pieces(raw: bytes, size: int = 10_000) -> AsyncIterator[bytes]:
    for start in range(0, len(raw), size):
        yield raw[start:start + size]


async def put(store: ArtifactStore, folder: Path) -> Staged:
    staged = await store.stage(str(folder))
    await store.keep(staged)
    return staged


# --- bringing in -----------------------------------------------------------------------------------------------------


async def test_what_is_staged_passes_the_checks_of_its_base_model(
    store: ArtifactStore, adapter: Path, tmp_path: Path,
) -> None:
    base = await base_model.base_model_facts(str(write_base_model(tmp_path / TINY_BASE_MODEL)))
    assert base is not None
    staged = await store.stage(str(adapter))
    assert check(staged.facts, base, Limits()) == Findings((), ())
    assert staged.files == ("adapter_config.json", "adapter_model.safetensors")
    assert staged.size_bytes == sum(path.stat().st_size for path in adapter.iterdir())


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "zip"])
@pytest.mark.parametrize("top", ["", "my-adapter"])
async def test_an_upload_has_the_digest_of_the_folder_it_was_packed_from(
    store: ArtifactStore, adapter: Path, tmp_path: Path, kind: Kind, top: str,
) -> None:
    packed = archive(adapter, kind, top=top)
    (tmp_path / "packed").write_bytes(packed)
    uploaded = await store.stage_stream(pieces(packed))
    assert uploaded.digest == (await store.stage(str(adapter))).digest
    assert uploaded.digest == (await store.stage(str(tmp_path / "packed"))).digest


async def test_the_digest_is_the_documented_hash(store: ArtifactStore, adapter: Path) -> None:
    text = "switchyard.artifact/1\n"
    for path in sorted(adapter.iterdir()):
        raw = path.read_bytes()
        text += f"{path.name} {len(raw)} {hashlib.sha256(raw).hexdigest()}\n"
    assert (await store.stage(str(adapter))).digest == hashlib.sha256(text.encode()).hexdigest()


async def test_any_changed_byte_changes_the_digest(store: ArtifactStore, adapter: Path) -> None:
    before = (await store.stage(str(adapter))).digest
    (adapter / "README.md").write_text("x")
    between = (await store.stage(str(adapter))).digest
    (adapter / "README.md").write_text("y")
    assert len({before, between, (await store.stage(str(adapter))).digest}) == 3


async def test_only_known_files_are_copied_and_the_others_are_listed(store: ArtifactStore, adapter: Path) -> None:
    for name in ("run.py", "adapter_model.bin", "optimizer.pt", "README.md", "tokenizer.json", "chat_template.jinja"):
        (adapter / name).write_bytes(b"{}")
    (adapter / "checkpoint-1").mkdir()
    staged = await store.stage(str(adapter))
    assert staged.ignored_files == ("adapter_model.bin", "checkpoint-1", "optimizer.pt", "run.py")
    assert {path.name for path in staged.folder.iterdir()} == set(staged.files) == {
        "adapter_config.json", "adapter_model.safetensors", "README.md", "tokenizer.json", "chat_template.jinja"}


async def test_the_trainers_reference_is_part_of_the_artifact_and_of_its_digest(
    store: ArtifactStore, adapter: Path,
) -> None:
    before = await put(store, adapter)
    assert await store.parity(before.digest) is None
    (adapter / "parity.json").write_text(json.dumps(DOCUMENT))
    staged = await put(store, adapter)
    assert staged.digest != before.digest and "parity.json" in staged.files and not staged.ignored_files
    (adapter / "parity.json").unlink()
    kept = await store.parity(staged.digest)
    assert kept is not None and kept == parse(json.dumps(DOCUMENT).encode())


async def test_a_reference_that_is_malformed_or_too_large_is_refused_and_leaves_nothing(
    store: ArtifactStore, adapter: Path, root: Path,
) -> None:
    before = tree(root)
    for content, words in ((b"{}", "schema"), (b" " * ((1 << 20) + 1), "more than 1048576 bytes")):
        (adapter / "parity.json").write_bytes(content)
        with pytest.raises(ArtifactRefused, match=words):
            await store.stage(str(adapter))
    assert tree(root) == before


async def test_only_the_first_hundred_ignored_files_are_named(store: ArtifactStore, adapter: Path) -> None:
    for number in range(130):
        (adapter / f"f{number:03}").touch()
    staged = await store.stage(str(adapter))
    assert len(staged.ignored_files) == 101
    assert staged.ignored_files[-1] == "… and 30 more"


async def test_links_of_a_local_folder_are_followed_as_caches_have_them(
    store: ArtifactStore, adapter: Path, tmp_path: Path,
) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    for path in adapter.iterdir():
        (cache / path.name).symlink_to(path)
    staged = await store.stage(str(cache))
    assert staged.digest == (await store.stage(str(adapter))).digest
    assert not any(path.is_symlink() for path in staged.folder.iterdir())


async def test_the_manifest_says_which_base_model_it_was(store: ArtifactStore, adapter: Path) -> None:
    manifest.write(manifest.Manifest(
        base_model="other", rank=8, alpha=16.0, targets=("q_proj",), data_sha256="0" * 64, rows=1, seed=0,
        created_at="2026-01-01T00:00:00Z", base_model_config_sha256="1" * 64), adapter)
    facts = (await store.stage(str(adapter))).facts
    assert (facts.base_model, facts.base_config_sha256) == ("other", "1" * 64)


# --- refusing --------------------------------------------------------------------------------------------------------


def break_weights(folder: Path) -> None:
    (folder / "adapter_model.safetensors").write_bytes(b"\x00" * 100)


def drop_weights(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()


def pickle_weights(folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


def drop_config(folder: Path) -> None:
    (folder / "adapter_config.json").unlink()


def break_config(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"r": 8')


def nest_config(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("[" * 100_000)


def list_config(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("[]")


def blow_up_config(folder: Path) -> None:
    (folder / "adapter_config.json").write_text(json.dumps({"x": "x" * (1 << 20)}))


def break_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text("{}")


def blow_up(folder: Path) -> None:
    (folder / "tokenizer.json").write_bytes(os.urandom(CAP + 1))


BROKEN: list[tuple[Any, str]] = [
    (break_weights, "not a well-formed safetensors file"), (drop_weights, "no adapter_model.safetensors"),
    (pickle_weights, r"pickle \(.*adapter_model.bin\).*safe_serialization=True"), (break_config, "is not JSON"),
    (nest_config, "is not JSON"), (list_config, "is not a JSON object"), (blow_up_config, "more than 1048576 bytes"),
    (break_manifest, "manifest cannot be understood"), (blow_up, "more than 1048576 bytes"),
    (drop_config, "no adapter_config.json"),
]


@pytest.mark.parametrize(("damage", "words"), BROKEN)
async def test_a_refused_folder_leaves_nothing_behind(
    store: ArtifactStore, root: Path, adapter: Path, damage: Any, words: str,
) -> None:
    before = tree(root)
    damage(adapter)
    with pytest.raises(ArtifactRefused, match=words):
        await store.stage(str(adapter))
    assert tree(root) == before


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "zip"])
@pytest.mark.parametrize("damage", [damage for damage, _ in BROKEN])
async def test_a_refused_archive_leaves_nothing_behind(
    store: ArtifactStore, root: Path, adapter: Path, damage: Any, kind: Kind,
) -> None:
    before = tree(root)
    damage(adapter)
    with pytest.raises((ArtifactRefused, BodyTooLarge)):
        await store.stage_stream(pieces(archive(adapter, kind)))
    assert tree(root) == before


async def test_an_upload_over_the_cap_is_cut_off(store: ArtifactStore, root: Path) -> None:
    before, sent = tree(root), 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 1 << 16
            yield b"\x1f\x8b" + bytes((1 << 16) - 2)

    with pytest.raises(BodyTooLarge, match="raise max_artifact_bytes"):
        await store.stage_stream(endless())
    assert sent <= CAP + (1 << 16)
    assert tree(root) == before


async def test_an_upload_that_breaks_off_leaves_nothing_behind(store: ArtifactStore, root: Path, adapter: Path) -> None:
    before = tree(root)

    async def broken() -> AsyncIterator[bytes]:
        yield archive(adapter)[:1000]
        raise ConnectionResetError

    with pytest.raises(Unavailable):
        await store.stage_stream(broken())
    with pytest.raises(ArtifactRefused):
        await store.stage_stream(pieces(archive(adapter)[:1000]))
    assert tree(root) == before


async def test_a_cancelled_stage_leaves_nothing_behind(store: ArtifactStore, root: Path, adapter: Path) -> None:
    before = tree(root)
    begun = asyncio.Event()

    async def stalling() -> AsyncIterator[bytes]:
        yield archive(adapter)[:1000]
        begun.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(store.stage_stream(stalling()))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert tree(root) == before


@pytest.mark.parametrize("source", [
    "", "/nowhere", "ftp://host/x", "hf://owner", "hf://a/b/c@d", "hf://../../x@", "s3://", "s3://UPPER/x",
    "s3://bucket/x?versionId=1", "\0",
])
async def test_a_source_that_is_none_is_refused_with_what_may_be_written(
    store: ArtifactStore, root: Path, source: str,
) -> None:
    before = tree(root)
    with pytest.raises(InvalidRequest) as caught:
        await store.stage(source or "/dev/null/x")
    assert caught.value.param == "source"
    assert tree(root) == before


async def test_a_pipe_among_the_files_does_not_block(store: ArtifactStore, adapter: Path) -> None:
    os.mkfifo(adapter / "README.md")
    with pytest.raises(InvalidRequest, match="is no plain file"):
        await store.stage(str(adapter))


async def test_a_folder_among_the_files_is_refused(store: ArtifactStore, adapter: Path) -> None:
    (adapter / "README.md").mkdir()
    with pytest.raises(InvalidRequest, match="is no plain file"):
        await store.stage(str(adapter))


# --- keeping ---------------------------------------------------------------------------------------------------------


async def test_what_is_kept_is_under_its_digest_and_read_only(store: ArtifactStore, root: Path, adapter: Path) -> None:
    staged = await store.stage(str(adapter))
    place = await store.keep(staged)
    assert place == root / "sha256" / staged.digest == store.path_of(staged.digest)
    assert {path.name: path.read_bytes() for path in place.iterdir()} == {
        path.name: path.read_bytes() for path in adapter.iterdir()}
    assert {stat.S_IMODE(path.stat().st_mode) for path in place.iterdir()} == {0o444}
    assert stat.S_IMODE(place.stat().st_mode) == 0o755
    assert store.digests() == [staged.digest]
    assert await store.verify(staged.digest) == place


async def test_the_same_bytes_are_kept_once(store: ArtifactStore, root: Path, adapter: Path) -> None:
    first, second = await store.stage(str(adapter)), await store.stage(str(adapter))
    place = await store.keep(first)
    identity = (place / "adapter_config.json").stat().st_ino
    assert await store.keep(second) == place
    assert await store.keep(first) == place
    assert (place / "adapter_config.json").stat().st_ino == identity
    assert not first.folder.parent.exists() and not second.folder.parent.exists()


async def test_two_processes_may_keep_the_same_bytes_at_once(store: ArtifactStore, root: Path, adapter: Path) -> None:
    other = ArtifactStore(root, max_bytes=CAP)
    staged = [await each.stage(str(adapter)) for each in (store, other) * 5]
    places = await asyncio.gather(*(each.keep(s) for each, s in zip((store, other) * 5, staged, strict=True)))
    assert set(places) == {store.path_of(staged[0].digest)}
    assert await store.verify(staged[0].digest) == places[0]
    other.close()


async def test_discarding_leaves_nothing_behind_and_may_be_done_twice(
    store: ArtifactStore, root: Path, adapter: Path,
) -> None:
    before = tree(root)
    staged = await store.stage(str(adapter))
    assert tree(root) != before
    await store.discard(staged)
    await store.discard(staged)
    assert tree(root) == before


def flip(place: Path) -> None:
    path = place / "adapter_model.safetensors"
    before = path.stat()
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.chmod(0o644)
    path.write_bytes(raw)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # as a failing disk does it: no time stamp tells


def add(place: Path) -> None:
    (place / "adapter_model.bin").touch()


def lose(place: Path) -> None:
    (place / "adapter_config.json").unlink()


def link(place: Path) -> None:
    (place / "adapter_config.json").rename(place.parent / "config")
    (place / "adapter_config.json").symlink_to(place.parent / "config")


@pytest.mark.parametrize("change", [flip, add, lose, link])
async def test_changed_files_fail_verification_until_they_are_kept_again(
    store: ArtifactStore, adapter: Path, change: Any,
) -> None:
    digest = (await put(store, adapter)).digest
    await store.verify(digest)
    change(store.path_of(digest))
    with pytest.raises(ArtifactRefused, match="register the version again"):
        await store.verify(digest)
    await put(store, adapter)
    await store.verify(digest)


async def test_deleting_is_complete_and_may_be_done_twice(store: ArtifactStore, root: Path, adapter: Path) -> None:
    before = tree(root)
    digest = (await put(store, adapter)).digest
    await store.delete(digest)
    await store.delete(digest)
    assert tree(root) == before
    assert store.digests() == []
    with pytest.raises(ArtifactRefused, match="is not in the store"):
        await store.verify(digest)


@pytest.mark.parametrize("digest", ["", "..", "../../etc", "0" * 63, "G" * 64, "A" * 64, "0" * 64 + "/.."])
async def test_what_is_no_digest_touches_no_path(store: ArtifactStore, digest: str) -> None:
    with pytest.raises(InvalidRequest):
        store.path_of(digest)
    with pytest.raises(InvalidRequest):
        await store.delete(digest)
    with pytest.raises(InvalidRequest):
        await store.verify(digest)


async def test_a_failing_disk_is_unavailable_and_not_a_refusal(
    store: ArtifactStore, root: Path, adapter: Path,
) -> None:
    staged = await store.stage(str(adapter))
    (root / "sha256").rmdir()
    with pytest.raises(Unavailable, match="disk fails"):
        await store.keep(staged)


async def test_no_file_moves_the_event_loops_clock(store: ArtifactStore, adapter: Path) -> None:
    """Staging, keeping and verifying run beside the loop: it goes round many times meanwhile."""
    rounds, done = 0, asyncio.Event()

    async def count() -> None:
        nonlocal rounds
        while not done.is_set():
            rounds += 1
            await asyncio.sleep(0)

    counter = asyncio.create_task(count())
    await store.verify((await put(store, adapter)).digest)
    done.set()
    await counter
    assert rounds > 50


async def test_closing_removes_what_is_staged_and_keeps_what_is_kept(root: Path, adapter: Path) -> None:
    store = ArtifactStore(root, max_bytes=CAP)
    digest = (await put(store, adapter)).digest
    await store.stage(str(adapter))
    store.close()
    assert list((root / ".staging").iterdir()) == []
    assert [path.name for path in (root / "sha256").iterdir()] == [digest]


async def test_every_error_is_one_of_ours(store: ArtifactStore, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"not an archive")
    with pytest.raises(SwitchyardError) as caught:
        await store.stage(str(secret))
    assert "not an archive" not in caught.value.message
