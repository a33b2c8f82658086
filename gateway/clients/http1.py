"""Pooled HTTP/1.1 towards one replica: what the request path needs and no more.

One connection carries one request at a time. Bytes go from the socket through llhttp (httptools) to whoever reads the
reply, with back pressure and without a task per connection. A reply that is closed before its end closes its connection
at once: that is how vLLM learns that the caller has gone.
"""

import asyncio
import ssl
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

import httptools

from gateway.domain.errors import InvalidRequest, ReplicaUnreachable, Unavailable, UpstreamTimeout

HIGH_WATER = 256 * 1024
Headers = list[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a replica listens: a unix socket path, or host and port with or without TLS."""

    host: str
    port: int
    tls: bool
    socket_path: str | None
    base_path: str

    @classmethod
    def parse(cls, url: str) -> "Origin":
        """`http://host[:port][/path]`, `https://…` or `unix:/path/to.sock`; InvalidRequest for anything else."""
        if url.startswith("unix:/"):
            return cls("localhost", 0, False, "/" + url[len("unix:"):].lstrip("/"), "")
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            parts, port = urlsplit(""), None
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.username:
            raise InvalidRequest(
                f"{url[:200]!r} is not a replica's address: use http://host:port, https://host:port or "
                "unix:/path/to.sock.", param="url")
        tls = parts.scheme == "https"
        return cls(parts.hostname, port or (443 if tls else 80), tls, None, parts.path.rstrip("/"))

    @property
    def authority(self) -> bytes:
        """The Host header's value."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        default = 443 if self.tls else 80
        return (host if self.port in (0, default) else f"{host}:{self.port}").encode()


class StaleConnection(Exception):
    """A kept-alive connection had been closed by the replica before our request reached it."""


class Reply:
    """A replica's answer: status and headers are here, the body comes chunk by chunk.

    Whoever holds a reply closes it, whatever happens.
    """

    __slots__ = ("_chunks", "_connection", "_ended", "_error", "_size", "_waiter", "headers", "status")

    def __init__(self, connection: "_Connection", status: int, headers: Headers) -> None:
        self.status = status
        self.headers = headers
        self._connection = connection
        self._chunks: deque[bytes] = deque()
        self._size = 0
        self._ended = False
        self._error: Unavailable | None = None
        self._waiter: asyncio.Future[None] | None = None

    def header(self, name: bytes) -> bytes | None:
        """The first header of that lower-case name."""
        return next((value for key, value in self.headers if key == name), None)

    async def chunk(self) -> bytes:
        """The body bytes that have come since the last call, at least one; b"" at the end.

        Raises ReplicaUnreachable when the replica broke off, UpstreamTimeout when the request's time is up.
        """
        while not self._chunks:
            if self._error is not None:
                raise self._error
            if self._ended:
                return b""
            self._waiter = self._connection.loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        data = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks.clear()
        self._size = 0
        self._connection.resume()
        return data

    async def read(self) -> bytes:
        """The rest of the body, whole."""
        parts = []
        while part := await self.chunk():
            parts.append(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def close(self) -> None:
        """Give the connection back if the reply is complete, else cut it; harmless when repeated."""
        self._connection.finish(self)

    def feed(self, data: bytes) -> bool:
        """Take body bytes; True when the reader is too far behind to read on."""
        self._chunks.append(data)
        self._size += len(data)
        self._wake()
        return self._size > HIGH_WATER

    def end(self, error: Unavailable | None = None) -> None:
        """No more body: complete, or broken off by `error`."""
        self._ended = error is None
        self._error = error
        self._wake()

    @property
    def is_open(self) -> bool:
        """Is more of the body to come?"""
        return not self._ended and self._error is None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class _Connection(asyncio.Protocol):
    """One socket and its parser; httptools calls the `on_…` methods."""

    __slots__ = ("_answer", "_complete", "_framed", "_headers", "_keep_alive", "_on_free", "_paused", "_received",
                 "_reply", "_reused", "_timer", "_transport", "_where", "freed_at", "loop", "parser")

    def __init__(self, loop: asyncio.AbstractEventLoop, where: str, on_free: Callable[["_Connection"], None]) -> None:
        self.loop = loop
        self.parser = httptools.HttpResponseParser(self)
        self.freed_at = 0.0
        self._where = where
        self._on_free = on_free
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[Reply] | None = None
        self._reply: Reply | None = None
        self._headers: Headers = []
        self._complete = True
        self._framed = False
        self._keep_alive = False
        self._paused = False
        self._received = False
        self._reused = False
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_usable(self) -> bool:
        """Can it carry another request?"""
        return self._transport is not None and not self._transport.is_closing()

    async def exchange(self, request: bytes, seconds: float) -> Reply:
        """Send a whole request, return when the answer's headers are here.

        Raises StaleConnection when a reused connection turns out to be closed, else ReplicaUnreachable or
        UpstreamTimeout.
        """
        if self._transport is None or self._transport.is_closing():
            raise StaleConnection
        answer: asyncio.Future[Reply] = self.loop.create_future()
        self._answer = answer
        self._headers = []
        self._complete = self._framed = self._received = False
        self._timer = self.loop.call_later(seconds, self._time_is_up, seconds)
        self._transport.write(request)
        try:
            return await answer
        except BaseException:
            self.cut()
            raise

    def finish(self, reply: Reply) -> None:
        """The reader is done with `reply`."""
        if self._reply is not reply:
            return
        self._reply = None
        self._stop_timer()
        if reply.is_open or not self.is_usable or not self._keep_alive:
            self.cut()
        else:
            self.resume()
            self._reused = True
            self._on_free(self)

    def cut(self) -> None:
        """Close the socket at once."""
        self._stop_timer()
        if self._transport is not None:
            self._transport.abort()
            self._transport = None

    def resume(self) -> None:
        """Read from the socket again after a pause."""
        if self._paused and self.is_usable and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # a stream transport, by how it was made

    def data_received(self, data: bytes) -> None:
        self._received = True
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(ReplicaUnreachable(f"The replica at {self._where} does not speak HTTP/1.1: {error}."))

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._reply is not None and self._reply.is_open and not self._framed and exc is None:
            self._reply.end()  # a body framed by the end of the connection
        elif self._answer is not None and not self._answer.done() and self._reused and not self._received:
            self._stop_timer()
            self._answer.set_exception(StaleConnection())
        else:
            self._fail(ReplicaUnreachable(f"The replica at {self._where} closed the connection."))

    # httptools callbacks

    def on_message_begin(self) -> None:
        if self._complete:  # nobody asked: never let it pass for the answer to the next request
            self.cut()

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        self._framed = self._framed or name in (b"content-length", b"transfer-encoding")
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        status = self.parser.get_status_code()
        if status < 200 or self._complete or self._answer is None or self._answer.done():
            self._headers = []
            return
        self._reply = Reply(self, status, self._headers)
        self._answer.set_result(self._reply)

    def on_body(self, data: bytes) -> None:
        if self._complete or self._reply is None:
            return
        if self._reply.feed(data) and self.is_usable and not self._paused:
            self._paused = True
            assert self._transport is not None  # is_usable
            self._transport.pause_reading()

    def on_message_complete(self) -> None:
        if self._complete or self._reply is None:
            return
        self._complete = True
        self._keep_alive = self.parser.should_keep_alive()  # only now: the parser forgets it when this returns
        self._stop_timer()
        self._reply.end()

    # failures

    def _time_is_up(self, seconds: float) -> None:
        self._fail(UpstreamTimeout(f"The replica did not finish its answer within {seconds:g} s."))

    def _fail(self, error: Unavailable) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)
        elif self._reply is not None and self._reply.is_open:
            self._reply.end(error)
        self.cut()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Pool:
    """Connections to one replica, reused last in, first out.

    `idle_seconds` stays under the 5 s after which vLLM's server closes an idle connection.
    """

    def __init__(
        self, url: str, *, api_key: str | None = None, connect_timeout: float = 2.0, idle_seconds: float = 4.0
    ) -> None:
        self.origin = Origin.parse(url)
        self._api_key = api_key
        self._url = url
        self._connect_timeout = connect_timeout
        self._idle_seconds = idle_seconds
        self._idle: list[_Connection] = []
        self._tls = ssl.create_default_context() if self.origin.tls else None
        self._heads: dict[str, bytes] = {}
        self._closed = False

    async def send(self, path: str, request_id: str, body: bytes, seconds: float) -> Reply:
        """POST a JSON `body`; `request_id` names the request in the replica's own log.

        `seconds` bounds the whole exchange, to the reply's last byte. Raises ReplicaUnreachable or UpstreamTimeout.
        """
        head = self._heads.get(path)
        if head is None:
            head = self._heads[path] = self._head(path)
        request = b"%bX-Request-Id: %b\r\nContent-Length: %d\r\n\r\n%b" % (head, request_id.encode(), len(body), body)
        while True:
            connection = self._reusable() or await self._connect()
            try:
                return await connection.exchange(request, seconds)
            except StaleConnection:
                continue  # a fresh connection is never stale, so this ends

    def close(self) -> None:
        """Close what is idle; a reply under way keeps its connection until it is closed."""
        self._closed = True
        for connection in self._idle:
            connection.cut()
        self._idle.clear()

    def _head(self, path: str) -> bytes:
        lines = [f"POST {self.origin.base_path}{path} HTTP/1.1".encode(), b"Host: " + self.origin.authority,
                 b"Content-Type: application/json"]
        if self._api_key:
            lines.append(b"Authorization: Bearer " + self._api_key.encode())
        return b"\r\n".join(lines) + b"\r\n"

    def _reusable(self) -> _Connection | None:
        now = asyncio.get_running_loop().time()
        while self._idle:
            connection = self._idle.pop()
            if connection.is_usable and now - connection.freed_at < self._idle_seconds:
                return connection
            connection.cut()
        return None

    def _free(self, connection: _Connection) -> None:
        if self._closed:
            connection.cut()
            return
        connection.freed_at = connection.loop.time()
        self._idle.append(connection)

    async def _connect(self) -> _Connection:
        loop = asyncio.get_running_loop()

        def make() -> _Connection:
            return _Connection(loop, self._url, self._free)

        origin = self.origin
        try:
            async with asyncio.timeout(self._connect_timeout):
                if origin.socket_path is not None:
                    _, connection = await loop.create_unix_connection(make, origin.socket_path)
                else:
                    _, connection = await loop.create_connection(make, origin.host, origin.port, ssl=self._tls)
        except TimeoutError:
            raise ReplicaUnreachable(
                f"The replica at {self._url} took over {self._connect_timeout:g} s to accept a connection.") from None
        except OSError as error:
            raise ReplicaUnreachable(f"The replica at {self._url} cannot be reached: {error}.") from error
        return connection
