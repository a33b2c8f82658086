"""Does the engine compute what the trainer computed? Compares next-token log probabilities of the same few prompts.

The trainer leaves a reference in the artifact: for each prompt its token ids, and the likeliest next tokens of the
base and of the adapter. Held against what the engine says, it shows faults of a deployment that no check of files sees:
another chat template, another base, a base quantised otherwise, and an adapter whose names the engine ignores.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from enum import StrEnum
from itertools import islice
from statistics import median
from typing import Any, Self, TypeAlias

Likeliest: TypeAlias = Mapping[int, float]
"""Token id → log probability (nats) of the likeliest next tokens after one prompt."""

TOLERANCE = 0.5
"""How far apart, in nats, two computations of one thing may be: in the median over prompts of the median over their
likeliest tokens. A bfloat16 logit between 16 and 32 has neighbours 0.125 away, so two engines differ by up to 0.3 in a
single token, but by hundredths in such a median (0.02 between vLLM 0.32 and transformers on a CPU, where another base
was 1.6 away). What a base in NF4 is from itself in bfloat16 must stay within it, too, for what was trained on the one
to be served on the other."""
LEAST_EFFECT = 0.2
"""An adapter that moved the trainer's log probabilities by less (nats, likewise) cannot be told from an engine's noise
here; the probe of its effect, which looks again and again, sees smaller ones."""
NO_OP_SHARE = 0.25
"""One that moves the engine's by less than this share of what it moved the trainer's does nothing, or next to it."""


@dataclass(frozen=True, slots=True)
class Computed:
    """What the trainer computed after one prompt: on the base as it was trained on, and on one in bfloat16 as engines
    serve it (None: that did not fit)."""

    trained: Likeliest
    served: Likeliest | None = None

    @property
    def best(self) -> Likeliest:
        """What an engine is expected to say."""
        return self.trained if self.served is None else self.served


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt of the reference: `token_ids` are `messages` in the trainer's chat template."""

    messages: tuple[Mapping[str, str], ...]
    token_ids: tuple[int, ...]
    base: Computed
    adapter: Computed


@dataclass(frozen=True, slots=True)
class Reference:
    """What the trainer left; `quantization`: of the base that it trained on, such as `nf4`, else `none`."""

    base_model: str
    quantization: str
    chat_template_sha256: str | None
    prompts: tuple[Prompt, ...]


@dataclass(frozen=True, slots=True)
class Observed:
    """What an engine says after the same prompts: the token ids that it makes of the messages, and what may follow the
    reference's token ids, likeliest first, without the adapter and with it. It may name more tokens than the trainer
    did, so that it names those of the trainer's."""

    token_ids: Sequence[Sequence[int]]
    base: Sequence[Likeliest]
    adapter: Sequence[Likeliest]


class Verdict(StrEnum):
    """What a comparison came to; `absent`: the artifact has no reference."""

    PASS = "pass"
    WARN = "warn"
    ABSENT = "absent"


class Fault(StrEnum):
    """What is wrong, by name."""

    TEMPLATE = "template_drift"
    BASE = "wrong_base"
    QUANTISATION = "quantisation"
    NO_OP = "no_op"
    ADAPTER = "adapter_drift"
    NOT_COMPARED = "not_compared"


@dataclass(frozen=True, slots=True)
class Finding:
    """A fault, and what was seen of it in a sentence with its numbers."""

    fault: Fault
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Distances:
    """Medians in nats; None: there was nothing to compare. `prompts`: how many, `other_tokens`: of how many the engine
    makes other tokens.

    `base_trained` and `base_served`: the engine's base from the trainer's; `base_quantised`: the trainer's two from
    one another. `adapter`: the engine's adapter from the trainer's. `effect_trained` and `effect_served`: the adapter
    from the base, in the trainer and in the engine.
    """

    prompts: int
    other_tokens: int
    base_trained: float
    base_served: float | None
    base_quantised: float | None
    adapter: float
    effect_trained: float
    effect_served: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """The outcome of a comparison. `numbers`: None where none was made."""

    verdict: Verdict
    findings: tuple[Finding, ...] = ()
    numbers: Distances | None = None
    tolerance: float = TOLERANCE

    @classmethod
    def of(cls, findings: Iterable[Finding], numbers: Distances | None = None) -> Self:
        """The verdict that the findings make."""
        found = tuple(findings)
        return cls(verdict=Verdict.WARN if found else Verdict.PASS, findings=found, numbers=numbers)

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Self:
        """What `dataclasses.asdict` made of it, after the registry."""
        numbers = document.get("numbers")
        known = {f.name for f in fields(Distances)}
        return cls(
            verdict=Verdict(document["verdict"]), tolerance=document["tolerance"],
            findings=tuple(Finding(Fault(f["fault"]), f["text"]) for f in document["findings"]),
            numbers=Distances(**{k: v for k, v in numbers.items() if k in known}) if numbers else None)


def compare(reference: Reference, observed: Observed) -> Parity:
    """What is wrong between trainer and engine, each fault by name; nothing is when the engine says the same."""
    numbers = measure(reference, observed)
    findings = [*_template(reference, observed), *_base(reference, numbers)]
    if all(finding.fault is not Fault.BASE for finding in findings):  # on another base no adapter is itself
        findings += _adapter(numbers)
    return Parity.of(findings, numbers)


def measure(reference: Reference, observed: Observed) -> Distances:
    """All distances between trainer and engine."""
    prompts = reference.prompts
    bases, adapters = [prompt.base for prompt in prompts], [prompt.adapter for prompt in prompts]
    pairs = [(base, adapter) for base, adapter in zip(bases, adapters, strict=True)]
    trained = _apart([(said, one.trained) for said, one in zip(observed.adapter, adapters, strict=True)])
    served = _apart_served(observed.adapter, adapters)
    return Distances(
        prompts=len(prompts),
        other_tokens=sum(tuple(made) != prompt.token_ids
                         for made, prompt in zip(observed.token_ids, prompts, strict=True)),
        base_trained=_apart([(said, one.trained) for said, one in zip(observed.base, bases, strict=True)]),
        base_served=_apart_served(observed.base, bases),
        base_quantised=_apart_served([one.trained for one in bases], bases),
        adapter=trained if served is None else min(trained, served),
        effect_trained=_apart([(base.trained, adapter.trained) for base, adapter in pairs]),
        effect_served=_apart([
            (_first(base, len(prompt.base.trained)), _first(adapter, len(prompt.adapter.trained)))
            for base, adapter, prompt in zip(observed.base, observed.adapter, prompts, strict=True)]))


def distance(one: Likeliest, other: Likeliest) -> float:
    """How far apart two answers are, in nats: the median over the tokens that either names.

    A token that one of them does not name is there no likelier than the least likely that it names; it counts with the
    difference which that leaves, if it leaves any.
    """
    least_one, least_other = min(one.values()), min(other.values())
    gaps = [abs(one[token] - other[token]) for token in one.keys() & other.keys()]
    gaps += [one[token] - least_other for token in one.keys() - other.keys() if one[token] > least_other]
    gaps += [other[token] - least_one for token in other.keys() - one.keys() if other[token] > least_one]
    return median(gaps) if gaps else 0.0


def _first(said: Likeliest, count: int) -> Likeliest:
    """As many as the trainer names, so that what is measured of the one can be compared with the other."""
    return dict(islice(said.items(), count))


def _apart(pairs: Sequence[tuple[Likeliest, Likeliest]]) -> float:
    return median(distance(one, other) for one, other in pairs)


def _apart_served(said: Sequence[Likeliest], computed: Sequence[Computed]) -> float | None:
    """Likewise, of the prompts that the trainer computed as they are served; None when there are none."""
    pairs = [(mine, one.served) for mine, one in zip(said, computed, strict=True) if one.served is not None]
    return _apart(pairs) if pairs else None


def _template(reference: Reference, observed: Observed) -> list[Finding]:
    pairs = zip(observed.token_ids, reference.prompts, strict=True)
    changed = [(tuple(made), prompt.token_ids) for made, prompt in pairs if tuple(made) != prompt.token_ids]
    if not changed:
        return []
    made, wanted = changed[0]
    first = next((i for i, (a, b) in enumerate(zip(made, wanted, strict=False)) if a != b), min(len(made), len(wanted)))
    return [Finding(Fault.TEMPLATE, (
        f"Template drift: the engine makes other tokens of {len(changed)} of {len(reference.prompts)} prompts than the "
        f"trainer did; in the first, {len(made)} instead of {len(wanted)}, differing from token {first} on. It was "
        "trained with another chat template or tokenizer than the replicas have: train again with theirs, or start "
        "them with the trainer's (--chat-template)."))]


def _base(reference: Reference, numbers: Distances) -> list[Finding]:
    trained, served, kind = numbers.base_trained, numbers.base_served, reference.quantization
    if served is None and trained > TOLERANCE:
        doubt = "" if kind == "none" else (f" The trainer's base was {kind}, and it could not compute the one in "
                                           "bfloat16: that alone may be the cause.")
        return [Finding(Fault.BASE, f"Wrong base: what the engine's base model says is {trained:.3f} nats from what "
                                    f"{reference.base_model!r} said in training, more than {TOLERANCE:g}.{doubt}")]
    if served is not None and min(trained, served) > TOLERANCE:
        return [Finding(Fault.BASE, (
            f"Wrong base: what the engine's base model says is {served:.3f} nats from what {reference.base_model!r} "
            f"says in bfloat16 and {trained:.3f} from what it said in training, more than {TOLERANCE:g}."))]
    if served is not None and served > TOLERANCE:
        return [Finding(Fault.QUANTISATION, (
            f"Quantisation: the engine's base model says what the trainer's did as {kind} ({trained:.3f} nats apart), "
            f"not what it says in bfloat16 ({served:.3f}): the replicas serve it quantised."))]
    apart = numbers.base_quantised
    if apart is not None and apart > TOLERANCE:
        return [Finding(Fault.QUANTISATION, (
            f"Quantisation: the base model as it was trained on ({kind}) and as it is served are {apart:.3f} nats "
            f"apart, more than {TOLERANCE:g}: the adapter learned to correct errors that the replicas do not make. "
            "Train in bfloat16, or evaluate with care."))]
    return []


def _adapter(numbers: Distances) -> list[Finding]:
    wanted, moved = numbers.effect_trained, numbers.effect_served
    if wanted >= LEAST_EFFECT and moved < NO_OP_SHARE * wanted:
        return [Finding(Fault.NO_OP, (
            f"No-op: the adapter moved the base model's log probabilities by {wanted:.3f} nats in the trainer, and by "
            f"{moved:.3f} in the engine: its tensors were probably saved under names that the engine ignores."))]
    if numbers.adapter > TOLERANCE:
        return [Finding(Fault.ADAPTER, (
            f"Adapter drift: with the adapter the engine is {numbers.adapter:.3f} nats from the trainer, more than "
            f"{TOLERANCE:g}, although their base models agree: look at its scaling (alpha, rank, rsLoRA) and at which "
            "of its modules the engine applies."))]
    return []
