"""Trainer and engine compared: what is the same passes through an engine's noise, and each fault is named."""

import json
import math
from dataclasses import asdict, replace
from random import Random

import pytest

from gateway.domain.model import VersionPhase
from gateway.domain.parity import (
    NO_OP_SHARE,
    TOLERANCE,
    Computed,
    Fault,
    Likeliest,
    Observed,
    Parity,
    Prompt,
    Reference,
    Verdict,
    compare,
    distance,
    measure,
)
from tests.unit.domain.test_reconcile import version

VOCABULARY, PROMPTS, TOP, OBSERVED = 64, 6, 5, 20
Logits = list[list[float]]


def logits(seed: int, spread: float = 3.0) -> Logits:
    """A model: what it says of every token after each prompt."""
    random = Random(seed)
    return [[random.gauss(0, spread) for _ in range(VOCABULARY)] for _ in range(PROMPTS)]


def moved(model: Logits, seed: int, by: float) -> Logits:
    """The model with every logit moved by about as much: an adapter, a quantisation, or an engine's noise."""
    return [[one + by * shift / 3 for one, shift in zip(row, shifts, strict=True)]
            for row, shifts in zip(model, logits(seed), strict=True)]


def top(model: Logits, count: int = TOP) -> list[Likeliest]:
    said: list[Likeliest] = []
    for row in model:
        total = math.log(sum(map(math.exp, row)))
        ranked = sorted(((value - total, token) for token, value in enumerate(row)), reverse=True)[:count]
        said.append({token: logprob for logprob, token in ranked})
    return said


BASE = logits(1)
ADAPTER = moved(BASE, 2, 2.0)
IDS = tuple(tuple(range(number, number + 9)) for number in range(PROMPTS))


def reference(
    base: Logits = BASE, adapter: Logits = ADAPTER, *, trained_base: Logits | None = None,
    trained_adapter: Logits | None = None, served: bool = True, quantization: str = "none",
) -> Reference:
    sides = [top(trained_base or base), top(base), top(trained_adapter or adapter), top(adapter)]
    prompts = [
        Prompt(({"role": "user", "content": f"prompt {number}"},), IDS[number],
               Computed(was, now if served else None), Computed(was_adapted, adapted if served else None))
        for number, (was, now, was_adapted, adapted) in enumerate(zip(*sides, strict=True))]
    return Reference("llama-8b", quantization, None, tuple(prompts))


def observed(base: Logits = BASE, adapter: Logits = ADAPTER, ids: tuple[tuple[int, ...], ...] = IDS) -> Observed:
    return Observed([list(row) for row in ids], top(base, OBSERVED), top(adapter, OBSERVED))


def faults(parity: Parity) -> list[Fault]:
    return [finding.fault for finding in parity.findings]


def test_an_engine_that_says_the_same_passes_with_nothing_between() -> None:
    found = compare(reference(), observed())
    assert (found.verdict, found.findings) == (Verdict.PASS, ())
    assert found.numbers is not None
    numbers = asdict(found.numbers)
    assert numbers.pop("effect_trained") == numbers.pop("effect_served") > TOLERANCE
    assert numbers.pop("prompts") == PROMPTS
    assert set(numbers.values()) == {0.0}


@pytest.mark.parametrize("seed", range(20))
def test_an_engines_noise_passes(seed: int) -> None:
    """Single tokens are up to 0.3 nats from where they were."""
    noisy = observed(moved(BASE, 100 + seed, 0.15), moved(ADAPTER, 200 + seed, 0.15))
    assert compare(reference(), noisy).verdict is Verdict.PASS


@pytest.mark.parametrize("served", [True, False])
def test_another_template_is_named_and_nothing_else(served: bool) -> None:
    ids = (IDS[0], (*IDS[1][:4], 99, *IDS[1][4:]), *IDS[2:])
    found = compare(reference(served=served), observed(ids=ids))
    assert faults(found) == [Fault.TEMPLATE]
    assert "other tokens of 1 of 6 prompts" in found.findings[0].text
    assert "in the first, 10 instead of 9, differing from token 4 on" in found.findings[0].text
    assert found.verdict is Verdict.WARN


def test_tokens_that_end_early_are_another_template_too() -> None:
    found = compare(reference(), observed(ids=(IDS[0][:-1], *IDS[1:])))
    assert "8 instead of 9, differing from token 8 on" in found.findings[0].text


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("served", [True, False])
def test_another_base_is_named_and_its_adapter_is_not_judged(seed: int, served: bool) -> None:
    base = logits(50 + seed)
    found = compare(reference(served=served), observed(base, moved(base, 2, 2.0)))
    assert faults(found) == [Fault.BASE]
    assert found.findings[0].text.startswith("Wrong base: ")
    assert "more than 0.5" in found.findings[0].text and "'llama-8b'" in found.findings[0].text


def test_a_base_that_could_not_be_computed_in_bfloat16_is_doubted_with_the_other_reason_named() -> None:
    found = compare(reference(served=False, quantization="nf4"), observed(moved(BASE, 3, 2.0), moved(ADAPTER, 3, 2.0)))
    assert faults(found) == [Fault.BASE]
    assert "base was nf4, and it could not compute the one in bfloat16: that alone may be the cause" in \
        found.findings[0].text


def test_an_engine_that_serves_the_base_as_it_was_trained_on_and_not_in_bfloat16_is_named() -> None:
    rough, rough_adapter = moved(BASE, 3, 2.5), moved(ADAPTER, 3, 2.5)
    told = reference(trained_base=rough, trained_adapter=rough_adapter, quantization="nf4")
    found = compare(told, observed(rough, rough_adapter))
    assert faults(found) == [Fault.QUANTISATION]
    assert "the replicas serve it quantised" in found.findings[0].text


def test_a_base_that_its_quantisation_changed_much_is_named_though_the_engine_is_right() -> None:
    told = reference(trained_base=moved(BASE, 3, 2.5), trained_adapter=moved(ADAPTER, 3, 2.5), quantization="nf4")
    found = compare(told, observed())
    assert faults(found) == [Fault.QUANTISATION]
    assert "nats apart, more than 0.5: the adapter learned to correct errors" in found.findings[0].text


def test_a_quantisation_that_changed_little_is_none_of_our_business() -> None:
    told = reference(trained_base=moved(BASE, 3, 0.3), trained_adapter=moved(ADAPTER, 3, 0.3), quantization="nf4")
    assert compare(told, observed()).verdict is Verdict.PASS


@pytest.mark.parametrize("adapter", [BASE, moved(BASE, 9, 0.1), moved(BASE, 2, 0.3)])
def test_an_adapter_that_the_engine_ignores_or_nearly_so_is_a_no_op(adapter: Logits) -> None:
    found = compare(reference(), observed(adapter=adapter))
    assert faults(found) == [Fault.NO_OP]
    assert found.numbers is not None
    assert found.numbers.effect_served < NO_OP_SHARE * found.numbers.effect_trained
    assert f"by {found.numbers.effect_trained:.3f} nats in the trainer, and by {found.numbers.effect_served:.3f}" in \
        found.findings[0].text


def test_a_faint_adapter_is_not_called_a_no_op_for_an_engines_noise() -> None:
    assert compare(reference(adapter=moved(BASE, 2, 0.1)), observed(adapter=BASE)).verdict is Verdict.PASS


@pytest.mark.parametrize("adapter", [moved(BASE, 2, 6.0), moved(BASE, 8, 2.0)])
def test_an_adapter_at_another_scale_or_another_one_has_drifted(adapter: Logits) -> None:
    found = compare(reference(), observed(adapter=adapter))
    assert faults(found) == [Fault.ADAPTER]
    assert found.numbers is not None
    assert f"{found.numbers.adapter:.3f} nats from the trainer" in found.findings[0].text


def test_a_template_and_an_adapter_at_fault_are_both_named() -> None:
    found = compare(reference(), observed(adapter=BASE, ids=((1,), *IDS[1:])))
    assert faults(found) == [Fault.TEMPLATE, Fault.NO_OP]


def test_one_prompt_that_is_out_of_line_decides_nothing() -> None:
    odd = logits(77)
    seen = observed([odd[0], *BASE[1:]], [odd[1], *ADAPTER[1:]])
    assert compare(reference(), seen).verdict is Verdict.PASS


def test_a_token_that_one_side_does_not_name_counts_with_what_is_certain() -> None:
    assert distance({1: -0.1, 2: -3.0}, {1: -0.1, 2: -3.0}) == 0.0
    assert distance({1: -0.1, 2: -3.0}, {3: -0.1, 4: -3.0}) == pytest.approx(2.9)
    assert distance({1: -1.0, 2: -2.0}, {1: -1.5, 9: -2.0}) == pytest.approx(0.5), "2 may be as likely as 9 there"
    assert distance({1: -5.0}, {2: -5.0}) == 0.0


def test_one_token_that_is_out_of_line_decides_nothing() -> None:
    one = {token: -1.0 - token for token in range(5)}
    assert distance(one, {**one, 3: -9.0, 4: -9.5}) == 0.0


def test_where_only_some_prompts_were_computed_as_served_these_count() -> None:
    told = reference()
    some = replace(told, prompts=tuple(
        replace(prompt, base=replace(prompt.base, served=None)) if number else prompt
        for number, prompt in enumerate(told.prompts)))
    numbers = measure(some, observed())
    assert numbers.base_served == numbers.base_quantised == 0.0


def test_a_comparison_is_the_same_after_the_registry() -> None:
    found = compare(reference(), observed(adapter=BASE, ids=((1,), *IDS[1:])))
    one = replace(version(), parity=found, chat_template_sha256="e" * 64)
    document = json.loads(json.dumps(one.to_document()))
    assert type(one).from_document(document, 0) == one
    document["parity"]["numbers"]["of a later release"] = 1.0
    assert type(one).from_document(document, 0) == one
    del document["parity"], document["chat_template_sha256"]
    old = type(one).from_document(document, 0)
    assert (old.parity, old.chat_template_sha256, old.phase) == (None, None, VersionPhase.READY)
    absent = replace(one, parity=Parity(verdict=Verdict.ABSENT))
    assert type(one).from_document(json.loads(json.dumps(absent.to_document())), 0) == absent
