"""The manifest is written whole, read back equal, and says what is wrong with it."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from adapters import manifest
from adapters.manifest import Manifest, ManifestError

MANIFEST = Manifest(
    base_model="tiny-base", rank=8, alpha=16.0, targets=("k_proj", "q_proj"), data_sha256="d" * 64, rows=12, seed=3,
    created_at="2030-01-02T03:04:05+00:00", base_model_config_sha256="c" * 64, recipe={"training": {"seed": 3}},
    library_versions={"torch": "2"}, metrics={"last_loss": 0.5}, base_revision="abc", parent_version="acme/desk@2",
    golden_sha256="e" * 64, tokens=900, learned_tokens=300, data_counts={"read": 13, "train": 12}, outcome="finished",
)
OLD_FIELDS = (
    "base_model", "rank", "alpha", "targets", "data_sha256", "rows", "seed", "created_at", "base_model_config_sha256",
    "chat_template_sha256", "tokenizer_sha256", "recipe", "library_versions", "metrics", "schema",
)
"""What the first release wrote."""


def _change(folder: Path, **values: Any) -> None:
    path = manifest.write(MANIFEST, folder)
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_what_is_written_is_read_back_equal(tmp_path: Path) -> None:
    manifest.write(MANIFEST, tmp_path)
    assert manifest.read(tmp_path) == MANIFEST


def test_a_manifest_of_the_first_release_is_still_read(tmp_path: Path) -> None:
    path = manifest.write(MANIFEST, tmp_path)
    document = json.loads(path.read_text())
    path.write_text(json.dumps({name: document[name] for name in OLD_FIELDS}))
    read = manifest.read(tmp_path)
    assert read is not None
    assert (read.base_model, read.rank) == (MANIFEST.base_model, MANIFEST.rank)
    assert (read.parent_version, read.tokens, read.data_counts, read.outcome) == (None, None, {}, None)


def test_a_folder_without_a_manifest_has_none(tmp_path: Path) -> None:
    assert manifest.read(tmp_path) is None


def test_writing_replaces_the_old_manifest_and_leaves_nothing_else(tmp_path: Path) -> None:
    manifest.write(MANIFEST, tmp_path)
    manifest.write(dataclasses.replace(MANIFEST, rank=4), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]
    read = manifest.read(tmp_path)
    assert read is not None and read.rank == 4


def test_a_failed_write_keeps_the_old_manifest_and_leaves_nothing_else(tmp_path: Path) -> None:
    manifest.write(MANIFEST, tmp_path)
    with pytest.raises(ValueError):
        manifest.write(dataclasses.replace(MANIFEST, metrics={"last_loss": float("nan")}), tmp_path)
    assert manifest.read(tmp_path) == MANIFEST
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


def test_a_field_of_a_newer_release_is_dropped(tmp_path: Path) -> None:
    _change(tmp_path, parent="later")
    assert manifest.read(tmp_path) == MANIFEST


def test_a_whole_number_serves_as_alpha(tmp_path: Path) -> None:
    _change(tmp_path, alpha=16)
    assert manifest.read(tmp_path) == MANIFEST


@pytest.mark.parametrize(("values", "words"), [
    ({"schema": "switchyard.manifest/9"}, "switchyard.manifest/9"),
    ({"rank": "8"}, "'rank' must be a whole number"),
    ({"rank": True}, "'rank' must be a whole number"),
    ({"targets": ["q_proj", 1]}, "'targets' must be a list of strings"),
    ({"tokenizer_sha256": 5}, "'tokenizer_sha256' must be text or null"),
    ({"metrics": []}, "'metrics' must be an object"),
])
def test_a_wrong_value_is_named(tmp_path: Path, values: dict[str, Any], words: str) -> None:
    _change(tmp_path, **values)
    with pytest.raises(ManifestError, match=words):
        manifest.read(tmp_path)


def test_a_missing_field_is_named(tmp_path: Path) -> None:
    path = manifest.write(MANIFEST, tmp_path)
    document = json.loads(path.read_text())
    del document["data_sha256"]
    path.write_text(json.dumps(document))
    with pytest.raises(ManifestError, match="lacks the field 'data_sha256'"):
        manifest.read(tmp_path)


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe"])
def test_a_broken_file_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(ManifestError, match=r"manifest\.json"):
        manifest.read(tmp_path)
