"""vLLM replicas on this machine: with which flags, on which sockets, and how long until they answer."""

import asyncio
import contextlib
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import httpx

from gateway.launch import guardian
from gateway.launch.processes import Announce, Keeper, LaunchFailed, Program, describe, end_of

Device: TypeAlias = Literal["auto", "cpu", "gpu"]
Waiting: TypeAlias = Callable[[float], None]
STOP_SECONDS = 15.0  # what a replica gets to stop by itself
WARM_UP_SECONDS, LOOK_SECONDS = 300.0, 0.25
LONGEST_SOCKET = 100  # bytes; the kernel takes 107


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """What replicas to start. `python` has vLLM installed (None: the `vllm` command on the PATH).

    `max_loras` GPU slots and `max_cpu_loras` adapters in memory per replica, of rank `max_lora_rank` at most;
    `max_model_len` in tokens (None: the model's own).
    """

    base_model: str
    replicas: int = 1
    python: str | None = None
    device: Device = "auto"
    max_model_len: int | None = None
    max_loras: int = 4
    max_cpu_loras: int = 32
    max_lora_rank: int = 64
    extra: tuple[str, ...] = ()

    @property
    def served_name(self) -> str:
        """What requests call the base model: a path's last part, or the Hugging Face id."""
        return Path(self.base_model).name if self.is_local else self.base_model

    @property
    def is_local(self) -> bool:
        """Is the base model a folder on this machine?"""
        return Path(self.base_model).is_dir()


@dataclass(frozen=True, slots=True)
class Engine:
    """One replica to run: what it calls its base model, the socket it will listen on, and its program."""

    name: str
    base_model: str
    socket: Path
    program: Program

    @property
    def url(self) -> str:
        return f"unix:{self.socket}"


def plan(options: EngineOptions, sockets: Path, logs: Path, gpus: Sequence[str]) -> list[Engine]:
    """One Engine per replica; `gpus` are the device ids to spread them over (none: CPU)."""
    return [_plan_one(options, number, sockets, logs, gpus) for number in range(options.replicas)]


def _plan_one(options: EngineOptions, number: int, sockets: Path, logs: Path, gpus: Sequence[str]) -> Engine:
    name = f"local-{number}"
    socket = sockets / f"{name}.sock"
    served = [
        *_launcher(options), "--served-model-name", options.served_name,
        "--uds", str(socket), "--enable-lora", "--max-loras", str(options.max_loras),
        "--max-cpu-loras", str(options.max_cpu_loras), "--max-lora-rank", str(options.max_lora_rank),
        *(["--max-model-len", str(options.max_model_len)] if options.max_model_len else []),
        *(_gpu_flags(options, gpus) if gpus else _cpu_flags()), *options.extra,
    ]
    guarded = [sys.executable, "-S", guardian.__file__, str(os.getpid()), str(STOP_SECONDS - 5), *served]
    environment = {
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1", "VLLM_NO_USAGE_STATS": "1", "PYTHONUNBUFFERED": "1",
        **({"HF_HUB_OFFLINE": "1"} if options.is_local else {}),
        **({"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]} if gpus else _cpu_environment(options.replicas)),
    }
    program = Program(name=f"replica {name}", command=tuple(guarded), environment=environment,
                      log=logs / f"{name}.log", before_start=lambda: socket.unlink(missing_ok=True))
    return Engine(name, options.served_name, socket, program)


def _launcher(options: EngineOptions) -> list[str]:
    if options.python is not None:
        return [options.python, "-m", "vllm.entrypoints.openai.api_server", "--model", options.base_model]
    found = shutil.which("vllm")
    if found is None:
        raise LaunchFailed(
            "There is no vLLM here: name a python that has it with --engine-python or SWITCHYARD_ENGINE_PYTHON, put "
            "`vllm` on the PATH, or use a running replica with --replica URL.")
    return [found, "serve", options.base_model]


def _gpu_flags(options: EngineOptions, gpus: Sequence[str]) -> list[str]:
    """Replicas that share a GPU share its memory."""
    sharing = math.ceil(options.replicas / len(gpus))
    return ["--gpu-memory-utilization", f"{0.9 / sharing:.2f}"] if sharing > 1 else []


def _cpu_flags() -> list[str]:
    return ["--dtype", "bfloat16", "--max-num-seqs", "8", "--enforce-eager"]


def _cpu_environment(replicas: int) -> dict[str, str]:
    threads = max(1, (os.cpu_count() or 1) // replicas)
    return {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(threads)}


def find_gpus(device: Device, environment: Mapping[str, str]) -> list[str]:
    """Ids of the GPUs to use: those that CUDA_VISIBLE_DEVICES allows, else all that the driver lists."""
    if device == "cpu":
        return []
    found: list[str] = []
    if shutil.which("nvidia-smi"):
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False).stdout
        found = [str(n) for n, line in enumerate(ln for ln in listed.splitlines() if ln.startswith("GPU "))]
    if device == "gpu" and not found:
        raise LaunchFailed("The NVIDIA driver lists no GPU (nvidia-smi -L); use --device cpu.")
    allowed = environment.get("CUDA_VISIBLE_DEVICES")
    return [g for g in allowed.split(",") if g] if found and allowed is not None else found


def socket_folder(state_path: Path) -> Path:
    """A folder that only this user may enter, short enough for the kernel's limit on a socket's path."""
    folder = state_path / "run"
    if len(os.fsencode(folder / "local-000.sock")) > LONGEST_SOCKET:
        return Path(tempfile.mkdtemp(prefix="switchyard-"))
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    return folder


class Engines:
    """The replicas of one base model on this machine, from `start` to `stop`; one that dies is started again."""

    def __init__(self, engines: Sequence[Engine], announce: Announce) -> None:
        self.engines = tuple(engines)
        self._announce = announce
        self._keepers: list[Keeper] = []

    async def start(self) -> None:
        """Start all, without waiting until they answer."""
        for engine in self.engines:
            keeper = Keeper(engine.program, self._announce)
            self._keepers.append(keeper)
            await keeper.start()

    async def wait_until_healthy(self, waiting: Waiting) -> None:
        """Return when each answers /health; `waiting` hears the seconds so far. LaunchFailed when one ends instead."""
        started = time.monotonic()
        pending = {asyncio.create_task(self._come_up(*pair)) for pair in zip(self.engines, self._keepers, strict=True)}
        try:
            while pending:
                done, pending = await asyncio.wait(pending, timeout=LOOK_SECONDS, return_when=asyncio.FIRST_EXCEPTION)
                for task in done:
                    task.result()
                waiting(time.monotonic() - started)
        finally:
            for task in pending:
                task.cancel()

    async def stop(self) -> None:
        """Stop all replicas and everything they started."""
        await asyncio.gather(*(keeper.stop(STOP_SECONDS) for keeper in self._keepers))
        for engine in self.engines:
            engine.socket.unlink(missing_ok=True)

    async def _come_up(self, engine: Engine, keeper: Keeper) -> None:
        while True:
            if await self._is_up(engine, keeper):
                return
            await asyncio.sleep(LOOK_SECONDS)

    async def _is_up(self, engine: Engine, keeper: Keeper) -> bool:
        if keeper.failed.done():
            log = engine.program.log
            assert log is not None
            raise LaunchFailed(
                f"Replica {engine.name} ended before it was up ({describe(keeper.failed.result())}). The end of its "
                f"log, {log}:\n{end_of(log)}")
        if not engine.socket.exists():
            return False
        transport = httpx.AsyncHTTPTransport(uds=str(engine.socket))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
            if not await is_healthy(http):
                return False
            await warm_up(http, engine.base_model)
        keeper.is_ready = True
        return True


async def is_healthy(http: httpx.AsyncClient) -> bool:
    """Does this vLLM say that it is well?"""
    try:
        return (await http.get("/health", timeout=5)).is_success
    except httpx.TransportError:
        return False


async def warm_up(http: httpx.AsyncClient, base_model: str) -> None:
    """Have vLLM answer once: its first request compiles kernels, for seconds that no caller should wait."""
    body = {"model": base_model, "prompt": "Hello", "max_tokens": 2, "temperature": 0, "logprobs": 1}
    with contextlib.suppress(httpx.TransportError):  # if it has died, its keeper says so
        await http.post("/v1/completions", json=body, timeout=WARM_UP_SECONDS)
