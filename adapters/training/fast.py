"""Makes a model train faster without changing what it computes: attention, LoRA layers, kernels and loss.

    varlen attention   packed rows attend only to themselves, with no mask: torch's FlashAttention over row boundaries
    fused LoRA         x·Wᵀ + s·(x·Aᵀ)·Bᵀ as three products that add in place, instead of seven passes over the output;
                       keeps only x for the way back, where W is unpacked again
    Liger kernels      RMSNorm, rotary positions and SwiGLU in one pass each (the package liger-kernel)
    chunked loss       logits of a few hundred positions at a time, of learned positions only: the vocabulary's logits
                       are never in memory at once

Each part can be chosen by itself; "auto" takes what the machine has. The outputs agree with the plain layers up to the
rounding of bfloat16. Tried on an H200 with an 8B Llama and left out, since they did not pay: compiled decoder layers
(5 % slower) and NF4 weights unpacked once for all (1 to 4 % faster, for 14 GB more).
"""

import importlib.util
import inspect
from collections.abc import Callable, Mapping, Sequence
from types import MethodType
from typing import Any, Protocol

import torch
from bitsandbytes.functional import dequantize_4bit
from peft.tuners.lora import LoraLayer
from torch import Tensor
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_outputs import CausalLMOutputWithPast

VARLEN = "switchyard_varlen"
_LOGITS_BYTES = 1 << 28
"""The most that one chunk of float32 logits may take."""
_OWN_LOGITS = ("final_logit_softcapping", "logits_scaling", "logit_scale")
"""Configuration keys of models that do more with logits than multiply by the head's weights."""


class Speed(Protocol):
    """What of a recipe's `[speed]` is used here; see `adapters.recipe.Speed` for the values."""

    @property
    def attention(self) -> str: ...
    @property
    def lora(self) -> str: ...
    @property
    def kernels(self) -> str: ...
    @property
    def loss(self) -> str: ...


def attention_of(speed: Speed) -> str:
    """"eager", "sdpa" or "varlen": the attention that the recipe asks for, or for "auto" the best that runs here."""
    if speed.attention != "auto":
        return speed.attention
    return "varlen" if torch.cuda.is_available() and _varlen_function() is not None else "sdpa"


def load_options(speed: Speed) -> dict[str, Any]:
    """What `from_pretrained` has to be told. ValueError when this machine cannot do what the recipe asks for."""
    attention = attention_of(speed)
    if attention != "varlen":
        return {"attn_implementation": attention}
    if not torch.cuda.is_available() or _varlen_function() is None:
        raise ValueError('speed.attention = "varlen" needs an NVIDIA GPU and torch 2.11 or newer; use "auto".')
    AttentionInterface.register(VARLEN, _varlen_attention)
    AttentionMaskInterface.register(VARLEN, _no_mask)
    return {"attn_implementation": VARLEN}


def apply(model: Any, speed: Speed, report: Callable[[str], None]) -> None:
    """Change a PEFT model's layers in place, as the recipe asks; `report` is told what was done, in one line."""
    done = [f"attention {attention_of(speed)}"]
    causal_lm = model.get_base_model()
    on_gpu = torch.cuda.is_available()
    if speed.kernels == "liger" or (speed.kernels == "auto" and on_gpu and _has_liger()):
        done.append("Liger kernels" if _apply_liger(causal_lm) else "no Liger kernels for this model")
    if speed.lora == "fused" or (speed.lora == "auto" and on_gpu):
        done.append(f"{_fuse_lora(model)} fused LoRA layers")
    if (speed.loss == "chunked" or (speed.loss == "auto" and on_gpu)) and _has_plain_logits(causal_lm):
        causal_lm.forward = MethodType(_forward_with_chunked_loss(causal_lm.forward), causal_lm)
        done.append("chunked loss")
    report("speed: " + ", ".join(done))


# ── attention ────────────────────────────────────────────────────────────────────────────────────────────────────────

def _varlen_function() -> Callable[..., Tensor] | None:
    """torch's attention over rows of different lengths, None where torch is too old for it."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    found: Callable[..., Tensor] = varlen_attn
    return found if "window_size" in inspect.signature(found).parameters else None


def _varlen_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, *, scaling: float,
    cu_seq_lens_q: Tensor | None = None, max_length_q: int | None = None, **options: Any,
) -> tuple[Tensor, None]:
    """Causal attention of each packed row to itself; query, key, value: (1, heads, tokens, width of a head).

    Rows that are not packed (answers shown during training, say) go to torch's ordinary attention.
    """
    if cu_seq_lens_q is None or max_length_q is None:
        output, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, is_causal=query.shape[2] > 1,
            dropout=options.get("dropout", 0.0))
        return output, None
    attend = _varlen_function()
    assert attend is not None, "load_options has seen to it"
    # Of FlashAttention's kernels all take fewer key than query heads; older torch has no switch that says so.
    grouped = {"enable_gqa": True} if "enable_gqa" in inspect.signature(attend).parameters else {}
    output = attend(*(part.squeeze(0).transpose(0, 1) for part in (query, key, value)), cu_seq_lens_q, cu_seq_lens_q,
                    max_length_q, max_length_q, scale=scaling, window_size=(-1, 0), **grouped)
    return output.unsqueeze(0), None


def _no_mask(*arguments: Any, **options: Any) -> None:
    """Row boundaries say all that a mask would."""


# ── LoRA layers ──────────────────────────────────────────────────────────────────────────────────────────────────────

class _FusedLora(torch.autograd.Function):  # type: ignore[misc]
    """x·Wᵀ + bias + s·(x·Aᵀ)·Bᵀ, with gradients for x, A and B; W is frozen and given by a function that unpacks it.

    x (…, in), A (rank, in) and B (out, rank); products in x's type with float32 accumulation.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, a: Tensor, b: Tensor, weight: Callable[[], Tensor], bias: Tensor | None, scaling: float,
    ) -> Tensor:
        rows, low_a, low_b = x.reshape(-1, x.shape[-1]), a.to(x.dtype), b.to(x.dtype)
        narrow = rows @ low_a.t()
        full = weight()
        output = rows @ full.t() if bias is None else torch.addmm(bias, rows, full.t())
        output.addmm_(narrow, low_b.t(), alpha=scaling)
        ctx.save_for_backward(rows, narrow, a, b)
        ctx.weight, ctx.scaling, ctx.shape = weight, scaling, x.shape
        return output.view(*x.shape[:-1], output.shape[-1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, narrow, a, b = ctx.saved_tensors
        gradient = gradients[0].reshape(-1, gradients[0].shape[-1]).to(rows.dtype)
        narrow_gradient = (gradient @ b.to(rows.dtype)).mul_(ctx.scaling)
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = gradient @ ctx.weight()
            of_x.addmm_(narrow_gradient, a.to(rows.dtype))
            of_x = of_x.view(ctx.shape)
        of_a = (narrow_gradient.t() @ rows).to(a.dtype)
        of_b = (gradient.t() @ narrow).mul_(ctx.scaling).to(b.dtype)
        return of_x, of_a, of_b, None, None, None


def _fuse_lora(model: Any) -> int:
    """Fuse every LoRA layer that has a frozen linear layer under it and no dropout; how many there are."""
    layers = [module for module in model.modules() if isinstance(module, LoraLayer) and _can_fuse(module)]
    for layer in layers:
        layer.forward = MethodType(_fused_forward(layer.forward, _unpacker(layer)), layer)
    return len(layers)


def _can_fuse(layer: Any) -> bool:
    name = "default"
    return (isinstance(layer.get_base_layer(), torch.nn.Linear) and name in layer.lora_A
            and name not in layer.lora_variant and isinstance(layer.lora_dropout[name], torch.nn.Identity)
            and layer.lora_A[name].bias is None and layer.lora_B[name].bias is None)


def _unpacker(layer: Any) -> Callable[[], Tensor]:
    """What gives the frozen weight (out, in) in the type of the computation."""
    weight = layer.get_base_layer().weight
    state = getattr(weight, "quant_state", None)
    if state is None:
        return lambda: weight
    return lambda: dequantize_4bit(weight.data, state)


def _fused_forward(plain: Callable[..., Tensor], weight: Callable[[], Tensor]) -> Callable[..., Tensor]:
    def forward(layer: Any, x: Tensor, *arguments: Any, **options: Any) -> Tensor:
        if layer.disable_adapters or layer.merged or layer.active_adapters != ["default"] or arguments or options:
            return plain(x, *arguments, **options)
        bias = layer.get_base_layer().bias
        dtype = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
        x = x.to(dtype)
        output: Tensor = _FusedLora.apply(
            x, layer.lora_A["default"].weight, layer.lora_B["default"].weight, lambda: weight().to(dtype),
            None if bias is None else bias.to(dtype), layer.scaling["default"])
        return output

    return forward


# ── kernels ──────────────────────────────────────────────────────────────────────────────────────────────────────────

def _has_liger() -> bool:
    return importlib.util.find_spec("liger_kernel") is not None


def _apply_liger(causal_lm: Any) -> bool:
    """Liger's kernels in place of the model's own layers; False when it has none for this architecture."""
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    patch = MODEL_TYPE_TO_APPLY_LIGER_FN.get(causal_lm.config.model_type)
    if patch is None:
        return False
    wanted = {"rope": True, "rms_norm": True, "swiglu": True, "geglu": True, "cross_entropy": False,
              "fused_linear_cross_entropy": False}
    known = inspect.signature(patch).parameters
    patch(model=causal_lm, **{name: value for name, value in wanted.items() if name in known})
    return True


# ── loss ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

class _ChunkedCrossEntropy(torch.autograd.Function):  # type: ignore[misc]
    """The sum of -log softmax(hidden·Wᵀ)[target], its gradient made on the way, a chunk of rows at a time.

    hidden (rows, width), weight (vocabulary, width) frozen, targets (rows,) int64; the sum is float32.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        chunk = max(1, _LOGITS_BYTES // (4 * weight.shape[0]))
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else hidden.new_empty((len(hidden), 0))
        for rows, wanted, into in zip(hidden.split(chunk), targets.split(chunk), gradient.split(chunk), strict=True):
            logits = (rows @ weight.t()).float()
            normaliser = logits.logsumexp(dim=-1, keepdim=True)
            at = wanted.unsqueeze(-1)
            total += (normaliser - logits.gather(-1, at)).sum()
            if not ctx.needs_input_grad[0]:
                continue
            softmax = logits.sub_(normaliser).exp_()
            softmax.scatter_add_(-1, at, torch.full_like(at, -1, dtype=softmax.dtype))
            torch.mm(softmax.to(weight.dtype), weight, out=into)
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * gradients[0].to(gradient.dtype), None, None


def _forward_with_chunked_loss(plain: Callable[..., Any]) -> Callable[..., Any]:
    def forward(
        causal_lm: Any, *arguments: Any, labels: Tensor | None = None, num_items_in_batch: Tensor | int | None = None,
        **inputs: Any,
    ) -> Any:
        if labels is None:
            return plain(*arguments, **inputs)
        hidden = causal_lm.get_decoder()(*arguments, **inputs).last_hidden_state
        targets = functional.pad(labels, (0, 1), value=-100)[..., 1:].reshape(-1)
        learned = targets.ne(-100).nonzero().squeeze(-1)
        weight = causal_lm.get_output_embeddings().weight
        rows = hidden.reshape(-1, hidden.shape[-1]).index_select(0, learned).to(weight.dtype)
        total = _ChunkedCrossEntropy.apply(rows, weight, targets.index_select(0, learned))
        items = learned.numel() if num_items_in_batch is None else num_items_in_batch
        return CausalLMOutputWithPast(loss=total / items)

    return forward


def _has_plain_logits(causal_lm: Any) -> bool:
    """Are the logits the head's weights times the last hidden state, and nothing more?"""
    head, config = causal_lm.get_output_embeddings(), causal_lm.config.get_text_config()
    return (type(head) is torch.nn.Linear and head.bias is None and not head.weight.requires_grad
            and not any(getattr(config, key, None) not in (None, 1, 1.0) for key in _OWN_LOGITS))


def row_bounds(lengths: Sequence[int]) -> Mapping[str, Any]:
    """What tells varlen attention where packed rows begin and end; the largest length is a number, not a tensor."""
    ends = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    return {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": max(lengths), "max_length_k": max(lengths)}
