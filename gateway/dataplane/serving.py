"""One call, from route to last byte: read `Serving.answer` first, it is the whole story."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

from gateway.dataplane import body as bodies
from gateway.dataplane.answers import Kept
from gateway.dataplane.body import Body
from gateway.dataplane.ports import Reply
from gateway.dataplane.quality import Quality
from gateway.dataplane.relay import Facts, Renamer, StreamRelay
from gateway.dataplane.replicas import Replicas, ReplicaState
from gateway.dataplane.shadows import Shadows
from gateway.domain.errors import NoHealthyReplica, ReplicaUnreachable, SwitchyardError, UpstreamFailed, UpstreamTimeout
from gateway.domain.model import ApiKey, Snapshot
from gateway.domain.quality import Watched
from gateway.domain.routing import Route, route, shadow_of
from gateway.system import System
from gateway.telemetry import Record

ATTEMPTS = 2
JSON_HEADERS = ((b"content-type", b"application/json"),)
NOT_RELAYED = frozenset({
    b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"te", b"trailer",
    b"transfer-encoding", b"upgrade", b"content-length", b"date", b"server", b"set-cookie", b"x-request-id", b"vary",
})
"""Headers of a reply that speak of the connection to the replica, or of the replica's server, not of the answer."""

BROKEN_OFF = (
    b'data: {"error":{"message":"The replica broke the stream off; send the request again.",'
    b'"type":"server_error","param":null,"code":"upstream_failed"}}\n\n')

Headers = list[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A route of the engine that we serve. `asks_usage`: its streams tell token usage only when asked to."""

    path: str
    name: str
    asks_usage: bool = False


ENDPOINTS: Mapping[str, Endpoint] = MappingProxyType({e.path: e for e in (
    Endpoint("/v1/chat/completions", "chat.completions", asks_usage=True),
    Endpoint("/v1/completions", "completions", asks_usage=True),
    Endpoint("/v1/embeddings", "embeddings"),
    Endpoint("/v1/responses", "responses"),
    Endpoint("/v1/messages", "messages"),
    Endpoint("/tokenize", "tokenize"),
)})


class Shape(Protocol):
    """Another form for a good answer; the simple door uses it."""

    def whole(self, answer: bytes, route: Route, seconds: float) -> bytes: ...
    def events(self, events: bytes, route: Route, seconds: float) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Call:
    """A request as we see it: who calls (the key), for what, with which body.

    `session` is what the caller says it is part of; a rollout keeps all of it on one track.
    """

    endpoint: Endpoint
    key: ApiKey
    body: Body
    shape: Shape | None = None
    session: str = ""

    @property
    def subject(self) -> str:
        """Who stays on one track: the session, else OpenAI's `user`, else the key."""
        return self.session or self.body.user or self.key.id


class Outlet(Protocol):
    """The way back to the caller; `start` once, then `send` until `more` is False."""

    async def start(self, status: int, headers: Headers) -> None: ...
    async def send(self, data: bytes, *, more: bool) -> None: ...


@dataclass(slots=True)
class _Opened:
    """A reply whose first bytes are here: the first chunk of a stream, or the whole of anything else."""

    state: ReplicaState
    reply: Reply
    data: bytes
    is_stream: bool
    opened_at: float
    kept: Kept | None = None


class Serving:
    """Answers calls. Guarantees: a call goes to another replica only while its caller has seen no byte; whatever
    happens, the reply is closed and the replica released."""

    def __init__(
        self, snapshot: Callable[[], Snapshot], replicas: Replicas, salt: Callable[[str], str], shadows: Shadows,
        quality: Quality, system: System, *, request_seconds: float,
    ) -> None:
        self._snapshot = snapshot
        self._replicas = replicas
        self._salt = salt
        self._shadows = shadows
        self._quality = quality
        self._system = system
        self._request_seconds = request_seconds

    async def answer(self, call: Call, record: Record, out: Outlet) -> None:
        """Route, send, relay. Fills `record`; raises SwitchyardError only before the first byte has gone to `out`."""
        snapshot = self._snapshot()
        chosen = route(snapshot, call.key, call.body.model, self._replicas.base_models, call.subject)
        record.adapter, record.version, record.track = chosen.adapter, chosen.number, chosen.track
        record.epoch, record.subject = chosen.epoch, call.subject
        data, hide_usage = bodies.prepare(
            call.body, chosen.served_name, self._salt(chosen.tenant), ask_for_usage=call.endpoint.asks_usage)
        opened = await self._open(call, chosen, data, record)
        shadow = shadow_of(snapshot, chosen, record.request_id)
        watched: Watched | None = None
        if opened.reply.status == 200:
            watched = self._quality.watch(chosen, call.endpoint.name, record.request_id)
            if shadow is not None or chosen.epoch or watched is not None:
                opened.kept = Kept()
        try:
            record.status = opened.reply.status
            record.stream = opened.is_stream
            if opened.is_stream:
                await self._relay_stream(call, chosen, opened, record, out, hide_usage=hide_usage)
            else:
                await self._relay_whole(call, chosen, opened, record, out)
        finally:
            opened.reply.close()
            self._replicas.release(opened.state)
        if opened.kept is not None:
            self._look_back(call, chosen, shadow, watched, opened.kept, record)

    def _look_back(
        self, call: Call, chosen: Route, shadow: Route | None, watched: Watched | None, kept: Kept, record: Record,
    ) -> None:
        """What is done once the caller has its answer: judge it for the rollout, have the shadow answer too, sample."""
        if watched is not None and not record.error:
            self._quality.offer(watched, chosen, call.body, kept)
        if shadow is None and not chosen.epoch:
            return
        said = kept.said(self._system.monotonic() - record.started)
        if chosen.epoch and said is not None:
            record.empty_output = said.is_empty
            record.json_asked = bodies.asks_for_json(call.body)
            record.json_invalid = record.json_asked and not said.is_json
        if shadow is not None:
            self._shadows.offer(call.endpoint.path, call.body, shadow, said)

    async def _open(self, call: Call, chosen: Route, data: bytes, record: Record) -> _Opened:
        """The first reply worth relaying. A replica that breaks off, or answers 503, is passed over once for another;
        one that has forgotten the adapter is given it again."""
        tried: dict[str, int] = {}
        forgotten = False
        waited = 0.0
        while True:
            asked_at = self._system.monotonic()
            try:
                state = await self._replicas.pick(chosen, tried)
            except NoHealthyReplica as error:
                raise _failed(error) if tried else error from None
            sent_at = self._system.monotonic()
            record.replica = state.name
            record.attempts += 1
            try:
                opened = await self._send(state, call, data)
            except (ReplicaUnreachable, UpstreamTimeout) as error:
                self._replicas.failed(state, error)
                if isinstance(error, UpstreamTimeout):
                    raise
                tried[state.name] = 1
                if len(tried) >= ATTEMPTS:
                    raise _failed(error) from error
                waited += self._system.monotonic() - asked_at
                continue
            self._replicas.succeeded(state)
            if not forgotten and chosen.version is not None and _knows_not(opened, chosen.served_name):
                forgotten = True
                self._replicas.forget(state, chosen.served_name)
            elif opened.reply.status == 503 and not tried and self._replicas.has_other(chosen, state.name):
                tried[state.name] = 1
            else:
                record.overhead = sent_at - record.received - waited
                return opened
            opened.reply.close()
            self._replicas.release(state)
            waited += self._system.monotonic() - asked_at

    async def _send(self, state: ReplicaState, call: Call, data: bytes) -> _Opened:
        """Send to one replica and wait for the reply's first bytes; on any failure nothing stays open."""
        reply: Reply | None = None
        try:
            reply = await state.wire.send(
                call.endpoint.path, self._system.hex(16), data, self._request_seconds)
            is_stream = (reply.header(b"content-type") or b"").startswith(b"text/event-stream")
            first = await (reply.chunk() if is_stream else reply.read())
        except BaseException:
            if reply is not None:
                reply.close()
            self._replicas.release(state)
            raise
        return _Opened(state, reply, first, is_stream, self._system.monotonic())

    async def _relay_whole(
        self, call: Call, chosen: Route, opened: _Opened, record: Record, out: Outlet
    ) -> None:
        data = Renamer(chosen.served_name, call.body.model)(opened.data)
        facts = Facts()
        if opened.kept is not None:
            opened.kept.add(data, is_stream=False)
        if opened.reply.status == 200:
            facts.learn(data)
            if call.shape is not None:
                data = call.shape.whole(data, chosen, self._system.monotonic() - record.started)
        _take(record, facts)
        headers = self._headers(opened, chosen, record)
        headers.append((b"content-length", b"%d" % len(data)))
        await out.start(opened.reply.status, headers)
        await out.send(data, more=False)

    async def _relay_stream(
        self, call: Call, chosen: Route, opened: _Opened, record: Record, out: Outlet, *, hide_usage: bool
    ) -> None:
        facts = Facts()
        relay = StreamRelay(
            Renamer(chosen.served_name, call.body.model), facts, hide_usage=hide_usage,
            fingerprint=opened.state.fingerprint)
        await out.start(opened.reply.status, self._headers(opened, chosen, record))
        try:
            data = opened.data
            while True:
                events = relay.feed(data) if data else relay.flush()
                events = self._shaped(call, chosen, opened, record, events) if events else b""
                if events:
                    await out.send(events, more=True)
                record.first_byte = record.first_byte or self._system.monotonic()
                if not data:
                    break
                data = await opened.reply.chunk()
        except (ReplicaUnreachable, UpstreamTimeout) as error:
            self._replicas.failed(opened.state, error)
            record.error = error.code
            facts.finish_reason = "error"
            await out.send(BROKEN_OFF, more=True)
        finally:
            _take(record, facts)
            if relay.fingerprint is not None:
                opened.state.fingerprint = relay.fingerprint
        await out.send(b"", more=False)

    def _shaped(self, call: Call, chosen: Route, opened: _Opened, record: Record, events: bytes) -> bytes:
        """A stream's events in the form of the call's door."""
        if opened.kept is not None:
            opened.kept.add(events, is_stream=True)
        if call.shape is None:
            return events
        return call.shape.events(events, chosen, self._system.monotonic() - record.started)

    def _headers(self, opened: _Opened, chosen: Route, record: Record) -> Headers:
        """The reply's own headers, and who answered; the overhead is known here, and no later."""
        record.overhead += self._system.monotonic() - opened.opened_at
        headers = [(name, value) for name, value in opened.reply.headers if name not in NOT_RELAYED]
        headers += [
            (b"x-switchyard-adapter", (chosen.adapter or chosen.base_model).encode()),
            (b"x-switchyard-version", chosen.number.encode()),
            (b"x-switchyard-track", chosen.track.encode()),
            (b"x-switchyard-replica", opened.state.name.encode()),
            (b"x-switchyard-overhead-ms", b"%.3f" % (record.overhead * 1e3)),
        ]
        return headers


def _take(record: Record, facts: Facts) -> None:
    record.prompt_tokens = facts.prompt_tokens
    record.completion_tokens = facts.completion_tokens
    record.finish_reason = facts.finish_reason


def _knows_not(opened: _Opened, served_name: str) -> bool:
    """Does the replica say that it does not know the name? Every dialect of its 404 repeats it; no other 404 does."""
    return opened.reply.status == 404 and served_name.encode() in opened.data


def _failed(error: SwitchyardError) -> UpstreamFailed:
    return UpstreamFailed(f"The replica failed before it answered, and no other could take over: {error.message}")
