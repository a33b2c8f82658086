"""From a request's body to a prompt: templates, token counts, limits, and vLLM's words when the body is wrong."""

import json
from typing import Any, TypeAlias

Body: TypeAlias = dict[str, Any]

MAX_SALT = 128
SPECIALS = ("<|end|>", "<|user|>", "<|assistant|>", "<|system|>")


class Refused(Exception):
    """vLLM's own no: status, message, error type, parameter."""

    def __init__(self, status: int, message: str, kind: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.kind, self.param = status, message, kind, param


def parse(raw: bytes, content_type: str, needed: tuple[str, ...]) -> Body:
    """The body as an object that has the needed fields; Refused in the words of vLLM's validation."""
    if content_type.split(";", 1)[0].strip().lower() != "application/json":
        raise Refused(400, "1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed",
                      "Bad Request")
    try:
        body = json.loads(raw)
    except ValueError as error:
        at = f"body.{getattr(error, 'pos', 0)}"
        detail = {"type": "json_invalid", "loc": at, "msg": "JSON decode error", "input": "<dict of 0 items>",
                  "ctx": {"error": getattr(error, "msg", str(error))}}
        raise _validation([detail], at) from error
    if not isinstance(body, dict):
        detail = {"type": "model_attributes_type", "loc": "body",
                  "msg": "Input should be a valid dictionary or object to extract fields from",
                  "input": f"<{type(body).__name__} of {len(body)} items>" if isinstance(body, list) else str(body)}
        raise _validation([detail], "body")
    missing = tuple(name for name in needed if body.get(name) is None)
    if missing == ("prompt",):
        raise no_prompt()
    if missing:
        raise invalid(missing, body)
    if body.get("cache_salt") == "":
        raise bad_parameter("Parameter 'cache_salt' must be a non-empty string if provided.", "cache_salt")
    if len(salt := str(body.get("cache_salt", ""))) > MAX_SALT or set(salt) & set("@/\\\0"):
        raise bad_parameter(f"Parameter 'cache_salt' must be at most {MAX_SALT} characters and must not contain '@', "
                            "'/', '\\\\', or NUL.", "cache_salt")
    return body


def invalid(missing: tuple[str, ...], body: Body) -> Refused:
    """A 400 about fields that are not there."""
    size = f"<dict of {len(body)} items>"
    details = [{"type": "missing", "loc": f"body.{name}", "msg": "Field required", "input": size} for name in missing]
    return _validation(details, f"body.{missing[0]}")


def no_prompt() -> Refused:
    """A 400 about a completion of nothing."""
    return bad_parameter("Either prompt or prompt_embeds must be provided and non-empty.", "prompt")


def _validation(details: list[dict[str, Any]], param: str) -> Refused:
    count = f"{len(details)} validation error{'s' if len(details) > 1 else ''}:"
    return Refused(400, "\n  ".join([count, *map(str, details)]), "Bad Request", param)


def bad_parameter(message: str, parameter: str, value: object = None) -> Refused:
    """A 400 about one parameter."""
    given = "" if value is None else f", value={value}"
    return Refused(400, f"{message} (parameter={parameter}{given})", "BadRequestError", parameter)


def prompts_of(path: str, body: Body) -> list[str]:
    """The prompts that a body asks to go on from: one, but for completions and embeddings."""
    match path:
        case "/v1/completions":
            return _texts(body["prompt"])
        case "/v1/embeddings":
            return _texts(body["input"])
        case "/v1/responses" if isinstance(body["input"], str):
            return [render([{"role": "user", "content": body["input"]}])]
        case "/v1/responses":
            return [render(body["input"])]
        case "/v1/messages" if body.get("system"):
            return [render([{"role": "system", "content": body["system"]}, *body["messages"]])]
        case _:
            return [render(body["messages"])]


def _texts(given: Any) -> list[str]:
    """One text, several, or the same in token ids."""
    if isinstance(given, str):
        return [given]
    if given and isinstance(given[0], int):
        return [detokenize(given)]
    return [text for item in given for text in _texts(item)]


def render(messages: list[Body]) -> str:
    """The chat template."""
    turns = [f"<|{turn.get('role', 'user')}|>{_content(turn.get('content'))}{SPECIALS[0]}" for turn in messages]
    return "".join(turns) + "<|assistant|>"


def _content(content: Any) -> str:
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content)
    return str(content or "")


def tokenize(text: str) -> list[int]:
    """One token a byte, and one for each special token."""
    tokens: list[int] = []
    while text:
        at, special = min(((text.find(s), i) for i, s in enumerate(SPECIALS) if s in text), default=(len(text), -1))
        tokens += [byte + len(SPECIALS) for byte in text[:at].encode()]
        if special >= 0:
            tokens.append(special)
        text = text[at + len(SPECIALS[special]):] if special >= 0 else ""
    return tokens


def detokenize(tokens: list[int]) -> str:
    """The text that `tokenize` made the tokens of."""
    parts = [SPECIALS[token].encode() if token < len(SPECIALS) else bytes([(token - len(SPECIALS)) % 256])
             for token in tokens]
    return b"".join(parts).decode(errors="replace")


def count_tokens(text: str) -> int:
    """How many tokens `tokenize` makes, without making them."""
    return len(text.encode()) - sum(text.count(special) * (len(special) - 1) for special in SPECIALS)


def max_tokens(path: str, body: Body, context: int, prompt_tokens: int) -> int:
    """How many tokens the answer may have; Refused when the prompt or the wish is longer than the context."""
    field = {"/v1/responses": "max_output_tokens"}.get(path, "max_tokens")
    if path == "/v1/chat/completions" and body.get("max_completion_tokens") is not None:
        field = "max_completion_tokens"
    if prompt_tokens > context:
        raise bad_parameter(
            f"This model's maximum context length is {context} tokens. However, your prompt contains at least "
            f"{context + 1} input tokens, which exceeds this limit even without any output tokens. Please reduce the "
            "length of the input prompt.", "input_tokens", context + 1)
    default = 16 if path == "/v1/completions" else context - prompt_tokens
    wanted = int(body[field]) if body.get(field) is not None else default
    if wanted > context:
        raise bad_parameter(
            f"max_tokens={wanted} cannot be greater than max_model_len={context}. Please request fewer output tokens.",
            "max_tokens", wanted)
    return max(1, min(wanted, context - prompt_tokens))
