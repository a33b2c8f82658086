"""Loading, listing and unloading adapters: what vLLM says on the wire, and what the client makes of it."""

from pathlib import Path

import httpx
import pytest

from gateway.clients.vllm import VllmClient
from gateway.domain.errors import EngineRefused
from tests.contract.conftest import Subject
from tests.contract.shapes import ADAPTER_CARD, BASE_CARD, ERROR, PARAM_ERROR, same

LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"


async def test_a_load_answers_plain_text(wire: httpx.AsyncClient, adapters: Path, name: str) -> None:
    answer = await wire.post(LOAD, json={"lora_name": name, "lora_path": str(adapters / "good")})

    assert answer.status_code == 200
    assert answer.text == f"Success: LoRA adapter '{name}' added successfully."
    assert "content-type" not in answer.headers
    answer = await wire.post(UNLOAD, json={"lora_name": name})
    assert answer.status_code == 200
    assert answer.text == f"Success: LoRA adapter '{name}' removed successfully."


async def test_a_loaded_adapter_is_listed_with_its_path_and_its_base(
    wire: httpx.AsyncClient, subject: Subject, adapters: Path, good: str
) -> None:
    listed = (await wire.get("/v1/models")).json()

    assert listed["object"] == "list"
    base, adapter = listed["data"]
    assert same(base, BASE_CARD)
    assert same(adapter, ADAPTER_CARD)
    assert (base["id"], base["root"], base["parent"]) == ("base", subject.root, None)
    assert (adapter["id"], adapter["root"], adapter["parent"]) == (good, str(adapters / "good"), "base")


async def test_a_second_load_under_the_same_name_is_refused(
    wire: httpx.AsyncClient, adapters: Path, good: str
) -> None:
    answer = await wire.post(LOAD, json={"lora_name": good, "lora_path": str(adapters / "good")})

    assert answer.status_code == 400
    assert same(answer.json(), ERROR)
    assert answer.json()["error"]["type"] == "InvalidUserInput"
    assert "has already been loaded" in answer.json()["error"]["message"]


@pytest.mark.parametrize(("adapter", "status", "kind", "words"), [
    ("absent", 404, "NotFoundError", "failed: No adapter found for <path>"),
    ("high_rank", 500, "InternalServerError", "LoRA rank 64 is greater than max_lora_rank 16."),
    ("corrupt", 500, "InternalServerError", "Call to add_lora method failed: "),
])
async def test_an_adapter_that_cannot_serve_is_refused_and_not_listed(
    wire: httpx.AsyncClient, adapters: Path, name: str, adapter: str, status: int, kind: str, words: str
) -> None:
    answer = await wire.post(LOAD, json={"lora_name": name, "lora_path": str(adapters / adapter)})

    assert answer.status_code == status
    assert same(answer.json(), ERROR)
    assert answer.json()["error"]["type"] == kind
    assert words in answer.json()["error"]["message"]
    assert [model["id"] for model in (await wire.get("/v1/models")).json()["data"]] == ["base"]


async def test_the_base_models_name_is_refused(wire: httpx.AsyncClient, adapters: Path) -> None:
    answer = await wire.post(LOAD, json={"lora_name": "base", "lora_path": str(adapters / "good")})

    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "InvalidUserInput"
    assert "conflicts with a served base model" in answer.json()["error"]["message"]


async def test_missing_fields_are_named(wire: httpx.AsyncClient) -> None:
    answer = await wire.post(LOAD, json={})

    assert answer.status_code == 400
    assert same(answer.json(), PARAM_ERROR)
    assert answer.json()["error"]["type"] == "Bad Request"
    assert answer.json()["error"]["param"] == "body.lora_name"
    assert answer.json()["error"]["message"].startswith("2 validation errors:\n  {'type': 'missing'")


async def test_unloading_an_unknown_name_is_not_found(wire: httpx.AsyncClient, name: str) -> None:
    answer = await wire.post(UNLOAD, json={"lora_name": name})

    assert answer.status_code == 404
    assert same(answer.json(), ERROR)
    assert answer.json()["error"]["type"] == "NotFoundError"
    assert answer.json()["error"]["message"] == f"The lora adapter '{name}' cannot be found."


async def test_an_unloaded_adapter_is_neither_listed_nor_served(
    wire: httpx.AsyncClient, client: VllmClient, adapters: Path, name: str
) -> None:
    await client.load(name, str(adapters / "good"))
    await client.unload(name)

    assert [model.id for model in await client.models()] == ["base"]
    answer = await wire.post("/v1/completions", json={"model": name, "prompt": "abc", "max_tokens": 1})
    assert answer.status_code == 404


async def test_two_names_may_share_one_path(client: VllmClient, adapters: Path, good: str, name: str) -> None:
    twin = f"{name}-twin"
    await client.load(twin, str(adapters / "good"))
    try:
        listed = {model.id: model.root for model in await client.models()}
        assert listed[good] == listed[twin] == str(adapters / "good")
    finally:
        await client.unload(twin)


# What the client makes of it


async def test_the_client_takes_a_load_that_was_done_before_for_done(
    client: VllmClient, adapters: Path, good: str
) -> None:
    await client.load(good, str(adapters / "good"))

    models = await client.models()
    assert [(m.id, m.root, m.parent) for m in models if m.parent] == [(good, str(adapters / "good"), "base")]


async def test_the_client_never_replaces_an_adapter_in_place(client: VllmClient, adapters: Path, good: str) -> None:
    with pytest.raises(EngineRefused) as refused:
        await client.load(good, str(adapters / "other"))

    assert f"loaded from {adapters / 'good'}, not from {adapters / 'other'}" in refused.value.message
    assert {m.id: m.root for m in await client.models()}[good] == str(adapters / "good")


@pytest.mark.parametrize(("adapter", "words"), [
    ("absent", "No adapter found for"), ("high_rank", "LoRA rank 64 is greater than"),
    ("corrupt", "Error while deserializing header"),
])
async def test_the_client_keeps_the_engines_words(
    client: VllmClient, adapters: Path, name: str, adapter: str, words: str
) -> None:
    with pytest.raises(EngineRefused) as refused:
        await client.load(name, str(adapters / adapter))

    assert words in refused.value.message


async def test_the_client_takes_an_unload_of_nothing_for_done(client: VllmClient, name: str) -> None:
    await client.unload(name)


async def test_the_client_says_so_when_its_key_is_wrong(subject: Subject, adapters: Path, name: str) -> None:
    stranger = subject.client("another key")
    try:
        with pytest.raises(EngineRefused, match="Unauthorized"):
            await stranger.models()
        with pytest.raises(EngineRefused, match="Unauthorized"):
            await stranger.load(name, str(adapters / "good"))
        with pytest.raises(EngineRefused, match="Unauthorized"):
            await stranger.unload(name)
    finally:
        await stranger.close()
