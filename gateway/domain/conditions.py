"""Under what a version was evaluated, and whether that is what serves it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from gateway.domain.errors import Conflict
from gateway.domain.fleet import ReplicaView
from gateway.domain.model import Version
from gateway.domain.preflight import is_same_base


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """What an evaluator says that it evaluated under; None: it does not say.

    `sampling`: what it asked with, such as temperature and seed. `latency_ms_p99`: of its requests, in milliseconds.
    """

    base_model: str | None = None
    engine_version: str | None = None
    chat_template_sha256: str | None = None
    sampling: Mapping[str, Any] | None = None
    latency_ms_p99: float | None = None


UNSAID = Conditions()
"""Of an evaluator that says nothing."""


def settle(said: Conditions, version: Version, views: Iterable[ReplicaView]) -> Conditions:
    """The conditions, with what the registry and the fleet know filled in; Conflict when they say otherwise.

    A fleet that runs several engine versions cannot tell which one it was: then only what it does not run is refused.
    """
    pool = [view for view in views if view.base_model == version.base_model]
    names = [version.base_model, *(view.root for view in pool if view.root)]
    if said.base_model is not None and not is_same_base(said.base_model, names):
        raise _contradiction("base_model", said.base_model, f"{_who(version)} is of {version.base_model!r}")
    engines = sorted({view.engine_version for view in pool if view.engine_version})
    engine = said.engine_version if said.engine_version is not None else engines[0] if len(engines) == 1 else None
    if engine is not None and engines and engine not in engines:
        raise _contradiction("engine_version", engine, f"the replicas of {version.base_model!r} run "
                             + " and ".join(map(repr, engines)))
    template, known = said.chat_template_sha256, version.chat_template_sha256
    if template is not None and known is not None and template != known:
        raise _contradiction("chat_template_sha256", template, f"the manifest of {_who(version)} says {known!r}")
    return replace(said, base_model=version.base_model, engine_version=engine, chat_template_sha256=template or known)


def _who(version: Version) -> str:
    return f"version {version.number} of {version.tenant}/{version.adapter}"


def _contradiction(field: str, said: str, known: str) -> Conflict:
    return Conflict(f"The record says {field} {said[:200]!r}, but {known}. Evaluate what is served, or leave the field "
                    "out.", param=field)
