"""Tells operators' webhooks what happens to releases; whoever makes a change is never kept waiting by a receiver."""

import asyncio
import json
from collections import deque
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final, Protocol

from gateway.controlplane.changes import Changes, Step
from gateway.domain.errors import Conflict, InvalidRequest, NotFound
from gateway.domain.happening import Happening, Kind
from gateway.domain.model import Snapshot
from gateway.domain.webhook import MIN_SECRET, Webhook, check_url, payload_of, webhooks_of
from gateway.system import System

MAX_WEBHOOKS: Final = 100
MAX_WAITING: Final = 256
"""So many deliveries wait for one receiver; later ones are dropped, and counted."""
CLOSE_SECONDS: Final = 5.0


class Outcome(Protocol):
    """What became of a delivery; see `gateway.clients.webhooks.Delivery`."""

    @property
    def attempts(self) -> int: ...
    @property
    def failure(self) -> str: ...


class Sender(Protocol):
    """Delivers signed JSON, trying again; see `gateway.clients.webhooks.WebhookClient`."""

    async def deliver(self, url: str, secret: str, body: bytes) -> Outcome: ...


class Webhooks:
    """Registers, lists and removes webhooks. The secret itself is told only in the answer that registers it."""

    def __init__(self, changes: Changes, system: System) -> None:
        self._changes = changes
        self._system = system

    def all(self) -> list[Webhook]:
        """All webhooks, by name."""
        return webhooks_of(self._changes.current)

    async def add(
        self, actor: str, name: str, url: str, *, secret: str | None = None, kinds: tuple[Kind, ...] = (),
        dry_run: bool = False,
    ) -> Webhook:
        """A new webhook, with a secret made for it when none is given; Conflict when the name is taken."""
        address = check_url(url)
        if secret is not None and len(secret) < MIN_SECRET:
            raise InvalidRequest(f"The secret must have {MIN_SECRET} characters or more.", param="secret")

        def decide(snapshot: Snapshot) -> Step[Webhook]:
            known = webhooks_of(snapshot)
            if any(webhook.name == name for webhook in known):
                raise Conflict(f"A webhook {name!r} exists already. Remove it first, or choose another name.",
                               param="name")
            if len(known) >= MAX_WEBHOOKS:
                raise Conflict(f"There are {len(known)} webhooks, and no more can be. Remove one first.")
            made = Webhook(name=name, url=address, secret=secret or self._system.token(32), created_by=actor,
                           kinds=tuple(dict.fromkeys(kinds)), created_at=self._system.now())
            detail = {"origin": made.origin, "kinds": list(made.kinds)}
            return Step("webhook.add", made, {made.path: made}, detail)

        return (await self._changes.commit(actor, decide, dry_run=dry_run)).entity

    async def remove(
        self, actor: str, name: str, *, if_match: int | None = None, dry_run: bool = False,
    ) -> Webhook:
        """The webhook, gone; what still waited for it is not sent."""
        def decide(snapshot: Snapshot) -> Step[Webhook]:
            webhook = snapshot.entities.get(f"webhook/{name}")
            if not isinstance(webhook, Webhook):
                raise NotFound(f"There is no webhook {name!r}.", param="name")
            return Step("webhook.remove", webhook, {webhook.path: None}, {"origin": webhook.origin})

        return (await self._changes.commit(actor, decide, if_match=if_match, dry_run=dry_run)).entity


class Notifier:
    """Delivers each happening, once, to every webhook that wants it; call it on the event loop.

    Deliveries to one receiver go one after the other, in order; receivers do not wait for each other. What waits is in
    memory alone: a gateway that is killed tells no more. A receiver whose answer got lost is sent the same `id` again.
    """

    def __init__(
        self, snapshot: Callable[[], Snapshot], sender: Sender, count: Callable[[str, str], None], system: System,
        log: Any,
    ) -> None:
        """`count` takes the webhook's name and what became of a delivery: `delivered`, `failed` or `dropped`."""
        self._snapshot = snapshot
        self._sender = sender
        self._count = count
        self._system = system
        self._log = log
        self._waiting: dict[str, deque[bytes]] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def __call__(self, happening: Happening) -> None:
        """Take note, and return at once."""
        wanting = [webhook.name for webhook in webhooks_of(self._snapshot()) if webhook.wants(happening.kind)]
        if not wanting:
            return
        at = datetime.fromtimestamp(happening.at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        body = _encode(payload_of(happening, self._system.hex(16), at))
        for name in wanting:
            waiting = self._waiting.setdefault(name, deque())
            if len(waiting) >= MAX_WAITING:
                self._count(name, "dropped")
                self._log.error("webhook_dropped", webhook=name, kind=happening.kind, waiting=len(waiting))
                continue
            waiting.append(body)
            if name not in self._tasks:
                task = self._tasks[name] = asyncio.create_task(self._drain(name, waiting), name=f"webhook {name}")
                task.add_done_callback(self._ended)

    async def close(self, seconds: float = CLOSE_SECONDS) -> None:
        """Give deliveries so many seconds more, then drop what is left."""
        if self._tasks:
            await asyncio.wait(self._tasks.values(), timeout=seconds)
        for name, waiting in self._waiting.items():
            self._log.error("webhook_dropped", webhook=name, waiting=len(waiting), reason="the gateway ends")
            for _ in waiting:
                self._count(name, "dropped")
        for task in list(self._tasks.values()):
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _drain(self, name: str, waiting: deque[bytes]) -> None:
        """Deliver what waits for one receiver, until nothing does, or the webhook is gone."""
        try:
            while waiting:
                webhook = self._snapshot().entities.get(f"webhook/{name}")
                if not isinstance(webhook, Webhook):
                    waiting.clear()
                    return
                await self._deliver(webhook, waiting[0])
                waiting.popleft()
        finally:
            del self._waiting[name], self._tasks[name]

    def _ended(self, task: asyncio.Task[None]) -> None:
        """A task that ends by an error is a fault of ours: say so."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self._log.error("task_died", task=task.get_name(), exc_info=error)

    async def _deliver(self, webhook: Webhook, body: bytes) -> None:
        outcome = await self._sender.deliver(webhook.url, webhook.secret, body)
        self._count(webhook.name, "failed" if outcome.failure else "delivered")
        if outcome.failure:
            self._log.error("webhook_failed", webhook=webhook.name, origin=webhook.origin, attempts=outcome.attempts,
                            error=outcome.failure)


def _encode(payload: Mapping[str, Any]) -> bytes:
    return json.dumps(payload, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8", "replace")
