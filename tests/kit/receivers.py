"""Receivers of webhooks: real HTTP servers of the loopback, well-behaved and hostile."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

from msgspec import Struct
from standardwebhooks.webhooks import Webhook

from contracts.nesting import decode_json
from tests.kit.support import BOUND_S, eventually


class Received(Struct, frozen=True):
    """A request as received; names of headers in lower case."""

    target: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def json(self) -> dict[str, Any]:
        return decode_json(self.body, dict[str, Any])

    @property
    def type(self) -> str:
        return str(self.json["type"])

    @property
    def task_id(self) -> str:
        return str(self.json["data"]["id"])

    def verified(self, secret: str) -> dict[str, Any]:
        """The body, if *secret* signed it. Raises WebhookVerificationError."""
        found: dict[str, Any] = Webhook(secret).verify(self.body, dict(self.headers))
        return found


Answer = Callable[[Received, asyncio.StreamWriter], Awaitable[None]]


def answering(status: int, **headers: str) -> Answer:
    """A receiver that answers with *status* and *headers*, whose names have underscores."""

    async def answer(_: Received, writer: asyncio.StreamWriter) -> None:
        lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
        writer.write(f"HTTP/1.1 {status} As asked\r\nContent-Length: 0\r\n{lines}\r\n".encode())

    return answer


async def silent(_: Received, writer: asyncio.StreamWriter) -> None:
    """A receiver that takes the request and never answers."""
    await writer.wait_closed()


async def endless(_: Received, writer: asyncio.StreamWriter) -> None:
    """A receiver whose answer never ends."""
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    with contextlib.suppress(ConnectionError):
        while not writer.is_closing():
            writer.write(chunk)
            await writer.drain()


async def endless_head(_: Received, writer: asyncio.StreamWriter) -> None:
    """A receiver whose head never ends."""
    writer.write(b"HTTP/1.1 200 OK\r\n")
    with contextlib.suppress(ConnectionError):
        while not writer.is_closing():
            writer.write(b"X-Filler: " + b"x" * 0x1000 + b"\r\n")
            await writer.drain()


class Receiver:
    """A server that keeps every request. `answer` writes its answers; a test may replace it at any time."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.received: list[Received] = []
        self.connections = 0
        self.port = 0
        self._open: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"

    @contextlib.asynccontextmanager
    async def listening(self, *, tls: ssl.SSLContext | None = None, port: int = 0) -> AsyncIterator["Receiver"]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", port, ssl=tls)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for writer in tuple(self._open):
                writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._open.add(writer)
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                first, *lines = head.rstrip("\r\n").split("\r\n")
                headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                received = Received(first.split(" ")[1], headers, body)
                self.received.append(received)
                await self.answer(received, writer)
        finally:
            self._open.discard(writer)
            writer.close()

    def of(self, task_id: str) -> list[Received]:
        """The requests about a task."""
        return [each for each in self.received if each.json["data"].get("id") == task_id]

    def types(self, task_id: str) -> list[str]:
        """The types of the events received for a task, each once, sorted."""
        return sorted({each.type for each in self.of(task_id)})

    async def gets(self, task_id: str, *types: str, within_s: float = BOUND_S) -> list[Received]:
        """The requests about a task, once all of *types* have come. Any other type is an AssertionError."""

        async def look() -> bool:
            return set(types) <= set(self.types(task_id))

        await eventually(look, within_s=within_s)
        assert self.types(task_id) == sorted(types)
        return self.of(task_id)


@contextlib.asynccontextmanager
async def receiving(answer: Answer | None = None, **options: Any) -> AsyncIterator[Receiver]:
    """A receiver that answers as *answer* does, or accepts everything."""
    async with Receiver(answer or answering(204)).listening(**options) as receiver:
        yield receiver
