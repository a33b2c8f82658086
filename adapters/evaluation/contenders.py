"""Who is asked: the version, the stable one and the base model, each reached through the gateway and warm."""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from adapters.evaluation.calls import Caller, Contender, Sampling
from adapters.evaluation.decide import Gate
from adapters.evaluation.plan import EvaluationError, Plan
from adapters.gateway_client import Admin, Door, GatewayRefused

KEY_HOURS = 24
"""How long the key of a run lives, should nobody be left to revoke it."""


@dataclass(frozen=True, slots=True)
class Subject:
    """The version as the registry has it, the engine versions of its pool, who answers (the version first), and who
    could not be asked."""

    version: Mapping[str, Any]
    engines: tuple[str, ...]
    contenders: tuple[Contender, ...]
    notes: tuple[str, ...]


@asynccontextmanager
async def open_caller(plan: Plan, door: Door, admin: Admin, say: Callable[[str], None]) -> AsyncIterator[Caller]:
    """The request path, with the plan's key or one that lives as long as the block."""
    if plan.key is not None:
        caller = Caller(door, plan.key, at_once=plan.concurrency)
        try:
            yield caller
        finally:
            await caller.close()
        return
    async with _own_key(plan, admin, say) as key:
        caller = Caller(door, key, at_once=plan.concurrency)
        try:
            yield caller
        finally:
            await caller.close()


@asynccontextmanager
async def _own_key(plan: Plan, admin: Admin, say: Callable[[str], None]) -> AsyncIterator[str]:
    tenant = plan.target.tenant
    expires = datetime.now(UTC) + timedelta(hours=KEY_HOURS)
    made = await admin.post("tenants", tenant, "keys", json={
        "name": "evaluation", "may_pin": True, "expires_at": expires.isoformat(timespec="seconds")})
    say(f"Made a key of {tenant} that may pin, for this run alone.")
    try:
        yield str(made["key"])
    finally:
        await admin.delete("tenants", tenant, "keys", made["id"])


async def find_subject(plan: Plan, admin: Admin, caller: Caller) -> Subject:
    """What the registry knows of the version, and the contenders that answer.

    EvaluationError when the version is not ready, the key may not name it, or the gate's baseline cannot be asked.
    """
    target = plan.target
    version = await admin.get(*target.path, "versions", target.number)
    if version["phase"] != "ready":
        raise EvaluationError(f"{target} is {version['phase']}, not ready; only a ready version can be asked.")
    contenders = [_pinned("version", version)]
    notes: list[str] = []
    if not plan.alone:
        stable = (await admin.get(*target.path, "release")).get("stable")
        if stable is not None and stable != target.number:
            contenders.append(_pinned("stable", await admin.get(*target.path, "versions", stable)))
        base = version["base_model"]
        contenders.append(Contender("base", base, f"base:{base}", {"x-switchyard-track": "base"}))
    reached = [each for each in contenders if await _answers(each, plan, caller, notes)]
    _check_baseline(plan.gate, {each.role for each in reached}, notes)
    return Subject(version, await _engines(admin, version), tuple(reached), tuple(notes))


def _pinned(role: str, version: Mapping[str, Any]) -> Contender:
    number = str(version["number"])
    return Contender(role, f"{version['adapter']}@{number}", version["digest"],
                     {"x-switchyard-adapter": version["adapter"], "x-switchyard-version": number})


async def _answers(contender: Contender, plan: Plan, caller: Caller, notes: list[str]) -> bool:
    """May it be asked? This first call also loads what is cold, so that no timed one has to."""
    try:
        answer = await caller.ask(contender, plan.golden.items[0], Sampling(max_tokens=1))
    except GatewayRefused as refused:
        if refused.code != "model_not_found":
            raise
        if contender.role != "base":
            raise EvaluationError(
                f"{refused} If it does exist, the key may not name versions: make one with `switchyard keys create "
                f"{plan.target.tenant} --name evaluation --may-pin`, or give none.") from refused
        notes.append(f"The base model {contender.model} was not asked, because the key may not: its tenant needs "
                     f"base_access (PATCH /admin/v1/tenants/{plan.target.tenant}), and the key must not be bound to "
                     "adapters.")
        return False
    if answer.error:
        notes.append(f"The first call of {contender.model}, which does not count, failed: {answer.error}")
    return True


def _check_baseline(gate: Gate, roles: set[str], notes: Sequence[str]) -> None:
    """EvaluationError before anything is asked, if there will be nothing to decide by."""
    why = "".join(f" {note}" for note in notes)
    if gate.baseline in ("stable", "base") and gate.baseline not in roles:
        raise EvaluationError(f"There is no {gate.baseline} to compare with."
                              + (why or " No other version takes the adapter's traffic."))
    if gate.floor is None and (gate.baseline == "none" or (gate.baseline == "auto" and roles == {"version"})):
        raise EvaluationError("Neither a stable version nor the base model is compared with; give a floor, or a "
                              f"baseline as a number.{why}")


async def _engines(admin: Admin, version: Mapping[str, Any]) -> tuple[str, ...]:
    """The versions of vLLM in the version's pool."""
    replicas = (await admin.get("replicas"))["data"]
    return tuple(sorted({replica["version"] for replica in replicas
                         if replica["base_model"] == version["base_model"] and replica["version"]}))
