"""What `tests/run` does: makes the environments, then runs every layer of checks and tests and times each.

Standard library only. Every layer runs even when one before it failed; the exit status is 1 when any did.
"""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import environments
from environments import ROOT, StepFailed


class Layer(NamedTuple):
    """One section: a name and the command that decides it."""

    name: str
    command: Sequence[str]


def layers(bin_folder: Path) -> list[Layer]:
    """All of them, the quick and telling ones first."""
    tool = {name: str(bin_folder / name) for name in ("ruff", "mypy", "lint-imports", "pytest")}
    pytest = [tool["pytest"], "-q"]
    return [
        Layer("ruff", [tool["ruff"], "check", "."]),
        Layer("mypy", [tool["mypy"]]),
        Layer("import contracts", [tool["lint-imports"]]),
        Layer("unit", [*pytest, "tests/unit"]),
        Layer("integration", [*pytest, "tests/integration", "-m", "not engine"]),
        Layer("contract, on the fake replica", [*pytest, "tests/contract", "-m", "not engine"]),
        Layer("engine: everything on a real vLLM", [*pytest, "tests", "-m", "engine"]),
    ]


def run_layer(layer: Layer, environment: dict[str, str]) -> tuple[bool, float]:
    """Run one layer with its output shown; whether it passed, and its seconds."""
    print(f"\n━━ {layer.name} " + "━" * max(2, 76 - len(layer.name)), flush=True)
    started = time.monotonic()
    status = subprocess.run(layer.command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, check=False).returncode
    return status == 0, time.monotonic() - started


def run_all(environment: dict[str, str]) -> int:
    """Every layer, then a table of how each went."""
    results = [(layer.name, *run_layer(layer, environment))
               for layer in layers(environments.GATEWAY_PYTHON.parent)]
    print("\n━━ summary " + "━" * 69)
    for name, passed, seconds in results:
        print(f"{'✓' if passed else '✗'} {name:<40} {seconds:7.1f} s")
    print(f"  {'in all':<40} {sum(seconds for _, _, seconds in results):7.1f} s", flush=True)
    return 0 if all(passed for _, passed, _ in results) else 1


def main(arguments: Sequence[str]) -> int:
    """Make the environments, then run all layers, or pytest alone with `arguments`."""
    try:
        with environments.only_one():
            environments.gateway_environment(dev=True)
            engine = environments.engine_environment()
    except StepFailed as failure:
        environments.report(failure)
        return 1
    environment = {**os.environ, "SWITCHYARD_ENGINE_PYTHON": str(engine)}
    if arguments:
        pytest = str(environments.GATEWAY_PYTHON.parent / "pytest")
        return subprocess.run([pytest, *arguments], cwd=ROOT, env=environment, check=False).returncode
    return run_all(environment)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
