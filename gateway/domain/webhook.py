"""Where operators want to hear of what happens to releases, and what they are told."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self
from urllib.parse import urlsplit

from gateway.domain.errors import InvalidRequest
from gateway.domain.happening import Happening, Kind
from gateway.domain.model import Entity, Snapshot

NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9])?")
MIN_SECRET = 16
_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?|[0-9A-Fa-f:.]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Webhook(Entity):
    """A receiver of happenings: `url` gets them by POST, signed with `secret`; only those of `kinds` (none: all)."""

    kind: ClassVar[str] = "webhook"
    name: str
    url: str
    secret: str
    kinds: tuple[Kind, ...]
    created_by: str
    created_at: float

    @property
    def path(self) -> str:
        return f"webhook/{self.name}"

    @property
    def origin(self) -> str:
        """The URL without what may be a secret of the receiver's: `https://host`."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc}"

    def wants(self, kind: Kind) -> bool:
        """Is it to be told of such?"""
        return not self.kinds or kind in self.kinds

    @classmethod
    def from_document(cls, document: Mapping[str, Any], revision: int) -> Self:
        known = set(Kind)
        values = {**document, "kinds": tuple(Kind(kind) for kind in document["kinds"] if kind in known)}
        return super(Webhook, cls).from_document(values, revision)


def webhooks_of(snapshot: Snapshot) -> list[Webhook]:
    """Every webhook, by name."""
    found = [entity for entity in snapshot.entities.values() if isinstance(entity, Webhook)]
    return sorted(found, key=lambda webhook: webhook.name)


def check_url(url: str) -> str:
    """The URL, if it is `http(s)://host[:port][/path][?query]` and no more; else InvalidRequest."""
    try:
        parts = urlsplit(url)
        port, host = parts.port, parts.hostname or ""
    except ValueError:
        parts, port, host = urlsplit(""), None, ""
    plain = url.isascii() and url.isprintable() and not set(' \\"<>#').intersection(url) and "@" not in parts.netloc
    if parts.scheme in ("http", "https") and plain and port != 0 and _HOST.fullmatch(host):
        return url
    raise InvalidRequest(
        "The URL cannot be a webhook's: write https://host[:port]/path or http://…, without user or fragment.",
        param="url")


def payload_of(happening: Happening, delivery_id: str, at: str) -> dict[str, Any]:
    """What a receiver is sent, JSON-ready. `delivery_id` tells a repeated delivery; `at` is RFC 3339."""
    release = happening.release
    return {
        "id": delivery_id, "kind": happening.kind, "at": at, "tenant": happening.tenant, "adapter": happening.adapter,
        "actor": happening.actor, "reason": happening.reason,
        "release": {**release.to_document(), "analysis": None, "revision": release.revision},
        "analysis": None if happening.analysis is None else dict(happening.analysis),
    }
