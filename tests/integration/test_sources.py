"""Adapters from S3, as moto plays it, and from a hub that speaks as much of Hugging Face's API as is asked of it."""

import asyncio
import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

import httpx
import pytest
from moto.server import ThreadedMotoServer
from obstore.store import S3Store

from gateway.clients.artifacts import ArtifactStore
from gateway.domain.errors import ArtifactRefused, InvalidRequest, Unavailable
from tests.fixtures.artifacts import TINY_BASE_CONFIG, write_adapter

CAP = 1 << 20


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ArtifactStore]:
    made = ArtifactStore(tmp_path / "artifacts", max_bytes=CAP)
    yield made
    made.close()


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "adapter", files={"run.py": "x", "checkpoint-1/optimizer.pt": "x"})


def nothing_is_left(store: ArtifactStore, tmp_path: Path) -> bool:
    """No file but the staging folder's own lock."""
    files = [path for path in (tmp_path / "artifacts").rglob("*") if path.is_file()]
    return [path.suffix for path in files] == [".lock"] and store.digests() == []


# --- S3 --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> S3Store:
    """A bucket called `adapters`, with this process's AWS_* variables pointing at it."""
    for name, value in {"AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret",
                        "AWS_REGION": "us-east-1"}.items():
        monkeypatch.setenv(name, value)
    httpx.put(f"{endpoint}/adapters").raise_for_status()
    return S3Store("adapters", client_options={"allow_http": True})


def upload(bucket: S3Store, folder: Path, prefix: str) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            bucket.put(f"{prefix}{path.relative_to(folder)}", path.read_bytes())


@pytest.mark.parametrize("prefix", ["", "acme/support/"])
async def test_an_adapter_in_s3_has_the_digest_of_its_folder(
    store: ArtifactStore, bucket: S3Store, adapter: Path, prefix: str,
) -> None:
    upload(bucket, adapter, prefix)
    staged = await store.stage(f"s3://adapters/{prefix}")
    assert staged.digest == (await store.stage(str(adapter))).digest
    assert {"run.py", "checkpoint-1/optimizer.pt"} <= set(staged.ignored_files)


async def test_a_prefix_ends_at_a_slash(store: ArtifactStore, bucket: S3Store, adapter: Path) -> None:
    upload(bucket, adapter, "whole/name/")
    with pytest.raises(InvalidRequest, match="nothing under"):
        await store.stage("s3://adapters/whole/na")


async def test_what_is_too_large_in_s3_is_refused_before_it_is_fetched(
    store: ArtifactStore, bucket: S3Store, adapter: Path, tmp_path: Path,
) -> None:
    (adapter / "tokenizer.json").write_bytes(bytes(CAP))
    upload(bucket, adapter, "large/")
    with pytest.raises(ArtifactRefused, match=f"more than {CAP} bytes"):
        await store.stage("s3://adapters/large")
    assert nothing_is_left(store, tmp_path)


@pytest.mark.parametrize("source", ["s3://adapters/nothing-here", "s3://no-such-bucket/x"])
async def test_what_is_not_in_s3_is_refused(
    store: ArtifactStore, bucket: S3Store, source: str, tmp_path: Path,
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await store.stage(source)
    assert source in caught.value.message
    assert nothing_is_left(store, tmp_path)


async def test_credentials_that_may_not_read_are_refused(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:
    class Denying(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(403)

        def log_message(self, format: str, *args: object) -> None:
            """Tests are quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Denying) as server:
        for name, value in {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_address[1]}",
                            "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}.items():
            monkeypatch.setenv(name, value)
        thread = Thread(target=server.serve_forever)
        thread.start()
        with pytest.raises(InvalidRequest, match="AWS credentials may not read"):
            await store.stage("s3://adapters/x")
        server.shutdown()
        thread.join()
    assert nothing_is_left(store, tmp_path)


async def test_s3_that_does_not_answer_is_unavailable(
    store: ArtifactStore, bucket: S3Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(Unavailable, match="s3://adapters/x cannot be read"):
        await store.stage("s3://adapters/x")
    assert nothing_is_left(store, tmp_path)


# --- Hugging Face ----------------------------------------------------------------------------------------------------

COMMIT = "c" * 40


@contextmanager
def hub(folder: Path) -> Iterator[str]:
    """A hub with one repository, acme/support, at one commit, which is `main` and `v1`; gives its address."""
    answers = hub_answers(folder)

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(with_body=False)

        def do_GET(self) -> None:
            self.answer(with_body=True)

        def answer(self, *, with_body: bool) -> None:
            url = urlsplit(self.path)
            raw = answers.get(unquote(url.path) + ("?deep" if "recursive=true" in url.query.lower() else ""))
            self.send_response(404 if raw is None else 200)
            self.send_header("Content-Length", str(len(raw or b"")))
            self.send_header("ETag", f'"{hashlib.sha256(raw or b"").hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            self.wfile.write((raw or b"") if with_body else b"")

        def log_message(self, format: str, *args: object) -> None:
            """Tests are quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def hub_answers(folder: Path) -> dict[str, bytes]:
    """What the hub says, by path; `?deep` is a listing with all that lies below."""
    api = "/api/models/acme/support"
    siblings = [{"rfilename": str(file.relative_to(folder))} for file in files(folder)]
    info = json.dumps({"id": "acme/support", "sha": COMMIT, "siblings": siblings}).encode()
    answers = {api: info, **{f"{api}/revision/{revision}": info for revision in ("main", "v1", COMMIT)}}
    for listed in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
        path = f"{api}/tree/{COMMIT}/{listed.relative_to(folder)}".removesuffix("/.")
        answers[path] = json.dumps([described(entry, folder) for entry in listed.iterdir()]).encode()
        answers[path + "?deep"] = json.dumps([described(entry, folder) for entry in listed.rglob("*")]).encode()
    for file in files(folder):
        for revision in ("main", COMMIT):
            answers[f"/acme/support/resolve/{revision}/{file.relative_to(folder)}"] = file.read_bytes()
    return answers


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def described(path: Path, folder: Path) -> dict[str, object]:
    kind = "directory" if path.is_dir() else "file"
    return {"type": kind, "path": str(path.relative_to(folder)), "oid": "0" * 40, "size": path.stat().st_size}


IN_A_PROCESS_OF_ITS_OWN = """
import asyncio, sys
from pathlib import Path
from gateway.clients.artifacts import ArtifactStore
from gateway.clients.base_model import base_model_facts
from gateway.domain.errors import SwitchyardError

async def main(root, source):
    if source.startswith("base:"):
        print(await base_model_facts(source[5:]))
        return
    store = ArtifactStore(Path(root), max_bytes=1 << 20)
    try:
        print((await store.stage(source)).digest)
    except SwitchyardError as error:
        print(type(error).__name__, error.message)
    store.close()

asyncio.run(main(*sys.argv[1:]))
"""


async def stage_from(address: str, source: str, home: Path, **variables: str) -> str:
    """What staging prints: its environment is read when huggingface_hub is imported, hence the process."""

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", IN_A_PROCESS_OF_ITS_OWN, str(home / "artifacts"), source], check=False,
            capture_output=True, text=True, timeout=60,
            env={"HF_ENDPOINT": address, "HF_HOME": str(home / "hf"), "PATH": "", "HF_HUB_DISABLE_PROGRESS_BARS": "1",
                 **variables})

    done = await asyncio.to_thread(run)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("source", [
    "hf://acme/support", "hf://acme/support@v1", f"hf://acme/support@{COMMIT}", "hf://acme/support/",
])
async def test_an_adapter_on_the_hub_has_the_digest_of_its_folder(
    store: ArtifactStore, adapter: Path, tmp_path: Path, source: str,
) -> None:
    with hub(adapter) as address:
        assert await stage_from(address, source, tmp_path / "home") == (await store.stage(str(adapter))).digest
    assert files(tmp_path / "home") == []


async def test_an_adapter_in_a_folder_of_a_repository_is_found(
    store: ArtifactStore, adapter: Path, tmp_path: Path,
) -> None:
    write_adapter(adapter / "fr" / "v2", seed=1)
    with hub(adapter) as address:
        digest = await stage_from(address, "hf://acme/support@v1/fr/v2", tmp_path / "home")
    assert digest == (await store.stage(str(adapter / "fr" / "v2"))).digest


@pytest.mark.parametrize("source", ["hf://acme/other", "hf://acme/support@v9", "hf://acme/support/nowhere"])
async def test_what_is_not_on_the_hub_is_refused(adapter: Path, tmp_path: Path, source: str) -> None:
    with hub(adapter) as address:
        assert (await stage_from(address, source, tmp_path)).startswith("InvalidRequest Hugging Face has no")
    assert files(tmp_path / "artifacts") == []


async def test_what_is_too_large_on_the_hub_is_refused_before_it_is_fetched(adapter: Path, tmp_path: Path) -> None:
    (adapter / "tokenizer.json").write_bytes(bytes(CAP))
    with hub(adapter) as address:
        assert "more than 1048576 bytes" in await stage_from(address, "hf://acme/support", tmp_path)
    assert files(tmp_path / "artifacts") == []


async def test_a_hub_that_does_not_answer_is_unavailable(adapter: Path, tmp_path: Path) -> None:
    said = await stage_from("http://127.0.0.1:9", "hf://acme/support", tmp_path)
    assert said.startswith("Unavailable Hugging Face does not answer")


async def test_offline_is_unavailable(adapter: Path, tmp_path: Path) -> None:
    said = await stage_from("http://127.0.0.1:9", "hf://acme/support", tmp_path, HF_HUB_OFFLINE="1")
    assert said.startswith("Unavailable") and "HF_HUB_OFFLINE is set" in said


async def test_a_base_models_config_comes_from_the_hub_and_then_from_the_cache(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    repository.mkdir()
    (repository / "config.json").write_text(json.dumps(dict(TINY_BASE_CONFIG)))
    with hub(repository) as address:
        first = await stage_from(address, "base:acme/support", tmp_path)
    assert "model_type='llama'" in first
    assert await stage_from("http://127.0.0.1:9", "base:acme/support", tmp_path) == first


@pytest.mark.parametrize("name", ["acme/other", "not a name", "/nowhere"])
async def test_a_base_model_that_cannot_be_had_is_none(tmp_path: Path, name: str) -> None:
    assert await stage_from("http://127.0.0.1:9", f"base:{name}", tmp_path, HF_HUB_OFFLINE="1") == "None"
