"""What an artifact is: `manifest.json` beside the adapter's weights.

Standard library only: the gateway reads it too.
"""

import json
import os
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

FILE_NAME = "manifest.json"
SCHEMA = "switchyard.manifest/1"


class ManifestError(ValueError):
    """The manifest cannot be understood; the message names the file, the field and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Where an adapter comes from and what it fits.

    Digests are SHA-256 in hex; None means that there was nothing to hash. `base_revision` is the base model's commit
    where it came from a hub, `parent_version` the version that this one follows. `rows` is the number of rows trained
    on, `tokens` theirs, of which `learned_tokens` are learned; `data_counts` counts rows by what became of them, and no
    row is near the golden set of `golden_sha256`. `outcome` says how training ended: finished, early_stop, max_minutes,
    max_cost or diverged. `recipe` is the whole recipe as plain data, `metrics` are the training's figures, `created_at`
    is RFC 3339 in UTC. What came later than the first release may be missing.
    """

    base_model: str
    rank: int
    alpha: float
    targets: tuple[str, ...]
    data_sha256: str
    rows: int
    seed: int
    created_at: str
    base_model_config_sha256: str | None = None
    chat_template_sha256: str | None = None
    tokenizer_sha256: str | None = None
    base_revision: str | None = None
    parent_version: str | None = None
    golden_sha256: str | None = None
    tokens: int | None = None
    learned_tokens: int | None = None
    data_counts: Mapping[str, int] = field(default_factory=dict)
    outcome: str | None = None
    recipe: Mapping[str, Any] = field(default_factory=dict)
    library_versions: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)


def write(manifest: Manifest, folder: Path) -> Path:
    """Write `manifest.json` into `folder` in one step: a reader sees the old file or the new one, never a part."""
    path = folder / FILE_NAME
    partial = folder / f".{FILE_NAME}.{os.getpid()}"
    document = {"schema": SCHEMA, **asdict(manifest)}
    try:
        with partial.open("w", encoding="utf-8") as file:
            json.dump(document, file, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def read(folder: Path) -> Manifest | None:
    """The manifest in `folder`, None when there is none, ManifestError when it cannot be understood."""
    path = folder / FILE_NAME
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as error:
        raise ManifestError(f"{path} is not UTF-8 text: {error}. Train again, or remove the file.") from error
    try:
        document = json.loads(text)
    except ValueError as error:
        raise ManifestError(f"{path} is not JSON: {error}. Train again, or remove the file.") from error
    return _from_document(document, path)


def _from_document(document: Any, path: Path) -> Manifest:
    """Fields that this release does not know are dropped, so that a newer writer of the same schema can be read."""
    if not isinstance(document, dict):
        raise ManifestError(f"{path} holds no JSON object. Train again, or remove the file.")
    if document.get("schema") != SCHEMA:
        raise ManifestError(f"{path} has the schema {document.get('schema')!r}; this release reads {SCHEMA!r}.")
    values: dict[str, Any] = {}
    hints = typing.get_type_hints(Manifest)
    for known in fields(Manifest):
        if known.name in document:
            values[known.name] = _checked(document[known.name], hints[known.name], known.name, path)
        elif known.default is MISSING and known.default_factory is MISSING:
            raise ManifestError(f"{path} lacks the field {known.name!r}. Train again, or add it.")
    return Manifest(**values)


_WORDS = {str: "text", int: "a whole number", float: "a number", types.NoneType: "null"}


def _checked(value: Any, hint: Any, name: str, path: Path) -> Any:
    """The value in its field's type (lists of text become tuples), or ManifestError."""
    if hint == tuple[str, ...]:
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return tuple(value)
        raise ManifestError(f"{path}: the field {name!r} must be a list of strings, not {value!r:.80}.")
    wanted = hint.__args__ if isinstance(hint, types.UnionType) else (typing.get_origin(hint) or hint,)
    if float in wanted and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, bool) or not isinstance(value, wanted):
        kinds = " or ".join(_WORDS.get(kind, "an object") for kind in wanted)
        raise ManifestError(f"{path}: the field {name!r} must be {kinds}, not {value!r:.80}.")
    return value
