"""Prepared rows → the same and made ones: the story of `data augment`, read top to bottom."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from adapters.augment.check import check
from adapters.augment.desk import Desk
from adapters.augment.journal import Journal
from adapters.augment.plan import KINDS, Task, plan
from adapters.augment.requests import Letters, read_prompts
from adapters.augment.results import Made
from adapters.augment.settings import AugmentSettings
from adapters.data import DataError, Row, read_prepared
from adapters.data.prepare import Prepared, read_report
from adapters.teacher import Budget, BudgetReached, Teacher, TeacherSettings

Report = Callable[[str], None]

SCHEMA = "switchyard.augment/1"
JOURNAL = "journal.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Augmented:
    """An augmented data set. `train` holds the real rows and then the accepted ones, which `made` holds alone;
    `rejects` the others with their reasons. `document` is what report.json holds.
    """

    train: Path
    made: Path
    rejects: Path
    document: Mapping[str, Any]


async def augment(
    source: Path, folder: Path, teacher: TeacherSettings, settings: AugmentSettings, *,
    budget: Budget | None = None, report: Report = print,
) -> Augmented:
    """Make rows from what `data prepare` wrote into `source`, and write {train,made,rejects}.jsonl into `folder`.

    `folder` keeps a journal of all answers: the same call again goes on where an earlier one ended, however it ended,
    and asks nothing twice. A reached budget is no error: what is answered is written. `budget.spent` is read from the
    journal. TeacherError when the server fails, DataError, JournalError, OSError for a prompt that cannot be read.
    """
    prepared = read_report(source)
    _open(folder, source)
    made = await _make(prepared.train, folder / JOURNAL, teacher, settings, budget or Budget(), report)
    with TemporaryDirectory(dir=folder, prefix=".check-") as work:
        accepted, faults = check(prepared, made.rows, Path(work)) if made.rows else ([], [])
    made = replace(made, faults=[*made.faults, *faults])
    return _write(prepared, folder, made, accepted, {"teacher": _public(teacher), "settings": _plain(settings)}, report)


async def _make(
    rows: Path, journal_path: Path, teacher: TeacherSettings, settings: AugmentSettings, budget: Budget, report: Report,
) -> Made:
    """The rows that the teacher makes, in the plan's order, as they come: they are not checked yet."""
    tasks, census = plan(lambda: read_prepared(rows), settings)
    letters = Letters(teacher.model, read_prompts(settings.prompts), census, settings)
    report(f"augment: {sum(task.count for task in tasks):,} texts to make in {len(tasks):,} requests: {_listed(tasks)}")
    if census.unusable:
        report(f"augment: {census.unusable:,} rows do not end with a text and its answer; nothing is made from them")
    with Journal(journal_path) as journal:
        async with Teacher(teacher, replace(budget, spent=journal.spent)) as client:
            desk = Desk(client, journal, letters, verify=settings.verify and bool(census.labels))
            await desk.work(tasks, report)
        if desk.failure and not isinstance(desk.failure, BudgetReached):
            raise desk.failure
        results = [desk.done[at] for at in sorted(desk.done)]
        return Made([row for result in results for row in result.rows],
                    [fault for result in results for fault in result.faults],
                    len(tasks) - len(results), journal.spent, str(desk.failure) if desk.failure else None)


def _open(folder: Path, source: Path) -> None:
    """Make the folder, or see that it is one of ours."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / JOURNAL).exists() and any(folder.iterdir()):
        raise DataError(f"{folder} is not empty and holds no {JOURNAL}; name a new folder.")
    if folder.samefile(source):
        raise DataError(f"{folder} is the source; name another folder.")


def _write(
    prepared: Prepared, folder: Path, made: Made, accepted: Sequence[Row], asked: Mapping[str, Any], report: Report,
) -> Augmented:
    """The files and the report, each whole or not at all."""
    real = Counter(row.label for row in read_prepared(prepared.train))
    both = real + Counter(row.label for row in accepted)
    document = {
        "schema": SCHEMA, **asked, "source_sha256": prepared.sha256, "usage": asdict(made.usage),
        "stopped": made.stopped, "unanswered_requests": made.unanswered,
        "counts": {kind: {"accepted": sum(row.provenance["kind"] == kind for row in accepted),
                          "rejected": sum(fault.kind == kind for fault in made.faults)} for kind in KINDS},
        "labels": {str(label): {"real": real[label], "all": number} for label, number in both.most_common()},
    }
    lines = [_line(row.to_document()) for row in accepted]
    _replace(folder / "made.jsonl", lines)
    _replace(folder / "rejects.jsonl", (_line(asdict(fault)) for fault in made.faults))
    _replace(folder / "report.json", [json.dumps(document, indent=2, ensure_ascii=False) + "\n"])
    with prepared.train.open(encoding="utf-8") as file:
        _replace(folder / "train.jsonl", (line for part in (file, lines) for line in part))
    _tell(document, made, report)
    return Augmented(train=folder / "train.jsonl", made=folder / "made.jsonl", rejects=folder / "rejects.jsonl",
                     document=document)


def _tell(document: Mapping[str, Any], made: Made, report: Report) -> None:
    for kind, counts in document["counts"].items():
        if any(counts.values()):
            report(f"augment: {kind.replace('_', ' ')}: {counts['accepted']:,} accepted, {counts['rejected']:,} "
                   "rejected")
    for label, numbers in document["labels"].items():
        report(f"augment: {label}: {numbers['real']:,} rows, now {numbers['all']:,}")
    used = made.usage
    report(f"augment: {used.calls:,} calls, {used.prompt_tokens:,} tokens read and {used.completion_tokens:,} written, "
           f"cost {used.cost:.4f}")
    if made.stopped:
        report(f"augment: stopped early, {made.unanswered:,} requests are left. {made.stopped} The same command with a "
               "larger budget goes on from here.")


def _replace(path: Path, lines: Iterable[str]) -> None:
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", encoding="utf-8") as file:
        file.writelines(lines)
    partial.replace(path)


def _line(document: Mapping[str, Any]) -> str:
    return json.dumps(document, ensure_ascii=False) + "\n"


def _public(teacher: TeacherSettings) -> dict[str, Any]:
    return {name: value for name, value in asdict(teacher).items() if name != "key"}


def _plain(settings: AugmentSettings) -> dict[str, Any]:
    return {**asdict(settings), "prompts": str(settings.prompts) if settings.prompts else None}


def _listed(tasks: Sequence[Task]) -> str:
    numbers = Counter[str]()
    for task in tasks:
        numbers[task.kind] += task.count
    return ", ".join(f"{number:,} × {kind.replace('_', ' ')}" for kind, number in numbers.items()) or "none"
