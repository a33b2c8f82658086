"""The course of one inference request: refuse it, fail it, cut it, or answer it whole or in events, in its own time."""

import asyncio
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from tests.fakes.vllm import other_shapes, shapes
from tests.fakes.vllm.behaviour import Behaviour
from tests.fakes.vllm.engine import DEAD, Engine
from tests.fakes.vllm.prompts import Body, Refused, count_tokens, max_tokens, prompts_of
from tests.fakes.vllm.shapes import Answer, Event
from tests.fakes.vllm.wire import EVENTS, Cut, Receive, Send, reply, send_head, unless_hung_up

EVENTS_OF: dict[str, Callable[[Answer], Iterator[Event]]] = {
    "/v1/chat/completions": shapes.chat_events, "/v1/completions": shapes.completion_events,
    "/v1/responses": other_shapes.response_events, "/v1/messages": other_shapes.message_events,
}
WHOLE: dict[str, Callable[[Answer], dict[str, Any]]] = {
    "/v1/chat/completions": shapes.chat, "/v1/responses": other_shapes.response, "/v1/messages": other_shapes.message,
}
IDS = {"/v1/completions": "cmpl-", "/v1/responses": "resp_", "/v1/embeddings": "embd-"}


class Inference:
    """Answers inference requests out of one engine."""

    def __init__(self, engine: Engine, max_model_len: int) -> None:
        self._engine = engine
        self._context = max_model_len
        self._owed_errors = 0.0

    async def answer(
        self, path: str, body: Body, headers: dict[str, str], behaviour: Behaviour, receive: Receive, send: Send
    ) -> None:
        """Answer one request; raises Refused before the first byte, Cut, or HungUp."""
        model = str(body.get("model") or self._engine.base_model)
        self._engine.seen.request(path, headers, {**body, "model": model})
        self._engine.weights_for(model)
        self._engine.check_alive()
        behaviour = behaviour.towards(model)
        self._maybe_fail(behaviour)
        if behaviour.drop_after == 0:
            raise Cut
        answers = self._answers(path, model, body, headers, behaviour.tokens)
        await unless_hung_up(receive, self._run(path, answers, behaviour, send))

    def _maybe_fail(self, behaviour: Behaviour) -> None:
        self._owed_errors += behaviour.error_rate
        if self._owed_errors >= 1:
            self._owed_errors -= 1
            self._engine.seen.errors += 1
            raise Refused(behaviour.error_status, "The fake was told to fail.", "InternalServerError")

    def _answers(self, path: str, model: str, body: Body, headers: dict[str, str], tokens: int) -> list[Answer]:
        weights = self._engine.weights_for(model)
        named = headers.get("x-request-id") if path != "/v1/responses" else None
        request_id = IDS.get(path, "chatcmpl-") + (named or secrets.token_hex(8))
        answers = []
        for prompt in prompts_of(path, body):
            prompt_tokens = count_tokens(prompt)
            limit = max_tokens(path, body, self._context, prompt_tokens)
            answers.append(Answer(
                id=request_id, model=model, prompt=prompt, prompt_tokens=prompt_tokens,
                pieces=weights.words(prompt, min(limit, tokens)), limited=limit <= tokens, weights=weights, body=body))
        return answers

    async def _run(self, path: str, answers: Sequence[Answer], behaviour: Behaviour, send: Send) -> None:
        first = answers[0]
        async with self._engine.running(first.model):
            self._check_prompt_logprobs(answers)
            if first.body.get("stream") and path in EVENTS_OF:
                await self._stream(EVENTS_OF[path](first), behaviour, send)
            else:
                seconds = behaviour.latency + behaviour.token_delay * (len(first.pieces) - 1)
                if seconds:
                    await asyncio.sleep(seconds)
                self._engine.check_alive()
                await reply(send, 200, shapes.dump(_whole(path, answers)))
        seen = self._engine.seen
        seen.inferences += 1
        seen.prompt_tokens += sum(answer.prompt_tokens for answer in answers)
        seen.tokens += sum(len(answer.pieces) for answer in answers)

    def _check_prompt_logprobs(self, answers: Sequence[Answer]) -> None:
        """With LoRA on, logprobs of the prompt kill the CPU engine when another sequence shares the step."""
        body = answers[0].body
        wanted = body.get("prompt_logprobs") is not None or (body.get("echo") and body.get("logprobs") is not None)
        if wanted and (len(answers) > 1 or self._engine.slots.running.total() > 1):
            self._engine.die()

    async def _stream(self, events: Iterable[Event], behaviour: Behaviour, send: Send) -> None:
        """As the real one does: the head at once, the first event with the first token."""
        await send_head(send, 200, EVENTS)
        clock = asyncio.get_running_loop().time
        started = clock()
        for number, (tokens, event) in enumerate(events, 1):
            due = started + behaviour.latency + behaviour.token_delay * (tokens - 1) if tokens else started
            if (wait := due - clock()) > 0:
                await asyncio.sleep(wait)
            if self._engine.death == "drop":
                raise Cut
            if self._engine.death:
                error = shapes.error(500, DEAD, "InternalServerError", None, flat=False)
                await send({"type": "http.response.body", "body": b"data: " + error + b"\n\n" + shapes.DONE})
                return
            await send({"type": "http.response.body", "body": event, "more_body": True})
            if number == behaviour.drop_after:
                raise Cut
        await send({"type": "http.response.body", "body": b""})


def _whole(path: str, answers: Sequence[Answer]) -> dict[str, Any]:
    match path:
        case "/v1/completions":
            return shapes.completion(answers)
        case "/v1/embeddings":
            return other_shapes.embeddings(answers)
        case _:
            return WHOLE[path](answers[0])
