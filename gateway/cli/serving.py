"""The commands that run Switchyard: `serve` (the gateway), `up` (the gateway and its replicas)."""

import asyncio
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli.options import Json, State, load_settings
from gateway.cli.output import USAGE, CommandFailed

if TYPE_CHECKING:
    from gateway.launch.engines import Engine, EngineOptions, Waiting
    from gateway.launch.stack import Stack
    from gateway.settings import Settings

Host = Annotated[str | None, typer.Option(help="Address to listen on. Default: SWITCHYARD_HOST, else 127.0.0.1.")]
Port = Annotated[int | None, typer.Option(help="Port to listen on. Default: SWITCHYARD_PORT, else 8080.")]
Workers = Annotated[int | None, typer.Option(help="Gateway processes. Default: SWITCHYARD_WORKERS, else 1.")]
TELL_EVERY = 15.0  # seconds between two signs of life when nobody watches a terminal


@dataclass(slots=True)
class Teller:
    """Says what happens on stderr (stdout is for the request log): sentences, or one JSON object a line."""

    as_json: bool
    told_at: float = 0.0

    def __call__(self, message: str, **facts: Any) -> None:
        print(json.dumps({"message": message, **facts}) if self.as_json else message, file=sys.stderr, flush=True)

    def waiting(self, seconds: float) -> None:
        """A sign of life while replicas start: a running clock on a terminal, else a line now and then."""
        if not self.as_json and sys.stderr.isatty():
            print(f"\r… waiting for the replicas ({seconds:.0f} s) ", end="", file=sys.stderr, flush=True)
        elif seconds - self.told_at >= TELL_EVERY:
            self.told_at = seconds
            self(f"… waiting for the replicas ({seconds:.0f} s)")


def serve(
    host: Host = None, port: Port = None, workers: Workers = None, state: State = None,
    redis_url: Annotated[str | None, typer.Option(
        help="Registry. Default: SWITCHYARD_REDIS_URL, else an embedded Valkey.")] = None,
    as_json: Json = False,
) -> None:
    """Run the gateway, with an embedded Valkey unless there is a Redis.

    Example: switchyard serve --port 8080
    """
    settings = load_settings(host=host, port=port, workers=workers, state_path=state, redis_url=redis_url)
    tell = Teller(as_json)
    _run(lambda: _stack(settings, tell), tell)


def up(
    base_model: Annotated[str | None, typer.Option(help="Base model: a folder or a Hugging Face id.")] = None,
    replicas: Annotated[int, typer.Option(min=1, help="How many replicas to start.")] = 1,
    replica: Annotated[list[str] | None, typer.Option(
        help="Use this running vLLM instead of starting one: [name=]URL; repeat for more.")] = None,
    engine_python: Annotated[str | None, typer.Option(
        envvar="SWITCHYARD_ENGINE_PYTHON", help="A python that has vLLM. Default: the `vllm` on the PATH.")] = None,
    device: Annotated[str, typer.Option(help="cpu, gpu, or auto: gpu when the driver lists one.")] = "auto",
    max_model_len: Annotated[int | None, typer.Option(help="Longest context, in tokens. Default: the model's.")] = None,
    max_loras: Annotated[int, typer.Option(min=1, help="Adapter slots per replica.")] = 4,
    vllm_arg: Annotated[list[str] | None, typer.Option(help="Another argument for vLLM; repeat for more.")] = None,
    host: Host = None, port: Port = None, workers: Workers = None, state: State = None, as_json: Json = False,
) -> None:
    """Run everything on this machine: embedded Valkey, vLLM replicas and the gateway.

    Example: switchyard up --base-model meta-llama/Llama-3.1-8B-Instruct --vllm-arg=--max-model-len=8192
    """
    from gateway.launch.engines import EngineOptions

    if bool(base_model) == bool(replica):
        raise CommandFailed("Give either --base-model, to start replicas, or --replica, to use running ones.",
                            exit_code=USAGE)
    if device not in ("auto", "cpu", "gpu"):
        raise CommandFailed(f"--device is {device!r}; use auto, cpu or gpu.", exit_code=USAGE)
    if base_model and Path(base_model).is_dir():
        base_model = os.path.abspath(base_model)
    running = ",".join(_named(url, number) for number, url in enumerate(replica or ()))
    settings = load_settings(host=host, port=port, workers=workers, state_path=state, base_model=base_model,
                             replicas=running or None)
    options = EngineOptions(
        base_model=base_model, replicas=replicas, python=engine_python, device=device,  # type: ignore[arg-type]
        max_model_len=max_model_len, max_loras=max_loras, max_lora_rank=settings.max_rank,
        extra=tuple(vllm_arg or ())) if base_model else None
    tell = Teller(as_json)
    _run(lambda: _stack(settings, tell, options, log=settings.state_path / "logs/gateway.log"), tell)


def _named(url: str, number: int) -> str:
    """`gpu-0=http://…` as it is, a bare URL with a name made for it."""
    head = url.partition("=")[0]
    return url if head != url and "/" not in head and ":" not in head else f"replica-{number}={url}"


def plan_engines(options: "EngineOptions | None", settings: "Settings") -> "list[Engine]":
    """The replicas to start, on sockets in the state folder."""
    from gateway.launch import engines

    if options is None:
        return []
    gpus = engines.find_gpus(options.device, os.environ)
    return engines.plan(options, engines.socket_folder(settings.state_path), settings.state_path / "logs", gpus)


def _stack(settings: "Settings", tell: Teller, options: "EngineOptions | None" = None,
           log: Path | None = None) -> "Stack":
    from gateway import operator_key
    from gateway.launch.stack import Stack
    from gateway.system import System

    key, is_new = operator_key.find_or_make(settings, System())
    if is_new:
        tell(f"Made the operator's key: {key}\nIt is kept in {settings.operator_key_path}.", operator_key=key)
    return Stack(settings, tell, engines=plan_engines(options, settings), log=log)


def _run(make: "Callable[[], Stack]", tell: Teller) -> None:
    """Run a stack until a signal; what could not be started becomes CommandFailed."""
    from gateway.launch.processes import LaunchFailed

    try:
        asyncio.run(_run_to_the_end(make, tell, tell.waiting))
    except LaunchFailed as error:
        raise CommandFailed(str(error), code="launch_failed") from None


async def _run_to_the_end(make: "Callable[[], Stack]", tell: Teller, waiting: "Waiting") -> None:
    from gateway.launch.stack import forever, run

    stack = make()

    async def body() -> None:
        tell(f"Switchyard serves at {stack.url}", url=stack.url, replicas=stack.settings.replicas)
        await forever()

    await run(stack, body, waiting)
    tell("Switchyard has stopped.")
