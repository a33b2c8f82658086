"""What config.json tells of each family's modules."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.domain.architecture import Shape, architecture_of
from tests.fixtures.artifacts import TINY_BASE_CONFIG

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "phi3")


def config(**fields: Any) -> dict[str, Any]:
    return {**TINY_BASE_CONFIG, **fields}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_attention_and_a_feed_forward_in_each_layer(family: str) -> None:
    known = architecture_of(config(model_type=family, head_dim=32))
    assert known is not None
    assert known.layers == 2
    assert known.in_layer["self_attn.o_proj"] == Shape(128, 128)
    assert known.in_layer["mlp.down_proj"] == Shape(256, 128)


def test_heads_share_keys_and_values() -> None:
    known = architecture_of(config())
    assert known is not None
    assert known.in_layer["self_attn.q_proj"] == Shape(128, 128)
    assert known.in_layer["self_attn.k_proj"] == known.in_layer["self_attn.v_proj"] == Shape(128, 64)


def test_an_explicit_head_dim_counts_except_where_the_engine_ignores_it() -> None:
    qwen3, qwen2 = architecture_of(config(model_type="qwen3", head_dim=64)), architecture_of(
        config(model_type="qwen2", head_dim=64))
    assert qwen3 is not None and qwen2 is not None
    assert qwen3.in_layer["self_attn.q_proj"] == Shape(128, 256)
    assert qwen2.in_layer["self_attn.q_proj"] == Shape(128, 128)


def test_phi3_has_fused_projections() -> None:
    known = architecture_of(config(model_type="phi3"))
    assert known is not None
    assert known.in_layer["self_attn.qkv_proj"] == Shape(128, 256)
    assert known.in_layer["mlp.gate_up_proj"] == Shape(128, 512)
    assert "self_attn.q_proj" not in known.in_layer


@pytest.mark.parametrize(("family", "fields", "keys"), [
    ("llama", {}, 4 * 32), ("gemma", {}, 16 * 256), ("gemma2", {"num_key_value_heads": None}, 4 * 256),
    ("qwen3", {"num_key_value_heads": 2}, 2 * 128),
])
def test_an_absent_number_means_what_the_family_says(family: str, fields: dict[str, Any], keys: int) -> None:
    bare = {name: value for name, value in config(model_type=family).items() if name != "num_key_value_heads"}
    known = architecture_of({**bare, **fields})
    assert known is not None
    assert known.in_layer["self_attn.k_proj"] == Shape(128, keys)


@pytest.mark.parametrize("family", FAMILIES)
def test_only_some_families_take_lora_on_their_embeddings(family: str) -> None:
    known = architecture_of(config(model_type=family))
    assert known is not None
    assert bool(known.outside) == (family in ("llama", "qwen3", "phi3"))


@pytest.mark.parametrize("fields", [
    {"model_type": "mixtral"}, {"model_type": None}, {"model_type": []}, {"hidden_size": None}, {"hidden_size": "128"},
    {"num_hidden_layers": 0}, {"num_attention_heads": True}, {"vocab_size": 1.5},
])
def test_what_is_not_known_is_not_guessed(fields: dict[str, Any]) -> None:
    assert architecture_of(config(**fields)) is None


@given(st.dictionaries(st.sampled_from([*sorted(TINY_BASE_CONFIG), "head_dim"]), st.none() | st.integers() | st.text()))
def test_no_config_makes_it_fail(fields: dict[str, Any]) -> None:
    architecture_of(config(**fields))
