"""Settings → checked, deduplicated, split files and a report: the whole story of the data, read top to bottom."""

import dataclasses
import json
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapters.data import balance
from adapters.data.golden import GoldenWriter, prompts_of, read_golden
from adapters.data.intake import Intake
from adapters.data.leaks import Leaks, check_none
from adapters.data.ledger import WHY, Ledger
from adapters.data.pii import Finder, make_finder, mask
from adapters.data.readers import files_of
from adapters.data.rows import DataError, file_sha256, read_prepared, text_sha256, to_line
from adapters.data.settings import DataSettings
from adapters.data.sharing import LeftOut, Sharing, make_sketcher
from adapters.data.split import SHARES, Share
from adapters.data.spool import Spool, open_database

Report = Callable[[str], None]

SCHEMA = "switchyard.data/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A prepared data set. `train` and `validation` hold rows as `Row.to_document` gives them, `golden` golden items.

    `counts`: how many rows were `read`, and what became of them; the other counts add up to it. `sha256` is of the
    source's bytes (of a folder: of its files' digests), `golden_sha256` the golden set's digest. `labels` counts the
    rows to train on by class, the largest first; it is empty where there are no classes.
    """

    folder: Path
    train: Path
    validation: Path | None
    golden: Path | None
    rejects: Path
    left_out: Path
    counts: Mapping[str, int]
    sha256: str
    golden_sha256: str | None
    labels: Mapping[str, int]
    document: Mapping[str, Any]

    def to_document(self) -> dict[str, Any]:
        """What report.json holds."""
        return dict(self.document)


def prepare(settings: DataSettings, folder: Path, report: Report = print) -> Prepared:
    """Read the source and write `folder`: {train,validation,golden,rejects,left_out}.jsonl and report.json.

    The folder must not exist; it appears whole or not at all, and memory is bounded however large the source is.
    DataError when the source cannot be read, has no rows or more bad ones than it may (they are then listed in
    `folder`.rejects.jsonl), when a share is left without rows, or a golden item leaks that may not be removed.
    """
    if folder.exists():
        raise DataError(f"{folder} exists; remove it, or name another folder.")
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        document = examine(settings, partial, report)
        (partial / "report.json").write_text(
            json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        partial.replace(folder)
    except DataError:
        rejects = partial / "rejects.jsonl"
        if rejects.exists() and rejects.stat().st_size:
            kept = rejects.replace(folder.with_name(f"{folder.name}.rejects.jsonl"))
            report(f"data: the bad rows are listed in {kept}")
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return read_report(folder)


def read_report(folder: Path) -> Prepared:
    """What `prepare` left in the folder; DataError when it did not."""
    try:
        document = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{folder} holds no prepared data ({error}); make it with `data prepare`.") from error
    if document.get("schema") != SCHEMA:
        raise DataError(f"{folder} was prepared by another release; prepare the data again.")

    def made(share: str) -> Path | None:
        return folder / f"{share}.jsonl" if document["counts"][share] else None

    given = document["settings"]["golden"]
    return Prepared(
        folder=folder, train=folder / "train.jsonl", validation=made("validation"),
        golden=made("golden") or (Path(given) if given else None),
        rejects=folder / "rejects.jsonl", left_out=folder / "left_out.jsonl", counts=document["counts"],
        sha256=document["sha256"], golden_sha256=document["golden_sha256"], labels=document["labels"]["train"],
        document=document)


def examine(settings: DataSettings, work: Path, report: Report) -> dict[str, Any]:
    """Write everything but report.json into the empty folder `work`; the report. DataError as in `prepare`."""
    name, find = make_finder(settings.pii_finder) if settings.pii != "off" else (None, None)
    scratch = work / "scratch"
    scratch.mkdir()
    with (
        Ledger(work) as ledger,
        closing(open_database(scratch / "index.sqlite")) as database,
        Spool(scratch / "rows.jsonl", database, unique=settings.duplicates != "off") as spool,
    ):
        intake = Intake(settings, spool, ledger.write, find)
        intake.run(report)
        ledger.check(settings.source, intake.read, settings.max_rejected_share)
        sketcher = make_sketcher(spool, settings.near_threshold) if _compares(settings) else None
        sharing = Sharing(spool, settings, database, sketcher if _shares_by_likeness(settings) else None)
        _share_out(spool, sharing, work, ledger, answers_are_classes=intake.answers.are_classes)
        _check_shares(settings, ledger.counts)
        golden_sha256 = None
        if sketcher and (settings.golden or settings.golden_share or settings.validation_share):
            leaks = Leaks(database, sketcher, _cleaner(settings, find))
            golden_sha256 = _clear_leaks(settings, spool, work, leaks, ledger)
            _check_shares(settings, ledger.counts)
    shutil.rmtree(scratch)
    document = {
        "schema": SCHEMA, "settings": settings.to_document(), "counts": {"read": intake.read, **ledger.counts},
        "rejected_fields": dict(ledger.fields.most_common()),
        "personal_data": {"finder": name, "found": intake.personal},
        "labels": {share: balance.count(read_prepared(work / f"{share}.jsonl")) for share in ("train", "validation")},
        "shared_pieces_left_out": sketcher.shared_count if sketcher else 0,
        "sha256": source_sha256(settings), "golden_sha256": golden_sha256,
    }
    for line in describe(document):
        report(line)
    return document


def _shares_by_likeness(settings: DataSettings) -> bool:
    return settings.duplicates == "near" or settings.validation_share > 0 or settings.golden_share > 0


def _compares(settings: DataSettings) -> bool:
    return _shares_by_likeness(settings) or settings.golden is not None


def _cleaner(settings: DataSettings, find: Finder | None) -> Callable[[str], str]:
    """A golden prompt is compared as a row is: masked where rows are."""
    if find and settings.pii == "mask":
        return lambda text: mask(text, find, Counter())
    return lambda text: text


def _share_out(spool: Spool, sharing: Sharing, work: Path, ledger: Ledger, *, answers_are_classes: bool) -> None:
    """Write each row into its share's file; the answer is the label where answers are classes and there is no other."""
    with (
        (work / "train.jsonl").open("w", encoding="utf-8") as train,
        (work / "validation.jsonl").open("w", encoding="utf-8") as validation,
        closing(GoldenWriter(work / "golden.jsonl")) as golden,
    ):
        for number, plain in spool:
            is_labelled = plain.label is not None or not answers_are_classes
            row = plain if is_labelled else dataclasses.replace(plain, label=plain.answered.strip())
            share = sharing.place(number, row)
            if isinstance(share, LeftOut):
                ledger.write(share)
                continue
            spool.set_share(number, share)
            ledger.counts[share] += 1
            if share == "golden":
                golden.write(row)
            else:
                (train if share == "train" else validation).write(to_line(row.to_document()))


def _clear_leaks(settings: DataSettings, spool: Spool, work: Path, leaks: Leaks, ledger: Ledger) -> str | None:
    """Take what is near a golden item out of the other files, and what is near a validation row out of training.

    The golden set's digest, None where there is none.
    """
    digest = None
    if settings.golden or settings.golden_share:
        held = read_golden(settings.golden or work / "golden.jsonl")
        digest = held.digest
        for name, text in prompts_of(held.items):
            leaks.hold(f"near the golden item {name}", text)
    if settings.validation_share:
        _clear(leaks, spool, work, "validation", ledger)
        for row in read_prepared(work / "validation.jsonl"):
            leaks.hold(f"near {row.id} in validation", row.asked)
    _clear(leaks, spool, work, "train", ledger)
    if settings.leaked == "refuse" and ledger.counts["leaked"]:
        raise DataError(f"{ledger.counts['leaked']} rows leak, and 'leaked' is \"refuse\":\n{ledger.shown('leaked')}")
    return digest


def _clear(leaks: Leaks, spool: Spool, work: Path, share: Share, ledger: Ledger) -> None:
    """Remove what leaks, and search what is left again."""
    before = ledger.counts["leaked"]
    for number, leak in leaks.clear(work / f"{share}.jsonl", spool.numbers(share)):
        ledger.counts[share] -= 1
        ledger.write(LeftOut(spool.row(number), "leaked", leak))
    if ledger.counts["leaked"] > before:
        check_none(leaks, work / f"{share}.jsonl")


def _check_shares(settings: DataSettings, counts: Mapping[str, int]) -> None:
    """DataError for a share that has no rows though it is wanted."""
    wanted = {"train": 1.0, "validation": settings.validation_share, "golden": settings.golden_share}
    for share in SHARES:
        if wanted[share] and not counts[share]:
            gone = ", ".join(f"{counts[why]} {words}" for why, words in WHY.items() if counts[why]) or "none left out"
            raise DataError(f"No row of {settings.source} is left for {share} ({gone}); take more rows, or change the "
                            "shares.")


def source_sha256(settings: DataSettings) -> str:
    """The SHA-256 of the source's bytes; of several files, of the lines `digest name`."""
    files = files_of(settings.source, settings.subset)
    if files == [settings.source]:
        return file_sha256(settings.source)
    lines = "".join(f"{file_sha256(path)} {path.name}\n" for path in files)
    return text_sha256(lines)


def describe(document: Mapping[str, Any]) -> list[str]:
    """A report in lines for people."""
    counts = document["counts"]
    shares = ", ".join(f"{counts[share]:,} {share}" for share in SHARES if counts[share])
    left = ", ".join(f"{counts[why]:,} {words}" for why, words in WHY.items() if counts[why]) or "none"
    lines = [f"data: {document['settings']['source']}, {counts['read']:,} rows: {shares}", f"data: left out: {left}"]
    personal = document["personal_data"]
    if personal["finder"]:
        found = ", ".join(f"{kind} {count:,}" for kind, count in personal["found"].items()) or "nothing"
        lines.append(f"data: personal data found by {personal['finder']}: {found}")
    if document["shared_pieces_left_out"]:
        lines.append(f"data: {document['shared_pieces_left_out']:,} pieces of text that many rows share, such as an "
                     "instruction, were not compared")
    return [*lines, *balance.describe(document["labels"]["train"])]
