"""The static checks, over facts made by hand: what is refused, what is only warned of, and in which words."""

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.domain.architecture import architecture_of
from gateway.domain.preflight import AdapterFacts, BaseModelFacts, Findings, Limits, Tensor, check
from tests.fixtures.artifacts import (
    TARGETS,
    TINY_BASE_CONFIG,
    TINY_BASE_MODEL,
    adapter_config,
    adapter_tensors,
    shape_of,
    tensor_name,
)

BASE = BaseModelFacts((TINY_BASE_MODEL, "/models/tiny-llama"), architecture_of(TINY_BASE_CONFIG), "0" * 64)
UNKNOWN_BASE = BaseModelFacts((TINY_BASE_MODEL,))
SIDES: tuple[Literal["A", "B"], ...] = ("A", "B")
Q_A, Q_B = tensor_name(0, "q_proj", "A"), tensor_name(0, "q_proj", "B")


def facts(
    *, rank: int = 8, targets: Iterable[str] = TARGETS, base_model: str | None = TINY_BASE_MODEL,
    tensors: dict[str, Tensor | None] | None = None, **config: Any,
) -> AdapterFacts:
    """A sound adapter, with the fields of its config and the tensors that are given put in place (None: removed)."""
    made = {
        tensor_name(layer, target, side): Tensor(
            tensor_name(layer, target, side), "F32",
            (rank, shape_of(target)[0]) if side == "A" else (shape_of(target)[1], rank), 0.5)
        for layer in range(2) for target in targets for side in SIDES}
    kept = tuple(tensor for tensor in {**made, **(tensors or {})}.values() if tensor is not None)
    return AdapterFacts(adapter_config(rank=rank, targets=tuple(targets), **config), kept, base_model)


def tensor(name: str, *shape: int, peak: float | None = 0.5, dtype: str = "F32") -> dict[str, Tensor | None]:
    return {name: Tensor(name, dtype, shape, peak)}


def renamed(how: Callable[[str], str]) -> AdapterFacts:
    sound = facts()
    return replace(sound, tensors=tuple(replace(each, name=how(each.name)) for each in sound.tensors))


def look(adapter: AdapterFacts, base: BaseModelFacts = BASE, max_rank: int = 64, **options: Any) -> Findings:
    return check(adapter, base, Limits(max_rank), **options)


def refusal(adapter: AdapterFacts, base: BaseModelFacts = BASE, **options: Any) -> str:
    """The one reason for which it is refused."""
    (reason,) = look(adapter, base, **options).reasons
    return reason


def test_a_sound_adapter_is_neither_refused_nor_warned_of() -> None:
    assert look(facts()) == Findings((), ())


def test_the_fixture_writes_sound_adapters() -> None:
    made = tuple(Tensor(name, "F32", value.shape, float(abs(value).max())) for name, value in adapter_tensors().items())
    assert look(AdapterFacts(adapter_config(), made, TINY_BASE_MODEL)) == Findings((), ())


def test_the_facts_tell_rank_alpha_and_targets() -> None:
    sound = facts(rank=4, targets=("v_proj", "q_proj"), alpha=8)
    assert (sound.rank, sound.alpha, sound.targets) == (4, 8.0, ("q_proj", "v_proj"))


@pytest.mark.parametrize("adapter", [
    facts(use_rslora=True),
    facts(rank=1), facts(rank=64),
    facts(alpha=0.5),
    facts(init_lora_weights="gaussian"), facts(init_lora_weights=False),
    facts(target_modules="all-linear"), facts(target_modules=r".*_proj"),
    facts(fan_in_fan_out=True),
    facts(targets=("q_proj",), target_modules=["self_attn.q_proj"]),
    facts(layers_to_transform=[0], tensors={tensor_name(1, t, s): None for t in TARGETS for s in SIDES}),
    renamed(lambda name: name.removeprefix("base_model.model.")),
    facts(target_modules=[*TARGETS, "lm_head"], tensors={
        **tensor("base_model.model.lm_head.lora_A.weight", 8, 128),
        **tensor("base_model.model.lm_head.lora_B.weight", 512, 8)}),
    facts(target_modules=[*TARGETS, "embed_tokens"], tensors={
        **tensor("base_model.model.model.embed_tokens.lora_embedding_A", 8, 512),
        **tensor("base_model.model.model.embed_tokens.lora_embedding_B", 128, 8)}),
])
def test_what_the_engine_serves_is_not_refused(adapter: AdapterFacts) -> None:
    assert look(adapter) == Findings((), ())


@pytest.mark.parametrize(("adapter", "words"), [
    (facts(peft_type="IA3"), "only LoRA"),
    (facts(peft_type=None), "only LoRA"),
    (facts(use_dora=True), "use_dora=False"),
    (facts(lora_bias=True), "lora_bias=False"),
    (facts(bias="all"), "bias='none'"),
    (facts(modules_to_save=["lm_head"]), "modules_to_save"),
    (facts(trainable_token_indices=[1]), "trainable_token_indices"),
    (facts(layer_replication=[[0, 1]]), "layer_replication"),
    (facts(alora_invocation_tokens=[1]), "activated LoRA"),
    (facts(use_bdlora={"target_modules_bd_a": []}), "block-diagonal"),
    (facts(use_qalora=True), "QALoRA"),
    (facts(kasa_config={"beta": 1e-4}), "KaSA"),
    (facts(init_lora_weights="pissa_niter_16"), "path_initial_model_for_weight_conversion"),
    (facts(init_lora_weights="olora"), "path_initial_model_for_weight_conversion"),
])
def test_other_kinds_than_plain_lora_are_refused(adapter: AdapterFacts, words: str) -> None:
    assert words in refusal(adapter)


@pytest.mark.parametrize("rank", [0, -1, "8", 8.0, True, None, [8]])
def test_a_rank_that_is_no_positive_whole_number_is_refused(rank: Any) -> None:
    assert "the rank must be a whole number of at least 1" in refusal(facts(r=rank))


@pytest.mark.parametrize("alpha", [0, -16, "16", None, True, math.nan, math.inf, 10**400])
def test_an_alpha_that_is_no_finite_positive_number_is_refused(alpha: Any) -> None:
    assert "it must be a finite number above 0" in refusal(facts(lora_alpha=alpha))


def test_a_rank_over_the_limit_is_refused_and_the_limit_is_named() -> None:
    assert "The rank 16 is over the limit of 8" in refusal(facts(rank=16), max_rank=8)
    assert look(facts(rank=8), max_rank=8).reasons == ()


def test_rank_pattern_sets_the_rank_of_its_modules() -> None:
    names = {tensor_name(layer, "q_proj", side): (4, 128) if side == "A" else (128, 4)
             for layer in range(2) for side in SIDES}
    small = {name: Tensor(name, "F32", shape, 0.5) for name, shape in names.items()}
    found = look(facts(rank_pattern={"q_proj": 4}, tensors={**small}))
    assert found.reasons == ()
    assert "only honoured by recent engines" in found.warnings[0]
    assert "Shapes do not fit" in refusal(facts(tensors={**small}))
    assert "The rank 128 is over the limit" in look(facts(rank_pattern={"q_proj": 128})).reasons[0]


@pytest.mark.parametrize("key", ["(a+)+$", "[", "a*", "a|b", "", "a" * 201, "q proj", "q_proj\\"])
def test_a_pattern_that_is_no_plain_name_never_reaches_the_engine(key: str) -> None:
    assert "no plain module names" in refusal(facts(rank_pattern={key: 8}))


@pytest.mark.parametrize("fields", [{"rank_pattern": {"q_proj": 0}}, {"alpha_pattern": {"q_proj": math.nan}},
                                    {"rank_pattern": [8]}, {"alpha_pattern": "q_proj"}])
def test_a_malformed_pattern_is_refused(fields: dict[str, Any]) -> None:
    assert next(iter(fields)) in refusal(facts(**fields))


@pytest.mark.parametrize("how", [
    lambda name: name.replace("base_model.model.model.", "base_model.model."),
    lambda name: name.replace("model.layers", "language_model.model.layers"),
    lambda name: name.replace("model.layers", "transformer.h"),
    lambda name: name.replace("layers.1", "layers.2"),
    lambda name: name.replace("layers.", "layers.0"),
    lambda name: name.replace("self_attn.", "mlp."),
    lambda name: name.replace("q_proj", "wq"),
    lambda name: name.replace("q_proj", "qkv_proj"),
    lambda name: name.replace(".lora_A.weight", ".lora_embedding_A").replace(".lora_B.weight", ".lora_embedding_B"),
])
def test_names_that_no_module_has_are_refused(how: Callable[[str], str]) -> None:
    assert any("has no such module" in reason for reason in look(renamed(how)).reasons)


@pytest.mark.parametrize("name", [
    "base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight",
    "base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector.weight",
    "base_model.model.model.layers.0.self_attn.q_proj.lora_B.bias",
    "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta",
    "base_model.model.lm_head.weight",
    "", "weight", ".lora_A.weight",
])
def test_tensors_that_are_no_lora_are_refused(name: str) -> None:
    assert "These are no LoRA tensors" in refusal(facts(tensors=tensor(name, 8, 8)))


def test_the_first_ten_culprits_are_named_and_the_rest_are_counted() -> None:
    reason = next(r for r in look(renamed(lambda name: "x" * 220 + name)).reasons if "no such module" in r)
    assert reason.endswith(" and 18 more.")
    assert len(reason) < 3000


def test_endless_names_are_no_lora_tensors() -> None:
    assert "These are no LoRA tensors" in refusal(facts(tensors=tensor("." * 10_000_000 + Q_A, 8, 128)))


def test_more_patterns_than_can_be_tried_are_refused() -> None:
    assert "more than 2000" in refusal(facts(rank_pattern={f"m{number}": 8 for number in range(50_000)}))
    many = tuple(Tensor(f"m.{number}.lora_{side}.weight", "F32", (8, 8), 0.5)
                 for number in range(1000) for side in SIDES)
    config = adapter_config(rank_pattern={f"m{number}": 8 for number in range(1500)}, target_modules="all-linear")
    assert "too many to try" in refusal(AdapterFacts(config, many, TINY_BASE_MODEL), UNKNOWN_BASE)


def test_fused_experts_are_matched_by_their_parameters_names() -> None:
    mixtral = facts(targets=("q_proj",), target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
                    rank_pattern={r".*\.gate_up_proj": 4}, tensors={
                        **tensor("base_model.model.model.layers.0.mlp.experts.base_layer.lora_A.weight", 16, 128),
                        **tensor("base_model.model.model.layers.0.mlp.experts.base_layer.lora_B.weight", 512, 16),
                        **tensor("base_model.model.model.layers.0.mlp.experts.lora_A.weight", 32, 256),
                        **tensor("base_model.model.model.layers.0.mlp.experts.lora_B.weight", 128, 32)})
    assert look(mixtral, UNKNOWN_BASE).reasons == ()
    assert "Shapes do not fit" in refusal(replace(mixtral, config={**mixtral.config, "rank_pattern": {
        r".*\.gate_up_proj": 5}}), UNKNOWN_BASE)


def test_every_reason_is_collected() -> None:
    reasons = look(facts(base_model="other", peft_type="IA3", lora_alpha=0, use_dora=True, tensors={Q_A: None})).reasons
    assert len(reasons) == 5


@pytest.mark.parametrize("missing", [Q_A, Q_B])
def test_half_a_pair_is_refused(missing: str) -> None:
    assert "A and B must come in pairs, but one is missing for model.layers.0.self_attn.q_proj" in refusal(
        facts(tensors={missing: None}))


def test_two_names_for_one_tensor_are_refused() -> None:
    assert "more than one tensor" in refusal(facts(tensors=tensor(Q_A.removeprefix("base_model.model."), 8, 128)))


def test_an_adapter_without_tensors_is_refused() -> None:
    assert "holds no tensors" in look(replace(facts(), tensors=())).reasons[0]


@pytest.mark.parametrize("shape", [(8, 64), (8, 256), (16, 128), (1, 128), (128, 8), (128,), (8, 128, 1), (), (0, 128)])
def test_a_shape_that_does_not_fit_is_refused(shape: tuple[int, ...]) -> None:
    reason = refusal(facts(tensors=tensor(Q_A, *shape)))
    assert f"{Q_A} is {list(shape)}, must be [8, 128]" in reason


def test_key_and_value_shapes_follow_the_key_value_heads() -> None:
    assert "must be [64, 8]" in refusal(facts(tensors=tensor(tensor_name(0, "k_proj", "B"), 128, 8)))


def test_a_rank_that_differs_from_the_configs_is_refused() -> None:
    assert "Shapes do not fit the rank" in refusal(facts(r=16))


def test_an_unknown_architecture_is_checked_for_pairs_and_rank_only_and_says_so() -> None:
    found = look(renamed(lambda name: name.replace("model.layers", "transformer.h")), UNKNOWN_BASE)
    assert found.reasons == ()
    assert "architecture is not known" in found.warnings[0]
    assert "A and B must come in pairs" in refusal(facts(tensors={Q_A: None}), UNKNOWN_BASE)
    assert "Shapes do not fit" in refusal(facts(tensors=tensor(Q_A, 4, 128)), UNKNOWN_BASE)


@pytest.mark.parametrize("peak", [math.nan, math.inf])
def test_numbers_that_are_not_finite_are_refused(peak: float) -> None:
    assert f"NaN or infinite numbers in {Q_A}" in refusal(facts(tensors=tensor(Q_A, 8, 128, peak=peak)))


def test_weights_that_are_no_floats_are_refused() -> None:
    assert f"{Q_A} (I8)" in refusal(facts(tensors=tensor(Q_A, 8, 128, peak=None, dtype="I8")))


def test_numbers_too_large_for_float16_are_warned_of() -> None:
    found = look(facts(tensors=tensor(Q_A, 8, 128, peak=1e5)))
    assert found.reasons == ()
    assert "too large for float16" in found.warnings[0]


@pytest.mark.parametrize("side", ["A", "B"])
def test_an_adapter_that_changes_nothing_is_refused(side: str) -> None:
    sound = facts()
    idle = tuple(replace(t, peak=0.0) if f"lora_{side}" in t.name else t for t in sound.tensors)
    assert "would change nothing" in refusal(replace(sound, tensors=idle))


def test_one_module_that_changes_nothing_is_warned_of() -> None:
    found = look(facts(tensors=tensor(Q_B, 128, 8, peak=0.0)))
    assert found.reasons == ()
    assert "changes nothing in model.layers.0.self_attn.q_proj" in found.warnings[0]


def test_tensors_that_target_modules_does_not_name_are_refused() -> None:
    assert "which target_modules does not name" in refusal(facts(target_modules=["q_proj"]))


def test_a_target_of_the_base_model_without_tensors_is_refused() -> None:
    assert "target_modules names o_proj, but there are no tensors" in refusal(
        facts(targets=("q_proj",), target_modules=["q_proj", "o_proj"]))


def test_a_target_that_the_base_model_does_not_have_is_warned_of() -> None:
    found = look(facts(target_modules=[*TARGETS, "w1"]))
    assert found.reasons == ()
    assert "names w1, which has no tensors" in found.warnings[0]


def test_a_layer_without_tensors_is_warned_of() -> None:
    found = look(facts(tensors={tensor_name(1, "q_proj", "A"): None, tensor_name(1, "q_proj", "B"): None}))
    assert found.reasons == ()
    assert "layer 1 q_proj" in found.warnings[0]


@pytest.mark.parametrize("targets", [None, [], "", 8, ["q_proj", 8]])
def test_malformed_targets_are_refused(targets: Any) -> None:
    assert "it must be a list of module names" in refusal(facts(target_modules=targets))


def test_the_engines_blindness_to_a_copied_embedding_is_warned_of() -> None:
    name = "base_model.model.model.embed_tokens.base_layer.weight"
    found = look(facts(tensors=tensor(name, 512, 128)))
    assert found.reasons == ()
    assert "own copy of the base weights of model.embed_tokens" in found.warnings[0]
    assert "must be [512, 128]" in refusal(facts(tensors=tensor(name, 515, 128)))


# --- the base model --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [
    "tiny-llama", "/models/tiny-llama", "/elsewhere/tiny-llama/", "somebody/Tiny-Llama",
    "/home/x/.cache/huggingface/hub/models--somebody--tiny-llama/snapshots/0123abcd",
])
def test_the_base_model_is_the_pools_when_its_name_or_its_last_part_is(name: str) -> None:
    assert look(facts(base_model=name)).reasons == ()


@pytest.mark.parametrize("name", ["big-llama", "tiny-llama/v2", "x-tiny-llama", "/"])
def test_another_base_model_is_refused_and_says_how_to_insist(name: str) -> None:
    reason = refusal(facts(base_model=name))
    assert "was trained on" in reason
    assert "pass base_model='tiny-llama'" in reason


def test_an_adapter_that_names_no_base_model_is_refused_and_says_how_to_insist() -> None:
    assert "pass base_model='tiny-llama'" in refusal(facts(base_model=None))


def test_the_callers_word_stands_in_place_of_the_adapters() -> None:
    assert look(facts(base_model="other"), declared_base="tiny-llama").reasons == ()
    assert look(facts(base_model=None), declared_base="tiny-llama").reasons == ()


def test_the_callers_word_does_not_make_shapes_fit() -> None:
    assert "Shapes do not fit" in refusal(facts(tensors=tensor(Q_A, 8, 64)), declared_base="tiny-llama")


def test_a_base_model_that_the_pool_does_not_serve_is_refused_whoever_says_it() -> None:
    assert "is not what this pool serves" in refusal(facts(), declared_base="other")


def test_the_same_config_is_the_same_base_model_by_any_name() -> None:
    assert look(replace(facts(base_model="other"), base_config_sha256="0" * 64)) == Findings((), ())


def test_another_config_under_the_same_name_is_warned_of() -> None:
    found = look(replace(facts(), base_config_sha256="1" * 64))
    assert found.reasons == ()
    assert "config.json is not the one" in found.warnings[0]


# --- properties ------------------------------------------------------------------------------------------------------

_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3), max_leaves=8)
_fields = st.sampled_from([
    *sorted(adapter_config()), "lora_bias", "use_bdlora", "target_parameters", "exclude_modules"])


@given(st.dictionaries(_fields, _json, max_size=4))
def test_no_config_makes_the_checks_fail(fields: dict[str, Any]) -> None:
    found = look(replace(facts(), config={**adapter_config(), **fields}))
    assert all(len(sentence) < 5000 for sentence in found.reasons + found.warnings)


@given(st.dictionaries(_fields, _json, max_size=4))
def test_what_is_not_refused_has_a_rank_an_alpha_and_targets(fields: dict[str, Any]) -> None:
    adapter = replace(facts(), config={**adapter_config(), **fields})
    if not look(adapter).reasons:
        assert 1 <= adapter.rank <= 64
        assert 0 < adapter.alpha < math.inf
        assert adapter.targets


_names = st.lists(st.sampled_from(
    ["base_model", "model", "layers", "0", "1", "2", "01", "self_attn", "mlp", "q_proj", "lora_A", "lora_B", "weight",
     "default", "embed_tokens", "lora_embedding_A", "base_layer", "lm_head", "experts", "", "{}", "\n"]),
    max_size=10).map(".".join)
_tensors = st.builds(Tensor, _names | st.text(), st.sampled_from(["F32", "BF16", "I8", "X"]),
                     st.lists(st.integers(0, 600), max_size=4).map(tuple), st.none() | st.floats(min_value=0))


@given(st.lists(_tensors, max_size=5), st.sampled_from([BASE, UNKNOWN_BASE]))
def test_no_tensors_make_the_checks_fail(tensors: list[Tensor], base: BaseModelFacts) -> None:
    assert look(replace(facts(), tensors=tuple(tensors)), base).reasons


@given(_tensors)
def test_a_tensor_that_is_one_too_many_is_refused(extra: Tensor) -> None:
    sound = facts()
    found = look(replace(sound, tensors=(*sound.tensors, extra)))
    assert found.reasons or extra.name.endswith("base_layer.weight")
