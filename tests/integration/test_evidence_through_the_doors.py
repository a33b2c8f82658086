"""What callers met becomes the evidence: a canary that fails behind the gateway is aborted by the gateway itself."""

import asyncio
from typing import Any

from tests.fixtures.yard import Yard


async def ask(yard: Yard, key: str, calls: int) -> None:
    """Callers that each ask once, some at a time."""
    async with yard.async_caller(key) as caller:
        room = asyncio.Semaphore(16)

        async def one(number: int) -> None:
            async with room:
                await caller.post("/v1/chat/completions", json={
                    "model": "support", "user": f"caller-{number}", "messages": [{"role": "user", "content": "Hi"}]})

        await asyncio.gather(*(one(number) for number in range(calls)))


def test_a_canary_that_fails_behind_the_gateway_is_aborted_and_the_analysis_says_why(yard: Yard) -> None:
    key = yard.add_tenant("acme")
    for seed in (1, 2):
        yard.add_adapter("acme", "support", seed=seed)
    path = "/tenants/acme/adapters/support/release"
    yard.admin("PUT", path, json={"stable": 1})
    yard.admin("POST", f"{path}/start", json={"canary": 2, "plan": "50% for 1h, 100%"})
    yard.fakes["r0"].behave(error_rate=0.5, only="support@2-")
    asyncio.run(ask(yard, key, 400))

    def rollout() -> Any:
        return yard.admin("GET", path)["rollout"]

    yard.wait_until(lambda: rollout()["phase"] == "aborted")
    assert "error_rate" in rollout()["reason"]
    analysis = yard.admin("GET", f"{path}/analysis")["analysis"]
    assert analysis["verdict"] == "fail" and analysis["tracks"]["canary"]["server_errors"] > 3
    assert analysis["tracks"]["stable"]["errors"] == 0
    assert 0 < analysis["tracks"]["stable"]["requests"] <= 400 - analysis["tracks"]["canary"]["requests"]
    metrics = yard.operator.get("/metrics").text
    assert 'switchyard_release_weight{adapter="support",tenant="acme"} 0.0' in metrics
    assert 'switchyard_release_verdict{adapter="support",tenant="acme"} 4.0' in metrics
    assert 'switchyard_split_decisions_total{adapter="support",tenant="acme",track="canary"}' in metrics
