"""The fake's engine: which adapters are registered, cached and running, and how it dies."""

import time
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.fakes.vllm.behaviour import Death, LoraInfo, Seen, Slots
from tests.fakes.vllm.prompts import Refused
from tests.fakes.vllm.weights import BASE, LoadFailed, NoAdapter, Weights, read_weights
from tests.fakes.vllm.wire import Cut

DEAD = "EngineCore encountered an issue. See stack trace (above) for the root cause."


@dataclass(frozen=True, slots=True)
class Loaded:
    """A registered adapter: the path it was loaded from and what was there."""

    path: str
    weights: Weights


class Engine:
    """Adapters by served name, `max_cpu_loras` of them in memory, `max_loras` running at once."""

    def __init__(
        self, base_model: str, *, max_loras: int, max_cpu_loras: int, max_rank: int, max_requests: int
    ) -> None:
        self.base_model = base_model
        self.adapters: dict[str, Loaded] = {}
        self.started_at = time.time()
        self.death: Death = ""
        self.seen = Seen()
        self.slots = Slots(max_loras, max_requests)
        self.info = LoraInfo(max_loras)
        self._max_cpu_loras, self._max_rank = max_cpu_loras, max_rank
        self._in_memory: OrderedDict[str, None] = OrderedDict()

    def restart(self) -> None:
        """A new process: no adapters, a new start time, alive."""
        self.adapters.clear()
        self._in_memory.clear()
        self.info.clear()
        self.started_at = max(time.time(), self.started_at + 1e-3)
        self.death = ""

    def load(self, name: str, path: str) -> None:
        """Register an adapter; Refused in vLLM's words."""
        if not name or not path:
            raise Refused(400, "Both 'lora_name' and 'lora_path' must be provided.", "InvalidUserInput")
        if name == self.base_model:
            raise Refused(400, f"The lora adapter '{name}' conflicts with a served base model.", "InvalidUserInput")
        if name in self.adapters:
            raise Refused(400, f"The lora adapter '{name}' has already been loaded. If you want to load the adapter "
                          "in place, set 'load_inplace' to True.", "InvalidUserInput")
        try:
            weights = read_weights(Path(path), name, self._max_rank)
        except NoAdapter as error:
            raise Refused(404, str(error).replace(path, "<path>"), "NotFoundError") from error
        except LoadFailed as error:
            raise Refused(500, str(error), "InternalServerError") from error
        self.adapters[name] = Loaded(path, weights)
        self._remember(path)
        self.seen.loads[name] += 1

    def unload(self, name: str) -> None:
        """Forget an adapter's name; Refused when there is none."""
        if name not in self.adapters:
            raise Refused(404, f"The lora adapter '{name}' cannot be found.", "NotFoundError")
        del self.adapters[name]
        self.seen.unloads[name] += 1

    def weights_for(self, model: str) -> Weights:
        """What answers for that model name; Refused when it is unknown."""
        if model == self.base_model:
            return BASE
        if model not in self.adapters:
            raise Refused(404, f"The model `{model}` does not exist. Valid aliases: {self.base_model}.",
                          "NotFoundError", "model")
        return self.adapters[model].weights

    @asynccontextmanager
    async def running(self, model: str) -> AsyncIterator[None]:
        """Take part in the engine's steps, when there is room; dies if an evicted adapter's files are gone."""
        adapter = "" if model == self.base_model else model
        self.seen.in_flight += 1
        try:
            async with self.slots.hold(adapter):
                self._fetch(adapter)
                yield
        finally:
            self.seen.in_flight -= 1
            self.note()

    def check_alive(self) -> None:
        """Refused when the engine is dead, Cut when the process is."""
        if self.death == "drop":
            raise Cut
        if self.death:
            raise Refused(500, DEAD, "InternalServerError")

    def die(self) -> None:
        """From now on the engine is dead, and the process says so."""
        self.death = "unhealthy"
        self.check_alive()

    def _fetch(self, adapter: str) -> None:
        loaded = self.adapters.get(adapter)
        if loaded is None:
            return
        if loaded.path not in self._in_memory and not Path(loaded.path, "adapter_config.json").exists():
            self.die()
        self._remember(loaded.path)

    def _remember(self, path: str) -> None:
        self._in_memory[path] = None
        self._in_memory.move_to_end(path)
        while len(self._in_memory) > self._max_cpu_loras:
            self._in_memory.popitem(last=False)

    def note(self) -> None:
        """Write down who runs and who waits now, as the real one does with every step."""
        self.info.write(self.slots.running, self.slots.waiting)
