"""Base model and adapter side by side: the same prompts, both answers, and how likely each side finds them."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
from rich.table import Table
from rich.text import Text

from adapters.data.rows import Message, Row


class CompareError(RuntimeError):
    """The two cannot be compared; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Chat:
    """A prompt: messages up to where the assistant answers, and the answer that is wanted, if one is known."""

    messages: tuple[Message, ...]
    tools: tuple[Any, ...] | None = None
    expected: str | None = None


@dataclass(frozen=True, slots=True)
class Side:
    """One greedy answer. `logprob`: the mean over its tokens in nats a token; None when nobody told it."""

    text: str
    logprob: float | None

    @property
    def shown_logprob(self) -> str:
        return "?" if self.logprob is None else f"{self.logprob:.2f}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Both answers to one chat. `lift`: how much likelier the adapter finds its answer than the base model finds that
    same answer, in nats a token; None where the base model could not be asked (through a gateway).
    """

    messages: tuple[Message, ...]
    expected: str | None
    base: Side
    adapter: Side
    lift: float | None = None

    @property
    def prompt(self) -> str:
        """The chat as text, the only message's content or each with its role."""
        if len(self.messages) == 1:
            return str(self.messages[0].get("content"))
        return "\n".join(f"{message['role']}: {message.get('content') or ''}" for message in self.messages)

    @property
    def differs(self) -> bool:
        return self.base.text != self.adapter.text

    @property
    def difference(self) -> float | None:
        """How much surer of its own answer the adapter is than the base model of its own, in nats a token."""
        if self.base.logprob is None or self.adapter.logprob is None:
            return None
        return self.adapter.logprob - self.base.logprob

    def to_document(self) -> dict[str, Any]:
        """The comparison as JSON-ready data."""
        return {**asdict(self), "difference": self.difference}


@dataclass(frozen=True, slots=True)
class BaseName:
    """A base model: a folder or a Hugging Face id, and which commit of the latter (None: the newest)."""

    name: str
    revision: str | None = None


def base_of(folder: Path) -> BaseName:
    """The base model that an artifact or a merged model names. CompareError when it names none."""
    for file, key in (("merge.json", "base_model"), ("manifest.json", "base_model"),
                      ("adapter_config.json", "base_model_name_or_path")):
        try:
            document = json.loads((folder / file).read_text(encoding="utf-8"))
            if document.get(key):
                return BaseName(str(document[key]), document.get("base_revision"))
        except FileNotFoundError:
            continue
        except (OSError, ValueError, AttributeError) as error:
            raise CompareError(f"{folder / file} cannot be understood: {error}") from error
    raise CompareError(f"{folder} does not say which base model it is for; give --base-model.")


def read_chats(path: Path) -> list[Chat]:
    """The chats of a JSONL file; each row has `messages`, or a `prompt` and perhaps a `completion`.

    An answer at the end of the messages becomes `expected`, as does `expected` itself. CompareError for a bad row.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CompareError(f"The prompts in {path} cannot be read: {error}") from error
    chats = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            chats.append(_chat(line, f"{path}, line {number}"))
    if not chats:
        raise CompareError(f"{path} has no prompts.")
    return chats


def chats_of(rows: Iterable[Row]) -> Iterator[Chat]:
    """Prepared rows without their answers; plain texts, which ask nothing, are passed over."""
    for row in rows:
        if len(row.messages) > 1:
            answer = row.messages[-1].get("content")
            yield Chat(row.messages[:-1], row.tools, answer if isinstance(answer, str) else None)


def _chat(line: str, where: str) -> Chat:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise CompareError(f"{where}: is not JSON: {error}") from error
    row = row if isinstance(row, dict) else {}
    messages, expected = row.get("messages"), row.get("expected", row.get("completion"))
    if messages is None and isinstance(row.get("prompt"), str):
        messages = [{"role": "user", "content": row["prompt"]}]
    if not isinstance(messages, list) or not all(isinstance(m, dict) and "role" in m for m in messages):
        raise CompareError(f"{where}: needs 'messages', each with a role, or a 'prompt' of text.")
    if messages and messages[-1]["role"] == "assistant":
        expected = messages[-1].get("content") if expected is None else expected
        messages = messages[:-1]
    if not messages:
        raise CompareError(f"{where}: has nothing before the answer.")
    known = expected if expected is None or isinstance(expected, str) else json.dumps(expected, ensure_ascii=False)
    return Chat(tuple(messages), tuple(row["tools"]) if row.get("tools") else None, known)


def through_gateway(
    chats: Iterable[Chat], *, url: str, key: str, base: str, adapter: str, max_tokens: int = 128,
    transport: httpx.BaseTransport | None = None,
) -> Iterator[Comparison]:
    """Ask a gateway (or any OpenAI-compatible server) for both answers, as `model` = `base` and = `adapter`.

    CompareError when it does not answer, or refuses.
    """
    try:
        opened = httpx.Client(base_url=url.rstrip("/"), headers={"Authorization": f"Bearer {key}"},
                              transport=transport, timeout=httpx.Timeout(120.0, connect=5.0))
    except httpx.InvalidURL as error:
        raise CompareError(f"{url!r} is no address ({error}); write one like http://127.0.0.1:8080.") from error
    with opened as client:
        for chat in chats:
            yield Comparison(
                messages=chat.messages, expected=chat.expected,
                base=_asked(client, base, chat, max_tokens), adapter=_asked(client, adapter, chat, max_tokens))


def _asked(client: httpx.Client, model: str, chat: Chat, max_tokens: int) -> Side:
    request = {"model": model, "messages": list(chat.messages), "temperature": 0, "max_tokens": max_tokens,
               "logprobs": True, **({"tools": list(chat.tools)} if chat.tools else {})}
    try:
        answer = client.post("/v1/chat/completions", json=request)
    except httpx.HTTPError as error:
        raise CompareError(f"No gateway answers at {client.base_url} ({error}); start it, or give its "
                           "address.") from error
    try:
        document = answer.json()
        if not answer.is_success:
            raise CompareError(f"The gateway refused {model!r} ({answer.status_code}): {document['error']['message']}")
        choice = document["choices"][0]
        text = choice["message"]["content"] or json.dumps(choice["message"].get("tool_calls"))
    except (ValueError, LookupError, TypeError) as error:
        raise CompareError(f"{client.base_url} answered {answer.status_code} with what is no chat completion; is it a "
                           "Switchyard gateway?") from error
    tokens = (choice.get("logprobs") or {}).get("content") or []
    return Side(text, sum(token["logprob"] for token in tokens) / len(tokens) if tokens else None)


def table(rows: Sequence[Comparison]) -> Table:
    """The comparisons for a terminal."""
    shown = Table(show_lines=True, expand=True)
    for heading in ("prompt", "base model", "adapter"):
        shown.add_column(heading, ratio=3, overflow="fold")
    with_expected = any(row.expected for row in rows)
    if with_expected:
        shown.add_column("wanted", ratio=3, overflow="fold")
    shown.add_column("log-probability", justify="right", no_wrap=True)
    shown.add_column("lift", justify="right", no_wrap=True)
    for row in rows:
        shown.add_row(
            Text(row.prompt), Text(row.base.text), Text(row.adapter.text, style="cyan" if row.differs else ""),
            *([Text(row.expected or "")] if with_expected else []),
            f"{row.base.shown_logprob} → {row.adapter.shown_logprob}", "" if row.lift is None else f"{row.lift:+.2f}")
    return shown


def page(rows: Sequence[Comparison], title: str) -> str:
    """The comparisons as one HTML page with nothing outside it."""
    from adapters import pages

    return pages.render("compare.html", title=title, rows=rows)
