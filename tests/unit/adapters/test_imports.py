"""What is cheap stays cheap: no module but the trainer loads torch, and the manifest needs no library at all."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
LIGHT = (
    "augment", "base", "commands.augment", "commands.models", "compare", "data", "demo", "manifest", "pages",
    "recipe", "register", "teacher", "training.report", "training.shown", "commands.train", "training.checkpoints",
    "training.guards", "training.ladder", "training.packing", "training.progress", "training.work", "__main__",
)
HEAVY = {"torch", "transformers", "peft", "tokenizers", "matplotlib", "gateway"}


@pytest.mark.parametrize("module", LIGHT)
def test_importing_a_module_loads_no_heavy_library(module: str) -> None:
    code = f"import sys, adapters.{module}; heavy = {HEAVY}; print(heavy & set(sys.modules) or 'none')"
    assert _run(code) == "none"


def test_the_manifest_needs_only_the_standard_library() -> None:
    code = ("import sys, adapters.manifest; names = {name.split('.')[0] for name in sys.modules}; "
            "print(sorted(names - set(sys.stdlib_module_names) - {'adapters', '__main__'}))")
    assert _run(code, "-S", "-E") == "[]"


def _run(code: str, *flags: str) -> str:
    return subprocess.run(
        [sys.executable, *flags, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
