"""parity.json as trainers write it is read; any other is refused with the name of the field."""

import copy
import json
from typing import Any

import pytest

from gateway.clients.parity_file import MAX_PROMPTS, MAX_TOKENS, parse
from gateway.domain.errors import ArtifactRefused

DOCUMENT: dict[str, Any] = {
    "schema": "switchyard.parity/1", "base_model": "meta/llama-8b", "quantization": "nf4",
    "chat_template_sha256": "e" * 64, "prompts": [{
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}],
        "token_ids": [1, 2, 3],
        "base": {"trained": [[7, -0.5], [8, -2]], "served": None},
        "adapter": {"trained": [[9, -0.25]], "served": [[9, 0.0]]},
    }],
}


def changed(path: str, value: Any) -> bytes:
    """The document with one field in another's place."""
    document = copy.deepcopy(DOCUMENT)
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    inner: Any = document
    for part in parents:
        inner = inner[part]
    inner[last] = value
    return json.dumps(document).encode()


def test_what_a_trainer_writes_is_read() -> None:
    found = parse(json.dumps({**DOCUMENT, "of a later release": 1}).encode())
    assert (found.base_model, found.quantization, found.chat_template_sha256) == ("meta/llama-8b", "nf4", "e" * 64)
    [prompt] = found.prompts
    assert prompt.messages == ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"})
    assert prompt.token_ids == (1, 2, 3)
    assert (prompt.base.trained, prompt.base.served, prompt.base.best) == ({7: -0.5, 8: -2.0}, None, {7: -0.5, 8: -2.0})
    assert prompt.adapter.best == {9: 0.0}


def test_tool_calls_reach_the_template_as_they_are() -> None:
    turns = [{"role": "assistant", "content": None, "tool_calls": [{"id": "1", "function": {"name": "f"}}]},
             {"role": "tool", "content": "42", "tool_call_id": "1"}]
    assert parse(changed("prompts.0.messages", turns)).prompts[0].messages == tuple(turns)


@pytest.mark.parametrize(("path", "value", "where"), [
    ("schema", "switchyard.parity/2", "$.schema"), ("base_model", 3, "$.base_model"), ("prompts", [], "$.prompts"),
    ("prompts", DOCUMENT["prompts"] * (MAX_PROMPTS + 1), "$.prompts"),
    ("chat_template_sha256", "short", "$.chat_template_sha256"),
    ("prompts.0.messages", [], "$.prompts[0].messages"),
    ("prompts.0.messages.0.content", [{"type": "image_url", "image_url": {"url": "http://inside/"}}],
     "$.prompts[0].messages[0].content"),
    ("prompts.0.messages.0", {"role": "user", "content": "hi", "image": "http://inside/"}, "$.prompts[0].messages[0]"),
    ("prompts.0.token_ids", [], "$.prompts[0].token_ids"), ("prompts.0.token_ids.1", -1, "$.prompts[0].token_ids[1]"),
    ("prompts.0.token_ids", [1] * (MAX_TOKENS + 1), "$.prompts[0].token_ids"),
    ("prompts.0.base.trained", [], "$.prompts[0].base.trained"),
    ("prompts.0.base.trained.0", [7], "$.prompts[0].base.trained[0]"),
    ("prompts.0.base.trained.0.1", 0.5, "$.prompts[0].base.trained[0][1]"),
    ("prompts.0.adapter.trained", [[9, -1.0], [9, -2.0]], "$.prompts[0].adapter.trained"),
    ("prompts.0.adapter.served", "none", "$.prompts[0].adapter.served"),
    ("prompts.0.adapter", None, "$.prompts[0].adapter"),
])
def test_a_malformed_one_is_refused_with_the_fields_name(path: str, value: Any, where: str) -> None:
    with pytest.raises(ArtifactRefused) as refused:
        parse(changed(path, value))
    [reason] = refused.value.reasons
    assert reason.startswith("parity.json cannot be understood: ")
    assert f"`{where}`" in reason


@pytest.mark.parametrize("content", [
    b"", b"[]", b"\xff", b"{", b"[" * 100_000,
    json.dumps(DOCUMENT).replace("-0.5", "-1e999").encode(), json.dumps(DOCUMENT).replace("-0.5", "NaN").encode()])
def test_what_is_no_document_of_finite_numbers_is_refused(content: bytes) -> None:
    with pytest.raises(ArtifactRefused, match=r"parity\.json cannot be understood"):
        parse(content)
