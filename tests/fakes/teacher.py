"""A small OpenAI-compatible server: answers chats as a test says, fails as a test says, and keeps what it was asked.

`python -m tests.fakes.teacher SOCKET LOG` serves one whose answers depend on nothing but the question; it writes a line
for each question to LOG as soon as it came.
"""

import asyncio
import json
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tests.fakes.serving import Served

Answering = Callable[[Mapping[str, Any]], str]


@dataclass
class FakeTeacher:
    """`failures` are answered first, one a request, as (status, headers, body); then `answer` decides.

    A request takes `delay` seconds; `busiest` is the most that were under way at once; `came` is set once one
    is. `usage` None leaves it out.
    """

    answer: Answering
    failures: deque[tuple[int, Mapping[str, str], Any]] = field(default_factory=deque)
    delay: float = 0.0
    usage: tuple[int, int] | None = (10, 5)
    key: str | None = None
    finish_reason: str = "stop"
    seen: list[dict[str, Any]] = field(default_factory=list)
    log: Path | None = None
    came: threading.Event = field(default_factory=threading.Event)
    busiest: int = 0
    _busy: int = 0

    def app(self) -> Starlette:
        """The ASGI app."""
        return Starlette(routes=[Route("/v1/chat/completions", self._complete, methods=["POST"])])

    async def _complete(self, request: Request) -> Response:
        if self.key and request.headers.get("authorization") != f"Bearer {self.key}":
            return JSONResponse({"error": {"message": "Wrong key.", "code": "invalid_api_key"}}, 401)
        body = await request.json()
        self.seen.append(body)
        self.came.set()
        if self.log:
            with self.log.open("a") as file:
                file.write(json.dumps(body) + "\n")
        self._busy += 1
        self.busiest = max(self.busiest, self._busy)
        try:
            await asyncio.sleep(self.delay)
        finally:
            self._busy -= 1
        if self.failures:
            status, headers, document = self.failures.popleft()
            return JSONResponse(document, status, dict(headers))
        return JSONResponse(self._completion(body))

    def _completion(self, body: Mapping[str, Any]) -> dict[str, Any]:
        document: dict[str, Any] = {
            "id": "chat-1", "object": "chat.completion", "model": f"{body['model']}-2026",
            "choices": [{"index": 0, "finish_reason": self.finish_reason,
                         "message": {"role": "assistant", "content": self.answer(body)}}]}
        if self.usage:
            document["usage"] = {"prompt_tokens": self.usage[0], "completion_tokens": self.usage[1]}
        return document


def asked(body: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON document that the user's message is."""
    document: dict[str, Any] = json.loads(body["messages"][-1]["content"])
    return document


def obliging(body: Mapping[str, Any]) -> str:
    """As many texts as are asked for, each unlike the others; sorts a text as it says itself."""
    document = asked(body)
    if "count" not in document:
        return json.dumps({"label": next(label for label in document["labels"] if label in document["text"])})
    label = document.get("wanted_label") or document.get("label") or ""
    texts = [f"{WORDS[number % len(WORDS)]} {label} {abs(hash_of(document, body, number))}"
             for number in range(document["count"])]
    return json.dumps({"texts": texts})


def hash_of(*values: Any) -> int:
    """The same number for the same JSON values, in every process."""
    return int.from_bytes(sha256(json.dumps(values, sort_keys=True).encode()).digest()[:12])


WORDS = ("alpha", "bravo", "charlie", "delta")


def main() -> None:
    """Serve until told to stop."""
    socket, log = map(Path, sys.argv[1:])
    server = Served(FakeTeacher(obliging, delay=0.02, log=log).app(), socket)
    asyncio.run(server.serve())


if __name__ == "__main__":
    main()
