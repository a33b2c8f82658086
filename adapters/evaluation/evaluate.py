"""From a version's name to a recorded decision: read `evaluate` first, it is the whole story."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from adapters.evaluation.contenders import Subject, find_subject, open_caller
from adapters.evaluation.decide import Decision, Failures, Findings, Gate, Slice, decide, least_value
from adapters.evaluation.journal import Journal
from adapters.evaluation.judge import Judge
from adapters.evaluation.plan import EvaluationError, Plan
from adapters.evaluation.report import (
    SCHEMA,
    contender_report,
    decision_document,
    latencies,
    slices_of,
    summary,
    value_of,
)
from adapters.evaluation.run import Runner, Runs
from adapters.evaluation.scorers import Scorers
from adapters.evaluation.statistics import compare
from adapters.gateway_client import Admin, Door

INTERVAL = 0.95
"""Of the paired test that is shown but does not decide."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of it: the decision, the whole report as JSON-ready data, and the file that it was written to."""

    decision: Decision
    document: Mapping[str, Any]
    path: Path


async def evaluate(
    plan: Plan, door: Door, operator_key: str, *, judge: Judge | None = None,
    say: Callable[[str], None] = lambda line: None, progress: Callable[[int, int], None] = lambda done, total: None,
) -> Outcome:
    """Ask the version, the stable one and the base model the golden set's questions; score, decide, record.

    EvaluationError, GateError or GoldenError for what cannot be evaluated, JournalError for a run that another process
    is at, GatewayRefused and GatewayUnreachable, and the judge's TeacherError. What was answered before any of these is
    kept for the next run.
    """
    scorers = Scorers(plan.golden)
    judged = sum(item.scorer == "judge" for item in plan.golden.items)
    if judged and judge is None:
        raise EvaluationError(f"{judged} items of the golden set {plan.golden.name} are for a judge; name one.")
    async with Admin(door, operator_key) as admin, open_caller(plan, door, admin, say) as caller:
        subject = await find_subject(plan, admin, caller)
        say(f"Asking {', '.join(each.model for each in subject.contenders)}: {len(plan.golden.items)} questions, "
            f"{plan.repeats} time{'s' if plan.repeats > 1 else ''} each.")
        with Journal(plan.folder / "journal.jsonl", fresh=plan.fresh) as journal:
            if len(journal):
                say(f"An interrupted run left {len(journal)} answers; those that still fit are not asked again.")
            runs = await Runner(
                golden=plan.golden, scorers=scorers, caller=caller, journal=journal, sampling=plan.sampling,
                judge=judge, repeats=plan.repeats, concurrency=plan.concurrency, engines=subject.engines,
                progress=progress).run(subject.contenders)
            findings = find(plan, runs)
            decision = decide(findings, plan.gate)
            document = _document(plan, subject, runs, findings, decision, judge)
            if plan.record:
                made = await admin.post(*plan.target.path, "evaluations", json=record_body(plan, document, findings))
                document["record"] = made["id"]
            _write(plan.folder / "report.json", document)
            journal.finish(plan.folder / "answers.jsonl")
    return Outcome(decision, document, plan.folder / "report.json")


def find(plan: Plan, runs: Sequence[Runs]) -> Findings:
    """What the runs (the version's first) come to by the plan's metric."""
    version, metric, given = runs[0], plan.metric, plan.gate.baseline
    rival = _rival(plan.gate, runs[1:])
    known = Findings(metric=metric, value=value_of(version.board, metric), slices=_slices(version, rival, metric),
                     failures=[_failures(each) for each in runs],
                     latency_p99_ms=(latencies(version)["latency_ms"] or {}).get("p99"))
    if isinstance(given, (int, float)):
        return known.against("the given baseline", float(given), None)
    if rival is None:
        return known
    found = compare(version.board, rival.board, metric, threshold=plan.gate.threshold,
                    confidence=plan.gate.confidence or INTERVAL)
    name = "the stable version" if rival.contender.role == "stable" else "the base model"
    return known.against(name, value_of(rival.board, metric), found)


def _rival(gate: Gate, others: Sequence[Runs]) -> Runs | None:
    """The baseline's runs; "auto" is the stable version's, else the base model's."""
    by_role = {each.contender.role: each for each in others}
    if gate.baseline == "auto":
        return by_role.get("stable", by_role.get("base"))
    return by_role.get(gate.baseline) if isinstance(gate.baseline, str) else None


def _slices(version: Runs, rival: Runs | None, metric: str) -> list[Slice]:
    """The slices that have items for the metric; a set of one slice has none."""
    known = slices_of(version.board, metric)
    return [Slice(name, len(rows), value_of(version.board, metric, rows),
                  None if rival is None else value_of(rival.board, metric, rows))
            for name, rows in known.items() if len(known) > 1]


def _failures(runs: Runs) -> Failures:
    failed = [bool(result.answer.error) for result in runs.flat]
    return Failures(runs.contender.model, sum(failed), len(failed))


def _document(
    plan: Plan, subject: Subject, runs: Sequence[Runs], findings: Findings, decision: Decision, judge: Judge | None,
) -> dict[str, Any]:
    version, golden = subject.version, plan.golden
    return {
        "schema": SCHEMA, "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "version": {"name": str(plan.target), "number": plan.target.number, "digest": version["digest"],
                    "base_model": version["base_model"], "engine_versions": list(subject.engines),
                    "chat_template_sha256": version.get("chat_template_sha256")},
        "golden_set": {"name": golden.name, "digest": golden.digest, "items": len(golden.items)},
        "sampling": plan.sampling.to_document(), "repeats": plan.repeats, "concurrency": plan.concurrency,
        "judge": None if judge is None else judge.to_document(), "gate": plan.gate.to_document(),
        "decision": decision_document(findings, decision), "notes": list(subject.notes),
        "contenders": {each.contender.role: contender_report(each) for each in runs}, "record": None,
    }


def record_body(plan: Plan, document: Mapping[str, Any], findings: Findings) -> dict[str, Any]:
    """What the gateway is told, bound to what was evaluated and how; what is not known is left out."""
    version, passed = document["version"], document["decision"]["passed"]
    least, engines = least_value(findings, plan.gate), version["engine_versions"]
    body = {
        "version": version["number"], "digest": version["digest"], "golden_set": plan.golden.digest,
        "metric": findings.metric, "value": findings.value,
        "floor": min(least, findings.value) if passed else least, "passed": passed, "report": summary(document),
        "base_model": version["base_model"], "engine_version": engines[0] if len(engines) == 1 else None,
        "chat_template_sha256": version["chat_template_sha256"],
        "sampling": {**plan.sampling.to_document(), "repeats": plan.repeats},
        "latency_ms_p99": findings.latency_p99_ms,
    }
    return {name: value for name, value in body.items() if value is not None}


def _write(path: Path, document: Mapping[str, Any]) -> None:
    """Whole or not at all."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(path)
