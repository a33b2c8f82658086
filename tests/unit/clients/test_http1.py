"""The pool against a real socket whose other end the test plays byte by byte."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.clients.http1 import HIGH_WATER, Origin, Pool
from gateway.domain.errors import InvalidRequest, ReplicaUnreachable, UpstreamTimeout

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Server:
    """Plays `script` on every connection; counts them and keeps the requests' bytes."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self.connections = 0
        self.closed = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            await self._script(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the pool hung up, or the test is over
        finally:
            writer.close()
            self.closed.set()


async def request(reader: asyncio.StreamReader) -> bytes:
    """One whole request from the pool."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    return head + await reader.readexactly(length)


@asynccontextmanager
async def playing(script: Script, path: Path) -> AsyncIterator[tuple[Server, Pool]]:
    server = Server(script)
    listener = await asyncio.start_unix_server(server.serve, path / "s")
    pool = Pool(f"unix:{path}/s", api_key="secret", connect_timeout=1.0)
    try:
        yield server, pool
    finally:
        pool.close()
        listener.close()


async def answer_all(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        await request(reader)
        writer.write(OK)


async def test_a_connection_carries_one_request_after_another(tmp_path: Path) -> None:
    async with playing(answer_all, tmp_path) as (server, pool):
        for _ in range(20):
            reply = await pool.send("/x", "id", b"{}", 5)
            assert (reply.status, await reply.read()) == (200, b"ok")
            reply.close()
    assert server.connections == 1


async def test_requests_at_a_time_have_connections_of_their_own(tmp_path: Path) -> None:
    async with playing(answer_all, tmp_path) as (server, pool):
        replies = await asyncio.gather(*(pool.send("/x", "id", b"{}", 5) for _ in range(5)))
        assert server.connections == 5
        for reply in replies:
            reply.close()


async def test_a_request_has_key_name_and_body(tmp_path: Path) -> None:
    seen = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await request(reader))
        writer.write(OK)

    async with playing(script, tmp_path) as (_, pool):
        (await pool.send("/v1/x", "abc", b'{"a":1}', 5)).close()
    head, _, body = seen[0].partition(b"\r\n\r\n")
    assert head.split(b"\r\n") == [
        b"POST /v1/x HTTP/1.1", b"Host: localhost", b"Content-Type: application/json",
        b"Authorization: Bearer secret", b"X-Request-Id: abc", b"Content-Length: 7"]
    assert body == b'{"a":1}'


async def test_a_connection_that_the_replica_closed_while_idle_costs_a_new_one_and_no_error(tmp_path: Path) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        writer.write(OK)
        await request(reader)  # then closes without an answer, as a server does whose idle time is up

    async with playing(script, tmp_path) as (server, pool):
        for _ in range(2):
            reply = await pool.send("/x", "id", b"{}", 5)
            assert await reply.read() == b"ok"
            reply.close()
    assert server.connections == 2


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 200 OK\r\nContent-Le", b"nonsense\r\n\r\n"])
async def test_a_new_connection_without_an_answer_is_a_replica_that_failed(tmp_path: Path, said: bytes) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        writer.write(said)

    async with playing(script, tmp_path) as (server, pool):
        with pytest.raises(ReplicaUnreachable):
            await pool.send("/x", "id", b"{}", 5)
    assert server.connections == 1


async def test_a_body_that_breaks_off_is_an_error_after_what_came(tmp_path: Path) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")

    async with playing(script, tmp_path) as (_, pool):
        reply = await pool.send("/x", "id", b"{}", 5)
        assert await reply.chunk() == b"half"
        with pytest.raises(ReplicaUnreachable):
            await reply.chunk()
        reply.close()


async def test_closing_a_reply_before_its_end_closes_the_connection(tmp_path: Path) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n")
        assert await reader.read() == b""

    async with playing(script, tmp_path) as (server, pool):
        reply = await pool.send("/x", "id", b"{}", 5)
        assert await reply.chunk() == b"one"
        reply.close()
        await asyncio.wait_for(server.closed.wait(), 5)
        assert not pool._idle


async def test_a_call_that_is_cancelled_while_it_waits_closes_the_connection(tmp_path: Path) -> None:
    asked = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        asked.set()
        assert await reader.read() == b""

    async with playing(script, tmp_path) as (server, pool):
        call = asyncio.create_task(pool.send("/x", "id", b"{}", 5))
        await asked.wait()
        call.cancel()
        await asyncio.wait_for(server.closed.wait(), 5)


async def test_an_answer_that_takes_too_long_is_given_up(tmp_path: Path) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        if server.connections == 2:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
        await reader.read()

    async with playing(script, tmp_path) as (server, pool):
        with pytest.raises(UpstreamTimeout):
            await pool.send("/x", "id", b"{}", 0.05)
        reply = await pool.send("/x", "id", b"{}", 0.2)
        with pytest.raises(UpstreamTimeout):
            await reply.read()
        reply.close()


@pytest.mark.parametrize("pause", [0.0, 0.02])
async def test_an_answer_that_nobody_asked_for_is_never_taken_for_the_next_one(tmp_path: Path, pause: float) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        if server.connections == 1 and not pause:
            writer.write(OK + OK.replace(b"ok", b"no"))
        else:
            writer.write(OK)
            await asyncio.sleep(pause)
            if server.connections == 1:
                writer.write(OK.replace(b"ok", b"no"))
        await reader.read()

    async with playing(script, tmp_path) as (server, pool):
        for _ in range(2):
            reply = await pool.send("/x", "id", b"{}", 5)
            assert await reply.read() == b"ok"
            reply.close()
            await asyncio.sleep(0.05)
    assert server.connections == 2


async def test_a_reader_that_is_slow_stops_the_sender(tmp_path: Path) -> None:
    sent = 0
    total = 64 * HIGH_WATER

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % total)
        while sent < total:
            writer.write(b"x" * HIGH_WATER)
            sent += HIGH_WATER
            await writer.drain()
        await reader.read()

    async with playing(script, tmp_path) as (_, pool):
        reply = await pool.send("/x", "id", b"{}", 10)
        await asyncio.sleep(0.2)
        assert sent < total / 2
        assert len(await reply.read()) == total
        reply.close()


async def test_a_body_without_a_length_ends_with_the_connection(tmp_path: Path) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: x\n\n")

    async with playing(script, tmp_path) as (_, pool):
        reply = await pool.send("/x", "id", b"{}", 5)
        assert await reply.read() == b"data: x\n\n"
        reply.close()


async def test_nobody_listening_is_a_replica_that_cannot_be_reached(tmp_path: Path) -> None:
    with pytest.raises(ReplicaUnreachable, match="cannot be reached"):
        await Pool(f"unix:{tmp_path}/none").send("/x", "id", b"{}", 5)
    with pytest.raises(ReplicaUnreachable, match="cannot be reached"):
        await Pool("http://127.0.0.1:1").send("/x", "id", b"{}", 5)


@pytest.mark.parametrize(("url", "expected"), [
    ("http://h:1", Origin("h", 1, False, None, "")), ("https://h", Origin("h", 443, True, None, "")),
    ("http://[::1]:8000/a/", Origin("::1", 8000, False, None, "/a")),
    ("unix:/tmp/x.sock", Origin("localhost", 0, False, "/tmp/x.sock", "")),
])
def test_addresses_of_replicas_are_understood(url: str, expected: Origin) -> None:
    assert Origin.parse(url) == expected


@given(st.text())
def test_any_other_address_is_refused_with_the_forms_that_are_allowed(text: str) -> None:
    try:
        Origin.parse(text)
    except InvalidRequest as refused:
        assert "unix:/path" in refused.message
