"""Counts of the tracks in Redis, added up over all gateways; nothing is lost, and nothing counted twice.

Keys, beside the registry's and under its hash tag:

    switchyard:{<name>}:tally:<tenant>/<adapter>:<epoch>    hash, `<track>/<version>:<field of TrackCounts>` → count
    switchyard:{<name>}:folded:<process>                    number of the last batch that this process had folded in
    switchyard:{<name>}:analysis:<tenant>/<adapter>         hash: fence, document (the latest analysis, JSON)

Redis may die between doing what it was asked and saying so. So a process numbers its batches, and sends a batch as it
is, under its number, until Redis has said that it is in; the script that adds it notes the number in the same atomic
step, and passes over a number that it has noted. What is counted meanwhile waits, added up, for the next batch. A
gateway that is killed loses what it had not folded yet: a second's calls, of both tracks alike. So does a failover to a
Redis that had not heard of the last batches; their numbers go with them.
"""

import json
from asyncio import sleep
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

from gateway.clients.registry_scripts import Redis, Script
from gateway.domain.counts import TrackCounts
from gateway.domain.errors import SwitchyardError
from gateway.domain.windows import Fields, TallyKey
from gateway.system import System

FOLD_SECONDS: Final = 1.0
KEEP_SECONDS: Final = 7 * 86_400
"""How long a tally or an analysis lives without anything new."""
BATCH_KEYS: Final = 64
"""A script adds so many versions' counts at once (some 100 additions each), lest it keep others waiting."""
MAX_WAITING: Final = 10_000
"""So many versions' counts wait for Redis; others' are dropped. While it is away, no release begins or moves."""

# Keys: the process' number of the last batch, then the tallies. Arguments: the batch's number, milliseconds to live,
# then for each tally how many fields, and each field and what to add to it. Answers 1, or 0 when the batch is in.
#
# What can fail (a key of the wrong type, no memory, a replica that is read-only) fails before anything has changed.
FOLD: Final = Script("""
if tonumber(redis.call('GET', KEYS[1]) or 0) >= tonumber(ARGV[1]) then return 0 end
for i = 2, #KEYS do redis.call('HLEN', KEYS[i]) end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
local at = 3
for i = 2, #KEYS do
  for _ = 1, tonumber(ARGV[at]) do
    redis.call('HINCRBY', KEYS[i], ARGV[at + 1], ARGV[at + 2])
    at = at + 2
  end
  at = at + 1
  redis.call('PEXPIRE', KEYS[i], ARGV[2])
end
return 1
""")

# Key: a tally or an analysis. Answers its fields and values.
READ: Final = Script("return redis.call('HGETALL', KEYS[1])")

# Key: an analysis. Arguments: fencing token, document, milliseconds to live. Answers 0 when one with a higher token has
# written it: whoever asks has lost its lease without knowing.
KEEP: Final = Script("""
if tonumber(redis.call('HGET', KEYS[1], 'fence') or 0) > tonumber(ARGV[1]) then return 0 end
redis.call('HSET', KEYS[1], 'fence', ARGV[1], 'document', ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 1
""")


@dataclass(frozen=True, slots=True)
class _Batch:
    number: int
    names: list[str]
    arguments: list[str | int]


class Tallies:
    """One process' way of folding counts into Redis, and of reading everybody's. Fold from one task at a time."""

    def __init__(
        self, redis: Redis, system: System, log: Any, *, pause: Callable[[float], Awaitable[None]] = sleep,
    ) -> None:
        self._redis = redis
        self._process = system.hex(16)
        self._log = log
        self._pause = pause
        self._waiting: dict[TallyKey, dict[str, int]] = {}
        self._unsure: _Batch | None = None
        self._number = 0
        self._is_away = False

    async def run(self, take: Callable[[], Mapping[TallyKey, Fields]]) -> None:
        """Fold what `take` gives, once a second, for ever. When Redis is away it is kept, and folded later."""
        while True:
            await self._pause(FOLD_SECONDS)
            try:
                await self.fold(take())
            except SwitchyardError as error:
                if not self._is_away:
                    self._log.warning("tallies_wait", error=error.message)
                self._is_away = True
            else:
                self._is_away = False

    async def close(self, last: Mapping[TallyKey, Fields]) -> None:
        """Fold what is left, if Redis answers; once `run` has ended."""
        with suppress(SwitchyardError):  # then a second's calls are not counted
            await self.fold(last)

    async def fold(self, counts: Mapping[TallyKey, Fields]) -> None:
        """Add `counts` to everybody's, once. When it raises (RegistryUnavailable, or SwitchyardError for a Redis that
        refuses) the counts are kept: the next fold adds them, whatever became of this one."""
        self._wait(counts)
        while self._unsure is not None or self._waiting:
            batch = self._unsure = self._unsure or self._next()
            await self._redis.call(FOLD, batch.names, batch.number, KEEP_SECONDS * 1000, *batch.arguments)
            self._unsure = None

    async def read(self, tenant: str, adapter: str, epoch: str) -> Mapping[tuple[str, int], TrackCounts]:
        """(track, version) → its counts of that epoch, of all gateways at one moment. RegistryUnavailable."""
        found: dict[str, dict[str, int]] = {}
        for name, count in _pairs(await self._redis.call(READ, [_tally(tenant, adapter, epoch)])).items():
            who, _, field = name.partition(":")
            found.setdefault(who, {})[field] = int(count)
        return {(who.partition("/")[0], int(who.partition("/")[2])): TrackCounts.from_fields(fields)
                for who, fields in found.items()}

    def _wait(self, counts: Mapping[TallyKey, Fields]) -> None:
        dropped = 0
        for key, more in counts.items():
            known = self._waiting.get(key)
            if known is not None:
                for field, count in more.items():
                    known[field] = known.get(field, 0) + count
            elif len(self._waiting) < MAX_WAITING:
                self._waiting[key] = dict(more)
            else:
                dropped += more.get("requests", 0)
        if dropped:
            self._log.warning("tallies_dropped", calls=dropped)

    def _next(self) -> _Batch:
        """The next batch, of what has waited longest."""
        self._number += 1
        keys = list(islice(self._waiting, BATCH_KEYS))
        by_name: dict[str, dict[str, int]] = {}
        for key in keys:
            fields = by_name.setdefault(_tally(key.tenant, key.adapter, key.epoch), {})
            for field, count in self._waiting.pop(key).items():
                fields[f"{key.track}/{key.version}:{field}"] = count
        arguments: list[str | int] = []
        for fields in by_name.values():
            arguments.append(len(fields))
            for field, count in fields.items():
                arguments += (field, count)
        return _Batch(self._number, [f"folded:{self._process}", *by_name], arguments)


class Analyses:
    """The latest analysis of each release, for every gateway to show."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def keep(self, tenant: str, adapter: str, document: Mapping[str, Any], fence: int) -> bool:
        """Keep it in place of the one before; False, and nothing kept, if a holder of a later lease has written."""
        text = json.dumps(document, allow_nan=False)
        return bool(await self._redis.call(KEEP, [_analysis(tenant, adapter)], fence, text, KEEP_SECONDS * 1000))

    async def latest(self, tenant: str, adapter: str) -> dict[str, Any] | None:
        """The latest, JSON-ready; None when there is none (any more)."""
        kept = _pairs(await self._redis.call(READ, [_analysis(tenant, adapter)]))
        return json.loads(kept["document"]) if "document" in kept else None


def _tally(tenant: str, adapter: str, epoch: str) -> str:
    return f"tally:{tenant}/{adapter}:{epoch}"


def _analysis(tenant: str, adapter: str) -> str:
    return f"analysis:{tenant}/{adapter}"


def _pairs(flat: Sequence[str]) -> dict[str, str]:
    return dict(zip(flat[::2], flat[1::2], strict=True))
