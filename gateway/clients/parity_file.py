"""Reads `parity.json`, the trainer's reference beside an adapter's weights; nobody vouches for what it holds."""

import math
from typing import Annotated, Any, Literal, TypeAlias

import msgspec

from gateway.clients.sources import PARITY
from gateway.domain.errors import ArtifactRefused
from gateway.domain.parity import Computed, Prompt, Reference

MAX_PROMPTS = 32
MAX_TOKENS = 4096
"""Of a prompt. Every one costs the engine a prefill for the base and one for the adapter."""

_TokenId: TypeAlias = Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)]
_Logprob: TypeAlias = Annotated[float, msgspec.Meta(le=1e-3)]  # float32 may round a certain token's to above 0
_Tops: TypeAlias = Annotated[list[tuple[_TokenId, _Logprob]], msgspec.Meta(min_length=1, max_length=20)]
_Text: TypeAlias = Annotated[str, msgspec.Meta(min_length=1, max_length=1000)]


class _Message(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Text alone: a part that names an address would make the replica fetch it."""

    role: _Text
    content: str | None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None


class _Computed(msgspec.Struct):
    trained: _Tops
    served: _Tops | None


class _Prompt(msgspec.Struct):
    messages: Annotated[list[_Message], msgspec.Meta(min_length=1, max_length=100)]
    token_ids: Annotated[list[_TokenId], msgspec.Meta(min_length=1, max_length=MAX_TOKENS)]
    base: _Computed
    adapter: _Computed


class _File(msgspec.Struct):
    schema: Literal["switchyard.parity/1"]
    base_model: _Text
    quantization: _Text
    chat_template_sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")] | None
    prompts: Annotated[list[_Prompt], msgspec.Meta(min_length=1, max_length=MAX_PROMPTS)]


def parse(content: bytes) -> Reference:
    """The reference; ArtifactRefused names the field that cannot be understood."""
    try:
        read = msgspec.json.decode(content, type=_File)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ArtifactRefused([f"{PARITY} cannot be understood: {error}. Train again, or remove the file."]) from error
    return Reference(
        base_model=read.base_model, quantization=read.quantization, chat_template_sha256=read.chat_template_sha256,
        prompts=tuple(_prompt(prompt, f"$.prompts[{number}]") for number, prompt in enumerate(read.prompts)))


def _prompt(prompt: _Prompt, where: str) -> Prompt:
    return Prompt(
        messages=tuple(msgspec.to_builtins(message) for message in prompt.messages),
        token_ids=tuple(prompt.token_ids), base=_computed(prompt.base, f"{where}.base"),
        adapter=_computed(prompt.adapter, f"{where}.adapter"))


def _computed(computed: _Computed, where: str) -> Computed:
    served = None if computed.served is None else _likeliest(computed.served, f"{where}.served")
    return Computed(_likeliest(computed.trained, f"{where}.trained"), served)


def _likeliest(tops: _Tops, where: str) -> dict[int, float]:
    found = dict(tops)
    if len(found) < len(tops) or not all(map(math.isfinite, found.values())):
        raise ArtifactRefused([f"{PARITY} cannot be understood: each token must be there once, with a finite number "
                               f"- at `{where}`. Train again, or remove the file."])
    return found
