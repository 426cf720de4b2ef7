"""Connections with bounds: what a client may make the gateway wait for or keep, and for how long.

uvicorn reads a request head of any size for any time, lets a body come for ever, and waits for ever for a client that
does not read. Here every connection that keeps the gateway waiting has a moment at which that ends: `overdue` says
when, and one look at all connections every now and then applies it. What is refused is answered with a problem document
where nothing was answered yet, and the connection is closed.
"""

import asyncio
import ssl
from functools import partial
from typing import Any, Final

import httptools
import msgspec
import structlog
import uvicorn
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from gateway.http.noted import Noted
from gateway.http.problems import PROBLEM_MEDIA_TYPE, PROBLEMS, ProblemError
from gateway.server.access_log import AccessLog, Answered, address_of, new_request_id
from gateway.server.limits import Limits, Waits, overdue
from gateway.server.one_write import OneWrite

# Connections above the limit that are still being told so; the next one is cut without a word.
TURNED_AWAY_MAX: Final = 64

log = structlog.get_logger("connections")


class Connections:
    """All connections of one gateway, and how they are bounded."""

    def __init__(self, limits: Limits, access_log: AccessLog | None = None) -> None:
        """What is refused here, before there is a request for the application, has its line in *access_log* too."""
        self.limits = limits
        self.access_log = access_log or AccessLog()
        self._open: set[BoundedProtocol] = set()
        self._turned_away: set[BoundedProtocol] = set()
        self._looking = False
        self._full = False

    def __len__(self) -> int:
        return len(self._open)

    def admit(self, connection: "BoundedProtocol") -> bool:
        """Whether there is room for *connection*; from now on it is looked at, until `forget`."""
        has_room = len(self._open) < self.limits.connections_max
        (self._open if has_room else self._turned_away).add(connection)
        if not has_room and not self._full:  # once, until there is room again
            log.warning("connections_full", connections=len(self._open))
        self._full = not has_room
        if not self._looking:
            self._looking = True
            self._look_later(connection.loop)
        return has_room

    def may_be_told(self) -> bool:
        """Whether one more that is turned away may stay for long enough to be told why."""
        return len(self._turned_away) <= TURNED_AWAY_MAX

    def forget(self, connection: "BoundedProtocol") -> None:
        """*connection* is closed."""
        self._open.discard(connection)
        self._turned_away.discard(connection)

    def _look_later(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.call_later(self.limits.look_every_s, self._look, loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        now_s = loop.time()
        for connection in (*self._open, *self._turned_away):
            connection.look(now_s)
        self._looking = bool(self._open or self._turned_away)
        if self._looking:
            self._look_later(loop)


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 connection, within the limits of its `Connections`."""

    def __init__(self, *, connections: Connections, **given: Any) -> None:
        super().__init__(**given)
        self._all = connections
        self._limits = connections.limits
        self._waits = Waits()
        self._head_bytes = self._head_read_bytes = 0
        self._is_in_message = False
        self._is_in_head = False
        self._unsent_bytes = 0
        self._refusal: tuple[str, str] | None = None
        self._noted = Noted()
        self._in_hand: RequestResponseCycle | None = None  # `cycle` is the newest request, which may have to wait

    # What the transport tells

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(OneWrite(transport, self.loop))  # type: ignore[arg-type]  # what uvicorn uses of one
        now_s = self.loop.time()
        self._waits.head_s = now_s
        if not self._all.admit(self):
            if self._all.may_be_told():
                self._refuse("too_many_connections", "this gateway has as many connections as it can have")
            else:
                transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._all.forget(self)
        self._tell_gone()
        super().connection_lost(exc)

    def eof_received(self) -> None:
        self._waits.head_s = None  # the transport closes itself now

    def data_received(self, data: bytes) -> None:
        if self._waits.leaving_s is not None:
            return
        self._unset_keepalive_if_required()
        if not self._is_in_message and self._waits.head_s is None and not self._is_answering():
            # also blank lines, which the parser skips before a head: they must not keep a connection open
            self._waits.head_s = self.loop.time()
        if not self._is_in_message or self._is_in_head:
            self._head_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # no protocol to upgrade to: the request has been taken as one of HTTP/1.1
        except httptools.HttpParserError:
            self._refuse(*(self._refusal or ("malformed_request", "this is no HTTP/1.1 request")))
            return
        if self._is_in_head and self._head_bytes > self._limits.head_max_bytes:
            self._refuse("headers_too_large", self._too_large)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._waits.unread_s = self.loop.time()
        self._unsent_bytes = self.transport.get_write_buffer_size()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._waits.unread_s = None

    # What the parser tells. An error that is raised here comes out of `feed_data` as an HttpParserError.

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._is_in_message = self._is_in_head = True
        if self._waits.head_s is None:
            self._waits.head_s = self.loop.time()

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._count_head(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        self._count_head(len(name) + len(value) + len(b": \r\n"))

    def _count_head(self, read_bytes: int) -> None:
        # a head that came in one piece with a body is counted here; one whose end is missing, by the piece
        self._head_read_bytes += read_bytes
        if self._head_read_bytes > self._limits.head_max_bytes:
            self._refusal = ("headers_too_large", self._too_large)
            raise ValueError
        if len(self.headers) > self._limits.headers_max:
            self._refusal = ("headers_too_large", f"the request has more than {self._limits.headers_max} headers")
            raise ValueError

    @property
    def _too_large(self) -> str:
        return f"the request head has more than {self._limits.head_max_bytes} bytes"

    def on_headers_complete(self) -> None:
        self._is_in_head = False
        self._head_bytes = self._head_read_bytes = 0
        self._waits.head_s = None
        self._waits.body_s = self._waits.body_moved_s = self.loop.time()
        if len(self.pipeline) >= self._limits.pipelined_max:
            self._refusal = ("malformed_request", "too many requests before the first answer")
            raise ValueError
        if self.parser.get_http_version() == "1.0":
            self.expect_100_continue = False  # RFC 9110, 10.1.1: such a client does not wait for it
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._waits.body_moved_s = self.loop.time()
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._is_in_message = False
        self._waits.body_s = None
        super().on_message_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._in_hand = cycle
        if cycle.scope["http_version"] == "1.0":
            app = _without_chunks(app, cycle)
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._is_in_head:  # it had to wait for this answer anyway
            self._waits.head_s = self.loop.time()

    # The bounds

    def _is_answering(self) -> bool:
        return self._in_hand is not None and not self._in_hand.response_complete

    def _tell_gone(self) -> None:
        """Whoever serves the request in hand learns that the client is gone, and what it still says is not sent.

        uvicorn tells the newest request only. One that was sent behind it would keep an event stream open for ever.
        """
        self.pipeline.clear()
        if self._in_hand is not None and not self._in_hand.response_complete:
            self._in_hand.disconnected = True
            self._in_hand.message_event.set()

    def look(self, now_s: float) -> None:
        """Applies the bounds, as of *now_s*."""
        waits = self._waits
        if waits.unread_s is None and waits.leaving_s is None and self.transport.is_closing():
            waits.unread_s = now_s  # answered and closed, but for what is left to be taken
        if waits.unread_s is not None:
            unsent_bytes = self.transport.get_write_buffer_size()
            if unsent_bytes < self._unsent_bytes:
                waits.unread_s = now_s
            self._unsent_bytes = unsent_bytes
        if self.flow.read_paused:  # by us: no fault of the client
            waits.body_moved_s = now_s
        match overdue(waits, self._limits, now_s):
            case "leaving":
                self.transport.abort()
            case "unread":
                log.info("client_does_not_read", unsent_bytes=self._unsent_bytes)
                self.transport.abort()
            case "head" if not self._is_answering():
                self._refuse("request_timeout", f"the request head was not complete within {self._limits.head_s:g} s")
            case "body":
                self._refuse(
                    "request_timeout",
                    f"no byte of the body within {self._limits.body_idle_s:g} s, or not all of it within "
                    f"{self._limits.body_s:g} s",
                )
            case _:
                pass

    def _refuse(self, code: str, detail: str) -> None:
        """Answers with the problem *code*, unless that would stand in another answer's place, and closes."""
        if self._waits.leaving_s is not None or self.transport.is_closing():
            return
        self._waits.leaving_s = self.loop.time()
        self._unset_keepalive_if_required()
        if self._may_answer():
            self.transport.write(self._problem(code, detail))
            self._tell_refused(code)
        self._tell_gone()
        # A close with bytes that nobody read resets the connection, and most clients then never see the answer: what
        # still comes is thrown away, for `linger_s` at most.
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        else:
            self.transport.close()

    def _tell_refused(self, code: str) -> None:
        scope: dict[str, Any] = {}
        if self._is_answering() and self._in_hand is not None:
            scope = dict(self._in_hand.scope)
        self._all.access_log.tell(
            Answered(
                noted=self._noted,
                address=address_of(self.client),
                method=scope.get("method", ""),
                path=scope.get("path", ""),
                status=PROBLEMS[code].status,
            )
        )

    def _may_answer(self) -> bool:
        """Whether an answer now would be taken for that of the request that is refused."""
        if self._in_hand is None or self._in_hand.response_complete:
            return self._in_hand is None or self._is_in_head
        # it has to be the one in hand itself, in the middle of its body
        return self._in_hand is self.cycle and not (self._is_in_head or self._in_hand.response_started)

    def _problem(self, code: str, detail: str) -> bytes:
        problem = ProblemError(code, detail, retry_after_s=1.0 if code == "too_many_connections" else None)
        body = msgspec.json.encode(problem.problem)
        self._noted = Noted(new_request_id(), code=code)
        headers = {
            "content-type": PROBLEM_MEDIA_TYPE,
            "content-length": str(len(body)),
            "connection": "close",
            "x-request-id": self._noted.request_id,
            **problem.headers,
        }
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        return b"".join((STATUS_LINE[problem.problem.status], head.encode("ascii"), b"\r\n", body))


def _without_chunks(app: ASGI3Application, cycle: RequestResponseCycle) -> ASGI3Application:
    """*app* for a client of HTTP/1.0, to whom chunks would be part of the body (RFC 9112, 7.1): an answer without a
    declared length ends where the connection does, which uvicorn closes after every answer to such a client.
    """

    async def closing(scope: Any, receive: Any, send: Any) -> None:
        is_declared = False

        async def unchunked(message: Any) -> None:
            nonlocal is_declared
            if message["type"] == "http.response.start":
                is_declared = any(name.lower() == b"content-length" for name, _ in message.get("headers", ()))
                if not is_declared:
                    cycle.chunked_encoding = False
            elif not is_declared:
                cycle.expected_content_length = len(message.get("body", b""))
            await send(message)

        await app(scope, receive, unchunked)

    return closing


def http_config(app: Any, connections: Connections, *, tls: ssl.SSLContext | None = None) -> uvicorn.Config:
    """How uvicorn serves *app* with bounded *connections*, over *tls* where it is given."""
    return uvicorn.Config(
        app,
        http=partial(BoundedProtocol, connections=connections),  # type: ignore[arg-type]  # a factory does as well
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        # nobody asks where a request comes from, and anybody can write these headers
        proxy_headers=False,
        lifespan="off",
        loop="none",
        timeout_graceful_shutdown=5,
        ssl_context_factory=None if tls is None else lambda *_: tls,
    )
