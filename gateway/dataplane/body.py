"""The request's body: the few fields that the gateway reads and the few that it sets; the rest stays as it came.

Top-level values are kept as raw bytes, so nothing nested is parsed, reordered or rounded. A key that stands twice is
read and forwarded once (the last one), so that no replica can see another model than we did.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from gateway.domain.errors import FieldRefused, InvalidRequest, MalformedJson

DROPPED = frozenset({"cache_salt", "priority", "request_id", "session_id"})
"""Fields the gateway sets itself or leaves to vLLM: what a caller sends is dropped without an error."""

REFUSED: Mapping[str, str] = {
    "chat_template": "the chat template is the base model's; send messages that it can render",
    "kv_transfer_params": "cache transfer between engines is the operator's",
    "ec_transfer_params": "cache transfer between engines is the operator's",
    "vllm_xargs": "engine extensions are the operator's",
    "mm_processor_kwargs": "the multi-modal processor's settings are the operator's",
    "media_io_kwargs": "media loading is the operator's to set",
    "previous_response_id": "engines keep responses without an owner, so none are stored here; send the whole input",
    "background": "engines keep background responses without an owner; stream instead",
}
"""Fields that would break isolation or reach into the engine: 400 with this reason, unless null or false."""

PROMPT_LOGPROBS = (
    "logprobs of the prompt can end the engine for everybody when adapters are on; "
    "SWITCHYARD_ALLOW_PROMPT_LOGPROBS=true lets them through"
)
"""Why `prompt_logprobs`, and `echo` with `logprobs`, are refused unless allowed: seen on vLLM 0.32 (CPU) with LoRA on,
as soon as another sequence shares the step; vLLM issues 16668 and 29955 tell of it too."""

Fields = dict[str, msgspec.Raw]

_decode = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode = msgspec.json.Encoder().encode
_EMPTY = (b"null", b"false")
_TRUE = msgspec.Raw(b"true")


@dataclass(frozen=True, slots=True)
class Body:
    """What a caller sent: `model` as it was asked for, `stream`, and `user` (empty when absent)."""

    fields: Fields
    model: str
    stream: bool
    user: str


def parse(data: bytes, *, allow_prompt_logprobs: bool = False) -> Body:
    """Read a request body.

    Raises MalformedJson when it is not one JSON object, InvalidRequest for a wrong `model`, `stream` or `user`,
    FieldRefused for a field in REFUSED.
    """
    try:
        data.decode()  # msgspec does not look inside raw values, and bytes that are not UTF-8 are not JSON
        fields = _decode(data)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"The body must be a JSON object: {error}.") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise MalformedJson(f"The body is not valid JSON: {error}.") from None
    for name in REFUSED.keys() & fields.keys():
        if _has(fields, name):
            raise FieldRefused(f"The field {name!r} is not accepted: {REFUSED[name]}.", param=name)
    if not allow_prompt_logprobs:
        _refuse_prompt_logprobs(fields)
    model = _value(fields, "model", str, None)
    if not model:
        raise InvalidRequest("The field 'model' is missing: give the name of an adapter.", param="model")
    return Body(fields, model, bool(_value(fields, "stream", bool, False)), str(_value(fields, "user", str, "")))


def prepare(body: Body, served_name: str, salt: str, *, ask_for_usage: bool) -> tuple[bytes, bool]:
    """The bytes to forward, and whether token usage was asked for in the caller's stead.

    `salt` keeps the engine's prefix cache apart by tenant. `ask_for_usage`: the route's streams tell usage only when
    asked (`stream_options.include_usage`).
    """
    fields = {name: raw for name, raw in body.fields.items() if name not in DROPPED}
    fields["model"] = msgspec.Raw(_encode(served_name))
    fields["cache_salt"] = msgspec.Raw(_encode(salt))
    asked = False
    if ask_for_usage and body.stream:
        options = _stream_options(fields)
        asked = bytes(options.get("include_usage", msgspec.Raw(b"false"))).strip() != b"true"
        fields["stream_options"] = msgspec.Raw(_encode({**options, "include_usage": _TRUE}))
    return _encode(fields), asked


def _refuse_prompt_logprobs(fields: Fields) -> None:
    if _has(fields, "prompt_logprobs"):
        raise FieldRefused(f"The field 'prompt_logprobs' is not accepted: {PROMPT_LOGPROBS}.", param="prompt_logprobs")
    if _has(fields, "echo") and _has(fields, "logprobs"):
        raise FieldRefused(f"'echo' is not accepted together with 'logprobs': {PROMPT_LOGPROBS}.", param="echo")


def _has(fields: Fields, name: str) -> bool:
    """Is the field there, and neither null nor false?"""
    return name in fields and bytes(fields[name]).strip() not in _EMPTY


def asks_for_json(body: Body) -> bool:
    """Does `response_format` ask for JSON?"""
    raw = bytes(body.fields.get("response_format", b""))
    return b'"json_object"' in raw or b'"json_schema"' in raw


def _stream_options(fields: Fields) -> Fields:
    raw = fields.get("stream_options")
    if raw is None or bytes(raw).strip() == b"null":
        return {}
    try:
        return _decode(raw)
    except (msgspec.ValidationError, msgspec.DecodeError):
        raise InvalidRequest("The field 'stream_options' must be a JSON object.", param="stream_options") from None


def _value(fields: Fields, name: str, kind: type, default: Any) -> Any:
    raw = fields.get(name)
    if raw is None or bytes(raw).strip() == b"null":
        return default
    try:
        return msgspec.json.decode(raw, type=kind)
    except (msgspec.ValidationError, msgspec.DecodeError, UnicodeDecodeError):
        word = {str: "a string", bool: "true or false"}[kind]
        raise InvalidRequest(f"The field {name!r} must be {word}.", param=name) from None
