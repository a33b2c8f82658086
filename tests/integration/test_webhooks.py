"""Operators register webhooks over the admin API; what happens to releases reaches receivers, and delays nobody."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
from fastapi import APIRouter, FastAPI

from gateway.api import errors
from gateway.api.admin_routes import MAX_JSON_BYTES, guarded_route
from gateway.api.admin_webhooks import add_webhook_routes
from gateway.api.auth import Operators
from gateway.api.idempotency import Once
from gateway.clients.replays import Replays
from gateway.clients.webhooks import WebhookClient
from gateway.controlplane.notify import Notifier, Webhooks
from gateway.domain.happening import Happening
from gateway.domain.rollout import Move
from gateway.system import System
from gateway.telemetry import Metrics
from tests.fixtures.evidence import EvidenceGateway, Quality, evidence_gateway, put_release
from tests.fixtures.fleet import Log
from tests.fixtures.receiver import receiving
from tests.fixtures.redis import RealValkey, until
from tests.unit.clients.test_webhooks import is_genuine

OPERATOR_KEY = "sy-operator-test"


class Told:
    """A gateway that tells, and its admin API."""

    def __init__(self, gateway: EvidenceGateway, notifier: Notifier, metrics: Metrics, http: httpx.AsyncClient) -> None:
        self.gateway = gateway
        self.notifier = notifier
        self.metrics = metrics
        self.http = http

    async def register(self, url: str, **more: object) -> dict[str, object]:
        answer = await self.http.post("/webhooks", json={"name": "ops", "url": url, **more})
        assert answer.status_code == 201, answer.text
        return dict(answer.json())


@asynccontextmanager
async def telling(redis_url: str, registry_name: str, folder: Path) -> AsyncIterator[Told]:
    """A gateway with webhooks, put together as the app does it."""
    client, metrics = WebhookClient(System(), first_pause=0.02, attempt_seconds=5), Metrics(10)
    made: list[Notifier] = []

    def notify(happening: Happening) -> None:
        made[0](happening)

    async with evidence_gateway(redis_url, registry_name, folder, notify=notify) as gateway:
        made.append(Notifier(
            lambda: gateway.snapshots.current, client, metrics.count_delivery, gateway.system, Log()))
        await put_release(gateway)
        web = FastAPI()
        errors.install(web, Log())
        guard = guarded_route(
            Operators(OPERATOR_KEY, lambda: gateway.snapshots.current).identify,
            Once(Replays(gateway.registry), gateway.system), MAX_JSON_BYTES)
        router = APIRouter(route_class=guard)
        add_webhook_routes(router, Webhooks(gateway.changes, gateway.system))
        web.include_router(router)
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(web), base_url="http://gateway",
            headers={"authorization": f"Bearer {OPERATOR_KEY}"},
        ) as http:
            yield Told(gateway, made[0], metrics, http)
        await made[0].close(0.1)
    await client.close()


async def test_a_webhook_lives_its_life_over_the_admin_api_and_its_secret_is_shown_once(
    shared_valkey: RealValkey, registry_name: str, tmp_path: Path,
) -> None:
    async with telling(shared_valkey.url, registry_name, tmp_path) as told:
        made = await told.register("https://h.example/in", kinds=["abort", "verdict"])
        secret = str(made.pop("secret"))
        listed = await told.http.get("/webhooks")
        assert listed.json() == {"data": [made], "has_more": False} and secret not in listed.text
        one = await told.http.get("/webhooks/ops")
        assert one.json() == made and one.headers["etag"] == f'"{made["revision"]}"'
        again = await told.http.post("/webhooks", json={"name": "ops", "url": "https://h.example/"})
        assert again.status_code == 409
        late = await told.http.delete("/webhooks/ops", headers={"if-match": '"1"'})
        assert late.status_code == 412
        gone = await told.http.delete("/webhooks/ops", headers={"if-match": one.headers["etag"]})
        assert gone.status_code == 204 and (await told.http.get("/webhooks/ops")).status_code == 404
        assert secret not in str(await told.gateway.registry.history())


async def test_what_is_no_webhook_is_refused(shared_valkey: RealValkey, registry_name: str, tmp_path: Path) -> None:
    async with telling(shared_valkey.url, registry_name, tmp_path) as told:
        for body in ({"name": "ops", "url": "ftp://h.example/"}, {"name": "-", "url": "https://h.example/"},
                     {"name": "ops", "url": "https://h.example/", "kinds": ["eclipse"]},
                     {"name": "ops", "url": "https://h.example/", "secret": "short"},
                     {"name": "ops", "url": "https://h.example/", "colour": "red"}):
            assert (await told.http.post("/webhooks", json=body)).status_code == 400, body
        dry = await told.http.post("/webhooks?dry_run=true", json={"name": "ops", "url": "https://h.example/"})
        assert dry.status_code == 201 and (await told.http.get("/webhooks")).json()["data"] == []


async def test_a_release_is_told_from_start_to_abort_signed_and_after_errors_of_the_receiver(
    shared_valkey: RealValkey, registry_name: str, tmp_path: Path,
) -> None:
    async with telling(shared_valkey.url, registry_name, tmp_path) as told, receiving([500, 503]) as receiver:
        secret = str((await told.register(receiver.url))["secret"])
        await told.gateway.start("50%, 100%")
        told.gateway.serve(4_000, Quality(), Quality(errors=0.2))
        await told.gateway.fold()
        await told.gateway.look()
        await until(lambda: len(receiver.got) == 5)
        assert all(is_genuine(got, secret) for got in receiver.got)
        payloads = [json.loads(got.body) for got in receiver.got]
        assert [p["kind"] for p in payloads] == ["start", "start", "start", "abort", "verdict"]
        assert len({p["id"] for p in payloads}) == 3
        abort = payloads[3]
        assert abort["actor"] == "analyst" and "error_rate" in abort["reason"]
        assert abort["analysis"]["verdict"] == "fail" and abort["analysis"]["tracks"]["canary"]["errors"] > 100
        assert abort["release"]["rollout"]["phase"] == "aborted" and abort["release"]["stable"] == 1
        line = 'switchyard_webhook_deliveries_total{outcome="delivered",webhook="ops"} 3.0'
        await until(lambda: line in told.metrics.render().decode())


async def test_a_receiver_that_hangs_does_not_delay_a_promote(
    shared_valkey: RealValkey, registry_name: str, tmp_path: Path,
) -> None:
    async with telling(shared_valkey.url, registry_name, tmp_path) as told, receiving() as receiver:
        receiver.hangs = True
        await told.register(receiver.url)
        await told.gateway.start("50%, 100%")
        await until(lambda: len(receiver.got) == 1)
        started = time.monotonic()
        await told.gateway.rollouts.move("alice", "acme", "support", Move.PROMOTE)
        assert time.monotonic() - started < 0.25
        assert told.gateway.release.stable == 2
        await asyncio.sleep(0)
        assert len(receiver.got) == 1  # the second waits its turn
