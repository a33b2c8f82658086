"""What was asked and answered, on disk before anything else happens: nothing that was answered is paid for twice."""

import fcntl
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from adapters.teacher import Usage


class JournalError(RuntimeError):
    """The journal cannot be used; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A teacher's answer as it came, why it ended, and the model's name as the server gave it."""

    text: str
    model: str
    finish_reason: str | None = None


class Journal:
    """An append-only JSONL file of calls, each named by the digest of all that was asked; a context manager.

    A call has a line before it is made, with the most that it may use, and one when it has ended, with what all calls
    have used by then. One that has only the first was under way when the process was killed: it is asked again, and
    counts as the most that it may have used. A last line that a kill cut short is removed. JournalError while another
    process writes to the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.answers: dict[str, Answer] = {}
        self._spent = Usage()
        self._open: dict[str, Usage] = {}

    def __enter__(self) -> Self:
        try:
            self._file = self._path.open("a+b")
        except OSError as error:
            raise JournalError(f"The journal {self._path} cannot be written: {error.strerror}.") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._read()
        except OSError as error:
            self._file.close()
            raise JournalError(f"{self._path} is in use by another process; let that one end first.") from error
        except JournalError:
            self._file.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None,
    ) -> None:
        self._file.close()

    @property
    def spent(self) -> Usage:
        """What all runs have used so far, calls that a kill interrupted at their most."""
        return sum(self._open.values(), self._spent)

    def begin(self, key: str, worst: Usage) -> None:
        """A call is about to be made that may use `worst`."""
        self._append({"begun": key, "worst": asdict(worst)})
        self._open[key] = worst

    def end(self, key: str, answer: Answer | None, spent: Usage) -> None:
        """The call has ended, with an answer or without; `spent` is what all calls of all runs have used."""
        document = asdict(answer) if answer else {}
        self._append({"ended": key, **document, "spent": asdict(spent)})
        self._ended(key, answer, spent)

    def _ended(self, key: str, answer: Answer | None, spent: Usage) -> None:
        if answer:
            self.answers[key] = answer
        self._open.pop(key, None)
        self._spent = spent

    def _append(self, document: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(document, ensure_ascii=False).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def _read(self) -> None:
        self._file.seek(0)
        whole = 0
        for number, line in enumerate(self._file, start=1):
            if not line.endswith(b"\n"):
                self._file.truncate(whole)
                break
            whole += len(line)
            try:
                self._take(json.loads(line))
            except (ValueError, KeyError, TypeError) as error:
                raise JournalError(f"Line {number} of {self._path} is no line of a journal; move the file away to "
                                   "start anew.") from error
        if self._open:
            self._append({"lost": list(self._open), "spent": asdict(self.spent)})
            self._spent, self._open = self.spent, {}

    def _take(self, document: Mapping[str, Any]) -> None:
        if "begun" in document:
            self._open[document["begun"]] = Usage(**document["worst"])
            return
        if "lost" in document:
            self._spent, self._open = Usage(**document["spent"]), {}
            return
        answer = Answer(document["text"], document["model"], document["finish_reason"]) if "text" in document else None
        self._ended(document["ended"], answer, Usage(**document["spent"]))
