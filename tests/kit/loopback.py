"""An ASGI application behind the gateway's own server, in this process, with limits short enough for a test."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Any

import uvicorn

from gateway.server.connections import Connections, http_config
from gateway.server.limits import Limits


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # signals are left to the tests


@contextlib.asynccontextmanager
async def serving(app: Any, limits: Limits) -> AsyncIterator[tuple[int, Connections]]:
    """The port on which *app* is served within *limits*, and its connections."""
    connections = Connections(limits)
    listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
    server = _Server(http_config(app, connections))
    running = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield listener.getsockname()[1], connections
    finally:
        server.should_exit = server.force_exit = True
        await running
        listener.close()


class Talk:
    """A connection on which a test sends any bytes, and reads what comes back."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def to(cls, port: int) -> "Talk":
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def say(self, text: bytes) -> None:
        self.writer.write(text)
        with contextlib.suppress(ConnectionError):
            await self.writer.drain()

    async def answer(self) -> bytes:
        """All that comes until the other side closes."""
        with contextlib.suppress(ConnectionError):
            return await self.reader.read()
        return b""

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()
