"""The gate as an HTTP service: `POST /evaluate` answers 200 when a version passes and 409 when it does not.

Every other failure has OpenAI's error shape, as the gateway's have.
"""

import asyncio
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from adapters.evaluation import golden
from adapters.evaluation.calls import Sampling
from adapters.evaluation.decide import Gate, GateError
from adapters.evaluation.evaluate import Outcome, evaluate
from adapters.evaluation.journal import JournalError
from adapters.evaluation.judge import Judge
from adapters.evaluation.plan import EvaluationError, Plan, Target
from adapters.gateway_client import Admin, Door, GatewayRefused, GatewayUnreachable
from adapters.register import RegisterError, register
from adapters.teacher import TeacherError

MAX_BODY_BYTES = 64 << 10
FIELDS = ("version", "model_path", "adapter", "golden_set_id", "baseline_f1", "threshold")
DIGEST_DIGITS = 64
LEAST_DIGITS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceSettings:
    """How the service evaluates. `key` is what callers must hold; `golden_sets` the folder of `<id>.jsonl` files.

    `models`: the folder that a `model_path` must lie in (None: only registered artifacts are taken, by digest).
    `adapter`: the `tenant/adapter` that a `model_path` is a version of, unless the request says. `tenant_key`: as in
    Plan. `gate` holds what requests do not say.
    """

    key: str = field(repr=False)
    golden_sets: Path
    state: Path
    door: Door
    operator_key: str = field(repr=False)
    models: Path | None = None
    adapter: str | None = None
    tenant_key: str | None = field(default=None, repr=False)
    gate: Gate = field(default_factory=Gate)
    sampling: Sampling = field(default_factory=Sampling)
    repeats: int = 1
    concurrency: int = 8


class Refused(Exception):
    """The request cannot be answered: HTTP status, OpenAI's error fields."""

    def __init__(self, status: int, message: str, *, code: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param

    def response(self) -> Response:
        """The error in OpenAI's shape."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        error = {"message": str(self), "type": kind, "param": self.param, "code": self.code}
        headers = {"www-authenticate": "Bearer"} if self.status == 401 else None
        return JSONResponse({"error": error}, self.status, headers)


def make_app(settings: ServiceSettings, judge: Judge | None = None) -> Starlette:
    """The service as an ASGI app. Evaluations run one after another, so that none slows another one's calls."""
    service = _Service(settings, judge)
    return Starlette(routes=[
        Route("/evaluate", service.evaluate, methods=["POST"]), Route("/healthz", _healthz, methods=["GET"])])


async def _healthz(_: Request) -> Response:
    return JSONResponse({"status": "ok"})


class _Service:
    def __init__(self, settings: ServiceSettings, judge: Judge | None) -> None:
        self._settings = settings
        self._judge = judge
        self._turn = asyncio.Lock()

    async def evaluate(self, request: Request) -> Response:
        """200 or 409 with what was found, or an error."""
        try:
            self._check_key(request)
            asked = _Asked.of(await _document(request))
            golden_set = await asyncio.to_thread(find_golden_set, self._settings.golden_sets, asked.golden_set_id)
            async with self._turn:
                plan = self._plan(asked, await self._target(asked), golden_set)
                outcome = await evaluate(
                    plan, self._settings.door, self._settings.operator_key, judge=self._judge)
        except Refused as refused:
            return refused.response()
        except (EvaluationError, GateError, golden.GoldenError) as error:
            return Refused(422, str(error), code="invalid_request").response()
        except RegisterError as error:
            return _not_registered(error)
        except (GatewayRefused, GatewayUnreachable, JournalError, TeacherError) as error:
            return _failed(error).response()
        return JSONResponse(answer_of(outcome), 200 if outcome.decision.passed else 409)

    def _check_key(self, request: Request) -> None:
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        digests = [sha256(key.encode()).digest() for key in (given.strip(), self._settings.key)]
        if scheme.lower() != "bearer" or not hmac.compare_digest(*digests):
            raise Refused(401, "The key is wrong or missing. Send the evaluation service's as 'Authorization: Bearer "
                          "<key>'.", code="invalid_api_key")

    def _plan(self, asked: "_Asked", target: Target, golden_set: golden.GoldenSet) -> Plan:
        settings, gate = self._settings, self._settings.gate
        if asked.threshold is not None:
            gate = replace(gate, threshold=asked.threshold)
        if asked.baseline_f1 is not None:
            gate = replace(gate, metric="macro_f1", baseline=asked.baseline_f1)
        return Plan(target=target, golden=golden_set, state=settings.state, gate=gate, sampling=settings.sampling,
                    repeats=settings.repeats, concurrency=settings.concurrency, key=settings.tenant_key,
                    alone=asked.baseline_f1 is not None)

    async def _target(self, asked: "_Asked") -> Target:
        """The version that is meant; a folder is registered first, which gives the version that has its bytes."""
        if asked.version is not None:
            return Target.parse(asked.version)
        name = asked.adapter or self._settings.adapter
        if name is None:
            raise Refused(422, "Say with adapter (tenant/adapter) what the model_path is a version of.",
                          code="invalid_request", param="adapter")
        path = asked.model_path or ""
        if len(path) == DIGEST_DIGITS and all(char in "0123456789abcdef" for char in path):
            return await self._of_digest(name, path)
        folder = self._folder(path)
        version = await asyncio.to_thread(register, folder, name, url=self._settings.door.url,
                                          key=self._settings.operator_key)
        return Target(version["tenant"], version["adapter"], version["number"])

    async def _of_digest(self, name: str, digest: str) -> Target:
        tenant, _, adapter = name.partition("/")
        async with Admin(self._settings.door, self._settings.operator_key) as admin:
            versions = (await admin.get("tenants", tenant, "adapters", adapter, "versions"))["data"]
        for version in reversed(versions):
            if version["digest"] == digest:
                return Target(tenant, adapter, version["number"])
        raise Refused(404, f"No version of {name} has the digest {digest}. Register it first.", code="not_found",
                      param="model_path")

    def _folder(self, path: str) -> Path:
        """The folder on this machine, which must lie in `models`."""
        allowed = self._settings.models
        if allowed is None:
            raise Refused(422, "This service takes no folders: give the digest of a registered artifact, or start it "
                          "with --models-dir.", code="invalid_request", param="model_path")
        folder = (allowed / path).resolve()
        if not folder.is_relative_to(allowed.resolve()) or not folder.is_dir():
            raise Refused(404, f"There is no artifact {path[:200]!r} in the service's folder of models.",
                          code="not_found", param="model_path")
        return folder


def find_golden_set(folder: Path, wanted: str) -> golden.GoldenSet:
    """The golden set of that name (a file's, without .jsonl) or digest (12 digits or more); Refused with 404."""
    files = sorted(folder.glob("*.jsonl"))
    for path in files:
        if path.stem == wanted:
            return golden.read(path)
    if len(wanted) >= LEAST_DIGITS and all(char in "0123456789abcdef" for char in wanted):
        for path in files:
            try:
                found = golden.read(path)
            except golden.GoldenError:
                continue  # what cannot be read has no digest
            if found.digest.startswith(wanted):
                return found
    known = ", ".join(path.stem for path in files) or "none"
    raise Refused(404, f"There is no golden set {wanted[:200]!r}; there is {known}.", code="not_found",
                  param="golden_set_id")


def answer_of(outcome: Outcome) -> dict[str, Any]:
    """What the service answers: the decision in short. `f1_score` is null for a golden set without labels."""
    document, decision = outcome.document, outcome.document["decision"]
    return {
        "pass": outcome.decision.passed,
        "f1_score": document["contenders"]["version"]["metrics"].get("macro_f1"),
        "latency_ms_p99": (document["contenders"]["version"]["latency_ms"] or {}).get("p99"),
        "message": outcome.decision.message, "reasons": outcome.decision.reasons, "metric": decision["metric"],
        "value": decision["value"], "baseline": decision["baseline"], "threshold": document["gate"]["threshold"],
        "version": document["version"]["name"], "digest": document["version"]["digest"],
        "golden_set": document["golden_set"], "record": document["record"],
    }


@dataclass(frozen=True, slots=True)
class _Asked:
    """The fields of a request."""

    golden_set_id: str
    version: str | None
    model_path: str | None
    adapter: str | None
    baseline_f1: float | None
    threshold: float | None

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> "_Asked":
        """The fields, each checked; Refused names the one that is wrong."""
        for name in document:
            if name not in FIELDS:
                raise Refused(422, f"The field {name[:100]!r} is not known; use {', '.join(FIELDS)}.",
                              code="invalid_request", param=name[:100])
        asked = cls(_text(document, "golden_set_id") or "", _text(document, "version"), _text(document, "model_path"),
                    _text(document, "adapter"), _number(document, "baseline_f1", 0, 1),
                    _number(document, "threshold", -1, 1))
        if not asked.golden_set_id:
            raise Refused(422, "golden_set_id is missing.", code="invalid_request", param="golden_set_id")
        if (asked.version is None) == (asked.model_path is None):
            raise Refused(422, "Say with version (acme/support@4) or with model_path what to evaluate, not with both.",
                          code="invalid_request", param="version")
        return asked


def _text(document: Mapping[str, Any], name: str) -> str | None:
    value = document.get(name)
    if value is None or (isinstance(value, str) and value and "\0" not in value):
        return value
    raise Refused(422, f"{name} must be text that is not empty.", code="invalid_request", param=name)


def _number(document: Mapping[str, Any], name: str, least: float, most: float) -> float | None:
    value = document.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
        raise Refused(422, f"{name} must be a number from {least:g} to {most:g}.", code="invalid_request", param=name)
    return float(value)


async def _document(request: Request) -> dict[str, Any]:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise Refused(413, f"The body has more than {MAX_BODY_BYTES} bytes.", code="body_too_large")
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"The body is not JSON: {error}.", code="malformed_json") from error
    if not isinstance(document, dict):
        raise Refused(422, "The body must be a JSON object.", code="invalid_request")
    return document


def _not_registered(error: RegisterError) -> Response:
    """An artifact that the gateway refuses (it does nothing, or no engine takes it) has not passed; else an error."""
    if error.status != 422:
        return _failed(error).response()
    return JSONResponse({
        "pass": False, "f1_score": None, "latency_ms_p99": None, "message": str(error),
        "error": {"message": str(error), "type": "invalid_request_error", "param": "model_path",
                  "code": "artifact_refused"}}, 409)


def _failed(error: Exception) -> Refused:
    """What went wrong elsewhere, and is no verdict."""
    match error:
        case GatewayRefused() if error.status == 404:
            return Refused(404, str(error), code=error.code or "not_found", param="version")
        case GatewayUnreachable() | RegisterError(status=None):
            return Refused(503, str(error), code="gateway_unreachable")
        case GatewayRefused() | RegisterError():
            return Refused(502, f"The gateway refused: {error}", code="gateway_refused")
        case JournalError():
            return Refused(503, str(error), code="evaluation_under_way")
    return Refused(502, f"The judge cannot be asked: {error}", code="judge_failed")
