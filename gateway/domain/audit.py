"""The audit's hash chain: every change carries a hash over what it says and over the hash of the change before it.

So nobody can alter, remove, insert or reorder changes in the registry's Redis and leave the chain whole, short of
making every later hash anew; against that keep a hash elsewhere and verify with it (`expected`).

A change made before the chain was introduced has no hash. Such changes are unchained, not broken; the first chained one
carries the hash that the last of them would have, had it been the very first change.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256

from gateway.domain.model import Change

_SCHEMA = "switchyard.audit/1"
_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest_of_writes(change_id: str, documents: Mapping[str, str]) -> str:
    """SHA-256 (hex) of what a change wrote, path by path ('' deletes).

    The change's random id, which the API does not show, goes in: nobody can guess at a short secret in a document.
    """
    return sha256(_json([change_id, sorted(documents.items())])).hexdigest()


def hash_of(change: Change) -> str:
    """The hash that the change must carry: SHA-256 (hex) of its fields as one canonical JSON list."""
    return hash_upon(change, change.revision, change.previous)


def hash_upon(change: Change, revision: int, previous: str) -> str:
    """The hash that the change will carry if it is written at `revision`, after the change of the hash `previous`."""
    at = datetime.fromtimestamp(change.at, UTC).isoformat(timespec="microseconds")
    return sha256(_json([
        _SCHEMA, revision, change.actor, change.action, change.target, at, dict(change.detail), change.writes_digest,
        previous])).hexdigest()


def link_of(change: Change) -> str:
    """What the next change must carry as `previous`: the change's hash, or for an unchained one what it would be."""
    return change.hash or hash_upon(change, change.revision, "")


@dataclass(frozen=True, slots=True)
class Break:
    """The first place at which the chain does not hold: at which revision, and why, in a sentence."""

    revision: int
    reason: str


@dataclass(frozen=True, slots=True)
class Report:
    """What became of a verification. `head`: the newest change's hash, to be kept elsewhere; empty without one."""

    chained: int
    unchained: int
    first_revision: int
    last_revision: int
    head: str
    broken: Break | None


def verify(
    changes: Iterable[Change], *, since: int = 1, until: int = 0, expected: tuple[int, str] | None = None,
) -> Report:
    """Check a chain, given newest first, down to revision `since`.

    `until`: the revision that the registry itself is at, at least: the chain must reach it. `expected`: the hash that
    the change of a revision must have, as it was noted earlier.
    """
    chained = unchained = first = last = 0
    head, broken, newer = "", None, None
    for change in changes:
        if change.revision < since:
            break
        if newer is None:
            head, last = change.hash, change.revision
            if last < until:
                broken = Break(last + 1, f"The registry is at revision {until}, but the audit ends at {last}.")
        broken = _follows(change, newer, broken)
        broken = _holds(change, broken, expected)
        chained, unchained = chained + bool(change.hash), unchained + (not change.hash)
        newer, first = change, change.revision
    broken = _begins(newer, since, until, broken)
    if expected is not None and not first <= expected[0] <= last:
        broken = Break(expected[0], f"There is no change of revision {expected[0]}, whose hash was given.")
    return Report(chained, unchained, first, last, head, broken)


def _follows(change: Change, newer: Change | None, broken: Break | None) -> Break | None:
    """What is wrong between a change and the one after it; a break found there is nearer to the beginning."""
    if newer is None:
        return broken
    if newer.revision != change.revision + 1:
        return Break(change.revision + 1,
                     f"Change {change.revision} is followed by {newer.revision}: some are missing, or too many.")
    if change.hash and not newer.hash:
        return Break(newer.revision,
                     f"Change {newer.revision} has no hash although the one before it has: it was taken away, or a "
                     "gateway of an older release wrote the change.")
    if newer.hash and newer.previous != link_of(change):
        return Break(newer.revision,
                     f"Change {newer.revision} does not follow upon change {change.revision} as it is now: one of "
                     "them was put in another's place.")
    return broken


def _holds(change: Change, broken: Break | None, expected: tuple[int, str] | None) -> Break | None:
    if change.hash and change.hash != hash_of(change):
        return Break(change.revision, f"Change {change.revision} is not what its hash is of: it was altered.")
    if expected is not None and change.revision == expected[0] and change.hash != expected[1]:
        return Break(change.revision,
                     f"Change {change.revision} has another hash than was noted: the chain was made anew.")
    return broken


def _begins(oldest: Change | None, since: int, until: int, broken: Break | None) -> Break | None:
    if oldest is None:
        missing = until >= since
        return Break(since, f"There is no change, but the registry is at revision {until}.") if missing else broken
    if oldest.revision > since:
        return Break(since, f"The audit begins at revision {oldest.revision}: the changes before it are missing.")
    if oldest.revision == 1 and oldest.previous:
        return Break(1, "Change 1 follows upon one that is missing.")
    return broken


def _json(value: object) -> bytes:
    return _CANONICAL.encode(value).encode("ascii")
