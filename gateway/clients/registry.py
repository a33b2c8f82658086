"""The registry in Redis: all entities, one revision counter, and a stream of audited changes, changed atomically.

Keys, all under one hash tag so that a Redis Cluster can hold them:

    switchyard:{<name>}:revision      counter, up by one per change
    switchyard:{<name>}:state         hash, path → JSON document
    switchyard:{<name>}:revisions     hash, path → revision at which it last changed
    switchyard:{<name>}:changes       stream, entry `<revision>-0`: id, previous (id of the change before it), hash,
                                      previous_hash (see `domain.audit`), change (JSON), `write:<path>` → JSON
                                      document (empty: deleted)
    switchyard:{<name>}:lease:<lease> hash with a time to live: holder, token
    switchyard:{<name>}:fences        hash, lease → highest fencing token given

Every change names the one before it, so a follower notices a registry that lost changes in a failover and made others
in their place, even when the revisions look right.
"""

import asyncio
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from itertools import chain
from typing import Any, Final

from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    ClusterDownError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
    ResponseError,
    TryAgainError,
)

from gateway.clients.registry_rows import Entry, Head, Row, broken_chain, change_of, entity_of, pairs
from gateway.clients.registry_scripts import ACQUIRE_LEASE, COMMIT, HEAD, LOAD, RELEASE_LEASE, TIP, Script
from gateway.clients.registry_urls import Clients, open_clients
from gateway.domain.errors import InvalidRequest, LostRace, OutcomeUnknown, RegistryUnavailable, SwitchyardError
from gateway.domain.model import Change, Entity, Snapshot
from gateway.system import System

# Short, so that a caller hears 503 soon, but longer than a quiet second of the follower.
_ANSWER_SECONDS: Final = 2.0
_LOAD_SECONDS: Final = 30.0
_QUIET_MILLISECONDS: Final = 1000
_CHANGES_AT_ONCE: Final = 100
# Below redis-py's limit of 100 connections, beyond which it fails instead of waiting.
_MAX_IN_FLIGHT: Final = 32
_REPEAT_SECONDS: Final = 3.0
_REPEAT_PAUSE_SECONDS: Final = 0.1
_OVERTAKEN: Final = 2
# Refusals that waiting or a failover mends, by class, or by first word where redis-py has no class for them. Any other
# is a fault in the data or in how Redis is set up.
_PASSING: Final = (OutOfMemoryError, ReadOnlyError, TryAgainError)
_PASSING_WORDS: Final = frozenset({"BUSY", "MISCONF", "NOREPLICAS", "UNBLOCKED"})


class _NoAnswer(RegistryUnavailable):
    """The connection broke or the time ran out: what was sent may or may not have been done."""


class Registry:
    """One registry, read and changed atomically.

    Every method raises RegistryUnavailable when Redis does not answer or cannot serve just now, and SwitchyardError
    when what Redis holds or says cannot be right, which waiting does not mend.
    """

    def __init__(self, clients: Clients, name: str, system: System) -> None:
        self._clients = clients
        self._system = system
        self._slots = asyncio.Semaphore(_MAX_IN_FLIGHT)
        self._writing = asyncio.Lock()
        self._newest: Head | None = None  # the head as it was last seen, which saves asking for it
        self._prefix = f"switchyard:{{{name}}}"
        self._revision_key = f"{self._prefix}:revision"
        self._changes_key = f"{self._prefix}:changes"
        self._keys = (self._revision_key, f"{self._prefix}:state", f"{self._prefix}:revisions", self._changes_key)

    async def load(self) -> Snapshot:
        """The whole registry at one revision."""
        snapshot, _ = await self._load()
        return snapshot

    async def follow(self) -> AsyncGenerator[tuple[Snapshot, str], None]:
        """The registry now, then again after every change, and unchanged after every quiet second as a sign of life.

        The text says why the whole registry was read again instead of following change by change; else it is empty.
        Revisions may be skipped when changes come fast, and go back when the registry itself did.
        """
        snapshot, last_id = await self._load()
        yield snapshot, "first read"
        while True:
            entries = await self._changes_after(snapshot.revision)
            if entries:
                reason = broken_chain(entries, snapshot.revision, last_id)
            else:
                reason = await self._fork(snapshot.revision, last_id)
            if reason:
                snapshot, last_id = await self._load()
            elif entries:
                writes = dict(chain.from_iterable(e.writes.items() for e in entries))
                snapshot, last_id = snapshot.with_writes(entries[-1].revision, writes), entries[-1].id
                self._saw(entries[-1])
            yield snapshot, reason

    async def commit(self, change: Change, writes: Mapping[str, Entity | None], expected: Mapping[str, int]) -> int:
        """Write all of `writes` (None deletes) and append `change`, or do nothing; returns the new revision.

        Every path in `expected` must be at that revision (0: must not exist), else LostRace. When the answer gets
        lost the change is sent again under its id, which cannot do it twice; OutcomeUnknown if in the end nobody knows
        whether it was done. When other changes keep coming between, so that it cannot be chained: RegistryUnavailable.
        """
        row = Row(self._system.hex(16), change, writes)
        seen = await self._revision()  # a Redis that hangs is noticed while nothing has been sent
        async with self._turn():
            answer = await self._write(row, expected, seen)
        if answer[0] == 1:
            return int(answer[1])
        path, current = answer[1], int(answer[2])
        raise LostRace(
            f"{path} is at revision {current}, not {expected[path]}: it was changed meanwhile. Read it, then repeat.",
            current=current)

    async def history(
        self, *, before: int | None = None, limit: int = 100, target: str | None = None,
    ) -> list[Change]:
        """Changes, newest first: at most `limit`, below revision `before`, and of `target` or what lies under it.

        `target` is a path's beginning in whole segments: `version/acme` finds `version/acme/support/3`.
        """
        found: list[Change] = []
        top = "+" if before is None else _below(before)
        while len(found) < limit:
            page = await self._execute("XREVRANGE", self._changes_key, top, "-", "COUNT", _CHANGES_AT_ONCE)
            changes = [change_of(*pair) for pair in page]
            found += [c for c in changes if target is None or f"{c.target}/".startswith(f"{target}/")]
            if len(changes) < _CHANGES_AT_ONCE:
                break
            top = _below(changes[-1].revision)
        return found[:limit]

    async def acquire_lease(self, name: str, holder: str, seconds: float) -> int | None:
        """Take or renew the lease for `seconds`: its fencing token, or None while another holds it.

        The token grows with every new hold and stays while the holder renews, so that work begun under an old hold
        can be told apart.
        """
        keys = (f"{self._prefix}:lease:{name}", f"{self._prefix}:fences")
        token = await self._run(ACQUIRE_LEASE, keys, holder, max(1, round(seconds * 1000)), name)
        return None if token is None else int(token)

    async def release_lease(self, name: str, holder: str) -> None:
        """End the lease if `holder` holds it."""
        await self._run(RELEASE_LEASE, (f"{self._prefix}:lease:{name}",), holder)

    async def call(self, script: Script, names: Sequence[str], *arguments: str | int) -> Any:
        """Run a script that may be sent twice on the keys `switchyard:{<name>}:<each of names>`.

        For what is kept beside the registry, under its hash tag, such as the tallies.
        """
        return await self._run(script, [f"{self._prefix}:{name}" for name in names], *arguments)

    async def close(self) -> None:
        """Close every connection."""
        await self._clients.close()

    async def _load(self) -> tuple[Snapshot, str]:
        """The registry, and the id of its latest change."""
        await self._revision()  # a Redis that hangs is noticed soon; a large registry may take its time
        revision, state, revisions, last_id = await self._run(LOAD, self._keys, seconds=_LOAD_SECONDS)
        at = pairs(revisions)
        entities = {p: e for p, text in pairs(state).items() if (e := entity_of(p, text, int(at.get(p, 0))))}
        return Snapshot.of(int(revision), entities), last_id

    @asynccontextmanager
    async def _turn(self) -> AsyncGenerator[None, None]:
        """Changes of one process wait for each other; else all would be hashed upon one, and all but one in vain."""
        with _translated_errors():
            async with asyncio.timeout(_REPEAT_SECONDS):
                await self._writing.acquire()
        try:
            yield
        finally:
            self._writing.release()

    async def _write(self, row: Row, expected: Mapping[str, int], seen: int) -> Sequence[Any]:
        """What COMMIT answers, sent until an answer comes that is not 'overtaken'; `seen`: a recent revision."""
        give_up_at = self._system.monotonic() + _REPEAT_SECONDS
        head = self._newest if self._newest and self._newest.revision >= seen else await self._head()
        after, sent = row.upon(head), False
        while True:
            try:
                answer: Sequence[Any] = await self._run(COMMIT, self._keys, *row.arguments(head, after, expected))
                if answer[0] != _OVERTAKEN:
                    self._newest = after if answer[0] == 1 else head
                    return answer
                # What was sent upon the former head can no longer be done, should it still be on its way.
                head = Head.of(answer[1:])
                after, sent = row.upon(head), False
                if self._system.monotonic() > give_up_at:
                    raise RegistryUnavailable("Other changes kept coming first. Nothing was changed; send it again.")
            except RegistryUnavailable as error:
                sent = sent or isinstance(error, _NoAnswer)
                if not sent:
                    raise
                if self._system.monotonic() > give_up_at:
                    raise OutcomeUnknown(
                        "Redis stopped answering while the change was made. Whether it was made is unknown: "
                        "read before you repeat it.") from error
                await asyncio.sleep(_REPEAT_PAUSE_SECONDS)

    def _saw(self, entry: Entry) -> None:
        """Another gateway's change is the next one to chain to, unless a later one is known."""
        if entry.hash and (self._newest is None or entry.revision > self._newest.revision):
            self._newest = Head(entry.revision, entry.id, entry.hash)

    async def _head(self) -> Head:
        """What the next change is chained to."""
        return Head.of(await self._run(TIP, self._keys))

    async def _revision(self) -> int:
        return int(await self._execute("GET", self._revision_key) or 0)

    async def _changes_after(self, revision: int) -> Sequence[Entry]:
        """The next changes, in order; none after a quiet second."""
        answer = await self._execute(
            "XREAD", "COUNT", _CHANGES_AT_ONCE, "BLOCK", _QUIET_MILLISECONDS,
            "STREAMS", self._changes_key, f"{revision}-0")
        return [Entry.of(*pair) for _, rows in answer or () for pair in rows]

    async def _fork(self, revision: int, last_id: str) -> str:
        """Why the registry is no longer what was followed up to `revision`; empty while it is."""
        now, id_now = await self._run(HEAD, (self._revision_key, self._changes_key))
        if int(now) < revision:
            return f"the registry went back from revision {revision} to {now}"
        if int(now) > revision:
            return f"the changes after revision {revision} are missing; the registry is at {now}"
        return "" if id_now == last_id else f"the registry holds another change at revision {revision}"

    async def _run(
        self, script: Script, keys: Sequence[str], *arguments: str | int, seconds: float = _ANSWER_SECONDS,
    ) -> Any:
        try:
            return await self._execute("EVALSHA", script.sha, len(keys), *keys, *arguments, seconds=seconds)
        except _UnknownScript:
            return await self._execute("EVAL", script.text, len(keys), *keys, *arguments, seconds=seconds)

    async def _execute(self, *command: str | int, seconds: float = _ANSWER_SECONDS) -> Any:
        task = asyncio.current_task()
        cancelled_before = task.cancelling() if task else 0
        with _translated_errors():
            async with asyncio.timeout(seconds), self._slots:
                answer = await self._clients.client.execute_command(*command)
        # Sentinels are asked under asyncio.wait_for, which up to Python 3.11 can lose a cancellation (cpython#86296).
        if task and task.cancelling() > cancelled_before:
            raise asyncio.CancelledError
        return answer


def connect(url: str, registry_name: str, *, system: System | None = None) -> Registry:
    """The registry of that name at `url` (see `open_clients`); nothing is sent yet. InvalidRequest for a bad URL."""
    if not registry_name or not set(registry_name).isdisjoint("{}"):
        raise InvalidRequest("A registry's name must not be empty and has no braces.", param="registry")
    return Registry(open_clients(url), registry_name, system or System())


class _UnknownScript(Exception):
    """Redis has restarted or been failed over since the script was last sent."""


@contextmanager
def _translated_errors() -> Iterator[None]:
    try:
        yield
    except (RedisError, RedisClusterException, OSError, UnicodeDecodeError) as error:
        raise _translated(error) from error


def _translated(error: Exception) -> Exception:
    if isinstance(error, NoScriptError):
        return _UnknownScript()
    if isinstance(error, AuthenticationError | AuthorizationError):
        return RegistryUnavailable(f"Redis does not accept the registry's credentials: {error}")
    if isinstance(error, UnicodeDecodeError):
        return SwitchyardError(f"The registry holds text that is not UTF-8: {error.reason}.")
    # A server that is loading or knows no cluster may have just restarted, and have done before what was asked.
    if not isinstance(error, ResponseError) or isinstance(error, BusyLoadingError | ClusterDownError):
        return _NoAnswer(f"Redis does not answer: {str(error) or 'the time is up'}")
    if isinstance(error, _PASSING) or str(error).split(" ", 1)[0] in _PASSING_WORDS:
        return RegistryUnavailable(f"Redis cannot serve the registry just now: {error}")
    return SwitchyardError(f"Redis refused what the registry asked: {error}")


def _below(revision: int) -> str:
    """The highest id that a row below `revision` could have, also one that somebody slipped in."""
    return f"{max(revision - 1, 0)}-{2**64 - 1}"
