"""What the teacher is asked, word for word, and how its replies are read: strictly, or not at all."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

from adapters.augment.plan import KINDS, Census, Task, text_of
from adapters.augment.settings import PROMPTS, AugmentSettings
from adapters.data import text_sha256

SORT = "sort"
SORT_TOKENS = 128


class ReplyError(ValueError):
    """The teacher's reply is not what was asked for; the message says what it is."""


@dataclass(frozen=True)
class Request:
    """One call: its chat and its parameters. `key` names it by everything that is asked, the model included."""

    model: str
    messages: Sequence[Mapping[str, str]]
    max_tokens: int
    temperature: float
    seed: int
    response_format: Mapping[str, Any] | None

    @cached_property
    def key(self) -> str:
        """The SHA-256, in hex, of the request."""
        asked = [self.model, self.messages, self.max_tokens, self.temperature, self.seed, self.response_format]
        return text_sha256(json.dumps(asked, sort_keys=True, ensure_ascii=False))


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt file: its text is the system message, and its digest goes into every row made with it."""

    name: str
    text: str
    sha256: str


def read_prompts(folder: Path | None) -> dict[str, Prompt]:
    """The prompts by kind, and the one for sorting; a file of the same name in `folder` replaces ours (OSError)."""
    prompts = {}
    for name in (*KINDS, SORT):
        file = f"{name}.md"
        own = folder / file if folder else None
        text = (own if own and own.is_file() else PROMPTS / file).read_bytes()
        prompts[name] = Prompt(file, text.decode(), sha256(text).hexdigest())
    return prompts


class Letters:
    """Writes the requests for tasks, by the prompts and the settings."""

    def __init__(self, model: str, prompts: Mapping[str, Prompt], census: Census, settings: AugmentSettings) -> None:
        self._model = model
        self._prompts = prompts
        self._census = census
        self._settings = settings

    def make(self, task: Task) -> Request:
        """Asks for the task's texts."""
        labels = self._census.labels or None
        document: dict[str, Any] = {"text": text_of(task.source)}
        if task.kind == "hard_negative":
            document |= {"text_label": task.source.label, "wanted_label": task.label,
                         "examples": self._census.examples[task.label], "labels": labels}
        else:
            document |= {"answer": task.answer, "label": task.label,
                         "labels": labels if task.kind == "edge_case" else None}
        settings = self._settings
        return self._request(task.kind, document | {"count": task.count}, settings.max_tokens, settings.temperature,
                             settings.seed + task.variant, _TEXTS)

    def sort(self, text: str) -> Request:
        """Asks which class a text belongs to."""
        labels = self._census.labels
        document = {"text": text, "labels": labels,
                    "examples": {label: self._census.examples[label] for label in labels}}
        form = {"label": {"type": "string", "enum": [*labels, "none"]}}
        return self._request(SORT, document, SORT_TOKENS, 0.0, self._settings.seed, form)

    def provenance(self, task: Task, request: Request, answered_by: str, verified: bool) -> dict[str, Any]:
        """Where a made row comes from: enough to ask for it again."""
        prompt = self._prompts[task.kind]
        return {
            "kind": task.kind, "source": task.source.id, "teacher": self._model, "answered_by": answered_by,
            "prompt": prompt.name, "prompt_sha256": prompt.sha256, "temperature": request.temperature,
            "max_tokens": request.max_tokens, "seed": request.seed, "request_sha256": request.key,
            "verified": verified,
        }

    def _request(
        self, prompt: str, document: Mapping[str, Any], max_tokens: int, temperature: float, seed: int,
        form: Mapping[str, Any],
    ) -> Request:
        given = {key: value for key, value in document.items() if value is not None}
        messages = ({"role": "system", "content": self._prompts[prompt].text},
                    {"role": "user", "content": json.dumps(given, ensure_ascii=False, indent=1)})
        schema = {"type": "object", "properties": form, "required": list(form), "additionalProperties": False}
        structure = {"type": "json_schema", "json_schema": {"name": "reply", "schema": schema}}
        return Request(self._model, messages, max_tokens, temperature, seed,
                       structure if self._settings.structured else None)


_TEXTS = {"texts": {"type": "array", "items": {"type": "string"}}}


def read_texts(reply: str, count: int) -> list[str]:
    """The first `count` texts of a reply, or ReplyError."""
    texts = _only_field(reply, "texts")
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise ReplyError(f"the reply's 'texts' must be a list of texts: {reply[:80]!r}")
    return [text.strip() for text in texts[:count]]


def read_label(reply: str) -> str:
    """The label of a reply, or ReplyError."""
    label = _only_field(reply, "label")
    if not isinstance(label, str):
        raise ReplyError(f"the reply's 'label' must be text: {reply[:80]!r}")
    return label


def _only_field(reply: str, name: str) -> Any:
    try:
        document = json.loads(reply)
    except ValueError as error:
        raise ReplyError(f"the reply is not JSON: {reply[:80]!r}") from error
    if not isinstance(document, dict) or set(document) != {name}:
        raise ReplyError(f"the reply must be an object of {name!r} alone: {reply[:80]!r}")
    return document[name]
