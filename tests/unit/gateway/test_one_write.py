"""Head and body of an answer go out in one write and in order, whatever is called in between. Nothing is held back."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from gateway.server.one_write import HELD_MAX_BYTES, OneWrite

Use = Callable[[OneWrite], None]


class Counted:
    """A real transport whose writes are kept."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self.writes: list[bytes] = []
        self._transport = transport

    def write(self, data: bytes) -> None:
        self.writes.append(data)
        self._transport.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


async def written(use: Use) -> tuple[list[bytes], bytes]:
    """What *use* writes, call by call, and what the other side reads until the end."""
    counted: list[Counted] = []

    class Server(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert isinstance(transport, asyncio.Transport)
            counted.append(Counted(transport))
            use(OneWrite(counted[0], asyncio.get_running_loop()))  # type: ignore[arg-type]  # it does what one does

    server = await asyncio.get_running_loop().create_server(Server, "127.0.0.1", 0)
    async with server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        async with asyncio.timeout(20):
            read = await reader.readuntil(b"!")
        writer.close()
    return counted[0].writes, read


LONG = b"x" * (HELD_MAX_BYTES + 1)


def later(then: Callable[[], None]) -> None:
    loop = asyncio.get_running_loop()
    loop.call_soon(loop.call_soon, then)


def head_and_body(line: OneWrite) -> None:
    line.write(b"head ")
    line.write(b"body!")


def head_alone(line: OneWrite) -> None:
    line.write(b"head ")
    later(lambda: line.write(b"body!"))


def two_answers(line: OneWrite) -> None:
    for part in (b"head ", b"body ", b"head ", b"body!"):
        line.write(part)


def long_first(line: OneWrite) -> None:
    line.write(LONG)
    line.write(b"end!")


def long_second(line: OneWrite) -> None:
    line.write(b"head ")
    line.write(LONG)
    line.write(b"end!")


def closed(line: OneWrite) -> None:
    line.write(b"last!")
    assert line.get_write_buffer_size() == len(b"last!")
    line.close()


def half_closed(line: OneWrite) -> None:
    line.write(b"last!")
    line.write_eof()


@pytest.mark.parametrize(
    ("use", "writes"),
    [
        (head_and_body, [b"head body!"]),
        (head_alone, [b"head ", b"body!"]),
        (two_answers, [b"head body ", b"head body!"]),
        (long_first, [LONG, b"end!"]),
        (long_second, [b"head " + LONG, b"end!"]),
        (closed, [b"last!"]),
        (half_closed, [b"last!"]),
    ],
)
async def test_what_is_written(use: Use, writes: list[bytes]) -> None:
    made, read = await written(use)
    assert made == writes
    assert read == b"".join(writes)


async def test_what_was_aborted_is_not_written() -> None:
    def use(line: OneWrite) -> None:
        line.write(b"lost!")
        line.abort()

    with pytest.raises(asyncio.IncompleteReadError) as caught:
        await written(use)
    assert caught.value.partial == b""
