"""Deliveries are signed as written, come again while the receiver cannot take them, and end in bounded time."""

import asyncio
import re
import time
from collections.abc import AsyncIterator
from hashlib import sha256

import pytest

from gateway.clients.webhooks import WebhookClient, signature
from gateway.system import System
from tests.fixtures.receiver import Got, receiving

SECRET = "a secret of the test's, long enough to be hashed first by HMAC since it exceeds the block of 64 bytes"
BODY = '{"reason":"größer"}'.encode()


@pytest.fixture
async def client() -> AsyncIterator[WebhookClient]:
    made = WebhookClient(System(), first_pause=0.01, give_up_after=0.5, attempt_seconds=0.2)
    yield made
    await made.close()


def hmac_by_hand(secret: bytes, message: bytes) -> str:
    """RFC 2104, written out."""
    key = (sha256(secret).digest() if len(secret) > 64 else secret).ljust(64, b"\0")
    inner = sha256(bytes(byte ^ 0x36 for byte in key) + message).digest()
    return sha256(bytes(byte ^ 0x5C for byte in key) + inner).hexdigest()


def is_genuine(got: Got, secret: str, *, within: float = 60) -> bool:
    """What a receiver should do, by the documentation alone."""
    found = re.fullmatch(r"t=([0-9]+),v1=([0-9a-f]{64})", got.headers["x-switchyard-signature"])
    assert found is not None
    fresh = abs(time.time() - int(found[1])) <= within
    return fresh and found[2] == hmac_by_hand(secret.encode(), found[1].encode() + b"." + got.body)


async def test_what_arrives_is_what_was_sent_and_its_signature_holds(client: WebhookClient) -> None:
    async with receiving() as receiver:
        outcome = await client.deliver(receiver.url, SECRET, BODY)
    assert (outcome.attempts, outcome.failure) == (1, "")
    [got] = receiver.got
    assert got.head.startswith("POST / HTTP/1.1") and got.headers["content-type"] == "application/json"
    assert got.body == BODY and is_genuine(got, SECRET) and not is_genuine(got, SECRET + "x")


def test_the_signature_is_of_time_and_body_together() -> None:
    assert signature("short", 12, b"3.x") == f"t=12,v1={hmac_by_hand(b'short', b'12.3.x')}"
    assert signature("short", 12, b"3.x") != signature("short", 123, b".x")


@pytest.mark.parametrize("status", [500, 503, 429, 408])
async def test_a_receiver_that_cannot_take_it_now_is_asked_again(client: WebhookClient, status: int) -> None:
    async with receiving([status, status]) as receiver:
        outcome = await client.deliver(receiver.url, SECRET, BODY)
    assert (outcome.attempts, outcome.failure) == (3, "")
    assert {got.body for got in receiver.got} == {BODY} and all(is_genuine(got, SECRET) for got in receiver.got)


@pytest.mark.parametrize("status", [400, 401, 404, 410])
async def test_a_receiver_that_refuses_is_not_asked_again(client: WebhookClient, status: int) -> None:
    async with receiving([status]) as receiver:
        outcome = await client.deliver(receiver.url, SECRET, BODY)
    assert (outcome.attempts, outcome.failure, len(receiver.got)) == (1, f"status {status}", 1)


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_a_redirect_is_not_followed(client: WebhookClient, status: int) -> None:
    async with receiving([status]) as receiver:
        outcome = await client.deliver(receiver.url, SECRET, BODY)
    assert (outcome.failure, len(receiver.got)) == (f"status {status}", 1)


async def test_a_receiver_that_never_answers_is_given_up_in_bounded_time(client: WebhookClient) -> None:
    async with receiving() as receiver:
        receiver.hangs = True
        started = time.monotonic()
        outcome = await client.deliver(receiver.url, SECRET, BODY)
    assert 2 <= outcome.attempts == len(receiver.got) and "no answer within 0.2 s" in outcome.failure
    assert time.monotonic() - started < 3


async def test_a_receiver_that_is_not_there_is_asked_until_it_comes(client: WebhookClient) -> None:
    async with receiving() as receiver:
        pass
    outcome = await client.deliver(receiver.url, SECRET, BODY)
    assert outcome.attempts > 1 and outcome.failure


async def test_a_delivery_can_be_given_up_at_any_moment(client: WebhookClient) -> None:
    async with receiving() as receiver:
        receiver.hangs = True
        task = asyncio.create_task(client.deliver(receiver.url, SECRET, BODY))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
