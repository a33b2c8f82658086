"""The quickstart's job: a base model, two tenants' adapters trained, served through the gateway and tried.

Everything is kept in the state folder and taken from there by the next run. deploy/quickstart runs this.
"""

import argparse
import asyncio
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
from environments import ROOT, StepFailed
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from adapters.demo import DEMOS, Demo, write_demos
from gateway import operator_key, settings
from gateway.cli.archive import tar_stream
from gateway.cli.client import AdminClient
from gateway.cli.output import CommandFailed
from gateway.launch import engines
from gateway.launch.processes import LaunchFailed
from gateway.launch.stack import Stack, forever, run
from gateway.system import System

TINY_BASE = "tiny-llama"
RECIPE = ROOT / "adapters/recipes/tiny-cpu.toml"
MAX_TOKENS = 32


class Job:
    """One run. `state` holds what it made, `logs` every step's output; a step that fails raises StepFailed."""

    def __init__(self, given: argparse.Namespace, console: Console) -> None:
        self.state = Path(given.state)
        self.logs = self.state / "logs"
        self.python: str = given.engine_python
        self.console = console
        self.base_model: str = given.base_model or str(self.state / TINY_BASE)
        self.is_tiny = given.base_model is None
        self.artifacts: dict[str, Path] = {}
        self.keys: dict[str, str] = {}
        self.settings = settings.load(port=given.port, state_path=self.state, base_model=self.base_model,
                                      redis_url=None, drain_seconds=0.2 if given.check else None)
        self.operator_key, _ = operator_key.find_or_make(self.settings, System())

    # what is made once

    def make_base_model(self) -> None:
        """A tiny Llama, unless a base model was named or it is there already."""
        final = Path(self.base_model)
        if not self.is_tiny or final.exists():
            return
        with self._step("make a tiny base model", self.logs / "base-model.log") as log:
            part = final.with_suffix(".part")
            shutil.rmtree(part, ignore_errors=True)
            self._adapters(["base", str(part)], log)
            part.rename(final)

    def train(self) -> None:
        """An adapter for each demo tenant, unless one from the same recipe, data and base model is there already."""
        data = self.state / "demo-data"
        for demo, rows in zip(DEMOS, write_demos(data), strict=True):
            folder = self.state / "demo-adapters" / f"{demo.tenant}-{demo.adapter}-{self._origin(rows)}"
            self.artifacts[demo.tenant] = folder
            if folder.exists():
                continue
            with self._step(f"train {demo.tenant}'s adapter {demo.adapter} (QLoRA)",
                            self.logs / f"train-{demo.tenant}.log") as log:
                self._adapters(["train", str(RECIPE), "--base-model", self.base_model, "--data", str(rows),
                                "--out", str(folder), "--set", "report.page=false"], log)

    def _origin(self, rows: Path) -> str:
        """Changes with the recipe, the data or the base model."""
        base = Path(self.base_model)
        weights = [f"{p.name} {p.stat().st_size}" for p in sorted(base.iterdir())] if base.is_dir() else []
        config = (base / "config.json").read_bytes() if base.is_dir() else b""
        parts = [RECIPE.read_bytes(), rows.read_bytes(), config, "\n".join([self.base_model, *weights]).encode()]
        return hashlib.sha256(b"\0".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()[:12]

    def _adapters(self, arguments: list[str], log: Path) -> None:
        """Run `python -m adapters` in the engine's environment."""
        offline = {"HF_HUB_OFFLINE": "1"} if Path(self.base_model).is_dir() or self.is_tiny else {}
        with log.open("ab") as output:
            subprocess.run([self.python, "-m", "adapters", *arguments], cwd=ROOT, env={**os.environ, **offline},
                           stdin=subprocess.DEVNULL, stdout=output, stderr=output, check=True)

    # what runs

    def stack(self) -> Stack:
        """Valkey, one vLLM and the gateway."""
        options = engines.EngineOptions(base_model=self.base_model, python=self.python,
                                        max_lora_rank=self.settings.max_rank)
        gpus = engines.find_gpus("auto", os.environ)
        planned = engines.plan(options, engines.socket_folder(self.state), self.logs, gpus)
        return Stack(self.settings, lambda line: self.console.print(line, markup=False), engines=planned,
                     log=self.logs / "gateway.log")

    def prepare_tenants(self, url: str) -> None:
        """Each demo's tenant with a key that works; a key is shown once, so a private file remembers it."""
        remembered = self.state / "quickstart-keys.json"
        with self._step("create the tenants and their keys", self.logs / "gateway.log"), self._admin(url) as admin:
            self.keys = json.loads(remembered.read_text()) if remembered.exists() else {}
            there = {tenant["name"] for tenant in admin.list("/tenants")}
            for tenant in (demo.tenant for demo in DEMOS):
                if tenant not in there:
                    admin.call("POST", "/tenants", json={"name": tenant})
                if not works(url, self.keys.get(tenant)):
                    made = admin.call("POST", f"/tenants/{tenant}/keys", json={"name": "quickstart"})
                    self.keys[tenant] = made["key"]
            write_private(remembered, json.dumps(self.keys))

    def register(self, url: str, demo: Demo) -> None:
        """The demo's artifact as a version that takes the adapter's traffic; the same bytes are the same version."""
        path = f"/tenants/{demo.tenant}/adapters/{demo.adapter}"
        with self._step(f"register {demo.tenant}/{demo.adapter}", self.logs / "gateway.log"), self._admin(url) as admin:
            version = admin.call("POST", f"{path}/versions", content=tar_stream(self.artifacts[demo.tenant]),
                                 headers={"Content-Type": "application/x-tar"})
            if admin.get(f"{path}/release")["stable"] != version["number"]:
                admin.call("PUT", f"{path}/release", json={"stable": version["number"]})

    def chat(self, url: str, demo: Demo) -> None:
        """Ask the demo's question as its tenant: the adapter itself must answer, and the others' not be there."""
        with self._step(f"chat as {demo.tenant}", self.logs / "gateway.log"):
            status, answer = ask(url, self.keys[demo.tenant], demo.adapter, demo.prompt)
            text = answer["choices"][0]["message"]["content"] if status == httpx.codes.OK else json.dumps(answer)
            if demo.expected not in text:
                raise CommandFailed(f"{demo.adapter} should have said {demo.expected!r}; status {status}: {text}")
            for other in (other for other in DEMOS if other.tenant != demo.tenant):
                status, _ = ask(url, self.keys[demo.tenant], other.adapter, demo.prompt)
                if status != httpx.codes.NOT_FOUND:
                    raise CommandFailed(f"{demo.tenant} asked for {other.tenant}'s {other.adapter} and got {status}.")
        self.console.print(f"    {demo.tenant} asks {demo.adapter}: {demo.prompt}", markup=False, soft_wrap=True)
        self.console.print(f"    it answers: {text.strip()}", markup=False, style="bold", soft_wrap=True)

    def _admin(self, url: str) -> AdminClient:
        return AdminClient(url, self.operator_key)

    @contextmanager
    def _step(self, name: str, log: Path) -> Iterator[Path]:
        """Show that something is being done, then how long it took; failures become StepFailed with the log."""
        self.logs.mkdir(parents=True, exist_ok=True)
        started = time.monotonic()
        try:
            with self._spinner(name):
                yield log
        except subprocess.CalledProcessError as error:
            tail = log.read_text(errors="replace").strip().splitlines()[-8:]
            raise StepFailed(name, log, "\n    ".join([f"exit status {error.returncode}", *tail])) from error
        except (CommandFailed, LaunchFailed, httpx.HTTPError, OSError) as error:
            raise StepFailed(name, log, str(error)) from error
        self.console.print(f"[green]✓[/green] {name} ({time.monotonic() - started:.1f} s)")

    @contextmanager
    def _spinner(self, name: str) -> Iterator[None]:
        if not self.console.is_terminal:
            self.console.print(f"… {name}", markup=False)
            yield
            return
        columns = SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn()
        with Progress(*columns, console=self.console, transient=True) as progress:
            progress.add_task(name, total=None)
            yield

    # all of it

    async def run(self, *, check: bool, started: float) -> None:
        """Start everything, do the job, and stay until told to stop; with `check` stop at once."""
        stack = self.stack()
        is_up = False

        async def work() -> None:
            nonlocal is_up
            is_up = True
            starting.close()
            await asyncio.to_thread(self._try_out, stack.url)
            self.console.print(f"[bold]Ready after {time.time() - started:.1f} s.[/bold]")
            if not check:
                print_lines(self.console, stack.url, self.operator_key, self.keys, self.state)
                await forever()

        with ExitStack() as starting:
            starting.enter_context(self._step("start Valkey, vLLM and the gateway", self.logs))
            await run(stack, work)
            if not is_up:
                raise KeyboardInterrupt
        self.console.print("Everything has stopped.")

    def _try_out(self, url: str) -> None:
        self.prepare_tenants(url)
        for demo in DEMOS:
            self.register(url, demo)
        for demo in DEMOS:
            self.chat(url, demo)


def ask(url: str, key: str, model: str, prompt: str) -> tuple[int, Any]:
    """One chat through the gateway: the status and the answer's JSON."""
    body = {"model": model, "messages": [{"role": "user", "content": prompt}], "temperature": 0,
            "max_tokens": MAX_TOKENS}
    answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=120,
                        headers={"Authorization": f"Bearer {key}"})
    return answer.status_code, answer.json()


def works(url: str, key: str | None) -> bool:
    """Is this a key that the gateway takes?"""
    if key is None:
        return False
    return httpx.get(f"{url}/v1/models", headers={"Authorization": f"Bearer {key}"}, timeout=30).is_success


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner may read, whole or not at all."""
    part = path.with_suffix(".part")
    with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
    part.rename(path)


def print_lines(console: Console, url: str, operator: str, keys: dict[str, str], state: Path) -> None:
    """The keys, and lines to try."""
    first, second = DEMOS
    lines = [
        "", *(f"{demo.tenant}'s key: {keys[demo.tenant]}" for demo in DEMOS), f"operator's key: {operator}", "",
        "Try it with curl:", "",
        f"curl {url}/v1/chat/completions -H 'Authorization: Bearer {keys[first.tenant]}' \\",
        "  -H 'Content-Type: application/json' \\",
        f"""  -d '{{"model": "{first.adapter}", "messages": [{{"role": "user", "content": "{first.prompt}"}}]}}'""",
        "", "or with the OpenAI SDK:", "",
        "from openai import OpenAI",
        f'client = OpenAI(base_url="{url}/v1", api_key="{keys[second.tenant]}")',
        f'answer = client.chat.completions.create(model="{second.adapter}",',
        f'    messages=[{{"role": "user", "content": "{second.prompt}"}}])',
        "print(answer.choices[0].message.content)", "",
        "Administer it from another terminal:", "",
        f"export SWITCHYARD_URL={url} SWITCHYARD_STATE_PATH={state}",
        f"{Path(sys.executable).parent}/switchyard doctor", "",
        "Ctrl-C stops everything.",
    ]
    for line in lines:
        console.print(line, markup=False, soft_wrap=True, highlight=False)


def main() -> int:
    """Run the job; 0, or 1 when a step failed."""
    parser = argparse.ArgumentParser()
    for name in ("--engine-python", "--state"):
        parser.add_argument(name, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--started", type=float, required=True)
    parser.add_argument("--base-model")
    parser.add_argument("--check", action="store_true")
    given = parser.parse_args()
    console = Console(highlight=False)
    try:
        job = Job(given, console)
        job.make_base_model()
        job.train()
        asyncio.run(job.run(check=given.check, started=given.started))
    except StepFailed as failure:
        console.print(f"[red]✗[/red] {failure.step}")
        console.print(f"    {failure.reason}\n  log: {failure.log}", markup=False, soft_wrap=True)
        return 1
    except settings.SettingsError as error:
        console.print(f"error: {error}", markup=False)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
