"""What became of each call: one record, from which the metrics and the log line are cut, so they cannot disagree."""

import logging
import math
import os
import sys
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, BinaryIO

import msgspec
import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, multiprocess

from gateway.domain.analysis import Verdict
from gateway.domain.model import Snapshot

LATENCY_BUCKETS = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 60.0, 120.0, 300.0)
"""Seconds: 1 ms to 5 min, as LLM latencies need."""
OVERHEAD_BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
LOAD_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
WHO = ("tenant", "adapter", "version", "track")
OTHER = ("other", "other", "other", "other")
SPLIT = ("tenant", "adapter", "track")
VERDICTS: Mapping[str, int] = MappingProxyType({
    Verdict.PASS: 1, Verdict.INCONCLUSIVE: 2, Verdict.NO_TRAFFIC: 3, Verdict.FAIL: 4})
"""Verdict → what `release_verdict` shows; 0 is none."""


@dataclass(slots=True)
class Record:
    """One call, from its first byte to the last byte of its answer. Times are monotonic seconds.

    `received`: when its body was complete. `overhead`: seconds that the gateway itself added before the first byte out.

    Names come from the registry's snapshot, never from what a caller sent; empty until they are known.

    For the comparison of canary with stable, and only then worth filling: `epoch` is the route's (empty: the call was
    not split by a live rollout, and is not tallied); `subject` is who was split (empty: the key), and goes into no log;
    `empty_output`: answered to the end without text, tool call or any other output; `json_asked`: `response_format`
    asked for JSON; `json_invalid`: the whole answer then was none.
    """

    request_id: str
    endpoint: str
    started: float
    received: float = 0.0
    tenant: str = ""
    key: str = ""
    adapter: str = ""
    version: str = ""
    track: str = ""
    replica: str = ""
    stream: bool = False
    attempts: int = 0
    status: int = 0
    error: str = ""
    finish_reason: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    overhead: float = 0.0
    first_byte: float = 0.0
    ended: float = 0.0
    epoch: str = ""
    subject: str = ""
    empty_output: bool = False
    json_asked: bool = False
    json_invalid: bool = False

    @property
    def duration(self) -> float:
        """Seconds from the first byte in to the last byte out."""
        return self.ended - self.started


class _Children:
    """The label children of one (tenant, adapter, version, track), looked up once."""

    __slots__ = ("completion_tokens", "duration", "first_token", "overhead", "prompt_tokens", "requests", "splits")

    def __init__(self, metrics: "Metrics", who: tuple[str, ...]) -> None:
        self.duration = metrics.request_duration.labels(*who)
        self.first_token = metrics.first_token.labels(*who)
        self.overhead = metrics.overhead.labels(*who)
        self.prompt_tokens = metrics.tokens.labels(*who, "prompt")
        self.completion_tokens = metrics.tokens.labels(*who, "completion")
        self.requests: dict[tuple[int, str], Counter] = {}
        self.splits: Counter | None = None


class Metrics:
    """Every metric the gateway exports; the README's table is compared with `described()`."""

    def __init__(self, max_series: int) -> None:
        self.registry = CollectorRegistry()
        self._max_series = max_series
        self._children: dict[tuple[str, ...], _Children] = {}
        self._described: list[tuple[str, str, str]] = []
        self._shown: dict[tuple[str, str], tuple[float, int]] = {}
        self._shown_of: dict[Gauge, set[tuple[str, ...]]] = {}
        self.request_duration = self._histogram(
            "request_duration_seconds", "From the request's first byte to the answer's last.", WHO, LATENCY_BUCKETS)
        self.first_token = self._histogram(
            "time_to_first_token_seconds", "From the request's first byte to a stream's first byte out.", WHO,
            LATENCY_BUCKETS)
        self.overhead = self._histogram(
            "gateway_overhead_seconds", "What the gateway itself added before the answer's first byte.", WHO,
            OVERHEAD_BUCKETS)
        self.requests = self._counter(
            "requests_total", "Answers, by HTTP status and finish reason.", (*WHO, "status", "finish_reason"))
        self.tokens = self._counter("tokens_total", "Tokens as the replica counted them.", (*WHO, "kind"))
        self.shadows = self._counter(
            "shadow_requests_total", "Copies for a shadow version: its answer was the same (match), another (differ), "
            "none (error), or no copy was sent for want of room (shed).", ("tenant", "adapter", "version", "outcome"))
        self.splits = self._counter(
            "split_decisions_total", "Answered calls that a live rollout sent to a track.", SPLIT)
        self.release_weight = self._gauge(
            "release_weight", "Percent of an adapter's callers that get the canary, 0 without a live rollout; of "
            "adapters that have had one.", ("tenant", "adapter"), "livemostrecent")
        self.release_verdict = self._gauge(
            "release_verdict", "The verdict noted last on an adapter's latest rollout, also when it is over: 0 none "
            "yet, 1 pass, 2 inconclusive, 3 no_traffic, 4 fail.", ("tenant", "adapter"), "livemostrecent")
        self.quality = self._gauge(
            "adapter_quality", "Mean score (0 to 1) of a version's sampled answers in the window, of all gateways; not "
            "a number while there are too few samples.", ("tenant", "adapter", "version"), "livemostrecent")
        self.quality_floor = self._gauge(
            "adapter_quality_floor", "The mean score below which an adapter's quality is told; not a number without.",
            ("tenant", "adapter"), "livemostrecent")
        self.quality_samples = self._counter(
            "quality_samples_total", "Sampled answers: they passed or failed, or got no score: shed (no room), unread "
            "(too long, or not text), unjudged (the judge gave no score), dropped (Redis was away).", ("result",))
        self.webhooks = self._counter(
            "webhook_deliveries_total", "What became of what webhooks were to be told: delivered, failed (after trying "
            "again), dropped (too much waited for the receiver, or the gateway ended).", ("webhook", "outcome"))
        self.load_seconds = self._histogram(
            "adapter_load_seconds", "Loading a version on a replica until it is listed.", ("replica",), LOAD_BUCKETS)
        self.load_failures = self._counter(
            "adapter_load_failures_total", "Loads that failed, by error code.", ("replica", "code"))
        self.loaded = self._gauge("adapters_loaded", "Versions loaded on a replica.", ("replica",), "livemax")
        self.replica_up = self._gauge("replica_up", "1 when the replica answers, else 0.", ("replica",), "livemin")
        self.in_flight = self._gauge(
            "replica_in_flight", "Requests sent to a replica and not answered yet.", ("replica",), "livesum")
        self.exposed = self._gauge(
            "replica_exposed_routes", "Management or inference routes that answer without the replica's key.",
            ("replica",), "livemax")
        self.revision = self._gauge("registry_revision", "The revision that requests are routed by.", (), "livemin")
        self.lag = self._gauge(
            "registry_lag_seconds", "Seconds since the registry last answered.", (), "livemax")

    def observe(self, record: Record) -> None:
        """Count a finished call."""
        children = self._children_of((record.tenant, record.adapter, record.version, record.track))
        children.duration.observe(record.duration)
        if record.status == 200:
            children.overhead.observe(record.overhead)
            if record.stream and record.first_byte:
                children.first_token.observe(record.first_byte - record.started)
        if record.prompt_tokens:
            children.prompt_tokens.inc(record.prompt_tokens)
        if record.completion_tokens:
            children.completion_tokens.inc(record.completion_tokens)
        outcome = (record.status, record.finish_reason)
        counter = children.requests.get(outcome)
        if counter is None:
            who = (record.tenant, record.adapter, record.version, record.track)
            labels = who if who in self._children else OTHER
            counter = children.requests[outcome] = self.requests.labels(*labels, str(outcome[0]), outcome[1])
        counter.inc()
        if record.epoch:
            self._count_split(children, record)

    def follow(self, snapshot: Snapshot) -> None:
        """Show the weight and the verdict of every release that has had a rollout; to be called with every snapshot,
        so that all gateways show the same."""
        for who, release in snapshot.releases.items():
            if release.rollout is None:
                continue
            verdict = (release.analysis or {}).get("verdict", "")
            shown = (release.live.weight if release.live else 0.0, VERDICTS.get(verdict, 0))
            if self._shown.get(who) == shown or (who not in self._shown and len(self._shown) >= self._max_series):
                continue
            self._shown[who] = shown
            self.release_weight.labels(*who).set(shown[0])
            self.release_verdict.labels(*who).set(shown[1])

    def show_quality(
        self, means: Mapping[tuple[str, ...], float], floors: Mapping[tuple[str, ...], float],
    ) -> None:
        """Show these rolling qualities, by (tenant, adapter, version), and floors, by (tenant, adapter), and no other:
        what was shown before and is not among them is no number from now on."""
        for gauge, values in ((self.quality, means), (self.quality_floor, floors)):
            shown = self._shown_of.setdefault(gauge, set())
            for labels in shown - values.keys():
                gauge.labels(*labels).set(math.nan)
            for labels, value in values.items():
                if labels in shown or len(shown) < self._max_series:
                    shown.add(labels)
                    gauge.labels(*labels).set(value)

    def count_sample(self, result: str, samples: int) -> None:
        """Count what became of sampled answers."""
        self.quality_samples.labels(result).inc(samples)

    def count_delivery(self, webhook: str, outcome: str) -> None:
        """Count what became of a delivery to a webhook."""
        self.webhooks.labels(webhook, outcome).inc()

    def described(self) -> list[tuple[str, str, str]]:
        """(name, labels, meaning) of every metric."""
        return list(self._described)

    def render(self) -> bytes:
        """The exposition text, of all worker processes when there are several."""
        if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
            return generate_latest(self.registry)
        together = CollectorRegistry()
        multiprocess.MultiProcessCollector(together)  # type: ignore[no-untyped-call]
        return generate_latest(together)

    def _children_of(self, who: tuple[str, ...]) -> _Children:
        children = self._children.get(who)
        if children is None:
            if len(self._children) >= self._max_series:
                who = OTHER
                if OTHER in self._children:
                    return self._children[OTHER]
            children = self._children[who] = _Children(self, who)
        return children

    def _count_split(self, children: _Children, record: Record) -> None:
        if children.splits is None:
            who = (record.tenant, record.adapter, record.version, record.track)
            labels = (record.tenant, record.adapter, record.track) if who in self._children else OTHER[:3]
            children.splits = self.splits.labels(*labels)
        children.splits.inc()

    def _describe(self, name: str, meaning: str, labels: tuple[str, ...]) -> str:
        self._described.append((f"switchyard_{name}", ", ".join(labels), meaning))
        return f"switchyard_{name}"

    def _histogram(self, name: str, meaning: str, labels: tuple[str, ...], buckets: tuple[float, ...]) -> Histogram:
        full = self._describe(name, meaning, labels)
        return Histogram(full, meaning, labels, buckets=buckets, registry=self.registry)

    def _counter(self, name: str, meaning: str, labels: tuple[str, ...]) -> Counter:
        return Counter(self._describe(name, meaning, labels), meaning, labels, registry=self.registry)

    def _gauge(self, name: str, meaning: str, labels: tuple[str, ...], mode: Any) -> Gauge:
        full = self._describe(name, meaning, labels)
        return Gauge(full, meaning, labels, registry=self.registry, multiprocess_mode=mode)


class Telemetry:
    """Takes each record once, when its call has ended."""

    def __init__(self, metrics: Metrics, log: Any, tally: Callable[[Record], None] | None = None) -> None:
        self.metrics = metrics
        self._log = log
        self._tally = tally

    def close(self, record: Record) -> None:
        """Count the call and write its line: names, times in milliseconds and tokens; never a prompt, never a key."""
        self.metrics.observe(record)
        if record.epoch and self._tally is not None:
            self._tally(record)
        self._log.info(
            "request",
            request_id=record.request_id, endpoint=record.endpoint, status=record.status, error=record.error or None,
            tenant=record.tenant or None, key=record.key or None, adapter=record.adapter or None,
            version=int(record.version) if record.version else None, track=record.track or None,
            replica=record.replica or None, stream=record.stream, attempts=record.attempts,
            duration_ms=round(record.duration * 1e3, 3),
            first_byte_ms=round((record.first_byte - record.started) * 1e3, 3) if record.first_byte else None,
            overhead_ms=round(record.overhead * 1e3, 3), prompt_tokens=record.prompt_tokens,
            completion_tokens=record.completion_tokens, finish_reason=record.finish_reason or None,
        )


def make_log(level: str, stream: BinaryIO | None = None) -> Any:
    """A structlog logger that writes one JSON object a line, to standard output unless told otherwise.

    `level`: debug, info, warning or error.
    """
    encode = msgspec.json.Encoder(enc_hook=str).encode

    def render(_: object, __: str, event: MutableMapping[str, Any]) -> bytes:
        return encode(event)

    return structlog.wrap_logger(
        structlog.BytesLogger(stream or sys.stdout.buffer),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            render,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        cache_logger_on_first_use=True,
    )
