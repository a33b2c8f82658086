"""The unsloth back end, where there is one: `[training] backend = "unsloth"` learns what the ordinary one learns.

unsloth wants older libraries than an engine has, so that it has a Python of its own. Without a GPU it trains on the
CPU.
"""

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import adapters

ROOT = Path(adapters.__file__).parents[1]
SCRIPT = Path(__file__).with_name("training_scenarios.py")

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def came(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    python = os.environ.get("SWITCHYARD_UNSLOTH_PYTHON")
    if not python:
        pytest.skip("SWITCHYARD_UNSLOTH_PYTHON is not set: it names a Python with unsloth, trl and the `data` extra")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    folder = tmp_path_factory.mktemp("unsloth")

    def run(*arguments: str | Path) -> str:
        done = subprocess.run([python, *map(str, arguments)], cwd=folder, env=environment, capture_output=True,
                              text=True, check=False)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        return done.stdout

    run("-m", "adapters", "base", "base")
    out = run(SCRIPT, "base", ".", "plain", "unsloth", "whole", "unsloth packs")
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    assert (folder / "unsloth-packs.report" / "report.html").exists()
    assert json.loads((folder / "unsloth" / "manifest.json").read_text())["library_versions"]["unsloth"]
    return found


@pytest.mark.parametrize(("ordinary", "by_unsloth"), [("plain", "unsloth"), ("whole", "unsloth packs")])
def test_unsloth_learns_the_same(came: Mapping[str, Any], ordinary: str, by_unsloth: str) -> None:
    assert came[by_unsloth]["losses"] == pytest.approx(came[ordinary]["losses"], rel=2e-3)
    assert came[by_unsloth]["weights"] == came[ordinary]["weights"]
    assert "model: by unsloth" in came[by_unsloth]["told"]
