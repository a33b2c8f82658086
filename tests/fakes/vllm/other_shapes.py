"""The bytes of vLLM 0.32's answers in Anthropic's Messages form, in OpenAI's Responses form, and of embeddings."""

from collections.abc import Iterator, Sequence
from typing import Any

from tests.fakes.vllm.shapes import AT_ONCE, MODALITIES, Answer, Event, dump, now

STOP_REASONS = {"length": "max_tokens", "stop": "end_turn"}


def _event(kind: str, document: dict[str, Any]) -> bytes:
    return f"event: {kind}\ndata: ".encode() + dump(document) + b"\n\n"


# /v1/messages


def message(answer: Answer) -> dict[str, Any]:
    """A whole message."""
    return {"id": answer.id, "type": "message", "role": "assistant",
            "content": [{"type": "text", "text": answer.text}], "model": answer.model,
            "stop_reason": STOP_REASONS[answer.finish_reason],
            "usage": {"input_tokens": answer.prompt_tokens, "output_tokens": len(answer.pieces)}}


def message_events(answer: Answer) -> Iterator[Event]:
    """A message's events."""
    def usage(done: int) -> dict[str, int]:
        return {"input_tokens": answer.prompt_tokens, "output_tokens": done}

    start: dict[str, Any] = {
        "id": answer.id, "type": "message", "role": "assistant", "content": [], "model": answer.model,
        "stop_reason": None, "stop_sequence": None, "usage": usage(0)}
    last = len(answer.pieces)
    yield 1, _message_event("message_start", message=start)
    yield 1, _message_event("content_block_start", content_block={"type": "text", "text": ""}, index=0)
    for done, piece in enumerate(answer.pieces, 1):
        yield done, _message_event("content_block_delta", delta={"type": "text_delta", "text": piece}, index=0)
    yield last, _message_event("content_block_stop", index=0)
    delta = {"stop_reason": STOP_REASONS[answer.finish_reason], "stop_sequence": None}
    yield last, _message_event("message_delta", delta=delta, usage=usage(last))
    yield last, _message_event("message_stop")


def _message_event(kind: str, **fields: Any) -> bytes:
    return _event(kind, {"type": kind, **fields})


def message_error(message: str, kind: str) -> bytes:
    """Anthropic's error envelope, which only /v1/messages uses, and not for validation errors."""
    return dump({"type": "error", "error": {"type": kind, "message": message}})


# /v1/responses


def response(answer: Answer, *, finished: bool = True) -> dict[str, Any]:
    """A response, whole or just begun."""
    output = [_item(answer, "completed")] if finished else []
    cut = finished and answer.limited
    status = ("incomplete" if cut else "completed") if finished else "in_progress"
    return {
        "id": answer.id, "created_at": now(),
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None, "instructions": None, "metadata": None,
        "model": answer.model, "object": "response", "output": output, "parallel_tool_calls": True,
        "temperature": float(answer.body.get("temperature") or 0), "tool_choice": "none", "tools": [], "top_p": 1.0,
        "background": False, "max_output_tokens": answer.body.get("max_output_tokens"), "max_tool_calls": None,
        "previous_response_id": None, "prompt": None, "reasoning": None, "service_tier": "auto", "status": status,
        "text": None, "top_logprobs": None, "truncation": "disabled",
        "usage": _response_usage(answer) if finished else None, "user": None, "presence_penalty": 0.0,
        "frequency_penalty": 0.0, **MODALITIES, "input_messages": None, "output_messages": None,
    }


def response_events(answer: Answer) -> Iterator[Event]:
    """A response's events, numbered from 0; the first two come before any token."""
    for number, (done, kind, fields) in enumerate(_numbered_events(answer)):
        yield done, _event(kind, dict(sorted({**fields, "sequence_number": number, "type": kind}.items())))


def _numbered_events(answer: Answer) -> Iterator[tuple[int, str, dict[str, Any]]]:
    part: dict[str, Any] = {"annotations": [], "text": answer.text, "type": "output_text", "logprobs": None}
    last = len(answer.pieces)
    at = {"content_index": 0, "item_id": _item_id(answer), "output_index": 0}
    begun = response(answer, finished=False)
    yield AT_ONCE, "response.created", {"response": begun}
    yield AT_ONCE, "response.in_progress", {"response": begun}
    yield 1, "response.output_item.added", {"item": {**_item(answer, "in_progress"), "content": []}, "output_index": 0}
    yield 1, "response.content_part.added", {**at, "part": {**part, "text": "", "logprobs": []}}
    for done, piece in enumerate(answer.pieces, 1):
        yield done, "response.output_text.delta", {**at, "delta": piece, "logprobs": []}
    yield last, "response.output_text.done", {**at, "logprobs": [], "text": answer.text}
    yield last, "response.content_part.done", {**at, "part": part}
    yield last, "response.output_item.done", {"item": _item(answer, "completed"), "output_index": 0}
    yield last, "response.completed", {"response": response(answer)}


def _item_id(answer: Answer) -> str:
    return "msg_" + answer.id.removeprefix("resp_")


def _item(answer: Answer, status: str) -> dict[str, Any]:
    content: list[dict[str, Any]] = [{"annotations": [], "text": answer.text, "type": "output_text", "logprobs": None}]
    return {"id": _item_id(answer), "content": content, "role": "assistant", "status": status, "type": "message",
            "phase": None}


def _response_usage(answer: Answer) -> dict[str, Any]:
    done = len(answer.pieces)
    return {
        "input_tokens": answer.prompt_tokens,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0, "input_tokens_per_turn": [],
                                 "cached_tokens_per_turn": []},
        "output_tokens": done,
        "output_tokens_details": {"reasoning_tokens": 0, "tool_output_tokens": 0, "output_tokens_per_turn": [],
                                  "tool_output_tokens_per_turn": []},
        "total_tokens": answer.prompt_tokens + done,
    }


# /v1/embeddings


def embeddings(answers: Sequence[Answer]) -> dict[str, Any]:
    """Embeddings of the prompts, of eight numbers each."""
    data = [{"index": i, "object": "embedding", "embedding": _embed(a)} for i, a in enumerate(answers)]
    prompt_tokens = sum(answer.prompt_tokens for answer in answers)
    return {"id": answers[0].id, "object": "list", "created": now(), "model": answers[0].model, "data": data,
            "usage": {"prompt_tokens": prompt_tokens, "total_tokens": prompt_tokens, "completion_tokens": 0,
                      "prompt_tokens_details": None}}


def _embed(answer: Answer) -> list[float]:
    return [logprob for _, logprob in answer.weights.logprobs(answer.prompt)[:8]]
