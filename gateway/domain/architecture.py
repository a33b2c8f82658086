"""Which modules a base model has and how wide they are, told from its config.json alone.

The tables follow what vLLM wraps for LoRA. A family that is not here is not wrong, only unknown: its adapters are
checked for what they say of themselves, and the load and the effect probe decide the rest.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias


class Shape(NamedTuple):
    """Features in and out of a linear module: A is [rank, wide], B is [tall, rank]."""

    wide: int
    tall: int


@dataclass(frozen=True, slots=True)
class Architecture:
    """A base model's modules: `in_layer` beneath each of its `layers`, `outside` by whole path."""

    model_type: str
    layers: int
    in_layer: Mapping[str, Shape]
    outside: Mapping[str, Shape]


Config: TypeAlias = Mapping[str, Any]
_Defaults: TypeAlias = Mapping[str, int]


class _Family(NamedTuple):
    """How a model_type differs: fused projections, LoRA on the embeddings, and what an absent number means."""

    fused: bool = False
    embeddings: bool = False
    own_head_dim: bool = True
    defaults: _Defaults = MappingProxyType({})


_FAMILIES: Mapping[str, _Family] = MappingProxyType({
    "llama": _Family(embeddings=True),
    "mistral": _Family(defaults=MappingProxyType({"num_key_value_heads": 8})),
    "qwen2": _Family(own_head_dim=False, defaults=MappingProxyType({"num_key_value_heads": 32})),
    "qwen3": _Family(embeddings=True, defaults=MappingProxyType({"num_key_value_heads": 32, "head_dim": 128})),
    "gemma": _Family(defaults=MappingProxyType({"num_key_value_heads": 16, "head_dim": 256})),
    "gemma2": _Family(defaults=MappingProxyType({"num_key_value_heads": 4, "head_dim": 256})),
    "phi3": _Family(fused=True, embeddings=True),
})
EMBEDDING = "model.embed_tokens"
HEAD = "lm_head"


def architecture_of(config: Config) -> Architecture | None:
    """What `config` (a parsed config.json) describes; None for a family or with numbers that are not known."""
    model_type = config.get("model_type")
    family = _FAMILIES.get(model_type) if isinstance(model_type, str) else None
    if family is None or not isinstance(model_type, str):
        return None
    try:
        return _build(model_type, family, _number_reader(config, family.defaults))
    except LookupError:
        return None


def _number_reader(config: Config, defaults: _Defaults) -> Callable[..., int]:
    """Reads one positive whole number; LookupError when it is neither in the config nor has a default."""

    def number(name: str, otherwise: int | None = None) -> int:
        value = config.get(name)
        value = defaults.get(name, otherwise) if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise LookupError(name)
        return value

    return number


def _build(model_type: str, family: _Family, number: Callable[..., int]) -> Architecture:
    hidden, inner, vocabulary = number("hidden_size"), number("intermediate_size"), number("vocab_size")
    heads = number("num_attention_heads")
    head = number("head_dim", hidden // heads) if family.own_head_dim else hidden // heads
    queries, keys = heads * head, number("num_key_value_heads", heads) * head
    if family.fused:
        entering = {"self_attn.qkv_proj": Shape(hidden, queries + 2 * keys),
                    "mlp.gate_up_proj": Shape(hidden, 2 * inner)}
    else:
        entering = {"self_attn.q_proj": Shape(hidden, queries), "self_attn.k_proj": Shape(hidden, keys),
                    "self_attn.v_proj": Shape(hidden, keys), "mlp.gate_proj": Shape(hidden, inner),
                    "mlp.up_proj": Shape(hidden, inner)}
    in_layer = {**entering, "self_attn.o_proj": Shape(queries, hidden), "mlp.down_proj": Shape(inner, hidden)}
    outside = {HEAD: Shape(hidden, vocabulary), EMBEDDING: Shape(vocabulary, hidden)} if family.embeddings else {}
    return Architecture(model_type, number("num_hidden_layers"), in_layer, outside)
