"""The load generator of `make bench`, against servers of a few lines that misbehave."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from tests.bench import load
from tests.bench.load import Address, LoadFailed, closed, connect, paced, percentile, request, require_expected
from tests.kit.support import eventually

Serve = Callable[[int], Awaitable[bytes]]
OK = b"HTTP/1.1 202 Accepted\r\ncontent-length: 2\r\n\r\n{}"


@contextlib.asynccontextmanager
async def serving(serve: Serve) -> AsyncIterator[Address]:
    """A server that answers its n-th request with what *serve* returns for n; nothing ends the connection."""
    count = 0

    async def on_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal count
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                assert b"content-length: 4\r\n" in head
                assert await reader.readexactly(4) == b"body"
                count += 1
                writer.write(await serve(count))
        writer.close()

    server = await asyncio.start_server(on_connection, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()


def post(address: Address) -> bytes:
    return request("POST", "/generate", address, b"body", content_type="text/plain")


async def at_once(_: int) -> bytes:
    return OK


async def test_a_closed_loop_counts_what_it_sends() -> None:
    async with serving(at_once) as address:
        found = await closed(address, post(address), connections=3, seconds=0.1, expected=202)
    assert found.sent == len(found.latencies_s) >= 3
    assert found.failures == {}
    assert found.per_s == pytest.approx(found.sent / found.seconds)


async def test_a_pace_is_kept_whatever_the_answers_do() -> None:
    async with serving(at_once) as address:
        found = await paced(address, post(address), rate_per_s=400, seconds=0.25, connections=3, expected=202)
    assert found.sent == len(found.latencies_s) == 100
    assert require_expected(found, "all") is found


async def test_a_server_that_stops_for_a_while_shows_in_every_latency_that_it_held_up() -> None:
    """The first answer takes 0.4 s and the others nothing. A closed loop would see one slow answer."""

    async def slow_at_first(number: int) -> bytes:
        await asyncio.sleep(0.4 if number == 1 else 0)
        return OK

    async with serving(slow_at_first) as address:
        held = await paced(address, post(address), rate_per_s=100, seconds=0.4, connections=1, expected=202)
    assert len(held.latencies_s) == 40
    # the n-th was due n/100 s after the first, and could be answered 0.4 s after it at the earliest
    late = [latency_s for latency_s in held.latencies_s if latency_s > 0.19]
    assert len(late) >= 20
    assert max(held.latencies_s) >= 0.4


async def test_another_status_is_no_answer() -> None:
    async def every_second(number: int) -> bytes:
        if number % 2:
            return OK
        return b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 8\r\n\r\noverload"

    async with serving(every_second) as address:
        found = await paced(address, post(address), rate_per_s=400, seconds=0.05, connections=1, expected=202)
    assert (found.sent, len(found.latencies_s)) == (20, 10)
    assert found.failures == {"status 503: overload": 10}
    with pytest.raises(LoadFailed, match=r"a gateway: 20 requests were sent; 10 times status 503: overload"):
        require_expected(found, "a gateway")


async def test_a_connection_that_is_cut_and_what_no_connection_is_left_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "GRACE_S", 0.05)
    cut = 0

    async def never(_: int) -> bytes:
        raise ConnectionError

    class Tally(load._Tally):
        def take(self, since_s: float, outcome: load.Answer | ConnectionError) -> None:
            nonlocal cut
            super().take(since_s, outcome)
            cut += 1

    async def until_both_are_cut(*_: object) -> None:
        nonlocal cut
        await eventually(lambda: asyncio.sleep(0, cut == 2))
        cut = 0

    monkeypatch.setattr(load, "_Tally", Tally)
    monkeypatch.setattr(load, "_within", until_both_are_cut)

    async with serving(never) as address:
        found = await paced(address, post(address), rate_per_s=400, seconds=0.025, connections=2, expected=202)
        at_once_gone = await closed(address, post(address), connections=2, seconds=0.05, expected=202)
    assert found.failures == {"the server closed the connection": 2, "no answer within 0.05 s": 8}
    assert at_once_gone.failures == {"the server closed the connection": 2}


async def test_a_server_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "GRACE_S", 0.05)

    async def silence(_: int) -> bytes:
        await asyncio.sleep(60)
        return OK

    async with serving(silence) as address:
        found = await closed(address, post(address), connections=2, seconds=0.05, expected=202)
    assert (found.sent, found.failures) == (2, {"no answer within 0.05 s": 2})


async def test_an_answer_that_is_not_http_is_a_failure() -> None:
    async def nonsense(_: int) -> bytes:
        return b"220 smtp ready\r\n"

    async with serving(nonsense) as address:
        line = await connect(address)
        with pytest.raises(ConnectionError, match=r"the answer is no HTTP/1\.1"):
            await line.ask(post(address))


async def test_a_body_that_does_not_end_is_passed_on_piece_by_piece() -> None:
    async def event(_: int) -> bytes:
        return b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nevent\r\n"

    parts: list[bytes] = []
    came = asyncio.Event()

    def on_part(part: bytes) -> None:
        parts.append(part)
        came.set()

    async with serving(event) as address:
        line = await connect(address, on_part)
        line.start(post(address), lambda _: None)
        async with asyncio.timeout(60):
            await came.wait()
        line.close()
    assert parts == [b"event"]


@pytest.mark.parametrize(
    ("percent", "expected"), [(50, 51.0), (99, 100.0), (100, 100.0), (0, 1.0)], ids=["p50", "p99", "p100", "p0"]
)
def test_percentiles(percent: int, expected: float) -> None:
    assert percentile([float(number) for number in range(100, 0, -1)], percent) == expected
