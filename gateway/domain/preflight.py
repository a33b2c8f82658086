"""May this adapter be shown to an engine? Every check that needs no GPU, as one pure function over facts.

vLLM refuses some bad adapters with an error, but others it serves in silence as if they were the base model, or half
applied: tensors under a name that no module has, layers that do not exist, matrices too small for their module, B all
zero. All of these are refused here, in sentences that say what is wrong and what to do.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from gateway.domain.adapter_config import Ranks, check_kind, check_scale
from gateway.domain.architecture import EMBEDDING, HEAD, Architecture, Shape
from gateway.domain.findings import Findings, Notes, short

__all__ = ["AdapterFacts", "BaseModelFacts", "Findings", "Limits", "Tensor", "check"]

FLOATS = frozenset({"F16", "BF16", "F32", "F64"})
_LONGEST_NAME = 300
_MAX_MATCHES = 1_000_000
_LARGEST_FLOAT16 = 65504.0
_PEFT_PREFIX = "base_model.model."
_LINEAR = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
_EMBEDDING = re.compile(r"(?P<module>.+)\.lora_embedding_(?P<side>[AB])")
_BASE_COPY = re.compile(r"(?P<module>.+)\.base_layer\.weight")
_IN_LAYER = re.compile(r"model\.layers\.(?P<layer>0|[1-9][0-9]{0,5})\.(?P<module>.+)")
_HUB_FOLDER = re.compile(r"models--(?:.+--)?(?P<name>.+)")


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of the adapter. `peak`: its largest magnitude, NaN if it holds one, None if it holds no floats."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    peak: float | None


@dataclass(frozen=True, slots=True)
class AdapterFacts:
    """What an adapter's files say: adapter_config.json, the tensors, and the base model that it was trained on.

    `rank`, `alpha` and `targets` may be read once `check` has found no reason to refuse.
    """

    config: Mapping[str, Any]
    tensors: tuple[Tensor, ...]
    base_model: str | None = None
    base_config_sha256: str | None = None
    chat_template_sha256: str | None = None

    @property
    def rank(self) -> int:
        """The largest rank of any module."""
        ranks: list[int] = [self.config["r"], *(self.config.get("rank_pattern") or {}).values()]
        return max(ranks)

    @property
    def alpha(self) -> float:
        return float(self.config["lora_alpha"])

    @property
    def targets(self) -> tuple[str, ...]:
        """The kinds of module that have tensors, such as `q_proj`, sorted."""
        parts = (_parse(tensor.name) for tensor in self.tensors)
        return tuple(sorted({part.module.rpartition(".")[2] for part in parts if part and part.side != "base"}))


@dataclass(frozen=True, slots=True)
class BaseModelFacts:
    """What the pool serves: the `names` it goes by (id, path), and its architecture if that is known."""

    names: tuple[str, ...]
    architecture: Architecture | None = None
    config_sha256: str | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """What the replicas were started with."""

    max_rank: int = 64


class _Part(NamedTuple):
    """A tensor's place: the module it belongs to and its side: 'A', 'B' or 'base' (a copy of the base's weights)."""

    module: str
    side: str
    is_embedding: bool


def check(
    facts: AdapterFacts, base: BaseModelFacts, limits: Limits, *, declared_base: str | None = None,
) -> Findings:
    """All that speaks against loading the adapter beside this base model.

    `declared_base`: the base model's name as the caller gave it, which stands in place of what the adapter's files say.
    """
    notes = Notes()
    _check_base(facts, base, declared_base, notes)
    check_kind(facts.config, notes)
    ranks = check_scale(facts.config, limits.max_rank, notes)
    pairs = _check_names(facts, base.architecture, notes)
    if ranks and ranks.patterns * len(pairs) > _MAX_MATCHES:
        notes.reasons.append(f"rank_pattern has {ranks.patterns} entries for {len(pairs)} modules, too many to try: "
                             "write fewer.")
    elif ranks:
        _check_shapes(pairs, ranks, base.architecture, notes)
    _check_numbers(facts.tensors, pairs, notes)
    _check_targets(facts, base.architecture, notes)
    return notes.findings()


# --- the base model --------------------------------------------------------------------------------------------------


def _check_base(facts: AdapterFacts, base: BaseModelFacts, declared: str | None, notes: Notes) -> None:
    served = " or ".join(repr(name) for name in base.names)
    if declared is not None:
        if not is_same_base(declared, base.names):
            notes.reasons.append(f"base_model={declared[:200]!r} is not what this pool serves: name {served}.")
        return
    if facts.base_config_sha256 is not None and facts.base_config_sha256 == base.config_sha256:
        return
    if not facts.base_model:
        notes.reasons.append(f"The adapter does not say which base model it was trained on: "
                             f"pass base_model={base.names[0]!r} to say that it was this one.")
    elif not is_same_base(facts.base_model, base.names):
        notes.reasons.append(f"The adapter was trained on {facts.base_model[:200]!r}, but this pool serves {served}: "
                             f"pass base_model={base.names[0]!r} to say that it is the same.")
    elif facts.base_config_sha256 and base.config_sha256:
        notes.warnings.append("The base model's config.json is not the one that the adapter was trained with.")


def is_same_base(name: str, names: Iterable[str]) -> bool:
    """Is `name` (an id, a path, a cache folder) that of a base model which goes by `names`?"""
    return any(name == other or _basename(name) == _basename(other) for other in names)


def _basename(name: str) -> str:
    """The last part of an id or a path, letter case aside; a Hugging Face cache folder counts as the id it caches."""
    parts = [part for part in name.split("/") if part]
    cached = next((found["name"] for part in parts if (found := _HUB_FOLDER.fullmatch(part))), None)
    return (cached or (parts[-1] if parts else name)).casefold()


# --- tensors ---------------------------------------------------------------------------------------------------------

_Pairs = dict[str, dict[str, Tensor]]


def _parse(name: str) -> _Part | None:
    """A tensor's place, or None when it is none of an adapter's."""
    if len(name) > _LONGEST_NAME:
        return None
    bare = name.removeprefix(_PEFT_PREFIX)
    if found := _LINEAR.fullmatch(bare):
        return _Part(found["module"], found["side"], False)
    if found := _EMBEDDING.fullmatch(bare):
        return _Part(found["module"], found["side"], True)
    if (found := _BASE_COPY.fullmatch(bare)) and found["module"] in (EMBEDDING, HEAD):
        return _Part(found["module"], "base", False)
    return None


def _check_names(facts: AdapterFacts, architecture: Architecture | None, notes: Notes) -> _Pairs:
    """Every tensor's place, complete pairs by module; what has no place in the base model is refused."""
    pairs: _Pairs = defaultdict(dict)
    strange, unplaced = [], []
    seen: Counter[tuple[str, str]] = Counter()
    for tensor in facts.tensors:
        part = _parse(tensor.name)
        if part is None:
            strange.append(tensor.name)
        elif architecture and not _has_place(part, architecture):
            unplaced.append(tensor.name)
        else:
            seen[part.module, part.side] += 1
            pairs[part.module][part.side] = tensor
    if not facts.tensors:
        notes.reasons.append("adapter_model.safetensors holds no tensors: save the trained adapter again.")
    notes.refuse_each(strange, "These are no LoRA tensors as PEFT's save_pretrained names them (….lora_A.weight, "
                               "….lora_B.weight): {}.")
    if architecture:
        notes.refuse_each(unplaced, f"The base model ({architecture.model_type}, {architecture.layers} layers) has no "
                                    "such module, so the engine would refuse or silently ignore them: {}.")
    else:
        notes.warnings.append("The base model's architecture is not known here: module names and shapes were not "
                              "checked against it.")
    notes.refuse_each([f"{module} {side}" for (module, side), count in seen.items() if count > 1],
                      "There is more than one tensor for {}: save the adapter again.")
    notes.refuse_each([module for module, sides in pairs.items() if len({"A", "B"} & set(sides)) == 1],
                      "A and B must come in pairs, but one is missing for {}: save the adapter again.")
    notes.warn_each([module for module, sides in pairs.items() if "base" in sides],
                    "The adapter's own copy of the base weights of {} is ignored by the engine.")
    return dict(pairs)


def _has_place(part: _Part, architecture: Architecture) -> bool:
    if part.module in architecture.outside:
        return part.is_embedding == (part.module == EMBEDDING) or part.side == "base"
    found = _IN_LAYER.fullmatch(part.module)
    return (found is not None and not part.is_embedding and found["module"] in architecture.in_layer
            and int(found["layer"]) < architecture.layers)


def _check_shapes(pairs: _Pairs, ranks: Ranks, architecture: Architecture | None, notes: Notes) -> None:
    wrong = []
    for module, sides in pairs.items():
        shape = _shape_in(module, architecture) if architecture else None
        for side, tensor in sides.items():
            wanted = _wanted(side, ranks.of(module), shape)
            if not _fits(tensor.shape, wanted, module):
                want = ", ".join("any" if size is None else str(size) for size in wanted)
                wrong.append(f"{tensor.name} is {list(tensor.shape)}, must be [{want}]")
    notes.refuse_each(wrong, "Shapes do not fit the rank or the base model ({}): train on the base model that this "
                             "pool serves, and save config and weights together.")


def _wanted(side: str, rank: int, shape: Shape | None) -> tuple[int | None, int | None]:
    """The shape a tensor must have; None where anything goes."""
    wide, tall = shape or (None, None)
    if side == "base":  # [vocabulary, hidden] for the head and for the embedding, whose A reads the vocabulary
        return (None, None) if wide is None or tall is None else (max(wide, tall), min(wide, tall))
    return (rank, wide) if side == "A" else (tall, rank)


def _fits(shape: tuple[int, ...], wanted: tuple[int | None, int | None], module: str) -> bool:
    if len(shape) != len(wanted) or 0 in shape:
        return False
    if ".experts" in module and None in wanted:  # fused experts stack their ranks in one matrix
        return all(want is None or size % want == 0 for size, want in zip(shape, wanted, strict=True))
    return all(want is None or size == want for size, want in zip(shape, wanted, strict=True))


def _shape_in(module: str, architecture: Architecture) -> Shape:
    found = _IN_LAYER.fullmatch(module)
    return architecture.in_layer[found["module"]] if found else architecture.outside[module]


def _check_numbers(tensors: Iterable[Tensor], pairs: _Pairs, notes: Notes) -> None:
    tensors = tuple(tensors)
    notes.refuse_each([f"{t.name} ({t.dtype})" for t in tensors if t.peak is None or t.dtype not in FLOATS],
                      "Weights must be F16, BF16, F32 or F64, unlike {}: save the adapter in one of these.")
    notes.refuse_each([t.name for t in tensors if t.peak is not None and not math.isfinite(t.peak)],
                      "There are NaN or infinite numbers in {}: the training diverged; lower its learning rate.")
    notes.warn_each([t.name for t in tensors if t.peak is not None and _LARGEST_FLOAT16 < t.peak < math.inf],
                    "Numbers too large for float16 are in {}: an engine in float16 would take them for infinite.")
    complete = {module: sides for module, sides in pairs.items() if "A" in sides and "B" in sides}
    idle = [module for module, sides in complete.items() if sides["A"].peak == 0 or sides["B"].peak == 0]
    if idle and len(idle) == len(complete):
        notes.reasons.append("Every module's B (or A) is all zero, so the adapter would change nothing: it was saved "
                             "before it was trained.")
    else:
        notes.warn_each(idle, "B (or A) is all zero, so the adapter changes nothing in {}.")


# --- target_modules --------------------------------------------------------------------------------------------------


def _check_targets(facts: AdapterFacts, architecture: Architecture | None, notes: Notes) -> None:
    """A list of targets must match the tensors; a pattern (text) is not followed: the engine goes by the tensors."""
    targets, parameters = facts.config.get("target_modules"), facts.config.get("target_parameters")
    if (isinstance(targets, str) and targets) or (parameters and not targets):
        return
    if not isinstance(targets, list) or not targets or not all(isinstance(target, str) for target in targets):
        notes.reasons.append(f"target_modules is {short(targets)}: it must be a list of module names.")
        return
    parts = (_parse(tensor.name) for tensor in facts.tensors)
    modules = dict.fromkeys(part.module for part in parts if part and part.side != "base")
    named = {target: {module for module in modules if _is_named(module, target)} for target in targets}
    covered = set().union(*named.values())
    notes.refuse_each([module for module in modules if module not in covered and not parameters],
                      "There are tensors for {}, which target_modules does not name: config and weights do not belong "
                      "together; save both again.")
    if modules:
        _check_coverage(facts.config, named, architecture, notes)


def _check_coverage(
    config: Mapping[str, Any], named: Mapping[str, set[str]], architecture: Architecture | None, notes: Notes,
) -> None:
    """Targets without tensors, everywhere or in some layers."""
    empty = [target for target, found in named.items() if not found]
    known = set(_module_kinds(architecture)) if architecture else set()
    notes.refuse_each([target for target in empty if target in known],
                      "target_modules names {}, but there are no tensors for it: save the whole adapter again.")
    notes.warn_each([target for target in empty if target not in known],
                    "target_modules names {}, which has no tensors and so no effect.")
    if architecture and not config.get("layers_to_transform") and not config.get("exclude_modules"):
        notes.warn_each(_gaps(named, architecture), "Some layers have no tensors for a target: {}.")


def _is_named(module: str, target: str) -> bool:
    return module == target or module.endswith("." + target)


def _module_kinds(architecture: Architecture) -> Iterator[str]:
    for module in (*architecture.in_layer, *architecture.outside):
        yield module.rpartition(".")[2]


def _gaps(named: Mapping[str, set[str]], architecture: Architecture) -> list[str]:
    """`layer 3 q_proj` for every layer that lacks a target which other layers have."""
    kinds = {module.rpartition(".")[2]: module for module in architecture.in_layer}
    return [f"layer {layer} {target}" for target, found in named.items() if found and target in kinds
            for layer in range(architecture.layers) if f"model.layers.{layer}.{kinds[target]}" not in found]
