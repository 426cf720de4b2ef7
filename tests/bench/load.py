"""A load generator for HTTP/1.1: keep-alive connections over plain sockets, in two ways.

`closed`: a number of connections, each of which sends its next request when it has its answer. It measures throughput;
its latencies say little, because a slow server gets fewer requests.

`paced`: requests at a fixed rate, whatever the answers do. A latency counts from the moment at which its request was
*meant* to be sent. So it includes the time for which a slow server holds a request up (generators that leave that out
suffer from "coordinated omission").

Every answer is checked: an answer with another status than the expected one counts as a failure, and its text is kept.
"""

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Final

import httptools
from msgspec import Struct

# How long `closed` and `paced` wait for the last answers, after the last request was sent.
GRACE_S: Final = 10.0
TEXT_MAX: Final = 200

Address = tuple[str, int]


class Answer(Struct, frozen=True):
    """One complete answer."""

    status: int
    body: bytes


class Load(Struct, frozen=True, kw_only=True):
    """What came back. *latencies_s* are those of the answers with the expected status, as they came.

    *sent* is what was sent, or was meant to be; *failures* counts every other outcome by a text that says what it was;
    *seconds* is from the first request to the last expected answer.
    """

    sent: int
    failures: dict[str, int]
    latencies_s: tuple[float, ...]
    seconds: float

    @property
    def per_s(self) -> float:
        """Answers with the expected status a second."""
        return len(self.latencies_s) / self.seconds if self.seconds else 0.0


class LoadFailed(Exception):
    """Answers were not as expected, so the figures would say nothing. The text says what came instead."""


def request(method: str, path: str, address: Address, body: bytes = b"", **headers: str) -> bytes:
    """The bytes of a request. A header is named with underscores: `content_type="application/json"`."""
    lines = [f"{method} {path} HTTP/1.1", f"host: {address[0]}:{address[1]}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    if body:
        lines.append(f"content-length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("ascii") + body


class Connection(asyncio.Protocol):
    """One connection, which carries one request at a time. Make it with `connect`.

    *on_part* is called with each piece of a body as it comes, for answers that do not end.
    """

    def __init__(self, on_part: Callable[[bytes], None] | None = None) -> None:
        self._on_part = on_part
        self._parser = httptools.HttpResponseParser(self)
        self._parts: list[bytes] = []
        self._done: Callable[[Answer | ConnectionError], None] | None = None
        self._transport: asyncio.Transport

    def start(self, data: bytes, done: Callable[[Answer | ConnectionError], None]) -> None:
        """Sends *data*; calls *done* once with the outcome."""
        self._done = done
        if self._transport.is_closing():
            self._end(ConnectionError("the server closed the connection"))
        else:
            self._transport.write(data)

    async def ask(self, data: bytes) -> Answer:
        """The answer to *data*. Raises ConnectionError."""
        answer: asyncio.Future[Answer | ConnectionError] = asyncio.get_running_loop().create_future()
        self.start(data, answer.set_result)
        outcome = await answer
        if isinstance(outcome, ConnectionError):
            raise outcome
        return outcome

    def close(self) -> None:
        """Aborts the connection; an outstanding answer is dropped."""
        self._done = None
        self._transport.abort()

    def _end(self, outcome: Answer | ConnectionError) -> None:
        done, self._done = self._done, None
        if done is not None:
            done(outcome)

    # What transport and parser report

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # that of a TCP connection

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(ConnectionError("the server closed the connection"))

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._end(ConnectionError(f"the answer is no HTTP/1.1: {error}"))
            self._transport.abort()

    def on_body(self, body: bytes) -> None:
        if self._on_part is None:
            self._parts.append(body)
        else:
            self._on_part(body)

    def on_message_complete(self) -> None:
        answer = Answer(self._parser.get_status_code(), b"".join(self._parts))
        self._parts.clear()
        self._end(answer)


async def connect(address: Address, on_part: Callable[[bytes], None] | None = None) -> Connection:
    """An open connection. Raises OSError."""
    _, connection = await asyncio.get_running_loop().create_connection(lambda: Connection(on_part), *address)
    return connection


class _Tally:
    """Counts outcomes as they come."""

    def __init__(self, expected: int) -> None:
        self.sent = 0
        self._expected = expected
        self._failures: Counter[str] = Counter()
        self._latencies_s: list[float] = []
        self._begun_s = self._last_s = time.perf_counter()

    def take(self, since_s: float, outcome: Answer | ConnectionError) -> None:
        """Counts the outcome of a request whose time counts from *since_s* on."""
        if isinstance(outcome, ConnectionError):
            self._failures[str(outcome)] += 1
        elif outcome.status == self._expected:
            self._last_s = time.perf_counter()
            self._latencies_s.append(self._last_s - since_s)
        else:
            text = outcome.body[:TEXT_MAX].decode(errors="replace")
            self._failures[f"status {outcome.status}: {text}"] += 1

    def load(self) -> Load:
        missing = self.sent - len(self._latencies_s) - self._failures.total()
        if missing:
            self._failures[f"no answer within {GRACE_S:g} s"] += missing
        return Load(
            sent=self.sent,
            failures=dict(self._failures),
            latencies_s=tuple(self._latencies_s),
            seconds=self._last_s - self._begun_s,
        )


async def closed(
    address: Address, data: bytes | Sequence[bytes], *, connections: int, seconds: float, expected: int
) -> Load:
    """Runs *connections* connections for *seconds*, each of which sends its next request when it has its answer. Each
    sends one at least.

    If *data* is several requests, each connection sends them one after the other. Raises OSError when no connection can
    be opened.
    """
    requests = [data] if isinstance(data, bytes) else data
    lines = [await connect(address) for _ in range(connections)]
    tally, left, quiet = _Tally(expected), connections, asyncio.Event()
    until_s = time.perf_counter() + seconds

    def go(line: Connection, number: int, *, is_first: bool = False) -> None:
        nonlocal left
        now_s = time.perf_counter()
        if now_s >= until_s and not is_first:
            left -= 1
            if not left:
                quiet.set()
            return
        tally.sent += 1

        def done(outcome: Answer | ConnectionError) -> None:
            tally.take(now_s, outcome)
            if isinstance(outcome, ConnectionError):
                nonlocal left
                left -= 1
                if not left:
                    quiet.set()
            else:
                go(line, number + 1)

        line.start(requests[number % len(requests)], done)

    try:
        for number, line in enumerate(lines):
            go(line, number, is_first=True)
        await _within(seconds + GRACE_S, quiet)
    finally:
        for line in lines:
            line.close()
    return tally.load()


async def paced(
    address: Address, data: bytes, *, rate_per_s: float, seconds: float, connections: int, expected: int
) -> Load:
    """Sends *rate_per_s* requests a second for *seconds*, on whichever of *connections* connections is free.

    If none is free a request waits, and its latency includes that. Raises OSError when no connection can be opened.
    """
    lines = [await connect(address) for _ in range(connections)]
    free, waiting = deque(lines), deque[float]()
    tally, quiet = _Tally(expected), asyncio.Event()
    loop = asyncio.get_running_loop()
    left = max(1, round(rate_per_s * seconds))

    def send() -> None:
        while waiting and free:
            line, meant_s = free.popleft(), waiting.popleft()
            line.start(data, partial(done, line, meant_s))

    def done(line: Connection, meant_s: float, outcome: Answer | ConnectionError) -> None:
        nonlocal left
        tally.take(meant_s, outcome)
        left -= 1
        if not left:
            quiet.set()
        if not isinstance(outcome, ConnectionError):
            free.append(line)
            send()

    def due(meant_s: float) -> None:
        tally.sent += 1
        waiting.append(meant_s)
        send()

    begun_s = time.perf_counter()
    moments = (begun_s + number / rate_per_s for number in range(left))
    try:
        await asyncio.to_thread(_call_at, moments, lambda meant_s: loop.call_soon_threadsafe(due, meant_s))
        await _within(GRACE_S, quiet)
    finally:
        for line in lines:
            line.close()
    return tally.load()


async def _within(seconds: float, event: asyncio.Event) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        pass  # the tally counts what is missing


def _call_at(moments: Iterator[float], call: Callable[[float], Any]) -> None:
    # in a thread: the timers of an event loop have a resolution of a millisecond, which would count as the server's
    for meant_s in moments:
        left_s = meant_s - time.perf_counter()
        if left_s > 0:
            time.sleep(left_s)
        call(meant_s)


def percentile(values: Sequence[float], percent: float) -> float:
    """The value that *percent* of *values* do not exceed; nan where there are none. Pure."""
    if not values:
        return float("nan")
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def require_expected(load: Load, what: str) -> Load:
    """*load*, if every request got the expected answer. Raises LoadFailed."""
    if load.failures:
        failures = "; ".join(f"{count} times {text}" for text, count in load.failures.items())
        raise LoadFailed(f"{what}: {load.sent} requests were sent; {failures}")
    return load
