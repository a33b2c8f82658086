"""How to train: a TOML file read into a frozen Recipe, every value checked before anything costly starts."""

import dataclasses
import math
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from adapters.data.settings import DataSettings

T = TypeVar("T")

PACKED_ROWS = 4
"""How many rows of the greatest length a pack holds unless the recipe says otherwise."""


class RecipeError(ValueError):
    """The recipe cannot be followed; the message names the key and says what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lora:
    """The adapter's shape. `targets`: the names of linear layers to adapt, or "all-linear" for all but the head.

    `rslora` scales by alpha / √rank instead of alpha / rank, which keeps high ranks stable.
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: str | tuple[str, ...] = "all-linear"
    rslora: bool = False

    def __post_init__(self) -> None:
        _require(self.rank >= 1, "lora.rank", self.rank, "1 or more")
        _require(self.alpha > 0, "lora.alpha", self.alpha, "more than 0")
        _require(0 <= self.dropout < 1, "lora.dropout", self.dropout, "at least 0 and below 1")
        _require(self.targets == "all-linear" or (isinstance(self.targets, tuple) and len(self.targets) > 0),
                 "lora.targets", self.targets, '"all-linear" or a list of layer names such as ["q_proj", "v_proj"]')


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """The course of training. `batch` rows at once on each GPU, `accumulation` of them a step; `max_length` in tokens.

    With `packing`, rows are put together into packs of at most `pack_length` tokens (by default 4 × max_length), and
    `batch` counts packs; rows in a pack do not see one another.
    `max_steps` in optimiser steps; when it is unset, `epochs` over the data. `warmup` is a share of all steps.
    `gradient_checkpointing` keeps few activations and computes them again; short for `speed.checkpoint_layers = "all"`.
    `log_every`, `validate_every` and `checkpoint_every` in steps; unset, they follow from the number of steps.
    The newest `keep_checkpoints` and the best one are kept, and with `keep_work` the whole work folder after the end.
    """

    backend: Literal["transformers", "unsloth"] = "transformers"
    optimizer: Literal["adamw", "paged_adamw_8bit"] = "adamw"
    learning_rate: float = 2e-4
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: float = 0.03
    max_grad_norm: float = 0.3
    epochs: float = 1.0
    max_steps: int | None = None
    batch: int = 4
    accumulation: int = 1
    max_length: int = 1024
    packing: bool = False
    pack_length: int | None = None
    gradient_checkpointing: bool = False
    log_every: int | None = None
    validate_every: int | None = None
    checkpoint_every: int | None = None
    keep_checkpoints: int = 2
    keep_work: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        _require(self.learning_rate > 0, "training.learning_rate", self.learning_rate, "more than 0")
        _require(0 <= self.warmup < 1, "training.warmup", self.warmup, "at least 0 and below 1")
        _require(self.max_grad_norm > 0, "training.max_grad_norm", self.max_grad_norm, "more than 0")
        _require(self.epochs > 0, "training.epochs", self.epochs, "more than 0")
        _require(self.max_length >= 8, "training.max_length", self.max_length, "8 or more")
        _require(self.pack_length is None or self.pack_length >= self.max_length, "training.pack_length",
                 self.pack_length, f"at least max_length, {self.max_length}")
        _require(0 <= self.seed < 2**32, "training.seed", self.seed, "from 0 to 4294967295")
        for key in ("batch", "accumulation", "max_steps", "log_every", "validate_every", "checkpoint_every",
                    "keep_checkpoints"):
            value = getattr(self, key)
            _require(value is None or value >= 1, f"training.{key}", value, "1 or more")

    @property
    def packed_length(self) -> int | None:
        """The most tokens in a pack; None when rows are not packed."""
        return (self.pack_length or PACKED_ROWS * self.max_length) if self.packing else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """How the same numbers are computed faster; "auto" takes what the machine has (see training/fast.py).

    `attention`: "varlen" is FlashAttention over row boundaries, with no mask and no padding. `lora`: "fused" layers.
    `kernels`: "liger" has one for each norm, rotary position and gated layer. `loss`: "chunked" never holds all logits.
    `checkpoint_layers`: how many layers compute their activations twice instead of keeping them.
    """

    attention: Literal["auto", "eager", "sdpa", "varlen"] = "auto"
    lora: Literal["auto", "plain", "fused"] = "auto"
    kernels: Literal["auto", "plain", "liger"] = "auto"
    loss: Literal["auto", "plain", "chunked"] = "auto"
    checkpoint_layers: Literal["all", "none"] | int = "none"

    def __post_init__(self) -> None:
        count = self.checkpoint_layers
        _require(isinstance(count, str) or count >= 0, "speed.checkpoint_layers", count, '"all", "none" or 0 or more')


@dataclass(frozen=True, slots=True, kw_only=True)
class Guards:
    """When a run is stopped, or goes back. Losses in nats a token, as the mean since the last line.

    The loss has gone astray when it is no number, above `max_loss`, or `max_rise` above the lowest so far. The run goes
    back to its last good checkpoint, and on `retries` times with the learning rate times `retry_factor`; then, or with
    `on_divergence = "stop"`, it ends there. `patience`: how many validations may pass without the loss falling by
    `min_improvement`. A run ends with what it has after `max_minutes`, or when `price_per_hour` (of all machines
    together) has come to `max_cost`.
    """

    max_loss: float | None = None
    max_rise: float = 2.0
    on_divergence: Literal["retry", "stop"] = "retry"
    retries: int = 2
    retry_factor: float = 0.5
    patience: int | None = None
    min_improvement: float = 0.0
    max_minutes: float | None = None
    price_per_hour: float | None = None
    max_cost: float | None = None

    def __post_init__(self) -> None:
        _require(self.max_rise > 0, "guards.max_rise", self.max_rise, "more than 0")
        _require(self.retries >= 0, "guards.retries", self.retries, "0 or more")
        _require(0 < self.retry_factor < 1, "guards.retry_factor", self.retry_factor, "more than 0 and below 1")
        _require(self.patience is None or self.patience >= 1, "guards.patience", self.patience, "1 or more")
        _require(self.min_improvement >= 0, "guards.min_improvement", self.min_improvement, "0 or more")
        for key in ("max_loss", "max_minutes", "price_per_hour", "max_cost"):
            value = getattr(self, key)
            _require(value is None or value > 0, f"guards.{key}", value, "more than 0")
        if self.max_cost is not None and self.price_per_hour is None:
            raise RecipeError("'guards.max_cost' needs 'guards.price_per_hour'; add it.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What is shown of a run. `page`: a folder `<output>.report` with curves and answers before and after.

    `parity`: does the artifact take a reference along that the engine is compared with when it is registered?
    `data_prompts`: may prompts from the data leave the machine in it?
    """

    page: bool = True
    parity: bool = True
    tensorboard: bool = False
    data_prompts: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything that decides what comes out. `base_model` is a folder or a Hugging Face id, `base_revision` a commit,
    branch or tag of the latter; `parent_version` names the version that this one follows.

    Paths are relative to the working directory, as in the shell.
    """

    base_model: str
    data: DataSettings
    output: Path
    base_revision: str | None = None
    parent_version: str | None = None
    quantization: Literal["nf4", "none"] = "nf4"
    lora: Lora = field(default_factory=Lora)
    training: Training = field(default_factory=Training)
    speed: Speed = field(default_factory=Speed)
    guards: Guards = field(default_factory=Guards)
    report: Report = field(default_factory=Report)

    def to_document(self) -> dict[str, Any]:
        """The recipe as JSON-ready data; what is unset is left out, as in TOML."""
        return _set_only({**asdict(self), "data": self.data.to_document(), "output": str(self.output)})


def read(path: Path, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe in a TOML file; `overrides` replaces values, by keys such as `output` and `training.batch`.

    RecipeError when the file cannot be read, a key is unknown or missing, or a value has the wrong type or range.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"The recipe {path} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"The recipe {path} is not TOML: {error}.") from error
    try:
        for key, value in (overrides or {}).items():
            document = _replaced(document, key.split("."), value)
        return from_document(document)
    except RecipeError as error:
        raise RecipeError(f"The recipe {path}: {error}") from error


def from_document(document: Mapping[str, Any]) -> Recipe:
    """The recipe that plain data describes, or RecipeError. `data = "rows.jsonl"` is short for [data] source."""
    if isinstance(document.get("data"), str):
        document = {**document, "data": {"source": document["data"]}}
    return _build(Recipe, document, prefix="")


def parse_assignment(text: str) -> tuple[str, Any]:
    """`training.batch=8` as a key and a value in TOML; what is not TOML is text. RecipeError without an equals sign."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise RecipeError(f"{text!r} is no assignment; write key=value, such as training.batch=8.")
    try:
        return key.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value.strip()


def _replaced(table: Mapping[str, Any], path: Sequence[str], value: Any) -> dict[str, Any]:
    """The table with one value replaced; tables on the way are made, and `data = "rows"` becomes one."""
    key, *rest = path
    if not rest:
        inner = table.get(key)
        is_source = key == "data" and isinstance(inner, dict) and isinstance(value, str)
        return {**table, key: {**inner, "source": value} if is_source and isinstance(inner, dict) else value}
    inner = table.get(key, {})
    if key == "data" and isinstance(inner, str):
        inner = {"source": inner}
    if not isinstance(inner, dict):
        raise RecipeError(f"{'.'.join(path)!r} cannot be set: {key!r} is no table.")
    return {**table, key: _replaced(inner, rest, value)}


def _set_only(table: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _set_only(value) if isinstance(value, dict) else list(value) if isinstance(value, tuple) else value
            for key, value in table.items() if value is not None}


def _require(good: bool, key: str, value: object, wanted: str) -> None:
    if not good:
        raise RecipeError(f"{key!r} is {value!r}; make it {wanted}.")


def _build(kind: type[T], table: Mapping[str, Any], prefix: str) -> T:
    """A dataclass from a TOML table; `prefix` is the table's own key, for messages."""
    hints = typing.get_type_hints(kind)
    unknown = sorted(set(table) - set(hints))
    if unknown:
        raise RecipeError(f"unknown key {prefix + unknown[0]!r}; remove it or use one of {', '.join(hints)}.")
    values = {name: _value(table[name], hint, prefix + name) for name, hint in hints.items() if name in table}
    for known in dataclasses.fields(kind):  # type: ignore[arg-type]
        is_required = known.default is dataclasses.MISSING and known.default_factory is dataclasses.MISSING
        if is_required and known.name not in values:
            raise RecipeError(f"the key {prefix + known.name!r} is missing; add it.")
    try:
        return kind(**values)
    except RecipeError:
        raise
    except ValueError as error:  # of a table that is not defined here
        raise RecipeError(f"[{prefix.removesuffix('.')}] {error}") from error


def _value(value: Any, hint: Any, key: str) -> Any:
    """The value in its field's type, or RecipeError."""
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise RecipeError(f"{key!r} must be a table; write it as [{key}].")
        return _build(typing.cast(type, hint), value, prefix=f"{key}.")
    is_union = typing.get_origin(hint) in (types.UnionType, typing.Union)
    kinds = typing.get_args(hint) if is_union else (hint,)
    for kind in kinds:
        fitted = _fit(value, kind)
        if fitted is not None:
            return fitted
    wanted = " or ".join(_words(kind) for kind in kinds if kind is not types.NoneType)
    raise RecipeError(f"{key!r} is {value!r}; make it {wanted}.")


_WORDS: Mapping[Any, str] = {
    str: "text in quotes", Path: "a path in quotes", int: "a whole number", float: "a number", bool: "true or false",
    tuple[str, ...]: "a list of texts",
}


def _words(kind: Any) -> str:
    if typing.get_origin(kind) is Literal:
        return " or ".join(f'"{choice}"' for choice in typing.get_args(kind))
    return _WORDS[kind]


def _fit(value: Any, kind: Any) -> Any:
    """The value as `kind`, or None when it is of another type."""
    if typing.get_origin(kind) is Literal:
        return value if isinstance(value, str) and value in typing.get_args(kind) else None
    if kind == tuple[str, ...]:
        return tuple(value) if isinstance(value, list) and all(isinstance(item, str) for item in value) else None
    if kind is Path:
        return Path(value) if isinstance(value, str) and value else None
    if isinstance(value, bool) or kind is bool:
        return value if isinstance(value, bool) and kind is bool else None
    if kind is float:
        return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None
    return value if kind in (int, str) and isinstance(value, kind) else None
