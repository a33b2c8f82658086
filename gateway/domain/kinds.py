"""Which entity is kept under which path of the registry."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from gateway.domain.evaluation import Evaluation
from gateway.domain.freeze import Freeze
from gateway.domain.model import Adapter, Alias, ApiKey, Entity, Release, Replica, Secret, Tenant, Version
from gateway.domain.operators import Operator
from gateway.domain.quality import OptIn, QualityPolicy, Review
from gateway.domain.webhook import Webhook

KINDS: Mapping[str, type[Entity]] = MappingProxyType({
    kind.kind: kind
    for kind in (Tenant, ApiKey, Adapter, Version, Release, Alias, Evaluation, Freeze, Operator, Replica, Secret,
                 Webhook, OptIn, QualityPolicy, Review)
})


def entity_from(path: str, document: Mapping[str, Any], revision: int) -> Entity | None:
    """The entity kept under `path`, or None when its kind is unknown to this release."""
    kind = KINDS.get(path.split("/", 1)[0])
    return kind.from_document(document, revision) if kind else None
