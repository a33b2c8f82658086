"""Base model + adapter → one folder of merged weights, a shard in memory at a time.

Each adapted weight becomes W + scale · B · A (Hu et al., 2021, "LoRA"), computed in float32 and rounded once to bf16.
scale = alpha / rank, or alpha / √rank with rank stabilisation (Kalajdzievski, 2023). Always onto the weights as
published: an adapter trained on NF4 is merged into bf16, which is also what engines serve it on.
"""

import contextlib
import hashlib
import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from peft import LoraConfig, PeftConfig
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from transformers.utils.hub import cached_file

from adapters import manifest
from adapters.manifest import Manifest

Report = Callable[[str], None]

FILE_NAME = "merge.json"
SCHEMA = "switchyard.merge/1"
SHARD_BYTES = 2 * 10**9
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
COPIED = (
    "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "merges.txt", "tokenizer.model", "chat_template.jinja",
)
"""What goes over from the base model byte by byte, where it has it."""
_OTHER_MATHS = ("use_dora", "use_qalora", "fan_in_fan_out", "lora_bias", "layer_replication", "modules_to_save")
_PLAIN_STARTS = (True, False, "gaussian", "eva", "orthogonal")
"""Ways to begin that leave the base model's own weights alone; the others (PiSSA, OLoRA, LoftQ …) change them."""


class MergeError(ValueError):
    """The adapter cannot be merged; the message says why and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """What was written. `layers` counts the changed weights; `rounding` is the size (Frobenius norm) of what bf16 cut
    off, as a share of the adapter's own change: noise, not loss, but near 1 it is as loud as the adapter.
    `files` maps each file's name to its SHA-256.
    """

    base_model: str
    base_revision: str | None
    base_model_config_sha256: str
    adapter_sha256: str
    layers: int
    rounding: float
    files: Mapping[str, str]
    created_at: str


def merge(
    adapter: Path, folder: Path, *, base_model: str | None = None, shard_bytes: int = SHARD_BYTES,
    report: Report = print,
) -> Merged:
    """Write base model + adapter into `folder`: bf16 safetensors, config, tokenizer, generation config, merge.json.

    `base_model` (a folder or a Hugging Face id) stands in for the one that the artifact names. The folder must not
    exist, and appears whole or not at all. MergeError when the adapter is no plain LoRA or belongs to another base.
    """
    if folder.exists():
        raise MergeError(f"{folder} exists; remove it, or name another folder.")
    config, written = _adapter_config(adapter), _manifest(adapter)
    base = _named_base(base_model, written, config)
    _check_base(written, base, report)
    changes = _changes(adapter, config)
    _check_fit(changes, base)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        rounding = _write_weights(base, changes, partial, shard_bytes, report)
        _write_companions(base, partial)
        merged = Merged(
            base_model=base.name, base_revision=base.revision, base_model_config_sha256=base.config_sha256,
            adapter_sha256=_sha256(adapter / ADAPTER_WEIGHTS), layers=len(changes), rounding=rounding,
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
            files={path.name: _sha256(path) for path in sorted(partial.iterdir())})
        _write_json(partial / FILE_NAME, {"schema": SCHEMA, **asdict(merged)})
        for path in partial.iterdir():
            path.chmod(0o644)  # safetensors writes 0600, which an engine under another user cannot read
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    report(f"done: {folder}, {merged.layers} weights changed; "
           f"rounding to bf16 is {rounding:.1%} of the adapter's change")
    return merged


class _Base:
    """A base model's files: where each tensor lies, and its shape, without reading any."""

    def __init__(self, name: str, revision: str | None) -> None:
        self.name = str(Path(name).resolve()) if Path(name).is_dir() else name
        self.revision = revision
        config = self.find("config.json")
        if config is None:
            raise MergeError(f"The base model {name!r} cannot be read; name its folder or Hugging Face id.")
        self.config: dict[str, Any] = json.loads(config.read_text(encoding="utf-8"))
        self.config_sha256 = _sha256(config)
        if "quantization_config" in self.config:
            raise MergeError(f"The base model {name!r} is quantised; name the one in bf16 that it was made from.")
        self.files = self._locate()
        self.shapes: dict[str, tuple[int, ...]] = {}
        for path in dict.fromkeys(self.files.values()):
            with _opened(path) as opened:
                self.shapes.update({key: tuple(opened.get_slice(key).get_shape()) for key in opened.keys()})  # noqa: SIM118

    def find(self, file: str) -> Path | None:
        """One of the model's files on this machine, fetched if need be; None when it has no such file."""
        try:
            found = cached_file(
                self.name, file, revision=self.revision or "main", _raise_exceptions_for_missing_entries=False,
                _raise_exceptions_for_connection_errors=False)
        except OSError as error:
            raise MergeError(f"The base model {self.name!r} cannot be read: {error}") from error
        return Path(found) if found else None

    def tensors(self, names: list[str]) -> Iterator[tuple[str, torch.Tensor]]:
        """These tensors one after another, memory-mapped."""
        for name in names:
            with _opened(self.files[name]) as opened:
                yield name, opened.get_tensor(name)

    def _locate(self) -> dict[str, Path]:
        """Which file holds which tensor, in the model's own order."""
        index = self.find(INDEX)
        if index is not None:
            places: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            found = {file: self.find(file) for file in dict.fromkeys(places.values())}
        else:
            found = {WEIGHTS: self.find(WEIGHTS)}
        missing = [file for file, path in found.items() if path is None]
        if missing:
            raise MergeError(f"The base model {self.name!r} lacks {missing[0]}; only safetensors weights are merged.")
        paths = {file: path for file, path in found.items() if path is not None}
        if index is not None:
            return {name: paths[file] for name, file in places.items()}
        with _opened(paths[WEIGHTS]) as opened:
            return {name: paths[WEIGHTS] for name in opened.keys()}  # noqa: SIM118


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        opened = safe_open(path, framework="pt")
    except (OSError, SafetensorError) as error:
        raise MergeError(f"{path} cannot be read: {error}") from error
    with opened as tensors:
        yield tensors


@dataclass(frozen=True, slots=True)
class _Change:
    """One layer's LoRA pair in float32: `a` (rank, in), `b` (out, rank)."""

    a: torch.Tensor
    b: torch.Tensor
    scale: float

    @property
    def shape(self) -> tuple[int, int]:
        return self.b.shape[0], self.a.shape[1]

    def onto(self, weight: torch.Tensor) -> torch.Tensor:
        """The changed weight, (out, in) in float32."""
        return torch.addmm(weight.float(), self.b, self.a, alpha=self.scale)

    @property
    def square(self) -> float:
        """The sum of the squares of scale · B · A, from products of (rank, rank): ‖BA‖² = tr(BᵀB · AAᵀ)."""
        return self.scale**2 * float(((self.b.t() @ self.b) * (self.a @ self.a.t())).sum())


def _named_base(base_model: str | None, written: Manifest | None, config: LoraConfig) -> _Base:
    """The base that the caller names, else the artifact's own at the commit that it was trained on."""
    if base_model is None and written is not None:
        return _Base(written.base_model, written.base_revision)
    name = base_model or config.base_model_name_or_path
    if not name:
        raise MergeError("The artifact does not say which base model it is for; give --base-model.")
    return _Base(name, None if base_model else config.revision)


def _adapter_config(adapter: Path) -> LoraConfig:
    try:
        config = PeftConfig.from_pretrained(str(adapter)) if (adapter / ADAPTER_CONFIG).is_file() else None
    except (ValueError, TypeError, KeyError) as error:
        raise MergeError(f"{adapter / ADAPTER_CONFIG} cannot be understood: {error}") from error
    if config is None:
        raise MergeError(f"{adapter} is not an artifact: it lacks {ADAPTER_CONFIG}.")
    if not isinstance(config, LoraConfig):
        raise MergeError(f"{adapter} is a {config.peft_type} adapter; only LoRA can be merged.")
    other = [name for name in _OTHER_MATHS if getattr(config, name, None)]
    if other:
        raise MergeError(f"{adapter} is no plain LoRA: its config sets {other[0]}, which cannot be merged here.")
    if config.init_lora_weights not in _PLAIN_STARTS:
        raise MergeError(f"{adapter} began with {config.init_lora_weights!r}, which changes the base model's weights "
                         "too; convert it to a plain LoRA with PEFT first.")
    return config


def _manifest(adapter: Path) -> Manifest | None:
    try:
        return manifest.read(adapter)
    except manifest.ManifestError as error:
        raise MergeError(str(error)) from error


def _check_base(written: Manifest | None, base: _Base, report: Report) -> None:
    """The artifact's manifest knows the config of the base that it was trained on."""
    expected = written.base_model_config_sha256 if written else None
    if expected is None:
        report(f"base: no manifest tells which base this adapter was trained on; only names and shapes of {base.name} "
               "are checked")
    elif expected != base.config_sha256:
        raise MergeError(f"The adapter was trained on another base model than {base.name!r}: its manifest has the "
                         f"config digest {expected[:12]}, this one's is {base.config_sha256[:12]}. Name the right one.")


def _changes(adapter: Path, config: LoraConfig) -> dict[str, _Change]:
    """By the name of the weight that changes. MergeError for a tensor that is no LoRA pair."""
    try:
        tensors = load_file(adapter / ADAPTER_WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise MergeError(f"{adapter / ADAPTER_WEIGHTS} cannot be read: {error}") from error
    pairs: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        layer, _, side = name.removeprefix("base_model.model.").rpartition(".lora_")
        if side not in ("A.weight", "B.weight") or tensor.ndim != 2:
            raise MergeError(f"{adapter} holds the tensor {name!r}, which is no part of a plain LoRA; "
                             "it cannot be merged here.")
        pairs.setdefault(layer, {})[side[0]] = tensor.float()
    changes = {f"{layer}.weight": _change(layer, pair, config) for layer, pair in pairs.items()}
    if not any(change.b.any() for change in changes.values()):
        raise MergeError(f"{adapter} changes nothing: all its B matrices are zero.")
    return changes


def _change(layer: str, pair: Mapping[str, torch.Tensor], config: LoraConfig) -> _Change:
    if len(pair) != 2:
        raise MergeError(f"The layer {layer!r} has only half of its LoRA pair; the artifact is broken.")
    rank = config.rank_pattern.get(get_pattern_key(list(config.rank_pattern), layer), config.r)
    alpha = config.alpha_pattern.get(get_pattern_key(list(config.alpha_pattern), layer), config.lora_alpha)
    a, b = pair["A"], pair["B"]
    if not a.shape[0] == b.shape[1] == rank:
        raise MergeError(f"The layer {layer!r} has ranks {a.shape[0]} and {b.shape[1]}, its config says {rank}; "
                         "the artifact is broken.")
    return _Change(a, b, alpha / (math.sqrt(rank) if config.use_rslora else rank))


def _check_fit(changes: Mapping[str, _Change], base: _Base) -> None:
    for name, change in changes.items():
        shape = base.shapes.get(name)
        if shape is None:
            raise MergeError(f"The adapter changes {name!r}, which {base.name!r} does not have; name the right base.")
        if shape != change.shape:
            raise MergeError(f"The adapter changes {name!r} as {change.shape}, but it is {shape} in {base.name!r}; "
                             "name the right base.")


def _write_weights(
    base: _Base, changes: Mapping[str, _Change], folder: Path, shard_bytes: int, report: Report,
) -> float:
    """Write the merged weights, named and indexed as transformers does; the rounding of Merged."""
    sizes = {name: 2 * math.prod(base.shapes[name]) for name in base.files}
    plan = split_state_dict_into_shards_factory(
        sizes, get_storage_size=lambda size: size, filename_pattern="model{suffix}.safetensors",
        max_shard_size=shard_bytes)
    lost = changed = 0.0
    for number, (file, names) in enumerate(plan.filename_to_tensors.items(), start=1):
        shard = {}
        for name, weight in base.tensors(names):
            if name in changes:
                exact = changes[name].onto(weight)
                shard[name] = exact.to(torch.bfloat16)
                lost += exact.sub_(shard[name]).square_().sum().item()
                changed += changes[name].square
            else:
                shard[name] = weight.to(torch.bfloat16) if weight.is_floating_point() else weight
        save_file(shard, folder / file, metadata={"format": "pt"})
        report(f"shard {number}/{len(plan.filename_to_tensors)}: {file}, {len(shard)} tensors")
    if plan.is_sharded:
        _write_json(folder / INDEX, {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename})
    return math.sqrt(lost / changed)


def _write_companions(base: _Base, folder: Path) -> None:
    """The base's config, now in bf16, its tokenizer and its generation config."""
    config = {key: value for key, value in base.config.items() if key != "torch_dtype"}
    _write_json(folder / "config.json", {**config, "dtype": "bfloat16"})
    for file in COPIED:
        source = base.find(file)
        if source is not None:
            shutil.copyfile(source, folder / file)


def _write_json(path: Path, document: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
