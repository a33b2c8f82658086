"""The scores of samples in Redis, added up over all gateways, and the candidates that failures become.

Keys, beside the registry's and under its hash tag; <who> is `<tenant>/<adapter>:<id of the opt-in>`:

    switchyard:{<name>}:quality:<who>                 hash, `<version>/<bucket>/<field of Rolling>` → count; a bucket is
                                                      a twentieth of the window, by Redis' own clock
    switchyard:{<name>}:quality:<who>:below           hash, version → 1: told to be below its floor
    switchyard:{<name>}:quality:<who>:pending         sorted set, candidate → when it came (ms); `…:pending:text`: hash,
                                                      candidate → JSON; at most MAX_PENDING, for PENDING_SECONDS
    switchyard:{<name>}:quality:<who>:approved        the same of those that were approved; at most MAX_APPROVED
    switchyard:{<name>}:quality:<who>:rejected        sorted set: questions that do not come back
    switchyard:{<name>}:quality-ended:<opt-in>        this opt-in has ended: nothing of it is kept any more
    switchyard:{<name>}:quality-folded:<process>      number of the last batch that this process had folded in

What Redis does not take at once is dropped, and counted: a sample is one of many, and nobody waits for it.
"""

from asyncio import sleep
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from gateway.clients.registry_scripts import Redis, Script
from gateway.domain.candidate import MAX_APPROVED, MAX_PENDING, Candidate
from gateway.domain.errors import Conflict, SwitchyardError
from gateway.domain.quality import Rolling, Standing, Who
from gateway.system import System

FOLD_SECONDS: Final = 1.0
BUCKETS: Final = 20
AT_ONCE: Final = 64
"""A script reads or adds to so many adapters, lest it keep others waiting."""
BELOW_SECONDS: Final = 30 * 86_400
PENDING_SECONDS: Final = 30 * 86_400
REJECTED_SECONDS: Final = 180 * 86_400
ENDED_SECONDS: Final = 86_400
MAX_REJECTED: Final = 1000

# Keys: the process' number of the last batch, then the scores. Arguments: the batch's number, milliseconds to live,
# seconds of a bucket, buckets kept, then for each key how many versions, and each version's number, samples, total and
# failures. Answers 1, or 0 when the batch is in: it may be sent twice.
FOLD: Final = Script("""
if tonumber(redis.call('GET', KEYS[1]) or 0) >= tonumber(ARGV[1]) then return 0 end
for i = 2, #KEYS do redis.call('HLEN', KEYS[i]) end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
local bucket = math.floor(redis.call('TIME')[1] / ARGV[3])
local at = 5
for i = 2, #KEYS do
  for _ = 1, tonumber(ARGV[at]) do
    local place = ARGV[at + 1] .. '/' .. string.format('%d', bucket)
    redis.call('HINCRBY', KEYS[i], place .. '/samples', ARGV[at + 2])
    redis.call('HINCRBY', KEYS[i], place .. '/total', ARGV[at + 3])
    redis.call('HINCRBY', KEYS[i], place .. '/failures', ARGV[at + 4])
    at = at + 4
  end
  at = at + 1
  for _, field in ipairs(redis.call('HKEYS', KEYS[i])) do
    if tonumber(string.match(field, '/(%d+)/')) <= bucket - ARGV[4] then redis.call('HDEL', KEYS[i], field) end
  end
  redis.call('PEXPIRE', KEYS[i], ARGV[2])
end
return 1
""")

# Keys: scores and below of each adapter, in turn. Arguments: seconds of a bucket, milliseconds that what is below
# lives on. Answers the bucket of now, then of each key its fields and values.
READ: Final = Script("""
local answer = {math.floor(redis.call('TIME')[1] / ARGV[1])}
for i = 1, #KEYS do
  answer[i + 1] = redis.call('HGETALL', KEYS[i])
  if i % 2 == 0 and #answer[i + 1] > 0 then redis.call('PEXPIRE', KEYS[i], ARGV[2]) end
end
return answer
""")

# Keys: below, ended. Arguments: version, 1 or 0, milliseconds to live. Answers 1 when it was not so before.
CROSS: Final = Script("""
if redis.call('EXISTS', KEYS[2]) == 1 then return 0 end
if ARGV[2] == '0' then return redis.call('HDEL', KEYS[1], ARGV[1]) end
local is_new = redis.call('HSETNX', KEYS[1], ARGV[1], 1)
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return is_new
""")

# Keys: pending, its text, approved, rejected, ended. Arguments: candidate, JSON, how many are kept, milliseconds.
KEEP: Final = Script("""
if redis.call('EXISTS', KEYS[5]) == 1 then return 0 end
if redis.call('ZSCORE', KEYS[3], ARGV[1]) or redis.call('ZSCORE', KEYS[4], ARGV[1]) then return 0 end
if redis.call('HSETNX', KEYS[2], ARGV[1], ARGV[2]) == 0 then return 0 end
local time = redis.call('TIME')
redis.call('ZADD', KEYS[1], time[1] * 1000 + math.floor(time[2] / 1000), ARGV[1])
for _, old in ipairs(redis.call('ZRANGE', KEYS[1], 0, -ARGV[3] - 1)) do
  redis.call('ZREM', KEYS[1], old)
  redis.call('HDEL', KEYS[2], old)
end
redis.call('PEXPIRE', KEYS[1], ARGV[4])
redis.call('PEXPIRE', KEYS[2], ARGV[4])
return 1
""")

# Keys: pending, its text, approved, its text, ended. Arguments: candidate, JSON, how many are kept. Answers 0 when
# there are too many, or the opt-in has ended.
APPROVE: Final = Script("""
local is_known = redis.call('ZSCORE', KEYS[3], ARGV[1])
if redis.call('EXISTS', KEYS[5]) == 1 then return 0 end
if not is_known and redis.call('ZCARD', KEYS[3]) >= tonumber(ARGV[3]) then return 0 end
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('HDEL', KEYS[2], ARGV[1])
local time = redis.call('TIME')
redis.call('ZADD', KEYS[3], 'NX', time[1] * 1000 + math.floor(time[2] / 1000), ARGV[1])
redis.call('HSET', KEYS[4], ARGV[1], ARGV[2])
return 1
""")

# Keys: pending, its text, approved, its text, rejected. Arguments: candidate, how many are remembered, milliseconds.
REJECT: Final = Script("""
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('HDEL', KEYS[2], ARGV[1])
redis.call('ZREM', KEYS[3], ARGV[1])
redis.call('HDEL', KEYS[4], ARGV[1])
local time = redis.call('TIME')
redis.call('ZADD', KEYS[5], time[1] * 1000 + math.floor(time[2] / 1000), ARGV[1])
redis.call('ZREMRANGEBYRANK', KEYS[5], 0, -ARGV[2] - 1)
redis.call('PEXPIRE', KEYS[5], ARGV[3])
return 1
""")

# Keys: a sorted set, its text. Arguments: how many to pass over, how many to give. Answers how many there are, then
# each one's JSON, newest first.
LIST: Final = Script("""
local answer = {redis.call('ZCARD', KEYS[1])}
for _, id in ipairs(redis.call('ZREVRANGE', KEYS[1], ARGV[1], ARGV[1] + ARGV[2] - 1)) do
  answer[#answer + 1] = redis.call('HGET', KEYS[2], id) or nil
end
return answer
""")

# Keys: the text of approved, of pending. Argument: candidate. Answers its JSON or nil.
FIND: Final = Script("return redis.call('HGET', KEYS[1], ARGV[1]) or redis.call('HGET', KEYS[2], ARGV[1])")

# Keys: ended, then all of one adapter. Argument: milliseconds that the end is remembered.
END: Final = Script("""
redis.call('SET', KEYS[1], 1, 'PX', ARGV[1])
for i = 2, #KEYS do redis.call('DEL', KEYS[i]) end
return 1
""")


@dataclass(frozen=True, slots=True)
class _Names:
    """The keys of one adapter under one opt-in."""

    who: Who

    @property
    def scores(self) -> str:
        return f"quality:{self.who.tenant}/{self.who.adapter}:{self.who.opt_in}"

    @property
    def below(self) -> str:
        return f"{self.scores}:below"

    @property
    def pending(self) -> tuple[str, str]:
        return f"{self.scores}:pending", f"{self.scores}:pending:text"

    @property
    def approved(self) -> tuple[str, str]:
        return f"{self.scores}:approved", f"{self.scores}:approved:text"

    @property
    def rejected(self) -> str:
        return f"{self.scores}:rejected"

    @property
    def ended(self) -> str:
        return f"quality-ended:{self.who.opt_in}"

    @property
    def all(self) -> list[str]:
        return [self.scores, self.below, *self.pending, *self.approved, self.rejected]


class Scores:
    """One process' way of folding scores into Redis, and of reading everybody's. Fold from one task at a time."""

    def __init__(
        self, redis: Redis, system: System, log: Any, count: Callable[[str, int], None], *, window_seconds: float,
        pause: Callable[[float], Awaitable[None]] = sleep,
    ) -> None:
        """`count` is told how many samples `passed`, `failed`, or were `dropped` since Redis did not take them.
        `window_seconds`: how far back a quality looks."""
        self._redis = redis
        self._process = system.hex(16)
        self._log = log
        self._count = count
        self._bucket = max(1, round(window_seconds / BUCKETS))
        self._pause = pause
        self._number = 0
        self._is_away = False

    async def run(self, take: Callable[[], Mapping[Who, Mapping[int, Rolling]]]) -> None:
        """Fold what `take` gives, once a second, for ever."""
        while True:
            await self._pause(FOLD_SECONDS)
            await self.fold(take())

    async def fold(self, scores: Mapping[Who, Mapping[int, Rolling]]) -> None:
        """Add `scores` (adapter → version → its samples) to everybody's; what Redis does not take is dropped."""
        for some in _batches(list(scores)):
            arguments: list[str | int] = []
            for who in some:
                arguments.append(len(scores[who]))
                for version, more in scores[who].items():
                    arguments += (version, more.samples, more.total, more.failures)
            names = [f"quality-folded:{self._process}", *(_Names(who).scores for who in some)]
            together = sum((more for who in some for more in scores[who].values()), Rolling())
            self._number += 1
            try:
                await self._redis.call(
                    FOLD, names, self._number, (BUCKETS + 1) * self._bucket * 1000, self._bucket, BUCKETS, *arguments)
            except SwitchyardError as error:
                self._count("dropped", together.samples)
                if not self._is_away:
                    self._log.warning("quality_dropped", error=error.message)
                self._is_away = True
            else:
                self._is_away = False
                self._count("passed", together.samples - together.failures)
                self._count("failed", together.failures)

    async def read(self, wanted: Iterable[Who]) -> dict[Who, dict[int, Standing]]:
        """Each adapter's versions that have samples in the window, or are below, as all gateways see them."""
        found: dict[Who, dict[int, Standing]] = {}
        for some in _batches(list(wanted)):
            names = [name for who in some for name in (_Names(who).scores, _Names(who).below)]
            bucket, *answers = await self._redis.call(READ, names, self._bucket, BELOW_SECONDS * 1000)
            for place, who in enumerate(some):
                found[who] = _standings(int(bucket), answers[2 * place], answers[2 * place + 1])
        return found

    async def cross(self, who: Who, version: int, *, is_below: bool) -> bool:
        """Note that the version is below its floor, or is so no more; False when it was noted already."""
        names = [_Names(who).below, _Names(who).ended]
        return bool(await self._redis.call(CROSS, names, version, int(is_below), BELOW_SECONDS * 1000))


class Candidates:
    """Failures that wait for a person, and the golden items that people made of them."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def keep(self, who: Who, candidate: Candidate) -> bool:
        """Let it wait for a person; False when its question waits already, was decided on, or the opt-in has ended."""
        names = _Names(who)
        return bool(await self._redis.call(
            KEEP, [*names.pending, names.approved[0], names.rejected, names.ended], candidate.id, candidate.to_json(),
            MAX_PENDING, PENDING_SECONDS * 1000))

    async def find(self, who: Who, candidate: str) -> Candidate | None:
        """The candidate of that id, pending or approved."""
        names = _Names(who)
        text = await self._redis.call(FIND, [names.approved[1], names.pending[1]], candidate)
        return None if text is None else Candidate.from_json(text)

    async def approve(self, who: Who, candidate: Candidate) -> None:
        """Keep the candidate with its item; Conflict when there are too many, or the opt-in has ended."""
        names = _Names(who)
        done = await self._redis.call(
            APPROVE, [*names.pending, *names.approved, names.ended], candidate.id, candidate.to_json(), MAX_APPROVED)
        if not done:
            raise Conflict(
                f"{who.tenant}/{who.adapter} has {MAX_APPROVED} approved items, or its tenant has just opted out. "
                "Export the items, and reject those that you have.")

    async def reject(self, who: Who, candidate: str) -> None:
        """Forget the candidate, approved or not; its question does not come back."""
        names = _Names(who)
        await self._redis.call(REJECT, [*names.pending, *names.approved, names.rejected], candidate, MAX_REJECTED,
                               REJECTED_SECONDS * 1000)

    async def page(self, who: Who, *, approved: bool, offset: int, limit: int) -> tuple[list[Candidate], int]:
        """At most `limit` candidates, newest first, after the first `offset`; and how many there are in all."""
        names = _Names(who)
        count, *texts = await self._redis.call(LIST, names.approved if approved else names.pending, offset, limit)
        return [Candidate.from_json(text) for text in texts], int(count)

    async def end(self, who: Who) -> None:
        """Delete all that was kept of the adapter under this opt-in, and keep no more of it."""
        names = _Names(who)
        await self._redis.call(END, [names.ended, *names.all], ENDED_SECONDS * 1000)


def _standings(bucket: int, scores: Sequence[str], below: Sequence[str]) -> dict[int, Standing]:
    counts: dict[int, dict[str, int]] = {}
    for place, count in zip(scores[::2], scores[1::2], strict=True):
        version, at, name = place.split("/")
        if int(at) > bucket - BUCKETS:
            fields = counts.setdefault(int(version), {})
            fields[name] = fields.get(name, 0) + int(count)
    told = {int(version) for version in below[::2]}
    return {version: Standing(Rolling(**counts.get(version, {})), version in told) for version in counts.keys() | told}


def _batches(wanted: list[Who]) -> list[list[Who]]:
    return [wanted[at:at + AT_ONCE] for at in range(0, len(wanted), AT_ONCE)]
