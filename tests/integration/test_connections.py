"""Slow and greedy clients, against the gateway's own server on the loopback, with limits of tenths of a second."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from structlog.testing import capture_logs

from gateway.server.connections import Connections
from gateway.server.limits import Limits
from tests.kit.loopback import Talk, serving
from tests.kit.support import eventually

LIMITS = Limits(
    head_s=0.15,
    head_max_bytes=2_000,
    headers_max=20,
    body_idle_s=0.15,
    body_s=0.4,
    unread_s=0.3,
    linger_s=0.1,
    connections_max=5,
    pipelined_max=3,
)
GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


class App:
    """Answers the size of the body at `/`; streams for ever at `/stream`; waits for the client to go at `/wait`."""

    def __init__(self) -> None:
        self.in_hand = 0
        self.sizes: list[int] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.in_hand += 1
        try:
            await self._serve(scope, receive, send)
        finally:
            self.in_hand -= 1

    async def _serve(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/wait":
            while (await receive())["type"] != "http.disconnect":
                pass
            return
        if scope["path"] == "/stream":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            gone = asyncio.create_task(self._gone(receive))
            while not gone.done():
                await send({"type": "http.response.body", "body": b"x" * 65_536, "more_body": True})
                await asyncio.sleep(0)
            return
        size, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            size, more = size + len(message["body"]), message["more_body"]
        self.sizes.append(size)
        body = str(size).encode()
        headers = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _gone(self, receive: Any) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass


class Served:
    def __init__(self, app: App, port: int, connections: Connections) -> None:
        self.app, self.port, self.connections = app, port, connections

    async def becomes_free(self) -> None:
        """Returns when no connection is left, and no request waits for a closed one."""

        async def look() -> bool:
            return not len(self.connections) and not self.app.in_hand

        await eventually(look)


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    app = App()
    async with serving(app, LIMITS) as (port, connections):
        yield Served(app, port, connections)


@pytest.fixture
async def talk(served: Served) -> AsyncIterator[Talk]:
    talk = await Talk.to(served.port)
    yield talk
    await talk.close()


def problem(answer: bytes) -> tuple[int, str]:
    """Status and code of the only answer."""
    assert answer.startswith(b"HTTP/1.1 "), answer
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"content-type: application/problem+json" in head
    assert b"connection: close" in head
    document = json.loads(body)
    assert f"content-length: {len(body)}".encode() in head
    assert int(head.split()[1]) == document["status"]
    return document["status"], document["code"]


@pytest.mark.parametrize("start", [b"", b"\r\n", b"GET / HTTP/1.1\r\n", GET[:-1]])
async def test_a_head_that_does_not_end(start: bytes, served: Served, talk: Talk) -> None:
    await talk.say(start)
    assert problem(await talk.answer()) == (408, "request_timeout")
    await talk.close()
    await served.becomes_free()


async def test_a_head_of_slow_headers(talk: Talk) -> None:
    """A slow head gets no more time because it makes progress."""
    await talk.say(b"GET / HTTP/1.1\r\nHost: x\r\n")
    answer = asyncio.create_task(talk.answer())
    while not answer.done():
        await talk.say(b"a: b\r\n")
        await asyncio.sleep(0.05)
    assert problem(await answer)[1] == "request_timeout"


@pytest.mark.parametrize("blanks", [b"", b"\r\n"])
async def test_the_head_of_a_later_request(blanks: bytes, talk: Talk) -> None:
    """Blank lines between two requests are skipped by the parser; they do not keep a connection open."""
    await talk.say(GET)
    assert b"200 OK" in await talk.reader.readuntil(b"\r\n\r\n0")
    await talk.say(blanks or b"GET / HT")
    answer = asyncio.create_task(talk.answer())
    while not answer.done():
        await talk.say(blanks)
        await asyncio.sleep(0.05)
    assert (await answer == b"") if blanks else (problem(await answer) == (408, "request_timeout"))


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(b"GET / HTTP/1.1\r\nHost: x\r\na: " + b"b" * 3_000 + b"\r\n\r\n", id="one-header"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: x\r\na: " + b"b" * 3_000, id="one-header-without-end"),
        pytest.param(b"GET /" + b"b" * 3_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", id="path"),
        pytest.param(b"GET /" + b"b" * 3_000, id="path-without-end"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: x\r\n" + b"a: b\r\n" * 21 + b"\r\n", id="many-headers"),
        pytest.param(
            b"POST / HTTP/1.1\r\nContent-Length: 9000\r\na: " + b"b" * 3_000 + b"\r\n\r\n" + b"x" * 9_000,
            id="with-body",
        ),
    ],
)
async def test_a_head_that_is_too_large(head: bytes, served: Served, talk: Talk) -> None:
    await talk.say(head)
    assert problem(await talk.answer()) == (431, "headers_too_large")
    assert served.app.sizes == []


async def test_a_large_body_is_no_large_head(talk: Talk) -> None:
    await talk.say(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9000\r\n\r\n" + b"x" * 9_000)
    assert b"200 OK" in await talk.reader.readuntil(b"\r\n\r\n9000")


@pytest.mark.parametrize(
    "junk",
    [
        b"\0\1\2\3",
        b"\x16\x03\x01\x02\x00\x01",  # TLS on a port without it
        b"NONSENSE / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET http://[::/ HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\na\0b: c\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n folded: c\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -4\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
async def test_a_request_that_is_not_http_is_refused(junk: bytes, served: Served, talk: Talk) -> None:
    await talk.say(junk)
    assert problem(await talk.answer()) == (400, "malformed_request")
    await talk.close()
    await served.becomes_free()


@pytest.mark.parametrize(
    ("sent", "line"),
    [
        (b"NONSENSE / HTTP/1.1\r\n\r\n", {"status": 400, "code": "malformed_request"}),
        (b"GET / HTT", {"status": 408, "code": "request_timeout"}),
        (
            b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nsecret",
            {"status": 408, "code": "request_timeout", "method": "POST", "path": "/x"},
        ),
    ],
)
async def test_what_never_became_a_request_has_its_line_too(sent: bytes, line: dict[str, Any], talk: Talk) -> None:
    with capture_logs() as lines:
        await talk.say(sent)
        answer = await talk.answer()
    (logged,) = lines
    assert logged.items() >= (line | {"event": "request", "address": "127.0.0.1"}).items()
    assert f"x-request-id: {logged['request_id']}\r\n".encode() in answer
    assert "secret" not in str(logged)


@pytest.mark.parametrize("framing", [b"Content-Length: 1000", b"Transfer-Encoding: chunked"])
async def test_a_body_that_stops(framing: bytes, served: Served, talk: Talk) -> None:
    await talk.say(b"POST / HTTP/1.1\r\nHost: x\r\n" + framing + b"\r\n\r\n2\r\nxx\r\n")
    assert problem(await talk.answer()) == (408, "request_timeout")
    assert served.app.sizes == []
    await talk.close()
    await served.becomes_free()


async def test_a_body_that_comes_byte_by_byte(served: Served, talk: Talk) -> None:
    await talk.say(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n")
    answer = asyncio.create_task(talk.answer())
    while not answer.done():
        await talk.say(b"x")
        await asyncio.sleep(0.02)
    assert problem(await answer) == (408, "request_timeout")
    await served.becomes_free()


async def test_a_client_that_does_not_read_is_cut(served: Served, talk: Talk) -> None:
    """The server does not cut a client while it reads, however slowly. Meanwhile it bounds what it buffers for the
    client."""
    await talk.say(b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n")
    loop = asyncio.get_running_loop()
    until_s = loop.time() + 3 * LIMITS.unread_s
    while loop.time() < until_s:
        assert await talk.reader.read(1 << 20)
        await asyncio.sleep(0.01)
    assert len(served.connections) == 1
    talk.writer.transport.pause_reading()  # type: ignore[attr-defined]
    await served.becomes_free()


async def test_a_gateway_that_stood_still_cuts_nobody(served: Served, talk: Talk) -> None:
    """On a busy or paused machine: a client is not to blame for what the gateway itself did not do in that time."""
    await talk.say(b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n")
    slow = await Talk.to(served.port)
    await slow.say(b"GET / HTTP/1.1\r\n")
    assert await talk.reader.read(1)
    time.sleep(2 * LIMITS.unread_s)  # noqa: ASYNC251  # the loop stands still
    await asyncio.sleep(2 * LIMITS.look_every_s)
    await slow.say(b"\r\n")
    assert (await slow.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
    assert await talk.reader.read(1 << 20)
    assert len(served.connections) == 2
    await slow.close()
    await talk.close()
    await served.becomes_free()


async def test_a_pipeline_is_bounded_and_answered_in_order(served: Served, talk: Talk) -> None:
    sizes = [3, 0, 2]
    for size in sizes:
        talk.writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size)
    assert [(await talk.reader.readuntil(b"\r\n\r\n"), await talk.reader.readexactly(1))[1] for _ in sizes] == [
        b"3",
        b"0",
        b"2",
    ]
    greedy = await Talk.to(served.port)
    await greedy.say(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n" + GET * 100)
    assert await greedy.answer() == b""  # the client would take an answer for that of its first request
    await greedy.close()
    await talk.close()
    await served.becomes_free()


async def test_junk_behind_a_request_is_not_answered_in_its_place(served: Served, talk: Talk) -> None:
    await talk.say(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n\0\0\0")
    assert await talk.answer() == b""
    await talk.close()
    await served.becomes_free()


async def test_a_client_that_hangs_up_with_a_second_request_behind_the_first_is_noticed(
    served: Served, talk: Talk
) -> None:
    await talk.say(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n" + GET)

    async def in_hand() -> bool:
        return served.app.in_hand == 1

    await eventually(in_hand)
    await talk.close()
    await served.becomes_free()


async def test_a_waiting_client_is_left_alone(served: Served, talk: Talk) -> None:
    """A client that waits for its answer is not cut, even with a stray line end after its request."""
    await talk.say(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n\r\n")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(talk.reader.read(), 3 * LIMITS.head_s)
    assert served.app.in_hand == 1


async def test_one_connection_too_many(served: Served) -> None:
    talks = [await Talk.to(served.port) for _ in range(LIMITS.connections_max)]
    for talk in talks:
        await talk.say(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")

    async def all_wait() -> bool:
        return served.app.in_hand == LIMITS.connections_max

    await eventually(all_wait)
    late = await Talk.to(served.port)
    await late.say(GET)
    refusal = await late.answer()
    assert problem(refusal) == (503, "too_many_connections")
    assert b"Retry-After: 1" in refusal
    await talks.pop().close()
    await late.close()

    async def room() -> bool:
        return len(served.connections) < LIMITS.connections_max

    await eventually(room)
    again = await Talk.to(served.port)
    await again.say(GET)
    assert b"200 OK" in await again.reader.readuntil(b"\r\n\r\n0")
    assert served.app.in_hand == LIMITS.connections_max - 1  # the existing ones went on
    for talk in (*talks, again):
        await talk.close()
    await served.becomes_free()
