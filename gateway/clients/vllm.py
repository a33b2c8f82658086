"""One vLLM replica's management: health, models, loading and unloading, the probe's logprobs, metrics, exposure.

Inference goes through another class. Foreign exceptions and both of vLLM's error envelopes stop here: a replica that
does not answer, or whose engine is dead, is ReplicaUnreachable; one that answers no is EngineRefused, in its own words.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, Any, Self, TypeVar

import httpx
import msgspec
from prometheus_client.parser import text_string_to_metric_families

from gateway.domain.errors import EngineRefused, InvalidRequest, ReplicaUnreachable
from gateway.domain.model import Replica

LIKELIEST = 5
"""How many logprobs the probe reads after each prompt."""

AUDITED = (
    ("POST", "/adapters", "POST /adapters"),
    ("DELETE", "/adapters/switchyard-exposure-audit", "DELETE /adapters/{name}"),
    ("POST", "/invocations", "POST /invocations"),
    ("GET", "/metrics", "GET /metrics"),
    ("POST", "/v1/load_lora_adapter", "POST /v1/load_lora_adapter"),
    ("POST", "/v1/chat/completions", "POST /v1/chat/completions"),
)
"""Method, path to try, and what to call the route. They are tried with an empty JSON object (a GET with nothing), so
that an open door answers with a validation error: nothing is loaded, removed or generated."""

_METRICS = (
    "process_start_time_seconds", "vllm:num_requests_running{", "vllm:num_requests_waiting{",
    "vllm:lora_requests_info{",
)

_OPEN = frozenset({
    HTTPStatus.BAD_REQUEST, HTTPStatus.UNSUPPORTED_MEDIA_TYPE, HTTPStatus.UNPROCESSABLE_ENTITY,
})
_DOWN = frozenset({HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT})


@dataclass(frozen=True, slots=True)
class ListedModel:
    """A line of `/v1/models`: `root` is the path it was loaded from, `parent` is None for the base model."""

    id: str
    root: str | None = None
    parent: str | None = None


class _Models(msgspec.Struct):
    data: list[ListedModel]


class _Version(msgspec.Struct):
    version: str


class _Logprobs(msgspec.Struct):
    top_logprobs: Annotated[list[dict[str, float]], msgspec.Meta(min_length=1)]


class _Choice(msgspec.Struct):
    index: int
    logprobs: _Logprobs


class _Completion(msgspec.Struct):
    choices: list[_Choice]


class _Tokens(msgspec.Struct):
    tokens: list[int]


_Answer = TypeVar("_Answer")


@dataclass(frozen=True, slots=True)
class ReplicaStats:
    """What `/metrics` tells.

    `started_at`: Unix time of the process' start. `slots`: GPU slots for adapters (None until the engine has run its
    first request). `running` and `waiting`: requests. `busy_adapters`: served names with a request in flight.
    """

    started_at: float | None
    slots: int | None
    running: int
    waiting: int
    busy_adapters: frozenset[str]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read them from Prometheus' text format; ValueError or KeyError when that is not what it is."""
        started_at: float | None = None
        counts = {"vllm:num_requests_running": 0, "vllm:num_requests_waiting": 0}
        newest, slots, busy = 0.0, None, frozenset[str]()
        wanted = "".join(line for line in text.splitlines(keepends=True) if line.startswith(_METRICS))
        for family in text_string_to_metric_families(wanted):
            for sample in family.samples:
                if sample.name == "process_start_time_seconds":
                    started_at = sample.value
                elif sample.name in counts:
                    counts[sample.name] += int(sample.value)
                elif sample.name == "vllm:lora_requests_info" and sample.value > newest:
                    # The value is the time of writing; every combination of labels that ever was stays listed.
                    newest, slots, busy = sample.value, int(sample.labels["max_lora"]), _adapters(sample.labels)
        running, waiting = counts.values()
        return cls(started_at, slots, running, waiting, busy)


def _adapters(labels: dict[str, str]) -> frozenset[str]:
    listed = labels["running_lora_adapters"].split(",") + labels["waiting_lora_adapters"].split(",")
    return frozenset(filter(None, listed))


@dataclass(frozen=True, slots=True)
class Refusal:
    """What vLLM said no with. `kind` is its error type, empty when the answer has none of vLLM's envelopes."""

    status: int
    kind: str
    message: str

    @classmethod
    def of(cls, response: httpx.Response) -> Self:
        """Read `{"error": {…}}`, the older flat form, `{"error": "Unauthorized"}`, FastAPI's `detail` or plain text."""
        try:
            body = response.json()
        except ValueError:
            body = None
        match body:
            case {"error": {"message": str(message), **rest}} | {"object": "error", "message": str(message), **rest}:
                return cls(response.status_code, str(rest.get("type") or "error"), message)
            case {"error": str(message)} | {"detail": str(message)}:
                return cls(response.status_code, "", message)
        return cls(response.status_code, "", response.text[:500])


class VllmClient:
    """The management of one replica, over one pool of connections.

    Raises ReplicaUnreachable when the replica does not answer in `timeout` seconds (`slow_timeout` for a load, and for
    the probe, which may be the first to run the engine's kernels) or says that its engine is dead, and EngineRefused
    when it refuses, with vLLM's words.
    """

    def __init__(self, replica: Replica, *, timeout: float = 10.0, slow_timeout: float = 120.0) -> None:
        self.replica = replica
        self._slow_timeout = slow_timeout
        self._credentials = {"authorization": f"Bearer {replica.api_key}"} if replica.api_key else {}
        socket = replica.url.removeprefix("unix:") if replica.url.startswith("unix:") else None
        try:
            self._http = httpx.AsyncClient(
                base_url="http://localhost" if socket else replica.url,
                transport=httpx.AsyncHTTPTransport(uds=socket, verify=False) if socket else None,  # no TLS there
                timeout=timeout,
                trust_env=False,
            )
        except httpx.InvalidURL as error:
            raise InvalidRequest(f"The replica's URL {replica.url!r} is not one: {error}.", param="url") from error

    async def is_healthy(self) -> bool:
        """Does the replica answer, and is its engine alive? Costs no tokens; raises nothing."""
        try:
            response = await self._send("GET", "/health")
        except ReplicaUnreachable:
            return False
        return response.status_code == HTTPStatus.OK

    async def version(self) -> str:
        """vLLM's version, such as `0.32.0`."""
        return (await self._ask("GET", "/version", _Version)).version

    async def models(self) -> list[ListedModel]:
        """The base model and every adapter that is loaded now."""
        return (await self._ask("GET", "/v1/models", _Models)).data

    async def load(self, served_name: str, path: str) -> None:
        """Load the adapter at `path`, as the replica sees it; harmless when it is loaded from that path already.

        EngineRefused when the name is loaded from another path: it is never replaced in place, because the engine
        would go on answering from prefixes cached with the old weights.
        """
        body = {"lora_name": served_name, "lora_path": path}
        response = await self._send("POST", "/v1/load_lora_adapter", json=body, timeout=self._slow_timeout)
        if response.is_success:
            return
        refusal = Refusal.of(response)
        if "already been loaded" not in refusal.message:
            raise self._refused(refusal, f"did not load {served_name} from {path}")
        roots = {model.id: model.root for model in await self.models()}
        if roots.get(served_name) != path:
            raise EngineRefused(
                f"The replica {self.replica.name} has {served_name} loaded from {roots.get(served_name)}, not from "
                f"{path}; unload it first.")

    async def unload(self, served_name: str) -> None:
        """Take the adapter off the replica; harmless when it is not loaded."""
        response = await self._send("POST", "/v1/unload_lora_adapter", json={"lora_name": served_name})
        if response.is_success:
            return
        refusal = Refusal.of(response)
        if refusal.status != HTTPStatus.NOT_FOUND or not refusal.kind:
            raise self._refused(refusal, f"did not unload {served_name}")

    async def tokenize(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """The token ids of a conversation in the base model's chat template, with the prompt for an answer."""
        body = {"messages": list(messages), "add_generation_prompt": True}
        return (await self._ask("POST", "/tokenize", _Tokens, json=body)).tokens

    async def next_token_logprobs(
        self, model: str, prompts: Sequence[str] | Sequence[Sequence[int]], salt: str, count: int = LIKELIEST,
    ) -> list[dict[int, float]]:
        """For each prompt (text, or token ids) the `count` likeliest next tokens, likeliest first: id → logprob (nats).

        One token each is spent. A `salt` never used before keeps the engine from answering from its prefix cache.

        Not vLLM's `prompt_logprobs` or `echo`: with LoRA on, those kill the engine when another request shares the
        step (CPU), and leave out what an adapter does to `lm_head`.
        """
        body = {
            "model": model, "prompt": list(prompts), "max_tokens": 1, "temperature": 0, "logprobs": count,
            "cache_salt": salt,
            "return_tokens_as_token_ids": True,  # as `token_id:17`; else tokens with the same text fall together
        }
        answer = await self._ask("POST", "/v1/completions", _Completion, json=body, timeout=self._slow_timeout)
        likeliest = [c.logprobs.top_logprobs[0] for c in sorted(answer.choices, key=lambda choice: choice.index)]
        if len(likeliest) != len(prompts):
            raise self._not_vllm("/v1/completions", f"{len(prompts)} prompts have {len(likeliest)} answers")
        try:
            return [_by_id(logprobs, count) for logprobs in likeliest]
        except ValueError as error:
            raise self._not_vllm("/v1/completions", str(error)) from error

    async def stats(self) -> ReplicaStats:
        """What the replica's metrics tell now."""
        response = await self._send("GET", "/metrics")
        if not response.is_success:
            raise self._refused(Refusal.of(response), "did not show its metrics")
        try:
            return ReplicaStats.parse(response.text)
        except (ValueError, KeyError) as error:
            raise EngineRefused(f"The metrics of the replica {self.replica.name} cannot be read: {error}.") from error

    async def audit_exposure(self) -> tuple[str, ...]:
        """The routes of `AUDITED` that answer without the replica's key, such as `POST /adapters`."""
        exposed = []
        for method, path, route in AUDITED:
            response = await self._send(method, path, json=None if method == "GET" else {}, credentials={})
            if response.is_success or response.status_code in _OPEN or _is_known_route(response):
                exposed.append(route)
        return tuple(exposed)

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def _send(
        self, method: str, path: str, *, json: Any = None, timeout: float | None = None,
        credentials: dict[str, str] | None = None,
    ) -> httpx.Response:
        headers = self._credentials if credentials is None else credentials
        limit = httpx.USE_CLIENT_DEFAULT if timeout is None else timeout
        try:
            return await self._http.request(method, path, json=json, headers=headers, timeout=limit)
        except httpx.HTTPError as error:
            why = str(error) or type(error).__name__
            raise ReplicaUnreachable(f"The replica {self.replica.name} does not answer {path}: {why}.") from error

    async def _ask(
        self, method: str, path: str, answer: type[_Answer], *, json: Any = None, timeout: float | None = None
    ) -> _Answer:
        response = await self._send(method, path, json=json, timeout=timeout)
        if not response.is_success:
            raise self._refused(Refusal.of(response), f"refused {path}")
        try:
            return msgspec.json.decode(response.content, type=answer)
        except msgspec.DecodeError as error:
            raise self._not_vllm(path, str(error)) from error

    def _not_vllm(self, path: str, why: str) -> EngineRefused:
        return EngineRefused(f"The replica {self.replica.name} does not answer {path} as vLLM does: {why}.")

    def _refused(self, refusal: Refusal, what: str) -> EngineRefused | ReplicaUnreachable:
        said = f"The replica {self.replica.name} {what}: {refusal.message or 'no reason given'} ({refusal.status})."
        if refusal.status in _DOWN or refusal.message.startswith("EngineCore encountered an issue"):
            return ReplicaUnreachable(said)
        return EngineRefused(said + _advice(refusal))


def _by_id(logprobs: Mapping[str, float], count: int) -> dict[int, float]:
    """The `count` likeliest of `token_id:17` → logprob, by id, likeliest first; ValueError for other names."""
    ranked = sorted(logprobs.items(), key=lambda item: item[1], reverse=True)[:count]
    return {int(name.removeprefix("token_id:")): logprob for name, logprob in ranked}


def _is_known_route(response: httpx.Response) -> bool:
    """Does a 404 come from a handler (the thing is unknown), and not for want of the route?"""
    return response.status_code == HTTPStatus.NOT_FOUND and bool(Refusal.of(response).kind)


def _advice(refusal: Refusal) -> str:
    if refusal.status == HTTPStatus.UNAUTHORIZED:
        return " Give the replica's own key as its api_key."
    if refusal.status == HTTPStatus.NOT_FOUND and not refusal.kind:
        return " Start it with VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 and --enable-lora."
    if "No adapter found for" in refusal.message:
        return " Does the replica see the artifacts under another path? Then set its artifacts_path."
    return ""
