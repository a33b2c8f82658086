"""What all admin routes share: who asks, how much they may send, and which revision it is about."""

import re
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from typing import Annotated, Any, TypeAlias

from fastapi import Depends, Header, Query, Request, Response
from fastapi.routing import APIRoute
from starlette.types import Message

from gateway.api.idempotency import PARAMETER, WRITES, Once
from gateway.api.schemas import ErrorBody
from gateway.domain.errors import BodyTooLarge, InvalidRequest
from gateway.domain.operators import Asker, Role

OperatorCheck: TypeAlias = Callable[[Iterable[tuple[bytes, bytes]]], Asker]
"""Request headers → who asks; NotAuthenticated."""
MAX_JSON_BYTES = 1 << 20
_ETAG = re.compile(r'"(0|[1-9][0-9]{0,17})"')

_DESCRIPTIONS = {
    400: "Something in the request cannot be understood; `param` names it.",
    401: "The operator's key is missing or wrong.",
    403: "The operator's role does not reach; `required_role` does.",
    404: "No such thing.",
    409: "The change contradicts what the registry holds.",
    412: "It was changed since the revision in `If-Match`; `current_revision` and the ETag say what it is at now.",
    413: "The body is too large.",
    422: "The artifact was refused; `reasons` lists why.",
    502: "A replica refused.",
    503: "The registry or the replicas do not answer; try again after `Retry-After` seconds.",
    "4XX": "Any other refusal.",
}
_RETRY_AFTER = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}}


def guarded_route(
    check: OperatorCheck, once: Once, max_bytes: int | None, *, reads: Role = Role.VIEWER, writes: Role = Role.OPERATOR,
) -> type[APIRoute]:
    """Routes that ask for the operator's key and its role before anything is read, refuse query parameters that they do
    not know, read at most `max_bytes` (None: leave the body to the route), and do a write with an `Idempotency-Key`
    once. `reads` and `writes`: the role that a route needs; the documentation shows it as `x-required-role`.
    """

    class GuardedRoute(APIRoute):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            is_write = bool(WRITES & set(options.get("methods") or ()))
            self._needed = writes if is_write else reads
            shown = {"x-required-role": self._needed.value, **({"parameters": [PARAMETER]} if is_write else {})}
            options["openapi_extra"] = {**(options.get("openapi_extra") or {}), **shown}
            super().__init__(*arguments, **options)

        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()
            known = {parameter.alias for parameter in self.dependant.query_params}

            async def guarded(request: Request) -> Response:
                asker = request.state.asker = check(request.headers.raw)
                asker.require(self._needed, f"{request.method} {self.path}")
                _refuse_unknown(request, known)
                if max_bytes is None:
                    return await once.answer(request, None, handle)
                body = await read_limited(request, max_bytes)
                return await once.answer(Request(request.scope, _replay(body)), body, handle)

            return guarded

    return GuardedRoute


def _refuse_unknown(request: Request, known: set[str]) -> None:
    for name in request.query_params:
        if name not in known:
            raise InvalidRequest(f"There is no query parameter {name[:80]!r} here; {sorted(known)} are known.",
                                 param=name[:80])
        if len(request.query_params.getlist(name)) > 1:
            raise InvalidRequest(f"The query parameter {name!r} is given more than once.", param=name)


async def read_limited(request: Request, max_bytes: int) -> bytes:
    """The whole body, or BodyTooLarge."""
    chunks: list[bytes] = []
    size = 0
    async for chunk in _within(request, max_bytes):
        size += len(chunk)
        if size > max_bytes:
            raise BodyTooLarge(f"The body has more than {max_bytes} bytes.")
        chunks.append(chunk)
    return b"".join(chunks)


async def _within(request: Request, max_bytes: int) -> AsyncIterator[bytes]:
    """The body's chunks; BodyTooLarge before the first when the caller announced too many."""
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > max_bytes:
        raise BodyTooLarge(f"The body has {announced} bytes; at most {max_bytes} are taken.")
    async for chunk in request.stream():
        yield chunk


def _replay(body: bytes) -> Callable[[], Coroutine[Any, Any, Message]]:
    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    return receive


async def _asker(request: Request) -> Asker:
    asker: Asker = request.state.asker
    return asker


async def _actor(request: Request) -> str:
    return (await _asker(request)).name


async def _if_match(
    if_match: Annotated[str | None, Header(
        alias="If-Match", description='The ETag that was read, such as "7": change only what still is at it.',
        json_schema_extra={"pattern": f"^{_ETAG.pattern}$"})] = None,
) -> int | None:
    if if_match is None:
        return None
    found = _ETAG.fullmatch(if_match.strip())
    if found is None:
        raise InvalidRequest('If-Match must be one ETag as it was answered, such as "7".', param="If-Match")
    return int(found[1])


Asking = Annotated[Asker, Depends(_asker)]
Actor = Annotated[str, Depends(_actor)]
IfMatch = Annotated[int | None, Depends(_if_match)]
DryRun = Annotated[bool, Query(description="Decide and answer as if, but write nothing.")]


def tag(response: Response, revision: int, *, written: bool = False, status: int | None = None) -> None:
    """Say which revision the answer is of, and at which revision a write was made."""
    response.headers["ETag"] = f'"{revision}"'
    if written:
        response.headers["X-Switchyard-Revision"] = str(revision)
    if status is not None:
        response.status_code = status


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The documented error answers of a route, besides those that every route has."""
    documented: dict[int | str, dict[str, Any]] = {status: {"model": ErrorBody, "description": _DESCRIPTIONS[status]}
                                                   for status in sorted({400, 401, 403, *statuses})}
    if 503 in documented:
        documented[503]["headers"] = _RETRY_AFTER
    return {**documented, "4XX": {"model": ErrorBody, "description": _DESCRIPTIONS["4XX"]}}


def tagged(description: str, *, written: bool = False, model: Any = None) -> dict[str, Any]:
    """A documented good answer with its revision headers."""
    headers = {"ETag": {"description": "The entity's revision, for If-Match.", "schema": {"type": "string"}}}
    if written:
        headers["X-Switchyard-Revision"] = {
            "description": "The registry's revision after the write.", "schema": {"type": "string"}}
    return {"description": description, "headers": headers, **({"model": model} if model else {})}
