"""A proxy to a real API server. A test can cut it, and can have it answer in the server's place."""

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
from msgspec import Struct


class Answer(Struct, frozen=True):
    """What the proxy answers in the server's place."""

    status: int
    body: dict[str, Any]
    headers: dict[str, str] = {}


def status_of(code: int, reason: str, message: str) -> dict[str, Any]:
    """The object in which an API server refuses."""
    kind = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure"}
    return kind | {"code": code, "reason": reason, "message": message}


class Proxy:
    """Passes requests on, as HTTP on the loopback, one for each connection."""

    def __init__(self, target: str, authority: str) -> None:
        self._http = httpx.AsyncClient(
            base_url=target, verify=ssl.create_default_context(cafile=authority), timeout=None
        )
        self._open: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.url = ""
        self.is_away = False
        """Whether the proxy closes reads (GET) without an answer. Writes still pass."""
        self.seen: list[str] = []
        """Method and path of each request, in their order."""
        self.instead: Callable[[str], Answer | None] = lambda _: None
        """What to answer a request (method, path and query) with; None: the server answers."""

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        self.cut()
        assert self._server is not None
        self._server.close()
        await self._server.wait_closed()
        await self._http.aclose()

    def cut(self) -> None:
        """Ends every connection, the watches among them."""
        for task in self._open:
            task.cancel()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        with contextlib.suppress(asyncio.CancelledError, ConnectionError, asyncio.IncompleteReadError, httpx.HTTPError):
            await self._pass_on(reader, writer)
        self._open.discard(task)
        writer.close()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        method, path, _ = head[0].split(" ")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        self.seen.append(f"{method} {path}")
        if self.is_away and method == "GET":
            return
        answer = self.instead(f"{method} {path}")
        if answer is not None:
            given = {"Content-Type": "application/json"} | answer.headers
            await _write(writer, answer.status, given, json.dumps(answer.body).encode() + b"\n")
            return
        kept: dict[str, str] = {
            name: headers[name] for name in ("authorization", "content-type", "accept") if name in headers
        }
        async with self._http.stream(method, path, content=body, headers=kept) as response:
            given = {"Content-Type": response.headers.get("content-type", "application/json")}
            await _write(writer, response.status_code, given, b"")
            async for part in response.aiter_bytes():
                writer.write(part)
                await writer.drain()


async def _write(writer: asyncio.StreamWriter, status: int, headers: dict[str, str], body: bytes) -> None:
    lines = [f"HTTP/1.1 {status} -", "Connection: close", *(f"{name}: {value}" for name, value in headers.items())]
    writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
    await writer.drain()


@asynccontextmanager
async def proxy_to(target: str, authority: str) -> AsyncIterator[Proxy]:
    """A proxy that runs until the block ends."""
    proxy = Proxy(target, authority)
    await proxy.start()
    try:
        yield proxy
    finally:
        await proxy.stop()
