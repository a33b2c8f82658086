"""Rows of the registry's stream of changes: how a change is written, and how it is read again."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final, Self

from gateway.domain.audit import digest_of_writes, hash_upon, link_of
from gateway.domain.errors import InvalidRequest, SwitchyardError
from gateway.domain.kinds import entity_from
from gateway.domain.model import Change, Entity

# Lua cannot unpack more than some thousand values at once; no change of ours writes more than a few.
_MAX_WRITES: Final = 1000
_WRITE: Final = "write:"


@dataclass(frozen=True, slots=True)
class Head:
    """The registry's revision, its latest change's id, and what the next change must carry as `previous`."""

    revision: int
    id: str
    link: str

    @classmethod
    def of(cls, answer: Sequence[Any]) -> Self:
        """The head that a script answered: revision, id, hash, and the whole row when it has no hash."""
        revision, change_id, link, *row = answer
        return cls(int(revision), change_id, link or (_link_of_row(*row[0]) if row else ""))


class Row:
    """A change that is to be written, with its documents by path ('' deletes) and an id of its own."""

    def __init__(self, change_id: str, change: Change, writes: Mapping[str, Entity | None]) -> None:
        if len(writes) > _MAX_WRITES:
            raise InvalidRequest(f"One change may write {_MAX_WRITES} entities at most, not {len(writes)}.")
        wrong = [path for path, entity in writes.items() if entity is not None and entity.path != path]
        if wrong:
            raise ValueError(f"entities written under paths that are not theirs: {wrong}")
        audited = {"actor": change.actor, "action": change.action, "target": change.target, "at": change.at,
                   "detail": dict(change.detail)}
        self._id = change_id
        self._text = json.dumps(audited, allow_nan=False)
        self._documents = {
            path: "" if entity is None else json.dumps(entity.to_document(), allow_nan=False)
            for path, entity in writes.items()}
        # What is hashed is what will be read: a tuple is a list by then.
        self._change = Change(**json.loads(self._text), writes_digest=digest_of_writes(change_id, self._documents))

    def upon(self, head: Head) -> Head:
        """The head that the registry has once the row is written upon `head`."""
        return Head(head.revision + 1, self._id, hash_upon(self._change, head.revision + 1, head.link))

    def arguments(self, head: Head, after: Head, expected: Mapping[str, int]) -> list[str | int]:
        """What the script COMMIT is given, to write the row upon `head`, so that `after` is the head then."""
        expectations: list[str | int] = [part for path, revision in expected.items() for part in (path, revision)]
        return [self._id, head.revision, head.id, head.link, after.link, self._text, len(expected), *expectations,
                *chain.from_iterable(self._documents.items())]


@dataclass(frozen=True, slots=True)
class Entry:
    """A row as a follower reads it: `previous` is the id of the change before it; `hash` is empty in unchained ones."""

    revision: int
    id: str
    previous: str
    hash: str
    writes: Mapping[str, Entity | None]

    @classmethod
    def of(cls, stream_id: str, fields: Mapping[str, str]) -> Self:
        """The entry of a row; SwitchyardError when a document cannot be read."""
        revision = revision_of(stream_id)
        writes = {path: entity_of(path, text, revision) if text else None for path, text in _documents(fields).items()}
        return cls(revision, fields.get("id", ""), fields.get("previous", ""), fields.get("hash", ""), writes)


def broken_chain(entries: Sequence[Entry], revision: int, last_id: str) -> str:
    """Why `entries` do not follow upon the change `last_id` at `revision`; empty when they do."""
    for entry in entries:
        if entry.revision != revision + 1:
            return f"the changes between revisions {revision} and {entry.revision} are missing"
        if entry.previous != last_id:
            return f"the registry holds another change at revision {revision}"
        revision, last_id = entry.revision, entry.id
    return ""


def change_of(stream_id: str, fields: Mapping[str, str]) -> Change:
    """The change of a row, its digest of writes made from what the row holds; SwitchyardError when it is none."""
    try:
        return Change(
            **json.loads(fields["change"]), revision=revision_of(stream_id), previous=fields.get("previous_hash", ""),
            hash=fields.get("hash", ""), writes_digest=digest_of_writes(fields.get("id", ""), _documents(fields)))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise SwitchyardError(f"The registry's change {stream_id} cannot be read: {error!r}.") from error


def entity_of(path: str, text: str, revision: int) -> Entity | None:
    """The entity of a document, None when its kind is unknown; SwitchyardError when it cannot be read."""
    try:
        return entity_from(path, json.loads(text), revision)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise SwitchyardError(f"The registry's document {path} cannot be read: {error!r}.") from error


def revision_of(stream_id: str) -> int:
    """The revision that a row was written at."""
    return int(stream_id.partition("-")[0])


def pairs(flat: Sequence[str]) -> dict[str, str]:
    """Redis' flat list of names and values."""
    return dict(zip(flat[::2], flat[1::2], strict=True))


def _documents(fields: Mapping[str, str]) -> dict[str, str]:
    return {name.removeprefix(_WRITE): text for name, text in fields.items() if name.startswith(_WRITE)}


def _link_of_row(stream_id: str, fields: Sequence[str]) -> str:
    """The link of a row without a hash; '' when it cannot be read, which must not keep others from being written."""
    try:
        return link_of(change_of(stream_id, pairs(fields)))
    except SwitchyardError:
        return ""
