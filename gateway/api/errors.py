"""The one table from an error to what goes over the wire: status, headers, and OpenAI's JSON envelope.

`reply_to` needs no web framework, so the request path and the admin routes answer alike; `install` makes the
framework's own errors look the same.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from types import MappingProxyType
from typing import Any, Final

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from gateway.domain import errors

INVALID_REQUEST: Final = "invalid_request_error"
SERVER_ERROR: Final = "server_error"

STATUSES: Final[Mapping[type[errors.SwitchyardError], tuple[int, str]]] = MappingProxyType({
    errors.InvalidRequest: (400, INVALID_REQUEST),
    errors.NotAuthenticated: (401, INVALID_REQUEST),
    errors.PermissionDenied: (403, INVALID_REQUEST),
    errors.NotFound: (404, INVALID_REQUEST),
    errors.Conflict: (409, INVALID_REQUEST),
    errors.LostRace: (412, INVALID_REQUEST),
    errors.BodyTooLarge: (413, INVALID_REQUEST),
    errors.ArtifactRefused: (422, INVALID_REQUEST),
    errors.IdempotencyKeyReused: (422, INVALID_REQUEST),
    errors.SwitchyardError: (500, SERVER_ERROR),
    errors.EngineRefused: (502, SERVER_ERROR),
    errors.UpstreamFailed: (502, SERVER_ERROR),
    errors.Unavailable: (503, SERVER_ERROR),
    errors.UpstreamTimeout: (504, SERVER_ERROR),
})
"""Error class → HTTP status and OpenAI's `type`; a class that is not here goes by its nearest ancestor."""


_CODES = {HTTPStatus.NOT_FOUND: "not_found", HTTPStatus.METHOD_NOT_ALLOWED: "method_not_allowed"}


@dataclass(frozen=True, slots=True)
class ErrorReply:
    """An error as it goes out: `headers` in ASGI's form, with content type and length; `body` is JSON."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes


def reply_to(error: errors.SwitchyardError) -> ErrorReply:
    """The answer to an error of ours."""
    status, kind = status_of(type(error))
    return envelope(status, error.message, kind=kind, param=error.param, code=error.code, headers=_headers(error),
                    more=_more(error))


def response_to(error: errors.SwitchyardError) -> Response:
    """The same, as the framework answers it."""
    return _response(reply_to(error))


def status_of(error: type[errors.SwitchyardError]) -> tuple[int, str]:
    """HTTP status and OpenAI `type` of an error class."""
    return next(STATUSES[ancestor] for ancestor in error.__mro__ if ancestor in STATUSES)


def envelope(
    status: int, message: str, *, kind: str = INVALID_REQUEST, param: str | None = None, code: str | None = None,
    headers: Mapping[str, str] = MappingProxyType({}), more: Mapping[str, Any] = MappingProxyType({}),
) -> ErrorReply:
    """An answer with `{"error": {"message", "type", "param", "code"}}`, and `more` beside these four."""
    error = {"message": message, "type": kind, "param": param, "code": code, **more}
    body = json.dumps({"error": error}, ensure_ascii=False).encode("utf-8", "replace")
    lines = {"content-type": "application/json", "content-length": str(len(body)), **headers}
    return ErrorReply(status, tuple((k.lower().encode("latin-1"), v.encode("latin-1")) for k, v in lines.items()), body)


def codes() -> Mapping[str, int]:
    """Every `code` of ours and its HTTP status: the README's table."""
    found: dict[str, int] = {}
    pending: list[type[errors.SwitchyardError]] = [errors.SwitchyardError]
    while pending:
        error = pending.pop()
        found.setdefault(error.code, status_of(error)[0])
        pending += error.__subclasses__()
    return dict(sorted(found.items(), key=lambda item: (item[1], item[0])))


def install(app: FastAPI, log: Any) -> None:
    """Make `app` answer every error, the framework's own too, in the one envelope; `log` is told of unexpected ones."""
    async def unexpected(request: Request, error: Exception) -> Response:
        log.error("unexpected_error", method=request.method, path=request.url.path, exc_info=error)
        return _response(envelope(500, "The gateway failed in a way it should not have. Its log says how.",
                                  kind=SERVER_ERROR, code=errors.SwitchyardError.code))

    app.add_exception_handler(errors.SwitchyardError, _ours)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, unexpected)


def refusal_of(problems: Sequence[Any]) -> errors.InvalidRequest:
    """What is wrong with a request, from pydantic's list of errors; the field at fault is `param`."""
    if problems[0]["type"] == "json_invalid":
        why = problems[0].get("ctx", {}).get("error", "it ends too early")
        return errors.MalformedJson(f"The body is not JSON: {why}.")
    return errors.InvalidRequest(" ".join(_line(problem) for problem in problems[:10]), param=_field(problems[0]))


def _line(problem: Any) -> str:
    field = _field(problem)
    message = str(problem["msg"]).removeprefix("Value error, ").rstrip(".")
    if problem["type"] == "model_attributes_type":
        message = "send a JSON object, with Content-Type: application/json"
    return f"{field}: {message}." if field else f"{message[:1].upper()}{message[1:]}."


def _field(problem: Any) -> str | None:
    """The place without its room: `("body", "adapters", 0)` is `adapters.0`."""
    return ".".join(str(part) for part in problem["loc"][1:]) or None


async def _ours(_: Request, error: Exception) -> Response:
    assert isinstance(error, errors.SwitchyardError)
    return response_to(error)


async def _invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return _response(reply_to(refusal_of(error.errors())))


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    status = error.status_code
    message = str(error.detail)
    if status == HTTPStatus.NOT_FOUND:
        message = f"There is no route {request.method} {request.url.path[:200]}."
    elif status == HTTPStatus.METHOD_NOT_ALLOWED:
        message = f"{request.url.path[:200]} cannot be asked with {request.method}."
    kind = SERVER_ERROR if status >= HTTPStatus.INTERNAL_SERVER_ERROR else INVALID_REQUEST
    code = _CODES.get(HTTPStatus(status), "invalid_request")
    return _response(envelope(status, message, kind=kind, code=code, headers=error.headers or {}))


def _response(reply: ErrorReply) -> Response:
    response = Response(reply.body, reply.status)
    response.raw_headers = list(reply.headers)
    return response


def _headers(error: errors.SwitchyardError) -> dict[str, str]:
    match error:
        case errors.Unavailable():
            return {"retry-after": str(error.retry_after)}
        case errors.NotAuthenticated():
            return {"www-authenticate": "Bearer"}
        case errors.LostRace() if error.current:
            return {"etag": f'"{error.current}"'}
    return {}


def _more(error: errors.SwitchyardError) -> dict[str, Any]:
    match error:
        case errors.ArtifactRefused():
            return {"reasons": list(error.reasons)}
        case errors.LostRace():
            return {"current_revision": error.current}
        case errors.PermissionDenied():
            return {"required_role": error.required_role}
    return {}
