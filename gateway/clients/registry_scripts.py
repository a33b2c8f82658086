"""The Lua scripts that make the registry's writes atomic; keys and arguments are named at the head of each."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua script and the digest that Redis knows it by."""

    text: str
    sha: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sha", hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest())


class Redis(Protocol):
    """The registry's Redis; see `gateway.clients.registry.Registry.call`."""

    async def call(self, script: Script, names: Sequence[str], *arguments: str | int) -> Any: ...


# Keys: revision, state, revisions, changes. Answers {revision, state and revisions as flat lists, id of the latest
# change}: all of one moment.
LOAD: Final = Script("""
local last = redis.call('XREVRANGE', KEYS[4], '+', '-', 'COUNT', 1)[1]
return {
  (redis.call('GET', KEYS[1]) or 0) + 0,
  redis.call('HGETALL', KEYS[2]),
  redis.call('HGETALL', KEYS[3]),
  last and last[2][2] or '',
}
""")

# Keys: revision, changes. Answers {revision, id of the latest change}.
HEAD: Final = Script("""
local last = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)[1]
return {(redis.call('GET', KEYS[1]) or 0) + 0, last and last[2][2] or ''}
""")

_TIP: Final = """
local function tip()
  local revision = (redis.call('GET', KEYS[1]) or 0) + 0
  local last = redis.call('XREVRANGE', KEYS[4], '+', '-', 'COUNT', 1)[1]
  if not last then return {revision, '', ''} end
  local fields = last[2]
  if fields[5] == 'hash' then return {revision, fields[2], fields[6]} end
  return {revision, fields[2], '', last}
end
"""

# Keys: revision, state, revisions, changes. Answers {revision, id and hash of the latest change, and the whole of it
# when it has no hash}.
TIP: Final = Script(_TIP + "return tip()")

# Keys: revision, state, revisions, changes. Arguments: id of the change, the revision and the id of the change that it
# was hashed upon, that one's hash, its own, the change, number of expectations, then path and revision of each, then
# path and document of each write (an empty document deletes). Answers {1, new revision}; {0, path, its revision} when
# an expectation does not hold; {2, what TIP answers} when another change came between, upon which this one must be
# hashed anew: Redis itself knows no SHA-256.
#
# Sent again as it was it answers what it answered first, so a lost answer can be asked for by repeating: if it was done
# it is the row right after the change that it was hashed upon.
# The stream entry is written first: whatever can fail (a key of the wrong type, memory, a replica that is read-only)
# fails there or earlier, before anything has changed; Redis takes nothing back when a script fails halfway.
COMMIT: Final = Script(_TIP + """
local id, upon, change, expectations = ARGV[1], tonumber(ARGV[2]), ARGV[6], tonumber(ARGV[7])
local now = tip()
local is_next = now[1] == upon and now[2] == ARGV[3]
if not is_next then
  local place = (upon + 1) .. '-0'
  local there = redis.call('XRANGE', KEYS[4], place, place)[1]
  if there and there[2][2] == id then return {1, upon + 1} end
end

local first_write = 8 + 2 * expectations
for i = 8, first_write - 1, 2 do
  local current = tonumber(redis.call('HGET', KEYS[3], ARGV[i]) or 0)
  if current ~= tonumber(ARGV[i + 1]) then return {0, ARGV[i], current} end
end
if not is_next then return {2, now[1], now[2], now[3], now[4]} end

redis.call('HLEN', KEYS[2])
redis.call('HLEN', KEYS[3])
local revision = upon + 1
local entry = {'id', id, 'previous', now[2], 'hash', ARGV[5], 'previous_hash', ARGV[4], 'change', change}
for i = first_write, #ARGV, 2 do
  entry[#entry + 1] = 'write:' .. ARGV[i]
  entry[#entry + 1] = ARGV[i + 1]
end
redis.call('XADD', KEYS[4], revision .. '-0', unpack(entry))

redis.call('SET', KEYS[1], revision)
for i = first_write, #ARGV, 2 do
  if ARGV[i + 1] == '' then
    redis.call('HDEL', KEYS[2], ARGV[i])
    redis.call('HDEL', KEYS[3], ARGV[i])
  else
    redis.call('HSET', KEYS[2], ARGV[i], ARGV[i + 1])
    redis.call('HSET', KEYS[3], ARGV[i], revision)
  end
end
return {1, revision}
""")

# Keys: lease, fences. Arguments: holder, milliseconds, name of the lease. Answers the fencing token, which grows with
# every new hold, or nil while another holds the lease.
ACQUIRE_LEASE: Final = Script("""
local holder = redis.call('HGET', KEYS[1], 'holder')
if holder and holder ~= ARGV[1] then return false end
local token = redis.call('HGET', KEYS[1], 'token')
if not token then
  token = redis.call('HINCRBY', KEYS[2], ARGV[3], 1)
  redis.call('HSET', KEYS[1], 'holder', ARGV[1], 'token', token)
end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return tonumber(token)
""")

# Key: lease. Argument: holder. Only the holder can end its lease.
RELEASE_LEASE: Final = Script("""
if redis.call('HGET', KEYS[1], 'holder') == ARGV[1] then redis.call('DEL', KEYS[1]) end
""")
