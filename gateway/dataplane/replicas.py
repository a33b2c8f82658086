"""The replicas as this process sees them: who is up, what is loaded where, who takes the next call."""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

from gateway.dataplane.ports import Artifacts, Connect, Engine, Wire
from gateway.domain import placement
from gateway.domain.errors import (
    AdapterNotLoaded,
    ArtifactRefused,
    EngineRefused,
    NoHealthyReplica,
    NotFound,
    ReplicaUnreachable,
    SwitchyardError,
)
from gateway.domain.fleet import Effect, ReplicaView
from gateway.domain.model import Replica, Snapshot, Version
from gateway.domain.parity import Observed, Reference
from gateway.domain.routing import Route
from gateway.system import System
from gateway.telemetry import Metrics

PROBE_PROMPTS = (
    "The quick brown fox jumps over the lazy dog.",
    "User: How can I help you today?\nAssistant: Certainly, here is what I found:",
    "1. First, explain the problem. 2. Then list the steps. 3. Finally, summarise the result.",
)
PROBE_RUNS = 5
"""Of base and adapter each: with 5, 1 in 2,000 adapters that do nothing passed beside 128 streams, with 3 1 in 70, and
none that did something was refused (resampled from an H200's answers, vLLM 0.26)."""
OBSERVED_TOKENS = 20
"""How many of the likeliest next tokens are compared with the trainer's: a replica gives no more unless told to."""
STATS_EVERY = 5
RANKINGS_KEPT = 10_000


class ReplicaState:
    """One replica: its connections and what was last seen of it."""

    def __init__(self, replica: Replica, engine: Engine, wire: Wire) -> None:
        self.replica = replica
        self.name = replica.name
        self.engine = engine
        self.wire = wire
        self.healthy = False
        self.failures = 0
        self.in_flight = 0
        self.base_model: str | None = None
        self.root: str | None = None
        self.loaded: dict[str, str] = {}
        self.changes = 0
        self.busy_adapters: frozenset[str] = frozenset()
        self.slots: int | None = None
        self.exposed: tuple[str, ...] = ()
        self.started_at: float | None = None
        self.engine_version: str | None = None
        self.last_error: str | None = None
        self.fingerprint: bytes | None = None
        self.probed = asyncio.Event()

    def view(self) -> ReplicaView:
        """What is known now, as a value."""
        return ReplicaView(
            self.name, self.replica.url, self.healthy, self.base_model, self.root, dict(self.loaded),
            self.busy_adapters, self.slots, self.in_flight, self.exposed, self.started_at, self.engine_version,
            self.last_error)

    async def close(self) -> None:
        """Close idle connections; calls under way end by themselves."""
        self.wire.close()
        await self.engine.close()


class Replicas:
    """Every replica of the registry and of the settings, watched by one task each."""

    def __init__(
        self, connect: Connect, artifacts: Artifacts, metrics: Metrics, log: Any, system: System, *,
        static: Iterable[Replica] = (), health_interval: float = 1.0, eject_after: int = 3,
    ) -> None:
        self._connect = connect
        self._artifacts = artifacts
        self._metrics = metrics
        self._log = log
        self._system = system
        self._static = {replica.name: replica for replica in static}
        self._health_interval = health_interval
        self._eject_after = eject_after
        self._states: dict[str, ReplicaState] = {}
        self._watchers: dict[str, asyncio.Task[None]] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._loading: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._ranked: dict[str, list[str]] = {}
        self.base_models: frozenset[str] = frozenset()

    # who there is

    def follow(self, snapshot: Snapshot) -> None:
        """Watch exactly the replicas of the settings and of `snapshot`."""
        wanted = {**self._static, **snapshot.replicas}
        for name, state in list(self._states.items()):
            replica = wanted.get(name)
            if replica is None or (replica.url, replica.api_key) != (state.replica.url, state.replica.api_key):
                self._drop(name)
            else:
                state.replica = replica
        for name, replica in wanted.items():
            if name not in self._states:
                self._states[name] = ReplicaState(replica, *self._connect(replica))
                self._watchers[name] = asyncio.create_task(self._watch(self._states[name]), name=f"replica {name}")
                self._ranked.clear()

    def replicas(self) -> Sequence[ReplicaView]:
        """All replicas as last seen, by name."""
        return [self._states[name].view() for name in sorted(self._states)]

    async def wait_probed(self, seconds: float) -> None:
        """Wait until every replica has been asked once, or the time is up."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await asyncio.gather(*(state.probed.wait() for state in self._states.values()))

    async def close(self) -> None:
        """Stop watching and loading."""
        for name in list(self._states):
            self._drop(name)
        await asyncio.gather(*self._closing, return_exceptions=True)

    # one call

    async def pick(self, route: Route, tried: Mapping[str, int]) -> ReplicaState:
        """The replica to send to next, with the version loaded; counts as in flight until `release`.

        `tried`: replicas that failed this call already. Raises NoHealthyReplica, or AdapterNotLoaded.
        """
        failure: SwitchyardError | None = None
        for name in self._order(route, tried):
            state = self._states[name]
            try:
                if route.version is not None and route.served_name not in state.loaded:
                    await self.load(name, route.version)
            except (ReplicaUnreachable, EngineRefused, ArtifactRefused) as error:
                failure = error  # and in the log: callers need not know our paths
                continue
            state.in_flight += 1
            self._metrics.in_flight.labels(name).inc()
            return state
        if failure is not None:
            raise AdapterNotLoaded(
                f"Version {route.number} of {route.adapter!r} cannot be loaded now. Try again soon.") from failure
        raise NoHealthyReplica(f"No replica of {route.base_model!r} can take the request now. Try again in a moment.")

    def pick_idle(self, route: Route) -> ReplicaState | None:
        """A replica that has the version loaded and at most half as much to do as it may; None when there is none."""
        for name in self._order(route, {}):
            state = self._states[name]
            if route.served_name in state.loaded and 2 * state.in_flight <= state.replica.max_in_flight:
                state.in_flight += 1
                self._metrics.in_flight.labels(name).inc()
                return state
        return None

    def has_other(self, route: Route, name: str) -> bool:
        """Is there a healthy replica for the route besides `name`?"""
        return bool(self._order(route, {name: 1}))

    def release(self, state: ReplicaState) -> None:
        """The call sent to `state` has ended, however it ended."""
        state.in_flight -= 1
        self._metrics.in_flight.labels(state.name).dec()

    def succeeded(self, state: ReplicaState) -> None:
        """The replica answered a call."""
        state.failures = 0

    def failed(self, state: ReplicaState, error: SwitchyardError) -> None:
        """The replica broke a call off; it is out after several in a row, until a probe finds it well."""
        state.failures += 1
        state.last_error = error.message
        if state.failures >= self._eject_after:
            self._mark(state, False)

    def forget(self, state: ReplicaState, served_name: str) -> None:
        """The replica says that it does not know the name (it was restarted, most likely)."""
        state.loaded.pop(served_name, None)

    def _order(self, route: Route, tried: Mapping[str, int]) -> list[str]:
        ranked = self._ranked.get(route.served_name)
        if ranked is None:
            if len(self._ranked) >= RANKINGS_KEPT:
                self._ranked.clear()
            ranked = self._ranked[route.served_name] = placement.rank(route.served_name, self._states)
        candidates = []
        for name in ranked:
            state = self._states[name]
            if state.healthy and name not in tried and state.base_model == route.base_model:
                loaded = route.version is None or route.served_name in state.loaded
                candidates.append(
                    placement.Candidate(name, loaded, state.in_flight, state.replica.max_in_flight))
        if len(candidates) == 1:
            return [candidates[0].name]
        return placement.order(candidates, route.replicas)

    # loading

    async def load(self, replica: str, version: Version) -> None:
        """Load a version and see it listed with the path it was loaded from; once, however many ask at a time.

        The bytes are verified against the digest first. Raises ReplicaUnreachable, EngineRefused, ArtifactRefused.
        """
        place = (replica, version.served_name)
        task = self._loading.get(place)
        if task is None:
            task = asyncio.create_task(self._load(self._state(replica), version))
            self._loading[place] = task
            task.add_done_callback(lambda done: self._loaded(place, done))
        await asyncio.shield(task)

    async def unload(self, replica: str, served_name: str) -> None:
        """Take a version from a replica; harmless when it is not there."""
        state = self._state(replica)
        state.changes += 1
        state.loaded.pop(served_name, None)
        await state.engine.unload(served_name)
        state.changes += 1
        self._log.info("adapter_unloaded", replica=replica, served_name=served_name)

    async def measure_effect(self, replica: str, version: Version) -> Effect:
        """Compare the likeliest next tokens' logprobs after fixed prompts, with and without the adapter.

        The replica has the version loaded. Base and adapter take turns, so that both meet the same neighbours, and
        every look has a salt of its own, so that none is answered from the prefix cache.
        """
        state = self._state(replica)
        if state.base_model is None:
            raise ReplicaUnreachable(f"The replica {replica} has not said which base model it serves yet.")
        names = [state.base_model, version.served_name]
        runs: dict[str, list[list[list[float]]]] = {name: [] for name in names}
        for _ in range(PROBE_RUNS):
            for name in names:
                looks = await state.engine.next_token_logprobs(name, PROBE_PROMPTS, self._system.hex(16))
                runs[name].append([list(logprobs.values()) for logprobs in looks])
            names.reverse()
        return Effect.between(runs[state.base_model], runs[version.served_name])

    async def observe(self, replica: str, version: Version, reference: Reference) -> Observed:
        """What the replica, which has the version loaded, makes of the reference's prompts."""
        state = self._state(replica)
        if state.base_model is None:
            raise ReplicaUnreachable(f"The replica {replica} has not said which base model it serves yet.")
        prompts = [prompt.token_ids for prompt in reference.prompts]
        made = [await state.engine.tokenize(prompt.messages) for prompt in reference.prompts]
        base, adapter = [
            await state.engine.next_token_logprobs(name, prompts, self._system.hex(16), OBSERVED_TOKENS)
            for name in (state.base_model, version.served_name)]
        return Observed(made, base, adapter)

    async def _load(self, state: ReplicaState, version: Version) -> None:
        started = self._system.monotonic()
        name = version.served_name
        try:
            path = self._path_on(state, await self._artifacts.verify(version.digest))
            state.changes += 1
            await state.engine.load(name, path)
            listed = {model.id: model.root for model in await state.engine.models()}
            if listed.get(name) != path:
                raise EngineRefused(
                    f"The replica {state.name} answered the load of {name} but lists it with root "
                    f"{listed.get(name)!r} instead of {path!r}.")
        except SwitchyardError as error:
            self._metrics.load_failures.labels(state.name, error.code).inc()
            self._log.warning("adapter_load_failed", replica=state.name, served_name=name, error=error.message)
            raise
        finally:
            state.changes += 1
        state.loaded[name] = path
        seconds = self._system.monotonic() - started
        self._metrics.load_seconds.labels(state.name).observe(seconds)
        self._metrics.loaded.labels(state.name).set(len(state.loaded))
        self._log.info("adapter_loaded", replica=state.name, served_name=name, seconds=round(seconds, 3))

    def _loaded(self, place: tuple[str, str], task: asyncio.Task[None]) -> None:
        del self._loading[place]
        if not task.cancelled():
            task.exception()  # whoever waited has it; a load that nobody waits for any more was logged

    @staticmethod
    def _path_on(state: ReplicaState, path: Path) -> str:
        there = state.replica.artifacts_path
        return str(PurePosixPath(there, *path.parts[-2:])) if there else str(path)

    # watching

    async def refresh(self, replica: str) -> None:
        """Ask a replica now what it is and holds; what it says, or that it does not answer, is in its view."""
        await self._probe(self._state(replica), thorough=True)

    async def _watch(self, state: ReplicaState) -> None:
        turn = 0
        while True:
            await self._probe(state, thorough=turn % STATS_EVERY == 0 or not state.healthy)
            state.probed.set()
            turn += 1
            await asyncio.sleep(self._health_interval)

    async def _probe(self, state: ReplicaState, *, thorough: bool) -> None:
        try:
            if not await state.engine.is_healthy():
                raise ReplicaUnreachable(f"The replica {state.name} says that its engine is not healthy.")
            await self._look(state, thorough=thorough)
        except SwitchyardError as error:
            state.failures += 1
            state.last_error = error.message
            if state.failures >= self._eject_after or not state.healthy:
                self._mark(state, False)
            return
        state.failures = 0
        state.last_error = None
        self._mark(state, True)

    async def _look(self, state: ReplicaState, *, thorough: bool) -> None:
        changes = state.changes
        models = await state.engine.models()
        base = next((model for model in models if model.parent is None), None)
        state.base_model, state.root = (base.id, base.root) if base else (None, None)
        if changes == state.changes:  # else a load came between, and the list may be older than it
            state.loaded = {model.id: model.root or "" for model in models if model.parent is not None}
            self._metrics.loaded.labels(state.name).set(len(state.loaded))
        if not thorough:
            return
        stats = await state.engine.stats()
        if state.started_at is not None and stats.started_at != state.started_at:
            self._log.warning("replica_restarted", replica=state.name)
            state.engine_version = state.fingerprint = None
        state.started_at, state.slots, state.busy_adapters = stats.started_at, stats.slots, stats.busy_adapters
        if state.engine_version is None:
            state.engine_version = await state.engine.version()
            state.exposed = () if _is_guarded(state.replica.url) else await state.engine.audit_exposure()
            self._metrics.exposed.labels(state.name).set(len(state.exposed))
            if state.exposed:
                self._log.warning("replica_exposed", replica=state.name, routes=list(state.exposed))

    def _mark(self, state: ReplicaState, healthy: bool) -> None:
        if state.name not in self._states:
            return
        if state.healthy != healthy:
            self._log.warning("replica_up" if healthy else "replica_down", replica=state.name, error=state.last_error)
        state.healthy = healthy
        self._metrics.replica_up.labels(state.name).set(int(healthy))
        self.base_models = frozenset(s.base_model for s in self._states.values() if s.base_model)

    def _state(self, replica: str) -> ReplicaState:
        try:
            return self._states[replica]
        except KeyError:
            raise NotFound(f"There is no replica {replica!r}.", param="replica") from None

    def _drop(self, name: str) -> None:
        state = self._states.pop(name)
        self._ranked.clear()
        self._watchers.pop(name).cancel()
        for gauge in (self._metrics.replica_up, self._metrics.loaded, self._metrics.exposed):
            gauge.labels(name).set(0)
        task = asyncio.create_task(state.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


def _is_guarded(url: str) -> bool:
    """Is it a unix socket in a folder that only its owner may enter? Then nobody else reaches any of its routes."""
    if not url.startswith("unix:"):
        return False
    try:
        return not Path(url.removeprefix("unix:")).parent.stat().st_mode & 0o077
    except OSError:
        return False
