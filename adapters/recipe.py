"""How to train: a TOML file read into a frozen Recipe, every value checked before anything costly starts."""

import dataclasses
import math
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

T = TypeVar("T")


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
    """The course of training. `batch` rows at once, `accumulation` of them a step; `max_length` in tokens a row.

    `max_steps` in optimiser steps; when it is unset, `epochs` over the data. `warmup` is a share of all steps.
    `gradient_checkpointing` computes activations twice to keep few of them.
    """

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
    gradient_checkpointing: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        _require(self.learning_rate > 0, "training.learning_rate", self.learning_rate, "more than 0")
        _require(0 <= self.warmup < 1, "training.warmup", self.warmup, "at least 0 and below 1")
        _require(self.max_grad_norm > 0, "training.max_grad_norm", self.max_grad_norm, "more than 0")
        _require(self.epochs > 0, "training.epochs", self.epochs, "more than 0")
        _require(self.max_steps is None or self.max_steps >= 1, "training.max_steps", self.max_steps, "1 or more")
        _require(self.batch >= 1, "training.batch", self.batch, "1 or more")
        _require(self.accumulation >= 1, "training.accumulation", self.accumulation, "1 or more")
        _require(self.max_length >= 8, "training.max_length", self.max_length, "8 or more")
        _require(0 <= self.seed < 2**32, "training.seed", self.seed, "from 0 to 4294967295")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything that decides what comes out. `base_model` is a folder or a Hugging Face id.

    Paths are relative to the working directory, as in the shell.
    """

    base_model: str
    data: Path
    output: Path
    quantization: Literal["nf4", "none"] = "nf4"
    lora: Lora = field(default_factory=Lora)
    training: Training = field(default_factory=Training)

    def to_document(self) -> dict[str, Any]:
        """The recipe as JSON-ready data."""
        return {**asdict(self), "data": str(self.data), "output": str(self.output)}


def read(path: Path, overrides: Mapping[str, str] | None = None) -> Recipe:
    """The recipe in a TOML file; `overrides` replaces top-level keys (`base_model`, `data`, `output`).

    RecipeError when the file cannot be read, a key is unknown or missing, or a value has the wrong type or range.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"The recipe {path} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"The recipe {path} is not TOML: {error}.") from error
    try:
        return from_document({**document, **(overrides or {})})
    except RecipeError as error:
        raise RecipeError(f"The recipe {path}: {error}") from error


def from_document(document: Mapping[str, Any]) -> Recipe:
    """The recipe that plain data describes, or RecipeError."""
    return _build(Recipe, document, prefix="")


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
    return kind(**values)


def _value(value: Any, hint: Any, key: str) -> Any:
    """The value in its field's type, or RecipeError."""
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise RecipeError(f"{key!r} must be a table; write it as [{key}].")
        return _build(typing.cast(type, hint), value, prefix=f"{key}.")
    if typing.get_origin(hint) is Literal:
        choices = typing.get_args(hint)
        _require(value in choices, key, value, " or ".join(f'"{choice}"' for choice in choices))
        return value
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for kind in kinds:
        fitted = _fit(value, kind)
        if fitted is not None:
            return fitted
    wanted = " or ".join(_WORDS[kind] for kind in kinds if kind is not types.NoneType)
    raise RecipeError(f"{key!r} is {value!r}; make it {wanted}.")


_WORDS: Mapping[Any, str] = {
    str: "text in quotes", Path: "a path in quotes", int: "a whole number", float: "a number", bool: "true or false",
    tuple[str, ...]: "a list of texts",
}


def _fit(value: Any, kind: Any) -> Any:
    """The value as `kind`, or None when it is of another type."""
    if kind == tuple[str, ...]:
        return tuple(value) if isinstance(value, list) and all(isinstance(item, str) for item in value) else None
    if kind is Path:
        return Path(value) if isinstance(value, str) and value else None
    if isinstance(value, bool) or kind is bool:
        return value if isinstance(value, bool) and kind is bool else None
    if kind is float:
        return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None
    return value if kind in (int, str) and isinstance(value, kind) else None
