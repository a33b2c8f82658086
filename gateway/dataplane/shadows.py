"""Copies of calls for an adapter's shadow version, sent after the caller has its answer and compared with it.

A shadow never changes, delays or costs a caller anything: its copy is sent once, to a replica that has the version
loaded and little to do, within a budget of its own; what does not fit is shed, and counted.
"""

import asyncio
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

from gateway.dataplane import body as bodies
from gateway.dataplane.answers import Said
from gateway.dataplane.body import Body
from gateway.dataplane.replicas import Replicas
from gateway.domain.errors import SwitchyardError
from gateway.domain.routing import Route
from gateway.system import System
from gateway.telemetry import Metrics

Outcome: TypeAlias = Literal["match", "differ", "error", "shed"]


class Shadows:
    """Sends copies and compares. `offer` never waits and never raises.

    `max_in_flight` copies at a time, `tokens_a_minute` tokens (prompt and completion) over all shadows of this process.
    """

    def __init__(
        self, replicas: Replicas, salt: Callable[[str], str], metrics: Metrics, log: Any, system: System, *,
        request_seconds: float, max_in_flight: int, tokens_a_minute: int,
    ) -> None:
        self._replicas = replicas
        self._salt = salt
        self._metrics = metrics
        self._log = log
        self._system = system
        self._request_seconds = request_seconds
        self._max_in_flight = max_in_flight
        self._tokens_a_minute = tokens_a_minute
        self._spent = 0.0
        self._spent_at = system.monotonic()
        self._running: set[asyncio.Task[None]] = set()

    def offer(self, path: str, body: Body, route: Route, live: Said | None) -> None:
        """Send a copy of a call that was answered with `live` to its shadow, if there is room."""
        if live is None or len(self._running) >= self._max_in_flight or self._is_spent():
            self._count(route, "shed")
            return
        task = asyncio.create_task(self._run(path, body, route, live))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def close(self) -> None:
        """Give up what is under way."""
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    async def _run(self, path: str, body: Body, route: Route, live: Said) -> None:
        state = self._replicas.pick_idle(route)
        if state is None:
            self._count(route, "shed")
            return
        data, _ = bodies.prepare(_whole(body), route.served_name, self._salt(route.tenant), ask_for_usage=False)
        started = self._system.monotonic()
        reply = None
        try:
            reply = await state.wire.send(path, self._system.hex(16), data, self._request_seconds)
            answer, status = await reply.read(), reply.status
        except SwitchyardError as error:
            self._count(route, "error")
            self._log.info("shadow", adapter=route.adapter, version=route.number, tenant=route.tenant, error=error.code)
            return
        finally:
            if reply is not None:
                reply.close()
            self._replicas.release(state)
        said = Said(seconds=self._system.monotonic() - started)
        said.take(answer)
        self._compare(route, live, said, status)

    def _compare(self, route: Route, live: Said, shadow: Said, status: int) -> None:
        outcome: Outcome = "error" if status != 200 else "match" if live.text == shadow.text else "differ"
        self._spent += shadow.tokens
        self._log.info(
            "shadow", tenant=route.tenant, adapter=route.adapter, version=route.number, outcome=outcome, status=status,
            live_characters=len(live.text), shadow_characters=len(shadow.text), live_finish=live.finish_reason or None,
            shadow_finish=shadow.finish_reason or None, live_ms=round(live.seconds * 1e3, 3),
            shadow_ms=round(shadow.seconds * 1e3, 3), live_tokens=live.tokens, shadow_tokens=shadow.tokens)
        self._count(route, outcome)

    def _count(self, route: Route, outcome: Outcome) -> None:
        self._metrics.shadows.labels(route.tenant, route.adapter, route.number, outcome).inc()

    def _is_spent(self) -> bool:
        """Is the budget of tokens used up? It fills again evenly."""
        now = self._system.monotonic()
        self._spent = max(0.0, self._spent - (now - self._spent_at) * self._tokens_a_minute / 60)
        self._spent_at = now
        return self._spent >= self._tokens_a_minute


def _whole(body: Body) -> Body:
    """The same request, answered in one piece."""
    fields = {name: raw for name, raw in body.fields.items() if name not in ("stream", "stream_options")}
    return Body(fields, body.model, False, body.user)
