"""The fake's doors: routes, keys, management, metrics, and the control routes of tests."""

import asyncio
from dataclasses import asdict
from typing import Any, Literal
from urllib.parse import unquote

import msgspec

from tests.fakes.vllm import metrics, other_shapes, shapes
from tests.fakes.vllm.behaviour import Behaviour
from tests.fakes.vllm.engine import Engine
from tests.fakes.vllm.inference import Inference
from tests.fakes.vllm.prompts import Body, Refused, invalid, no_prompt, parse, prompts_of, tokenize
from tests.fakes.vllm.wire import JSON, Cut, HungUp, Receive, Scope, Send, cut, read_body, reply

TEXT = b"text/plain; version=0.0.4; charset=utf-8"
NEEDED: dict[str, tuple[str, ...]] = {
    "/v1/chat/completions": ("messages",), "/v1/completions": ("prompt",), "/v1/embeddings": ("input",),
    "/v1/responses": ("input",), "/v1/messages": ("model", "messages", "max_tokens"), "/tokenize": (),
    "/v1/load_lora_adapter": ("lora_name", "lora_path"), "/v1/unload_lora_adapter": ("lora_name",),
    "/adapters": (), "/invocations": (),
}
"""The routes that are posted to, and the fields that they need."""

ADAPTER_HEADER = "x-amzn-sagemaker-adapter-identifier"


class FakeVllm:
    """One replica, as an ASGI app.

    `error_shape`: the envelope of errors, nested or the older flat one. `exposed`: are the routes there that no key
    protects? `embeddings`: does the model embed? `runtime_updating`: are the load and unload routes there?
    Tests may read and set `behaviour`, and read `engine` and `seen`, at any time; from outside there are
    `POST /fake/behaviour` with fields of Behaviour (`"forget": true` restarts it) and `GET /fake/state`.
    """

    def __init__(
        self, base_model: str = "base", root: str = "/models/base", *, max_loras: int = 4, max_cpu_loras: int = 16,
        max_rank: int = 64, max_requests: int = 256, max_model_len: int = 8192, api_key: str | None = None,
        error_shape: Literal["nested", "flat"] = "nested", exposed: bool = True, embeddings: bool = True,
        runtime_updating: bool = True, version: str = "0.32.0", behaviour: Behaviour | None = None,
    ) -> None:
        self.base_model, self.root, self.version, self.api_key = base_model, root, version, api_key
        self.behaviour = behaviour or Behaviour()
        self.engine = Engine(base_model, max_loras=max_loras, max_cpu_loras=max_cpu_loras, max_rank=max_rank,
                             max_requests=max_requests)
        self.engine.death = self.behaviour.dead
        self.seen = self.engine.seen
        self._max_model_len, self._flat_errors = max_model_len, error_shape == "flat"
        self._inference = Inference(self.engine, max_model_len)
        self._absent = {
            *(() if embeddings else ("/v1/embeddings",)), *(() if exposed else ("/adapters", "/invocations")),
            *(() if runtime_updating else ("/adapters", "/v1/load_lora_adapter", "/v1/unload_lora_adapter")),
        }

    def behave(self, **changes: Any) -> None:
        """Change some fields of the behaviour, now."""
        self.behaviour = self.behaviour.changed(changes)
        if "dead" in changes:
            self.engine.death = self.behaviour.dead

    def restart(self) -> None:
        """As a new process: without adapters, with a new start time, alive."""
        self.engine.restart()
        self.behave(dead="")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        path: str = scope["path"]
        try:
            if path.startswith("/fake/"):
                await self._control(path, receive, send)
            elif self.engine.death == "drop":
                raise Cut
            else:
                await self._route(scope["method"], path, _headers(scope), receive, send)
        except HungUp:
            self.seen.aborted += 1
        except Cut:
            self.seen.drops += 1
            await cut(receive)
        except Refused as refused:
            await self._refuse(send, path, refused)

    async def _route(self, method: str, path: str, headers: dict[str, str], receive: Receive, send: Send) -> None:
        root = "/adapters" if path.startswith("/adapters/") else path
        if path.startswith("/v1") and not self._is_allowed(headers):
            await reply(send, 401, b'{"error":"Unauthorized"}')
        elif root in self._absent:
            await reply(send, 404, b'{"detail":"Not Found"}')
        elif method == "GET" and (page := self._page(path)):
            await reply(send, *page)
        elif method == "DELETE" and root != path:
            name = unquote(path.removeprefix("/adapters/"))
            self.engine.unload(name)
            await reply(send, 200, f"Adapter {name} unregistered".encode(), b"")
        elif method == "POST" and path in NEEDED:
            await self._post(path, headers, receive, send)
        elif path in NEEDED:
            await reply(send, 405, b'{"detail":"Method Not Allowed"}')
        else:
            await reply(send, 404, b'{"detail":"Not Found"}')

    def _is_allowed(self, headers: dict[str, str]) -> bool:
        scheme, _, key = headers.get("authorization", "").partition(" ")
        return self.api_key is None or (scheme.lower() == "bearer" and key == self.api_key)

    def _page(self, path: str) -> tuple[int, bytes, bytes] | None:
        match path:
            case "/health" | "/ping":
                return (503 if self.engine.death else 200), b"", b""
            case "/version":
                return 200, shapes.dump({"version": self.version}), JSON
            case "/load":
                return 200, shapes.dump({"server_load": self.seen.in_flight}), JSON
            case "/v1/models":
                return 200, shapes.dump({"object": "list", "data": self._models()}), JSON
            case "/metrics":
                return 200, metrics.render(self.engine).encode(), TEXT
        return None

    def _models(self) -> list[dict[str, Any]]:
        base = shapes.model_card(self.base_model, self.root, None, self._max_model_len)
        return [base, *(shapes.model_card(name, loaded.path, self.base_model, None)
                        for name, loaded in self.engine.adapters.items())]

    async def _post(self, path: str, headers: dict[str, str], receive: Receive, send: Send) -> None:
        raw = await read_body(receive)
        if path == "/adapters":
            await self._load(_sagemaker_load(raw), "Adapter {} registered", send)
            return
        body = parse(raw, headers.get("content-type", ""), NEEDED[path])
        match path:
            case "/v1/load_lora_adapter":
                await self._load(body, "Success: LoRA adapter '{}' added successfully.", send)
            case "/v1/unload_lora_adapter":
                name = body["lora_name"]
                self.engine.unload(name)
                await reply(send, 200, f"Success: LoRA adapter '{name}' removed successfully.".encode(), b"")
            case "/tokenize":
                await self._tokenize(body, headers, send)
            case _:
                if path == "/invocations":
                    path, body = _invocation(body, headers)
                await self._inference.answer(path, body, headers, self.behaviour, receive, send)

    async def _load(self, body: Body, success: str, send: Send) -> None:
        self.engine.check_alive()
        if self.behaviour.load_delay:
            await asyncio.sleep(self.behaviour.load_delay)
        if self.behaviour.failing_loads:
            self.behave(failing_loads=self.behaviour.failing_loads - 1)
            raise Refused(500, "Call to add_lora method failed: Worker failed with error 'the fake was told to fail', "
                          "please check the stack trace above for the root cause", "InternalServerError")
        self.engine.load(body["lora_name"], body["lora_path"])
        await reply(send, 200, success.format(body["lora_name"]).encode(), b"")

    async def _tokenize(self, body: Body, headers: dict[str, str], send: Send) -> None:
        if "messages" not in body and "prompt" not in body:
            raise invalid(("prompt", "messages"), body)
        self.seen.request("/tokenize", headers, body)
        self.engine.weights_for(str(body.get("model") or self.base_model))
        tokens = tokenize(prompts_of("/v1/completions" if "prompt" in body else "/v1/chat/completions", body)[0])
        await reply(send, 200, shapes.dump({
            "count": len(tokens), "max_model_len": self._max_model_len, "tokens": tokens, "token_strs": None}))

    async def _refuse(self, send: Send, path: str, refused: Refused) -> None:
        if path == "/v1/messages" and refused.kind != "Bad Request":
            body = other_shapes.message_error(refused.message, refused.kind)
        else:
            body = shapes.error(refused.status, refused.message, refused.kind, refused.param, flat=self._flat_errors)
        await reply(send, refused.status, body)

    # For tests

    def state(self) -> dict[str, Any]:
        """What GET /fake/state shows."""
        slots = self.engine.slots
        return {
            **self.seen.document(), "behaviour": asdict(self.behaviour), "started_at": self.engine.started_at,
            "adapters": {name: loaded.path for name, loaded in self.engine.adapters.items()},
            "running": dict(slots.running), "waiting": dict(slots.waiting),
        }

    async def _control(self, path: str, receive: Receive, send: Send) -> None:
        match path:
            case "/fake/state":
                await reply(send, 200, shapes.dump(self.state()))
            case "/fake/behaviour":
                changes = msgspec.json.decode(await read_body(receive), type=dict[str, Any])
                if changes.pop("forget", False):
                    self.restart()
                try:
                    self.behave(**changes)
                except TypeError as error:
                    await reply(send, 400, shapes.dump({"error": str(error)}))
                else:
                    await reply(send, 200, shapes.dump(asdict(self.behaviour)))
            case _:
                await reply(send, 404, b'{"detail":"Not Found"}')


def _headers(scope: Scope) -> dict[str, str]:
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}


def _sagemaker_load(raw: bytes) -> Body:
    """`{"name", "src"}` as `{"lora_name", "lora_path"}`; a body that is no JSON counts as one without them."""
    try:
        given = msgspec.json.decode(raw)
    except msgspec.DecodeError:
        given = ""
    missing = [name for name in ("name", "src") if not isinstance(given, dict) or name not in given]
    if missing:
        details = [{"type": "missing", "loc": [name], "msg": "Field required", "input": given} for name in missing]
        raise Refused(400, shapes.dump(details).decode(), "Bad Request")
    return {"lora_name": given["name"], "lora_path": given["src"]}


def _invocation(body: Body, headers: dict[str, str]) -> tuple[str, Body]:
    """The route and body that /invocations stands for: the body's model is ignored for the header's, or the base."""
    body = {**body, "model": headers.get(ADAPTER_HEADER)}
    if "messages" in body:
        return "/v1/chat/completions", body
    if not body.get("prompt"):
        raise no_prompt()
    return "/v1/completions", body


async def _lifespan(receive: Receive, send: Send) -> None:
    while (message := await receive())["type"] == "lifespan.startup":
        await send({"type": "lifespan.startup.complete"})
    await send({"type": f"{message['type']}.complete"})
