"""How the fake should behave, what it has seen, how many adapters run at once, and what it tells of them."""

import asyncio
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self, TypeAlias

Death: TypeAlias = Literal["", "unhealthy", "drop"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Behaviour:
    """What tests steer; times are seconds.

    `latency`: before the first token. `token_delay`: between tokens. `tokens`: how many an answer has, and
    `tokens_elsewhere` that of a served name outside `only` (0: as many).
    `error_rate`: the share (0 to 1) of inference requests that fail with `error_status`, evenly spread.
    `drop_after`: cut the connection after so many pieces of a streamed answer; 0 before the first byte, also of an
    answer that is not streamed. `only`: errors, cuts and times act on served names that contain this, not on others.
    `load_delay`: how long a load takes. `failing_loads`: so many loads are refused with 500.
    `dead`: "unhealthy" (the engine is dead: 503 for health, 500 else) or "drop" (every connection is cut).
    """

    latency: float = 0.0
    token_delay: float = 0.0
    tokens: int = 12
    tokens_elsewhere: int = 0
    error_rate: float = 0.0
    error_status: int = 500
    drop_after: int | None = None
    only: str = ""
    load_delay: float = 0.0
    failing_loads: int = 0
    dead: Death = ""

    def changed(self, changes: dict[str, Any]) -> Self:
        """With some fields changed; TypeError when there is no such field."""
        return replace(self, **changes)

    def towards(self, served_name: str) -> "Behaviour":
        """What a request for that served name meets."""
        if self.only in served_name:
            return self
        return Behaviour(tokens=self.tokens_elsewhere or self.tokens, dead=self.dead)


@dataclass(slots=True)
class Seen:
    """What the fake has seen. `requests`: the last ones for inference, oldest first, with body and headers."""

    keep: int = 100
    by_served_name: Counter[str] = field(default_factory=Counter)
    loads: Counter[str] = field(default_factory=Counter)
    unloads: Counter[str] = field(default_factory=Counter)
    in_flight: int = 0
    inferences: int = 0
    aborted: int = 0
    errors: int = 0
    drops: int = 0
    tokens: int = 0
    prompt_tokens: int = 0
    requests: deque[dict[str, Any]] = field(default_factory=deque)

    def request(self, path: str, headers: dict[str, str], body: dict[str, Any]) -> None:
        """Keep a request, and let the oldest go."""
        self.by_served_name[str(body.get("model"))] += 1
        self.requests.append({"path": path, "headers": headers, "body": body})
        if len(self.requests) > self.keep:
            self.requests.popleft()

    def document(self) -> dict[str, Any]:
        """JSON-ready."""
        values = {name: getattr(self, name) for name in self.__slots__}
        return {name: list(value) if isinstance(value, deque) else value for name, value in values.items()}


class Slots:
    """At most `adapters` adapters and `requests` requests run at once; the rest wait. The base needs no slot."""

    def __init__(self, adapters: int, requests: int) -> None:
        self._adapters = adapters
        self._requests = requests
        self._freed = asyncio.Event()
        self.running: Counter[str] = Counter()
        self.waiting: Counter[str] = Counter()

    @asynccontextmanager
    async def hold(self, adapter: str) -> AsyncIterator[None]:
        """Wait for a slot and keep it; the base model is the empty string."""
        if not self._has_room(adapter):
            self.waiting[adapter] += 1
            try:
                while not self._has_room(adapter):
                    await self._freed.wait()
            finally:
                self._take_one(self.waiting, adapter)
        self.running[adapter] += 1
        try:
            yield
        finally:
            self._take_one(self.running, adapter)
            freed, self._freed = self._freed, asyncio.Event()
            freed.set()

    def _has_room(self, adapter: str) -> bool:
        others = len([name for name in self.running if name])
        fits = not adapter or adapter in self.running or others < self._adapters
        return fits and self.running.total() < self._requests

    @staticmethod
    def _take_one(counts: Counter[str], adapter: str) -> None:
        counts[adapter] -= 1
        if not counts[adapter]:
            del counts[adapter]


class LoraInfo:
    """`vllm:lora_requests_info`: one series for every combination ever seen, its value the time it was last true."""

    def __init__(self, max_loras: int) -> None:
        self._max_loras = max_loras
        self._series: dict[tuple[str, str], float] = {}

    def write(self, running: Iterable[str], waiting: Iterable[str]) -> None:
        """Note which adapters run and wait now; the base model is the empty string."""
        combination = (",".join(sorted(filter(None, running))), ",".join(sorted(filter(None, waiting))))
        self._series[combination] = time.time()

    def clear(self) -> None:
        """As after a restart."""
        self._series.clear()

    def lines(self) -> list[str]:
        """The series, oldest first."""
        return [
            f'vllm:lora_requests_info{{max_lora="{self._max_loras}",running_lora_adapters="{running}",'
            f'waiting_lora_adapters="{waiting}"}} {at!r}'
            for (running, waiting), at in self._series.items()
        ]
