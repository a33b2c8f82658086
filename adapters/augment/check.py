"""Made rows are checked as real ones are: by the same settings, against the real rows and what is evaluated with."""

import dataclasses
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from adapters.augment.plan import text_of
from adapters.augment.results import Fault
from adapters.data import DataSettings, Row, read_prepared
from adapters.data.golden import read_golden
from adapters.data.prepare import Prepared, prepare
from adapters.evaluation import golden
from adapters.evaluation.golden import Item

ALL_BUT_NONE = 0.999999
"""The share of bad rows that stops the check: the real rows are good, so it is never reached."""


def check(source: Prepared, made: Sequence[Row], work: Path) -> tuple[list[Row], list[Fault]]:
    """The made rows that pass, as they are to be trained on (masked, where rows are), and why the others do not.

    They are prepared behind the real rows of `source`, by the settings that these were prepared by: so the duplicates
    of a real row fall away, and what is near a golden item or a validation row does too. `work` is an empty folder for
    files that nobody needs afterwards. DataError when the source's golden set cannot be read any more.
    """
    candidates = work / "candidates.jsonl"
    shutil.copyfile(source.train, candidates)
    with candidates.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row.to_document(), ensure_ascii=False) + "\n" for row in made)
    checked = prepare(_settings(source, candidates, work), work / "checked", report=lambda line: None)
    ours = {row.id: row for row in made}
    accepted = [row for row in read_prepared(checked.train) if row.id in ours]
    real = sum(1 for _ in read_prepared(source.train))
    faults = [_fault(made[line["line"] - real - 1], f"{line['field']}: {line['reason']}")
              for line in _lines(checked.rejects) if line["line"] > real]
    faults += [_fault(ours[line["id"]], line["detail"]) for line in _lines(checked.left_out) if line["id"] in ours]
    return accepted, faults


def _settings(source: Prepared, candidates: Path, work: Path) -> DataSettings:
    """The source's own, but for what was done once and for all when it was made."""
    before = source.document["settings"]
    given = Path(before["golden"]) if before["golden"] else None
    held = [*_held_out(source, given)]
    path = work / "held_out.jsonl"
    path.write_text("".join(golden.to_json(item) + "\n" for item in held), encoding="utf-8")
    return DataSettings(**{
        **before, "source": candidates, "shape": "auto", "subset": None, "label": None, "min_quality": 0.0,
        "leaked": "remove", "max_rejected_share": ALL_BUT_NONE, "validation_share": 0.0, "golden_share": 0.0,
        "golden": path if held else None})


def _held_out(source: Prepared, given: Path | None) -> Iterator[Item]:
    """What no made row may be near, as golden items: of those only the prompts are compared."""
    for path in dict.fromkeys(path for path in (source.golden, given) if path):
        for item in read_golden(path).items:
            yield dataclasses.replace(item, id=f"{path.name} {item.id}")
    if source.validation:
        for row in read_prepared(source.validation):
            prompt = {"role": "user", "content": row.asked}
            yield Item(id=f"validation line {row.line}", messages=(prompt,), expected=None, scorer="judge")


def _lines(path: Path) -> Iterator[Mapping[str, Any]]:
    with path.open("rb") as file:
        yield from map(json.loads, file)


def _fault(row: Row, reason: str) -> Fault:
    return Fault(row.provenance["kind"], row.provenance["source"], reason, text_of(row))
