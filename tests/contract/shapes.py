"""The shapes of vLLM's answers: keys in order, and the types of their values."""

from typing import Any, TypeAlias

Shape: TypeAlias = str | list[Any] | dict[str, Any]

NULL, TEXT, INT, FLOAT, BOOL = "null", "str", "int", "float", "bool"


def shape_of(value: Any) -> Shape:
    """The shape of a JSON value: a list by its first element, a scalar by its type's name."""
    if isinstance(value, dict):
        return {key: shape_of(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [shape_of(value[0])] if value else []
    return NULL if value is None else type(value).__name__


def same(value: Any, expected: Shape) -> bool:
    """Has the value this shape, its keys in this order?"""
    found = shape_of(value)
    if isinstance(found, dict) and isinstance(expected, dict):
        return list(found) == list(expected) and all(same(value[key], expected[key]) for key in expected)
    if isinstance(found, list) and isinstance(expected, list):
        return len(found) == len(expected) and all(same(a, b) for a, b in zip(value, expected, strict=False))
    return found == expected


ERROR: Shape = {"error": {"message": TEXT, "type": TEXT, "param": NULL, "code": INT}}
PARAM_ERROR: Shape = {"error": {"message": TEXT, "type": TEXT, "param": TEXT, "code": INT}}
MESSAGES_ERROR: Shape = {"type": TEXT, "error": {"type": TEXT, "message": TEXT}}

PERMISSION: Shape = {
    "id": TEXT, "object": TEXT, "created": INT, "allow_create_engine": BOOL, "allow_sampling": BOOL,
    "allow_logprobs": BOOL, "allow_search_indices": BOOL, "allow_view": BOOL, "allow_fine_tuning": BOOL,
    "organization": TEXT, "group": NULL, "is_blocking": BOOL,
}
BASE_CARD: dict[str, Any] = {
    "id": TEXT, "object": TEXT, "created": INT, "owned_by": TEXT, "root": TEXT, "parent": NULL, "max_model_len": INT,
    "permission": [PERMISSION],
}
ADAPTER_CARD: Shape = {**BASE_CARD, "parent": TEXT, "max_model_len": NULL}

STREAM_USAGE = {"prompt_tokens": INT, "total_tokens": INT, "completion_tokens": INT}
USAGE = {**STREAM_USAGE, "prompt_tokens_details": NULL, "completion_tokens_details": NULL}
TRANSFER = {"kv_transfer_params": NULL, "ec_transfer_params": NULL}
HEAD = {"id": TEXT, "object": TEXT, "created": INT, "model": TEXT}

CHAT: Shape = {
    **HEAD,
    "choices": [{
        "index": INT,
        "message": {"role": TEXT, "content": TEXT, "refusal": NULL, "annotations": NULL, "audio": NULL,
                    "function_call": NULL, "reasoning": NULL},
        "logprobs": NULL, "finish_reason": TEXT, "stop_reason": NULL, "token_ids": NULL, "routed_experts": NULL,
    }],
    "service_tier": NULL, "system_fingerprint": TEXT, "usage": USAGE, "prompt_logprobs": NULL,
    "prompt_token_ids": NULL, "prompt_text": NULL, **TRANSFER, "metrics": NULL,
}
CHAT_FIRST: Shape = {
    **HEAD,
    "choices": [{"index": INT, "delta": {"role": TEXT, "content": TEXT}, "logprobs": NULL, "finish_reason": NULL}],
    "prompt_token_ids": NULL, "prompt_text": NULL,
}
CHAT_NEXT: Shape = {
    **HEAD,
    "choices": [{"index": INT, "delta": {"content": TEXT}, "logprobs": NULL, "finish_reason": NULL, "token_ids": NULL}],
}
CHAT_END: dict[str, Any] = {
    **HEAD,
    "choices": [{"index": INT, "delta": {"content": TEXT}, "logprobs": NULL, "finish_reason": TEXT,
                 "stop_reason": NULL, "token_ids": NULL}],
}
FINGERPRINT = {"system_fingerprint": TEXT}
USAGE_EVENT: Shape = {**HEAD, "choices": [], "usage": STREAM_USAGE, **FINGERPRINT}

COMPLETION: Shape = {
    **HEAD,
    "choices": [{"index": INT, "text": TEXT, "logprobs": NULL, "finish_reason": TEXT, "stop_reason": NULL,
                 "token_ids": NULL, "prompt_logprobs": NULL, "prompt_token_ids": NULL, "routed_experts": NULL}],
    "service_tier": NULL, "system_fingerprint": TEXT, "usage": USAGE, **TRANSFER, "metrics": NULL,
}
COMPLETION_NEXT: Shape = {
    **HEAD,
    "choices": [{"index": INT, "text": TEXT, "logprobs": NULL, "finish_reason": NULL, "stop_reason": NULL,
                 "prompt_token_ids": NULL, "token_ids": NULL}],
}

TOKENS: Shape = {"count": INT, "max_model_len": INT, "tokens": [INT], "token_strs": NULL}

MESSAGE_USAGE = {"input_tokens": INT, "output_tokens": INT}
MESSAGE: Shape = {
    "id": TEXT, "type": TEXT, "role": TEXT, "content": [{"type": TEXT, "text": TEXT}], "model": TEXT,
    "stop_reason": TEXT, "usage": MESSAGE_USAGE,
}
MESSAGE_EVENTS: dict[str, Shape] = {
    "message_start": {"type": TEXT, "message": {
        "id": TEXT, "type": TEXT, "role": TEXT, "content": [], "model": TEXT, "stop_reason": NULL,
        "stop_sequence": NULL, "usage": MESSAGE_USAGE}},
    "content_block_start": {"type": TEXT, "content_block": {"type": TEXT, "text": TEXT}, "index": INT},
    "content_block_delta": {"type": TEXT, "delta": {"type": TEXT, "text": TEXT}, "index": INT},
    "content_block_stop": {"type": TEXT, "index": INT},
    "message_delta": {"type": TEXT, "delta": {"stop_reason": TEXT, "stop_sequence": NULL}, "usage": MESSAGE_USAGE},
    "message_stop": {"type": TEXT},
}

OUTPUT_TEXT: Shape = {"annotations": [], "text": TEXT, "type": TEXT, "logprobs": NULL}
ITEM: dict[str, Any] = {
    "id": TEXT, "content": [OUTPUT_TEXT], "role": TEXT, "status": TEXT, "type": TEXT, "phase": NULL}
RESPONSE: dict[str, Any] = {
    "id": TEXT, "created_at": INT, "incomplete_details": {"reason": TEXT}, "instructions": NULL, "metadata": NULL,
    "model": TEXT, "object": TEXT, "output": [ITEM], "parallel_tool_calls": BOOL, "temperature": FLOAT,
    "tool_choice": TEXT, "tools": [], "top_p": FLOAT, "background": BOOL, "max_output_tokens": INT,
    "max_tool_calls": NULL, "previous_response_id": NULL, "prompt": NULL, "reasoning": NULL, "service_tier": TEXT,
    "status": TEXT, "text": NULL, "top_logprobs": NULL, "truncation": TEXT,
    "usage": {
        "input_tokens": INT,
        "input_tokens_details": {"cached_tokens": INT, "cache_write_tokens": INT, "input_tokens_per_turn": [],
                                 "cached_tokens_per_turn": []},
        "output_tokens": INT,
        "output_tokens_details": {"reasoning_tokens": INT, "tool_output_tokens": INT, "output_tokens_per_turn": [],
                                  "tool_output_tokens_per_turn": []},
        "total_tokens": INT,
    },
    "user": NULL, "presence_penalty": FLOAT, "frequency_penalty": FLOAT, **TRANSFER, "input_messages": NULL,
    "output_messages": NULL,
}
BEGUN: Shape = {**RESPONSE, "incomplete_details": NULL, "output": [], "usage": NULL}
RESPONSE_EVENTS: dict[str, Shape] = {
    "response.created": {"response": BEGUN, "sequence_number": INT, "type": TEXT},
    "response.in_progress": {"response": BEGUN, "sequence_number": INT, "type": TEXT},
    "response.output_item.added": {
        "item": {**ITEM, "content": []}, "output_index": INT, "sequence_number": INT, "type": TEXT},
    "response.content_part.added": {
        "content_index": INT, "item_id": TEXT, "output_index": INT,
        "part": {"annotations": [], "text": TEXT, "type": TEXT, "logprobs": []}, "sequence_number": INT, "type": TEXT},
    "response.output_text.delta": {
        "content_index": INT, "delta": TEXT, "item_id": TEXT, "logprobs": [], "output_index": INT,
        "sequence_number": INT, "type": TEXT},
    "response.output_text.done": {
        "content_index": INT, "item_id": TEXT, "logprobs": [], "output_index": INT, "sequence_number": INT,
        "text": TEXT, "type": TEXT},
    "response.content_part.done": {
        "content_index": INT, "item_id": TEXT, "output_index": INT, "part": OUTPUT_TEXT, "sequence_number": INT,
        "type": TEXT},
    "response.output_item.done": {"item": ITEM, "output_index": INT, "sequence_number": INT, "type": TEXT},
    "response.completed": {"response": RESPONSE, "sequence_number": INT, "type": TEXT},
}
