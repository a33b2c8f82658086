"""OpenAI's own Python client against the gateway: only `base_url` and `api_key` are changed."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI

from tests.fixtures.artifacts import write_adapter
from tests.fixtures.processes import Admin, fake_replica, gateway
from tests.fixtures.redis import free_port

MESSAGES: Any = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="sy-") as made:
        yield Path(made)


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[OpenAI]:
    port = free_port()
    write_adapter(folder / "adapter")
    with fake_replica(folder, "r0") as (url, _), gateway(folder, port, replicas=f"r0={url}"):
        admin = Admin(port)
        key = admin.add_tenant("acme")
        admin.add_adapter("acme", "support", folder / "adapter")
        with OpenAI(base_url=f"{admin.url}/v1", api_key=key, max_retries=0) as made:
            yield made


def test_a_chat_is_answered_under_the_name_that_was_asked_for(client: OpenAI) -> None:
    answer = client.chat.completions.create(model="support", messages=MESSAGES)
    assert answer.model == "support"
    assert answer.choices[0].message.content
    assert answer.usage and answer.usage.completion_tokens == 12
    assert answer._request_id


def test_a_stream_has_the_same_text_and_usage_only_when_asked(client: OpenAI) -> None:
    whole = client.chat.completions.create(model="support", messages=MESSAGES)
    options: Any
    for options in (None, {"include_usage": True}):
        chunks = list(client.chat.completions.create(
            model="support", messages=MESSAGES, stream=True, stream_options=options))
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        assert text == whole.choices[0].message.content
        assert [c.usage.completion_tokens for c in chunks if c.usage] == ([12] if options else [])
        assert {c.model for c in chunks} == {"support"}


def test_completions_embeddings_and_responses_are_answered(client: OpenAI) -> None:
    assert client.completions.create(model="support", prompt="hi").choices[0].text
    assert client.embeddings.create(model="support", input="hi", encoding_format="float").data[0].embedding
    assert client.responses.create(model="support", input="hi").output_text
    with client.responses.stream(model="support", input="hi") as stream:
        assert stream.get_final_response().output_text


def test_models_are_listed(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["support", "base"]
    assert client.models.retrieve("support").owned_by == "acme"


def test_errors_are_the_clients_own_classes(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="nowhere", messages=MESSAGES)
    assert missing.value.code == "model_not_found"
    assert missing.value.param == "model"
    with pytest.raises(openai.BadRequestError) as too_long:
        client.chat.completions.create(model="support", messages=MESSAGES, max_tokens=999_999)
    assert too_long.value.type == "BadRequestError"
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="sy-00000000-wrong").models.list()


def test_a_stream_that_breaks_off_raises(client: OpenAI, folder: Path) -> None:
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(folder / "r0.sock")), base_url="http://r0") as replica:
        replica.post("/fake/behaviour", json={"drop_after": 3})
    with pytest.raises(openai.APIError, match="broke the stream off"):
        list(client.chat.completions.create(model="support", messages=MESSAGES, stream=True))
