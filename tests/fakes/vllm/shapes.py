"""The bytes of vLLM 0.32's answers, in its key order: whole answers, and the events of streamed ones."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import msgspec

from tests.fakes.vllm.weights import Weights

Event: TypeAlias = tuple[int, bytes]
"""How many tokens must be there before it is sent (AT_ONCE: it waits for none), and its bytes."""

AT_ONCE = 0
FINGERPRINT = "vllm-0.32.0-fake0000"
DONE = b"data: [DONE]\n\n"
MODALITIES = {"kv_transfer_params": None, "ec_transfer_params": None}


dump = msgspec.json.encode
"""JSON as vLLM writes it: no spaces, no escaped letters."""


def now() -> int:
    """Unix time in whole seconds, as in `created`."""
    return int(time.time())


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One answer to be given. `pieces` are its tokens' texts, `limited`: did `max_tokens` cut it short?"""

    id: str
    model: str
    prompt: str
    prompt_tokens: int
    pieces: list[str]
    limited: bool
    weights: Weights
    body: dict[str, Any]

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    @property
    def finish_reason(self) -> str:
        return "length" if self.limited else "stop"

    def usage(self, done: int) -> dict[str, Any]:
        """OpenAI's token counts after `done` generated tokens."""
        return {"prompt_tokens": self.prompt_tokens, "total_tokens": self.prompt_tokens + done,
                "completion_tokens": done}

    def full_usage(self) -> dict[str, Any]:
        """The same, as in an answer that is not streamed."""
        return {**self.usage(len(self.pieces)), "prompt_tokens_details": None, "completion_tokens_details": None}


def error(status: int, message: str, kind: str, param: str | None, *, flat: bool) -> bytes:
    """The error envelope, nested or of the older flat form."""
    inner = {"message": message, "type": kind, "param": param, "code": status}
    return dump({"object": "error", **inner} if flat else {"error": inner})


def model_card(name: str, root: str, parent: str | None, max_model_len: int | None) -> dict[str, Any]:
    """A line of /v1/models."""
    permission = {
        "id": "modelperm-0123456789abcdef", "object": "model_permission", "created": now(),
        "allow_create_engine": False, "allow_sampling": True, "allow_logprobs": True, "allow_search_indices": False,
        "allow_view": True, "allow_fine_tuning": False, "organization": "*", "group": None, "is_blocking": False,
    }
    return {"id": name, "object": "model", "created": now(), "owned_by": "vllm", "root": root, "parent": parent,
            "max_model_len": max_model_len, "permission": [permission]}


# /v1/chat/completions


def chat(answer: Answer) -> dict[str, Any]:
    """A whole chat completion."""
    message = {"role": "assistant", "content": answer.text, "refusal": None, "annotations": None, "audio": None,
               "function_call": None, "reasoning": None}
    choice = {"index": 0, "message": message, "logprobs": _chat_logprobs(answer),
              "finish_reason": answer.finish_reason, "stop_reason": None, "token_ids": None, "routed_experts": None}
    return {"id": answer.id, "object": "chat.completion", "created": now(), "model": answer.model,
            "choices": [choice], "service_tier": None, "system_fingerprint": FINGERPRINT,
            "usage": answer.full_usage(), "prompt_logprobs": None, "prompt_token_ids": None, "prompt_text": None,
            **MODALITIES, "metrics": None}


def _chat_logprobs(answer: Answer) -> dict[str, Any] | None:
    if not answer.body.get("logprobs"):
        return None
    top = int(answer.body.get("top_logprobs") or 0)
    content = []
    for i, piece in enumerate(answer.pieces):
        likely = answer.weights.logprobs(answer.prompt + "".join(answer.pieces[:i]))
        entries = [{"token": piece if rank == 0 else f"<{token}>", "logprob": logprob, "bytes": list(piece.encode())}
                   for rank, (token, logprob) in enumerate(likely[:max(top, 1)])]
        content.append({**entries[0], "top_logprobs": entries[:top]})
    return {"content": content}


def chat_events(answer: Answer) -> Iterator[Event]:
    """A chat completion's events; the first comes with the first token."""
    head = {"id": answer.id, "object": "chat.completion.chunk", "created": now(), "model": answer.model}
    first = {"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
    yield 1, _event(head, [first], _running_usage(answer, 0), {"prompt_token_ids": None, "prompt_text": None})
    for done, piece in enumerate(answer.pieces, 1):
        last = done == len(answer.pieces)
        choice = {"index": 0, "delta": {"content": piece}, "logprobs": None,
                  "finish_reason": answer.finish_reason if last else None,
                  **({"stop_reason": None} if last else {}), "token_ids": None}
        yield done, _event(head, [choice], _running_usage(answer, done), _fingerprint(answer) if last else {})
    yield from _ending(answer, head)


# /v1/completions


def completion(answers: Sequence[Answer]) -> dict[str, Any]:
    """A whole completion of one or several prompts."""
    first = answers[0]
    prompt, done = sum(a.prompt_tokens for a in answers), sum(len(a.pieces) for a in answers)
    return {"id": first.id, "object": "text_completion", "created": now(), "model": first.model,
            "choices": [_completion_choice(i, a) for i, a in enumerate(answers)], "service_tier": None,
            "system_fingerprint": FINGERPRINT,
            "usage": {"prompt_tokens": prompt, "total_tokens": prompt + done, "completion_tokens": done,
                      "prompt_tokens_details": None, "completion_tokens_details": None},
            **MODALITIES, "metrics": None}


def _completion_choice(index: int, answer: Answer) -> dict[str, Any]:
    body = answer.body
    wants_prompt = body.get("prompt_logprobs") is not None or (body.get("echo") and body.get("logprobs") is not None)
    return {"index": index, "text": (answer.prompt if body.get("echo") else "") + answer.text,
            "logprobs": _completion_logprobs(answer), "finish_reason": answer.finish_reason, "stop_reason": None,
            "token_ids": None, "prompt_logprobs": _prompt_logprobs(answer) if wants_prompt else None,
            "prompt_token_ids": None, "routed_experts": None}


def _prompt_logprobs(answer: Answer) -> list[dict[str, Any] | None]:
    known = answer.weights.prompt_logprobs(answer.prompt)
    return [None if entry is None else
            {str(entry[0]): {"logprob": entry[1], "rank": 1, "decoded_token": chr(entry[0])}} for entry in known]


def _completion_logprobs(answer: Answer) -> dict[str, Any] | None:
    wanted = answer.body.get("logprobs")
    if wanted is None:
        return None
    top: list[dict[str, float] | None] = []
    tokens: list[str] = []
    offsets: list[int] = []
    text = ""
    if answer.body.get("echo"):
        for entry in answer.weights.prompt_logprobs(answer.prompt):
            offsets.append(len(tokens))
            tokens.append(answer.prompt[len(tokens):len(tokens) + 1])
            top.append(None if entry is None else {tokens[-1]: entry[1]})
        text = answer.prompt
    as_ids = answer.body.get("return_tokens_as_token_ids")
    for i, piece in enumerate(answer.pieces):
        likely = answer.weights.logprobs(answer.prompt + "".join(answer.pieces[:i]))[:max(int(wanted), 1)]
        names = [f"token_id:{token}" if as_ids else (piece if rank == 0 else f"<{token}>")
                 for rank, (token, _) in enumerate(likely)]
        offsets.append(len(text))
        tokens.append(names[0])
        top.append({name: logprob for name, (_, logprob) in zip(names, likely, strict=True)})
        text += piece
    chosen = [None if entry is None else next(iter(entry.values())) for entry in top]
    return {"text_offset": offsets, "token_logprobs": chosen, "tokens": tokens, "top_logprobs": top}


def completion_events(answer: Answer) -> Iterator[Event]:
    """A completion's events."""
    head = {"id": answer.id, "object": "text_completion", "created": now(), "model": answer.model}
    for done, piece in enumerate(answer.pieces, 1):
        last = done == len(answer.pieces)
        choice = {"index": 0, "text": piece, "logprobs": None,
                  "finish_reason": answer.finish_reason if last else None, "stop_reason": None,
                  "prompt_token_ids": None, "token_ids": None}
        yield done, _event(head, [choice], _running_usage(answer, done), _fingerprint(answer) if last else {})
    yield from _ending(answer, head)


# What both OpenAI streams share


def _event(
    head: dict[str, Any], choices: list[dict[str, Any]], usage: dict[str, Any], tail: dict[str, Any]
) -> bytes:
    return b"data: " + dump({**head, "choices": choices, **usage, **tail}) + b"\n\n"


def _options(answer: Answer) -> dict[str, Any]:
    return answer.body.get("stream_options") or {}


def _running_usage(answer: Answer, done: int) -> dict[str, Any]:
    options = _options(answer)
    if not (options.get("include_usage") and options.get("continuous_usage_stats")):
        return {}
    return {"usage": {**answer.usage(done), "completion_tokens_details": None}}


def _fingerprint(answer: Answer) -> dict[str, Any]:
    """It stands in the stream's last chunk: the one with the usage, if there is one."""
    return {} if _options(answer).get("include_usage") else {"system_fingerprint": FINGERPRINT}


def _ending(answer: Answer, head: dict[str, Any]) -> Iterator[Event]:
    if _options(answer).get("include_usage"):
        usage = {"usage": answer.usage(len(answer.pieces))}
        yield len(answer.pieces), _event(head, [], usage, {"system_fingerprint": FINGERPRINT})
    yield len(answer.pieces), DONE
