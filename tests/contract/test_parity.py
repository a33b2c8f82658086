"""Trainer and engine compared on each subject: within tolerance where all is right, and each fault named.

For the real engine the trainer is transformers and PEFT; for the fake it is the fake's own arithmetic.
"""

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.clients.parity_file import parse
from gateway.clients.vllm import LIKELIEST, VllmClient
from gateway.dataplane.replicas import OBSERVED_TOKENS
from gateway.domain.parity import TOLERANCE, Fault, Observed, Parity, Reference, Verdict, compare
from tests.contract.conftest import KEY, NUMBERS, Subject
from tests.contract.test_through_gateway import register
from tests.fakes.vllm.prompts import detokenize, render, tokenize
from tests.fakes.vllm.weights import BASE, Weights, read_weights
from tests.fixtures.artifacts import write_adapter
from tests.fixtures.redis import RealValkey
from tests.fixtures.yard import Yard, open_yard

CHATS = [[{"role": "user", "content": text}] for text in (
    "Hello!", "What is the capital of France?", "List three colours.", "Is 17 a prime?", "def add(a, b):",
    "Write one sentence about the sea.")]
CHATS += [[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"},
           {"role": "assistant", "content": "Because."}, {"role": "user", "content": "Is that all?"}]]


def said_by_the_fake(adapter: Path) -> dict[str, Any]:
    prompts = [tokenize(render(chat)) for chat in CHATS]
    others = [tokenize(f"[user] {chat[-1]['content']}\n[assistant] ") for chat in CHATS]
    adapted = read_weights(adapter, "good", 64)

    def tops(weights: Weights, asked: list[list[int]] = prompts) -> list[list[tuple[int, float]]]:
        return [weights.logprobs(detokenize(ids))[:LIKELIEST] for ids in asked]

    return {"token_ids": prompts, "base": tops(BASE), "adapter": tops(adapted),
            "other_base": tops(Weights("another base")),
            "templated_token_ids": others, "templated_base": tops(BASE, others),
            "templated_adapter": tops(adapted, others)}


def said_by_transformers(base: str, adapter: Path, file: Path) -> dict[str, Any]:
    file.write_text(json.dumps(CHATS))
    maker = Path(__file__).with_name("make_parity.py")
    subprocess.run([os.environ["SWITCHYARD_ENGINE_PYTHON"], str(maker), base, str(adapter), str(file)], check=True,
                   env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}, capture_output=True)
    return dict(json.loads(file.read_text()))


@pytest.fixture(scope="module")
def said(subject: Subject, adapters: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the trainer says of the subject's base and of the good adapter; also of another base, in another template.
    """
    if Path(subject.root).exists():
        return said_by_transformers(subject.root, adapters / "good", tmp_path_factory.mktemp("said") / "said.json")
    return said_by_the_fake(adapters / "good")


def document(said: dict[str, Any], **fields: str) -> str:
    """The parity.json of what was said; `fields` says which of it stands for token ids, base and adapter."""
    chosen = {name: said[fields.get(name, name)] for name in ("token_ids", "base", "adapter")}
    prompts = [
        {"messages": chat, "token_ids": ids, "base": {"trained": base, "served": base},
         "adapter": {"trained": adapter, "served": adapter}}
        for chat, ids, base, adapter in zip(CHATS, *chosen.values(), strict=True)]
    return json.dumps({"schema": "switchyard.parity/1", "base_model": "base", "quantization": "none",
                       "chat_template_sha256": None, "prompts": prompts})


async def compared(client: VllmClient, name: str, text: str) -> Parity:
    reference: Reference = parse(text.encode())
    prompts = [prompt.token_ids for prompt in reference.prompts]
    return compare(reference, Observed(
        [await client.tokenize(prompt.messages) for prompt in reference.prompts],
        await client.next_token_logprobs("base", prompts, f"base {next(NUMBERS)}", OBSERVED_TOKENS),
        await client.next_token_logprobs(name, prompts, f"adapter {next(NUMBERS)}", OBSERVED_TOKENS)))


def faults(parity: Parity) -> list[Fault]:
    return [finding.fault for finding in parity.findings]


async def test_what_trainer_and_engine_compute_alike_passes_with_room_to_spare(
    client: VllmClient, good: str, said: dict[str, Any]
) -> None:
    found = await compared(client, good, document(said))

    assert found.verdict is Verdict.PASS, asdict(found)
    assert found.numbers is not None
    assert max(found.numbers.base_trained, found.numbers.adapter) < TOLERANCE / 5, found.numbers
    assert found.numbers.effect_served == pytest.approx(found.numbers.effect_trained, rel=0.2)
    assert found.numbers.effect_served > TOLERANCE


async def test_another_template_is_named(client: VllmClient, good: str, said: dict[str, Any]) -> None:
    found = await compared(client, good, document(said, token_ids="templated_token_ids", base="templated_base",
                                                  adapter="templated_adapter"))

    assert faults(found) == [Fault.TEMPLATE]
    assert f"other tokens of {len(CHATS)} of {len(CHATS)} prompts" in found.findings[0].text


async def test_another_base_is_named(client: VllmClient, good: str, said: dict[str, Any]) -> None:
    assert faults(await compared(client, good, document(said, base="other_base"))) == [Fault.BASE]


async def test_an_adapter_that_the_engine_ignores_is_named(
    client: VllmClient, name: str, adapters: Path, said: dict[str, Any]
) -> None:
    await client.load(name, str(adapters / "no_op"))
    try:
        assert faults(await compared(client, name, document(said))) == [Fault.NO_OP]
    finally:
        await client.unload(name)


async def test_another_adapter_than_was_trained_is_named(
    client: VllmClient, name: str, adapters: Path, said: dict[str, Any]
) -> None:
    await client.load(name, str(adapters / "other"))
    try:
        assert faults(await compared(client, name, document(said))) == [Fault.ADAPTER]
    finally:
        await client.unload(name)


# On the wire


async def test_a_prompt_in_token_ids_is_the_prompt_in_text(client: VllmClient) -> None:
    ids = await client.tokenize(CHATS[0])
    by_ids = await client.next_token_logprobs("base", [ids, ids[:-1]], "ids")

    assert by_ids[0] != by_ids[1]
    text = f"<|user|>{CHATS[0][0]['content']}<|end|><|assistant|>"
    assert by_ids[0] == (await client.next_token_logprobs("base", [text], "text"))[0]


async def test_the_likeliest_tokens_have_ids_and_the_first_is_what_is_written(
    client: VllmClient, wire: httpx.AsyncClient
) -> None:
    ids = await client.tokenize(CHATS[1])
    [likeliest] = await client.next_token_logprobs("base", [ids], "one")
    answer = await wire.post("/v1/completions", json={
        "model": "base", "prompt": ids, "max_tokens": 1, "temperature": 0, "logprobs": 0,
        "return_tokens_as_token_ids": True})

    assert len(likeliest) == LIKELIEST
    assert answer.json()["choices"][0]["logprobs"]["tokens"] == [f"token_id:{next(iter(likeliest))}"]


# Through the gateway


@pytest.fixture(scope="module", params=["warn", "required"])
def yard(request: pytest.FixtureRequest, subject: Subject, shared_valkey: RealValkey) -> Iterator[Yard]:
    with open_yard(shared_valkey, f"parity-{request.param}-{id(subject)}") as made:
        made.urls["r0"] = subject.url
        made.start_gateway(replica_api_key=KEY, parity=request.param)
        made.add_tenant(request.param)
        made.key = request.param
        yield made


def test_a_version_keeps_what_came_of_it_and_a_fault_warns_or_refuses(
    yard: Yard, said: dict[str, Any], tmp_path: Path
) -> None:
    right = write_adapter(tmp_path / "right", seed=1, scale=0.5, files={"parity.json": document(said)})
    answer = register(yard, yard.key, "right", right)
    assert answer.status_code == 201, answer.text
    version = answer.json()
    assert (version["parity"]["verdict"], version["parity"]["findings"]) == ("pass", [])
    assert version["parity"]["numbers"]["prompts"] == len(CHATS)
    assert "parity.json" not in version["ignored_files"]

    wrong = write_adapter(tmp_path / "wrong", seed=1, scale=0.5,
                          files={"parity.json": document(said, base="other_base")})
    answer = register(yard, yard.key, "wrong", wrong)
    if yard.key == "required":
        assert answer.status_code == 422, answer.text
        [reason] = answer.json()["error"]["reasons"]
        assert reason.startswith("Wrong base: ") and "nats" in reason
        return
    assert answer.status_code == 201, answer.text
    [finding] = answer.json()["parity"]["findings"]
    assert finding["fault"] == "wrong_base"
    assert finding["text"] in answer.json()["warnings"]
