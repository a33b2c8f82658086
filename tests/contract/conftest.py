"""The two subjects of the contract suite, the fake and a real vLLM on the CPU, behind the same fixtures.

The real one runs when SWITCHYARD_ENGINE_PYTHON names a python that has vLLM; it takes about a minute to start, once.
"""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import httpx
import pytest

from gateway.clients.vllm import VllmClient
from gateway.domain.model import Replica
from gateway.launch import guardian
from tests.fakes.serving import serving
from tests.fakes.vllm import Behaviour, FakeVllm
from tests.fixtures.artifacts import TINY_BASE_CONFIG, write_adapter

KEY = "the-replicas-key"
CONTEXT, MAX_LORAS, MAX_CPU_LORAS, MAX_RANK = 4096, 2, 8, 16
START_SECONDS = 300.0
NUMBERS = count(1)


@dataclass(frozen=True, slots=True)
class Subject:
    """One running replica that serves the base model as `base`; `url` is of the form `unix:/path`."""

    url: str
    root: str

    def client(self, api_key: str | None = KEY) -> VllmClient:
        """A VllmClient for it."""
        return VllmClient(Replica(name="subject", url=self.url, created_at=0.0, api_key=api_key))

    def wire(self, api_key: str | None = KEY) -> httpx.AsyncClient:
        """A bare HTTP client for it."""
        headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        transport = httpx.AsyncHTTPTransport(uds=self.url.removeprefix("unix:"))
        return httpx.AsyncClient(transport=transport, base_url="http://replica", headers=headers, timeout=30)


@pytest.fixture(scope="session")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the adapters good, other, no_op (its B matrices are zero), high_rank (64) and corrupt."""
    folder = tmp_path_factory.mktemp("adapters")
    write_adapter(folder / "good", seed=1, scale=0.5)
    write_adapter(folder / "other", seed=2, scale=0.5)
    write_adapter(folder / "no_op", seed=3, zero_b=True)
    write_adapter(folder / "high_rank", seed=4, rank=64)
    write_adapter(folder / "corrupt", seed=5)
    (folder / "corrupt" / "adapter_model.safetensors").write_bytes(b"\xff" * 64)
    return folder


@pytest.fixture(scope="session", params=["fake", pytest.param("engine", marks=pytest.mark.engine)])
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Subject]:
    """A running replica: the fake, then the real one."""
    folder = tmp_path_factory.mktemp("replica")
    if request.param == "fake":
        fake = FakeVllm(
            root="/models/base", max_loras=MAX_LORAS, max_cpu_loras=MAX_CPU_LORAS, max_rank=MAX_RANK,
            max_model_len=CONTEXT, api_key=KEY, embeddings=False,
            behaviour=Behaviour(tokens=CONTEXT, token_delay=0.002))
        with serving(fake, folder / "fake.sock") as url:
            yield Subject(url, fake.root)
        return
    python = os.environ.get("SWITCHYARD_ENGINE_PYTHON")
    if not python:
        pytest.skip("SWITCHYARD_ENGINE_PYTHON names no python that has vLLM")
    with real_vllm(python, folder) as running:
        yield running


@contextmanager
def real_vllm(python: str, folder: Path, base: Path | None = None, *, context: int = CONTEXT) -> Iterator[Subject]:
    """A real vLLM on the CPU with `base`, or a tiny base model made now; nothing of it is left, also when this process
    is killed."""
    path, log = folder / "vllm.sock", folder / "vllm.log"
    base = base or make_base(python, folder / "base")
    command = [
        python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(base), "--served-model-name", "base",
        "--dtype", "bfloat16", "--max-model-len", str(context), "--max-num-seqs", "8", "--enforce-eager",
        "--enable-lora", "--max-loras", str(MAX_LORAS), "--max-cpu-loras", str(MAX_CPU_LORAS),
        "--max-lora-rank", str(MAX_RANK), "--api-key", KEY, "--uds", str(path),
    ]
    environment = {
        **os.environ, "HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1", "VLLM_NO_USAGE_STATS": "1",
    }
    guarded = [sys.executable, "-S", guardian.__file__, str(os.getpid()), "10", *command]
    with log.open("wb") as output:
        process = subprocess.Popen(guarded, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        wait_until_healthy(path, process, log)
        yield Subject(f"unix:{path}", str(base))
    finally:
        process.terminate()
        process.wait(30)


def make_base(python: str, folder: Path) -> Path:
    """A tiny base model with random weights."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**TINY_BASE_CONFIG, "max_position_embeddings": CONTEXT}))
    maker = Path(__file__).with_name("make_base_model.py")
    subprocess.run([python, str(maker), str(folder)], check=True, capture_output=True)
    return folder


def wait_until_healthy(path: Path, process: subprocess.Popen[bytes], log: Path) -> None:
    """Return when the server answers; fail with the end of its log when it ends or takes too long."""
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        with socket.socket(socket.AF_UNIX) as connection, suppress(OSError):
            connection.connect(str(path))
            connection.sendall(b"GET /health HTTP/1.0\r\n\r\n")
            if connection.recv(64).startswith(b"HTTP/1.1 200"):
                return
        time.sleep(0.5)
    pytest.fail(f"vLLM did not start: {log.read_text(errors='replace')[-4000:]}")


@pytest.fixture
async def client(subject: Subject) -> AsyncIterator[VllmClient]:
    """Switchyard's client of the subject."""
    made = subject.client()
    yield made
    await made.close()


@pytest.fixture
async def wire(subject: Subject) -> AsyncIterator[httpx.AsyncClient]:
    """A bare HTTP client of the subject, with its key."""
    async with subject.wire() as made:
        yield made


@pytest.fixture
def name() -> str:
    """A served name that no other test uses."""
    return f"acme/support@{next(NUMBERS)}-0123456789ab"


@pytest.fixture
async def good(client: VllmClient, name: str, adapters: Path) -> AsyncIterator[str]:
    """The served name of an adapter that changes the base model's output, loaded."""
    await client.load(name, str(adapters / "good"))
    yield name
    await client.unload(name)
