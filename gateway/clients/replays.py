"""What became of admin requests that carried an Idempotency-Key, kept in Redis for all gateways of the registry.

Each is a hash under `switchyard:{<name>}:answer:<name of the request>` with a time to live: request, content (digests
of what was asked), state (running, done, secret or unknown), holder, alive_until (Redis' own clock, milliseconds), and
the answer: status, headers (JSON), body.
"""

import json
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from gateway.clients.registry import Registry
from gateway.clients.registry_scripts import Script

KEPT_SECONDS: Final = 24 * 3600
ALIVE_SECONDS: Final = 30.0


class State(StrEnum):
    """How the first request with a key stands."""

    NEW = "new"          # there was none; this one is it
    RUNNING = "running"
    DONE = "done"
    SECRET = "secret"    # done, but its answer is kept nowhere
    UNKNOWN = "unknown"  # whoever ran it failed or is gone; it may or may not have been done


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer; `headers` are the few that belong to it."""

    status: int
    headers: dict[str, str]
    body: str


@dataclass(frozen=True, slots=True)
class Found:
    """What is kept of a request: digests of what it asked, and its answer once it is done."""

    state: State
    request: str
    content: str
    answer: Answer


# Key: the record. Arguments: holder, digest of the request, digest of its content ('' if not known yet), milliseconds
# that the holder counts as alive, milliseconds to keep the record. Answers state, request, content, status, headers and
# body. A holder that asks twice, since the first answer got lost, hears 'new' again.
_BEGIN: Final = Script("""
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local found = redis.call('HMGET', KEYS[1], 'holder', 'state', 'alive_until', 'request', 'content', 'status', 'headers',
                         'body')
if not found[1] then
  redis.call('HSET', KEYS[1], 'holder', ARGV[1], 'state', 'running', 'alive_until', now + ARGV[4],
             'request', ARGV[2], 'content', ARGV[3])
  redis.call('PEXPIRE', KEYS[1], ARGV[5])
  return {'new', ARGV[2], ARGV[3], '0', '{}', ''}
end
local state = found[2]
if state == 'running' then
  if found[1] == ARGV[1] then state = 'new' elseif tonumber(found[3]) < now then state = 'unknown' end
end
return {state, found[4], found[5], found[6] or '0', found[7] or '{}', found[8] or ''}
""")

# Key: the record. Arguments: holder, milliseconds. The holder is still at it.
_RENEW: Final = Script("""
if redis.call('HGET', KEYS[1], 'holder') ~= ARGV[1] then return 0 end
local time = redis.call('TIME')
redis.call('HSET', KEYS[1], 'alive_until', time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[2])
return 1
""")

# Key: the record. Arguments: holder, then the fields to set and their values; none: forget the record.
_END: Final = Script("""
if redis.call('HGET', KEYS[1], 'holder') ~= ARGV[1] then return 0 end
if #ARGV == 1 then redis.call('DEL', KEYS[1]) else redis.call('HSET', KEYS[1], unpack(ARGV, 2)) end
return 1
""")


class Replays:
    """Begins and ends such requests; every method raises RegistryUnavailable as the registry does."""

    def __init__(self, registry: Registry, *, kept_seconds: float = KEPT_SECONDS,
                 alive_seconds: float = ALIVE_SECONDS) -> None:
        self._registry = registry
        self._kept = round(kept_seconds * 1000)
        self._alive = round(alive_seconds * 1000)

    @property
    def renew_every(self) -> float:
        """Seconds between two signs of life of a request that takes long."""
        return self._alive / 3000

    async def begin(self, name: str, holder: str, request: str, content: str) -> Found:
        """State NEW: `holder` is to do it, and must end it. Else what is known of the one that came first."""
        state, asked_first, asked_content, status, headers, body = await self._registry.call(
            _BEGIN, self._key(name), holder, request, content, self._alive, self._kept)
        return Found(State(state), asked_first, asked_content, Answer(int(status), json.loads(headers), body))

    async def renew(self, name: str, holder: str) -> None:
        """Say that `holder` is still at it."""
        await self._registry.call(_RENEW, self._key(name), holder, self._alive)

    async def end(self, name: str, holder: str, state: State, content: str, answer: Answer) -> None:
        """Keep how it ended."""
        await self._registry.call(
            _END, self._key(name), holder, "state", state, "content", content, "status", answer.status,
            "headers", json.dumps(answer.headers), "body", answer.body)

    async def forget(self, name: str, holder: str) -> None:
        """Nothing was done: the next request with this key is the first."""
        await self._registry.call(_END, self._key(name), holder)

    def _key(self, name: str) -> tuple[str, ...]:
        return (f"answer:{name}",)
