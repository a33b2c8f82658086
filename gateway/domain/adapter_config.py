"""Is this adapter_config.json of a kind that an engine serves, and how large is it scaled?"""

import re
from collections.abc import Mapping
from typing import Any

from gateway.domain.findings import Notes, short

_MAX_PATTERNS = 2000
_PLAIN_PATTERN = re.compile(r"\^?(\.\*\\\.)?[A-Za-z0-9_.\\]{1,200}\$?")  # .*\. begins those that PEFT makes itself
_HARMLESS_INITS = frozenset({"gaussian", "eva", "orthogonal", "mica", "lora_ga"})
_UNSERVED = {
    "use_dora": "DoRA (use_dora); train again with use_dora=False",
    "lora_bias": "LoRA biases (lora_bias); train again with lora_bias=False",
    "modules_to_save": "whole modules beside the adapter (modules_to_save); train again without it",
    "trainable_token_indices": "trained tokens (trainable_token_indices); train again without it",
    "layer_replication": "replicated layers (layer_replication); train again without it",
    "alora_invocation_tokens": "activated LoRA (alora_invocation_tokens); train again as plain LoRA",
    "use_bdlora": "block-diagonal LoRA (use_bdlora); train again as plain LoRA",
    "use_qalora": "QALoRA (use_qalora); train again as plain LoRA",
    "kasa_config": "KaSA (kasa_config); train again as plain LoRA",
    "arrow_config": "Arrow routing (arrow_config); train again as plain LoRA",
    "monteclora_config": "MonteCLoRA (monteclora_config); train again as plain LoRA",
}


def check_kind(config: Mapping[str, Any], notes: Notes) -> None:
    """Only plain LoRA (rsLoRA too): everything else vLLM refuses, or serves as something it is not."""
    if config.get("peft_type") != "LORA":
        notes.reasons.append(
            f"peft_type is {short(config.get('peft_type'))}, not 'LORA': only LoRA adapters can be served.")
    for name, kind in _UNSERVED.items():
        if config.get(name):
            notes.reasons.append(f"The engine does not serve {kind}.")
    if config.get("bias", "none") != "none":
        notes.reasons.append(
            f"bias is {short(config['bias'])}: the engine serves no biases; train again with bias='none'.")
    init = config.get("init_lora_weights", True)
    if isinstance(init, str) and init.lower() not in _HARMLESS_INITS:
        notes.reasons.append(
            f"init_lora_weights is {short(init)}, which changes the base model's weights: convert it to a plain LoRA "
            "with PEFT's path_initial_model_for_weight_conversion.")


class Ranks:
    """The rank of each module: `r`, or what rank_pattern says of it."""

    def __init__(self, rank: int, pattern: Mapping[str, int]) -> None:
        self._rank = rank
        self._pattern = [(re.compile(rf"(.*\.)?({key})$"), value) for key, value in pattern.items()]

    @property
    def patterns(self) -> int:
        """How many patterns are tried for each module."""
        return len(self._pattern)

    def of(self, module: str) -> int:
        """`module` as its tensors name it; fused experts are matched by the name of their parameters."""
        if module.endswith(".experts.base_layer"):
            module = module.removesuffix(".base_layer") + ".gate_up_proj"
        elif module.endswith(".experts"):
            module += ".down_proj"
        return next((value for key, value in self._pattern if key.match(module)), self._rank)


def check_scale(config: Mapping[str, Any], max_rank: int, notes: Notes) -> Ranks | None:
    """Rank and alpha and their patterns; None when the ranks cannot be told."""
    before = len(notes.reasons)
    rank: Any = config.get("r")
    if not _is_rank(rank):
        notes.reasons.append(f"r is {short(rank)}: the rank must be a whole number of at least 1.")
    if not _is_alpha(config.get("lora_alpha")):
        notes.reasons.append(f"lora_alpha is {short(config.get('lora_alpha'))}: it must be a finite number above 0.")
    ranks = _pattern(config, "rank_pattern", notes)
    alphas = _pattern(config, "alpha_pattern", notes)
    notes.refuse_each([f"{key} → {short(value)}" for key, value in ranks.items() if not _is_rank(value)],
                      "rank_pattern must give whole numbers of at least 1, not {}.")
    notes.refuse_each([f"{key} → {short(value)}" for key, value in alphas.items() if not _is_alpha(value)],
                      "alpha_pattern must give finite numbers above 0, not {}.")
    if len(notes.reasons) > before:
        return None
    if ranks or alphas:
        notes.warnings.append("rank_pattern and alpha_pattern are only honoured by recent engines; older ones scale "
                              "every module by r and lora_alpha.")
    largest = max([rank, *ranks.values()])
    if largest > max_rank:
        notes.reasons.append(f"The rank {largest} is over the limit of {max_rank}: train with a smaller one, or "
                             "raise max_rank here and the replicas' --max-lora-rank.")
    return Ranks(rank, ranks)


def _pattern(config: Mapping[str, Any], name: str, notes: Notes) -> Mapping[str, Any]:
    """A pattern by module. The engine takes its keys for regular expressions: only names are let through to it."""
    pattern = config.get(name) or {}
    if not isinstance(pattern, Mapping):
        notes.reasons.append(f"{name} is {short(pattern)}: it must be an object from module name to number.")
        return {}
    if len(pattern) > _MAX_PATTERNS:
        notes.reasons.append(f"{name} has {len(pattern)} entries, more than {_MAX_PATTERNS}: write fewer.")
        return {}
    bad = [repr(key) for key in pattern if not _PLAIN_PATTERN.fullmatch(key) or not _compiles(key)]
    notes.refuse_each(bad, name + " has keys that are no plain module names ({}): write out the names.")
    return {} if bad else pattern


def _compiles(key: str) -> bool:
    try:
        re.compile(key)
    except re.error:
        return False
    return True


def _is_rank(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_alpha(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 1e9
