"""The composition root: builds every object of one gateway process once, hands each what it needs, and runs them."""

import asyncio
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from pydantic import SecretStr

from gateway import operator_key
from gateway.api import errors
from gateway.api.admin import ControlPlane, admin_router
from gateway.api.auth import Callers, Operators
from gateway.api.idempotency import Once
from gateway.api.openai import Asgi, Door, Receive, Scope, Send
from gateway.api.ops import ops_router
from gateway.clients import registry as registries
from gateway.clients.artifacts import ArtifactStore
from gateway.clients.base_model import base_model_facts
from gateway.clients.http1 import Pool
from gateway.clients.judge import Judge
from gateway.clients.patterns import Patterns
from gateway.clients.quality import Candidates, Scores
from gateway.clients.replays import Replays
from gateway.clients.tallies import Analyses, Tallies
from gateway.clients.vllm import VllmClient
from gateway.clients.webhooks import WebhookClient
from gateway.controlplane.aliases import Aliases
from gateway.controlplane.analyst import Analyst
from gateway.controlplane.catalog import Catalog
from gateway.controlplane.changes import Changes
from gateway.controlplane.drift import Drift
from gateway.controlplane.evaluations import Evaluations
from gateway.controlplane.fleet import Replicas as ReplicaCatalog
from gateway.controlplane.freezes import Freezes
from gateway.controlplane.leases import Leases
from gateway.controlplane.notify import Notifier, Webhooks
from gateway.controlplane.operators import OperatorCatalog
from gateway.controlplane.parity import ParityCheck, ParityPolicy
from gateway.controlplane.prepare import Preparer
from gateway.controlplane.quality import QualityControl
from gateway.controlplane.reconciler import Reconciler
from gateway.controlplane.releases import Releases
from gateway.controlplane.removal import Removal
from gateway.controlplane.rollouts import Rollouts
from gateway.controlplane.secrets import share_secret
from gateway.controlplane.tenants import Tenants
from gateway.dataplane.ports import Engine, Wire
from gateway.dataplane.quality import Quality
from gateway.dataplane.replicas import Replicas
from gateway.dataplane.salts import SECRET, Salts
from gateway.dataplane.serving import Serving
from gateway.dataplane.shadows import Shadows
from gateway.dataplane.snapshots import DiskCopy, Snapshots
from gateway.dataplane.tally import Tally
from gateway.domain import placement
from gateway.domain.errors import InvalidRequest, RegistryUnavailable
from gateway.domain.happening import Happening
from gateway.domain.model import Replica
from gateway.domain.preflight import BaseModelFacts, Limits
from gateway.domain.reconcile import Policy
from gateway.domain.seal import Seal
from gateway.settings import Settings
from gateway.system import System
from gateway.telemetry import Metrics, Telemetry, make_log

START_SECONDS = 5.0
SECRET_PAUSE_SECONDS = 1.0
GAUGE_SECONDS = 1.0


class App:
    """One gateway process as an ASGI app. Starts and stops what it owns with the server's lifespan."""

    def __init__(self, settings: Settings, system: System, log: Any) -> None:
        if settings.redis_url is None:
            raise InvalidRequest("SWITCHYARD_REDIS_URL is not set; 'switchyard serve' starts an embedded Valkey.")
        settings.state_path.mkdir(mode=0o700, parents=True, exist_ok=True)
        key, _ = operator_key.find_or_make(settings, system)
        self._settings, self._system, self._log = settings, system, log
        self._draining = False
        self._tasks: list[asyncio.Task[Any]] = []

        self._registry = registries.connect(settings.redis_url, settings.registry, system=system)
        copy = DiskCopy(settings.state_path / f"snapshot-{settings.registry}.json", settings.registry, log)
        self._snapshots = Snapshots(self._registry, copy, system=system, log=log)
        self._metrics = Metrics(settings.metrics_max_series)
        self._store = store = ArtifactStore(settings.artifacts, max_bytes=settings.max_artifact_bytes)
        self._replicas = Replicas(
            self._connect, store, self._metrics, log, system, static=self._static_replicas(),
            health_interval=settings.health_interval_seconds, eject_after=settings.eject_after_failures)

        self._changes = Changes(self._registry, self._snapshots, system)
        leases = Leases(self._registry, system)
        policy = Policy(artifacts_path=str(settings.artifacts), retire_grace=settings.retire_grace_seconds)
        removal = Removal(self._changes, leases, self._replicas, store, policy, system)
        self._seal = Seal(_text(settings.secret))
        preparer = Preparer(
            self._changes, leases, self._replicas, removal,
            ParityCheck(self._replicas, store, ParityPolicy(settings.parity)), placement.choose, settings.min_effect,
            system, seal=self._seal)
        self._catalog = Catalog(
            self._changes, leases, self._replicas, store, preparer, self._base_facts,
            Limits(max_rank=settings.max_rank), system, log)
        self._reconciler = Reconciler(
            self._registry, self._snapshots, self._replicas, preparer, removal, placement.choose, policy, system, log)

        self._sender = WebhookClient(system)
        self._notifier = Notifier(
            lambda: self._snapshots.current, self._sender, self._metrics.count_delivery, system, log)
        self._quality_control = self._make_quality(leases)
        self._tally = Tally()
        self._tallies = Tallies(self._registry, system, log)

        operators = Operators(key, lambda: self._snapshots.current, reader=_text(settings.metrics_key))
        self._web = web = FastAPI(
            title="Switchyard", openapi_url="/admin/v1/openapi.json", docs_url="/admin/v1/docs", redoc_url=None)
        errors.install(web, log)
        web.include_router(ops_router(self._readiness, self._metrics.render, operators))
        web.include_router(admin_router(self._plane(), operators.identify, Once(Replays(self._registry), system)))
        self._analyst = Analyst(
            self._registry, self._snapshots, self._tallies, self._analyses, self._rollouts, system, log,
            notify=self._notify)
        self._door = self._make_door(web)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        else:
            await self._door(scope, receive, send)

    def begin_drain(self) -> None:
        """From now on say 'not ready', and ask callers to close their connections."""
        self._draining = True

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document of the admin API, health and metrics."""
        return self._web.openapi()

    def _plane(self) -> ControlPlane:
        changes, system, seal = self._changes, self._system, self._seal
        self._rollouts = Rollouts(changes, self._replicas, system, notify=self._notify, seal=seal)
        self._analyses = Analyses(self._registry)
        return ControlPlane(
            changes=changes, tenants=Tenants(changes, system), catalog=self._catalog,
            releases=Releases(changes, self._replicas, system, seal=seal), rollouts=self._rollouts,
            analyses=self._analyses, evaluations=Evaluations(changes, self._replicas, system, seal=seal),
            aliases=Aliases(changes), freezes=Freezes(changes, system), replicas=ReplicaCatalog(changes, system),
            fleet=self._replicas, operators=OperatorCatalog(changes, system), webhooks=Webhooks(changes, system),
            quality=self._quality_control)

    def _make_quality(self, leases: Leases) -> QualityControl:
        """All that samples, scores and shows answers' quality; gives its part of the admin API."""
        settings, system, log, count = self._settings, self._system, self._log, self._metrics.count_sample
        candidates, patterns = Candidates(self._registry), Patterns()
        self._judge = None if settings.judge_url is None else Judge(
            settings.judge_url, settings.judge_model, system, api_key=_text(settings.judge_api_key),
            calls_a_minute=settings.judge_calls_a_minute)
        self._quality = Quality(
            self._judge, candidates, patterns.matches, count, log, system, share=settings.quality_share,
            samples_a_second=settings.quality_samples_a_second)
        self._scores = Scores(self._registry, system, log, count, window_seconds=settings.quality_window_seconds)
        self._drift = Drift(
            self._snapshots, self._scores, candidates, self._metrics.show_quality, system, log, notify=self._notify,
            share=settings.quality_share)
        return QualityControl(
            self._changes, leases, self._scores, candidates, patterns, system, has_judge=self._judge is not None)

    def _notify(self, happening: Happening) -> None:
        self._log.info("release", kind=happening.kind, tenant=happening.tenant, adapter=happening.adapter,
                       actor=happening.actor, reason=happening.reason)
        self._notifier(happening)

    def _make_door(self, elsewhere: Asgi) -> Door:
        settings, system = self._settings, self._system
        secret = _text(settings.secret)
        salts = Salts(lambda: self._snapshots.current, secret, system.token(32))
        self._shadows = Shadows(
            self._replicas, salts, self._metrics, self._log, system, request_seconds=settings.request_timeout_seconds,
            max_in_flight=settings.shadow_max_in_flight, tokens_a_minute=settings.shadow_tokens_a_minute)
        serving = Serving(
            lambda: self._snapshots.current, self._replicas, salts, self._shadows, self._quality, system,
            request_seconds=settings.request_timeout_seconds)
        return Door(
            serving, Callers(lambda: self._snapshots.current, system), lambda: self._snapshots.current,
            lambda: self._replicas.base_models, Telemetry(self._metrics, self._log, self._tally.add), self._log, system,
            max_body_bytes=settings.max_body_bytes, allow_prompt_logprobs=settings.allow_prompt_logprobs,
            is_draining=lambda: self._draining, elsewhere=elsewhere)

    # life

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        await self._start()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self._stop()
        await send({"type": "lifespan.shutdown.complete"})

    async def _start(self) -> None:
        self._replicas.follow(self._snapshots.current)
        self._snapshots.subscribe(self._replicas.follow)
        self._snapshots.subscribe(self._reconciler.wake)
        self._snapshots.subscribe(self._metrics.follow)
        self._snapshots.subscribe(self._quality.follow)
        self._tasks = [
            asyncio.create_task(self._snapshots.run(), name="snapshots"),
            asyncio.create_task(self._reconciler.run(), name="reconciler"),
            asyncio.create_task(self._analyst.run(), name="analyst"),
            asyncio.create_task(self._tallies.run(self._tally.take), name="tallies"),
            asyncio.create_task(self._scores.run(self._quality.take), name="scores"),
            asyncio.create_task(self._drift.run(), name="drift"),
            asyncio.create_task(self._gauge(), name="gauges"),
        ]
        if self._settings.secret is None:
            self._tasks.append(asyncio.create_task(self._share_secret(), name="secret"))
        for task in self._tasks:
            task.add_done_callback(self._ended)
        await self._snapshots.wait_loaded(START_SECONDS)
        await self._replicas.wait_probed(START_SECONDS)

    async def _stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._shadows.close()
        await self._quality.close()
        await self._scores.fold(self._quality.take())
        await self._tallies.close(self._tally.take())
        await self._catalog.close()
        await self._notifier.close()
        await self._sender.close()
        if self._judge is not None:
            await self._judge.close()
        await self._replicas.close()
        await self._registry.close()
        self._store.close()

    def _ended(self, task: asyncio.Task[Any]) -> None:
        """A loop that ends by an error is a fault of ours: say so, loudly."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self._log.error("task_died", task=task.get_name(), exc_info=error)

    async def _share_secret(self) -> None:
        while True:
            try:
                await share_secret(self._changes, self._system, SECRET)
                return
            except RegistryUnavailable:
                await asyncio.sleep(SECRET_PAUSE_SECONDS)

    # what the parts ask of the settings

    def _connect(self, replica: Replica) -> tuple[Engine, Wire]:
        wire = Pool(replica.url, api_key=replica.api_key, connect_timeout=self._settings.connect_timeout_seconds)
        return VllmClient(replica), wire

    def _static_replicas(self) -> Sequence[Replica]:
        key = _text(self._settings.replica_api_key)
        return [
            Replica(name=name, url=url, created_at=self._system.now(), api_key=key)
            for name, url in self._settings.static_replicas
        ]

    async def _base_facts(self, root: str) -> BaseModelFacts | None:
        return await base_model_facts(self._settings.base_model or root)

    def _readiness(self) -> tuple[bool, dict[str, Any]]:
        views = self._replicas.replicas()
        healthy = sum(view.healthy for view in views)
        connected = self._snapshots.connected
        if self._draining:
            status = "draining"
        elif not self._snapshots.loaded:
            status = "starting"
        else:
            status = "ok" if connected and healthy == len(views) > 0 else "degraded"
        return status in ("ok", "degraded"), {
            "status": status, "registry": "connected" if connected else "unavailable",
            "revision": self._snapshots.current.revision, "replicas": {"healthy": healthy, "total": len(views)}}

    async def _gauge(self) -> None:
        """Keep the gauges of the registry; every process writes its own, and /metrics shows the worst."""
        while True:
            self._metrics.revision.set(self._snapshots.current.revision)
            self._metrics.lag.set(self._snapshots.lag_seconds)
            await asyncio.sleep(GAUGE_SECONDS)


def build(settings: Settings) -> App:
    """The app of one gateway process, on the machine's own clock, logging to standard output."""
    return App(settings, System(), make_log(settings.log_level))


def _text(secret: SecretStr | None) -> str | None:
    return secret.get_secret_value() if secret else None
