"""Connections with bounds: what a client may make the gateway wait for or keep, and for how long.

uvicorn reads a request head of any size for any time, lets a body come for ever, and waits for ever for a client that
does not read. Here every connection that keeps the gateway waiting has a deadline: `overdue` says when it is, and a
regular look at all connections applies it. A client that is refused gets a problem document if nothing was answered
yet, and the connection is closed.
"""

import asyncio
import ssl
from collections.abc import Mapping
from functools import partial
from typing import Any, Final

import httptools
import structlog
import uvicorn
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from gateway.server.access_log import AccessLog, Answered, address_of
from gateway.server.counted import CountedRequests
from gateway.server.in_hand import RequestInHand
from gateway.server.limits import IDLE_S, Limits, Waits, overdue
from gateway.server.one_write import OneWrite
from gateway.server.refusal import CONNECTIONS_FULL, NO_HTTP, Answer, ConnectionRefusal, answer_of, late_body, late_head

# How many connections above the limit are still answered with a refusal; the next one is cut without an answer.
TURNED_AWAY_MAX: Final = 64

log = structlog.get_logger("connections")


class Connections:
    """All connections of one gateway, and how they are bounded."""

    def __init__(self, limits: Limits, access_log: AccessLog | None = None) -> None:
        """A request that is refused here, before it reaches the application, has its line in *access_log* too."""
        self.limits = limits
        self._access_log = access_log or AccessLog()
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

    def may_be_answered(self) -> bool:
        """Whether one more connection that is turned away may stay for long enough to read why."""
        return len(self._turned_away) <= TURNED_AWAY_MAX

    def forget(self, connection: "BoundedProtocol") -> None:
        """*connection* is closed."""
        self._open.discard(connection)
        self._turned_away.discard(connection)

    def log_refused(self, answer: Answer, client: tuple[str, int] | None, scope: Mapping[str, Any]) -> None:
        """Logs *answer*, which refused a request of *client*. *scope* is that of the request in hand, or empty."""
        self._access_log.log_answer(
            Answered(
                noted=answer.noted,
                address=address_of(client),
                method=scope.get("method", ""),
                path=scope.get("path", ""),
                status=answer.status,
            )
        )

    def _look_later(self, loop: asyncio.AbstractEventLoop) -> None:
        due_s = loop.time() + self.limits.look_every_s
        loop.call_at(due_s, self._look, loop, due_s)

    def _look(self, loop: asyncio.AbstractEventLoop, due_s: float) -> None:
        now_s = loop.time()
        stood_s = now_s - due_s  # a busy or a paused machine
        for connection in (*self._open, *self._turned_away):
            if stood_s > self.limits.look_every_s:
                connection.excuse(stood_s)
            connection.look(now_s)
        self._looking = bool(self._open or self._turned_away)
        if self._looking:
            self._look_later(loop)


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 connection, within the limits of its `Connections`."""

    def __init__(self, *, connections: Connections, **given: Any) -> None:
        super().__init__(**given)
        self._all = connections
        self._waits = Waits()
        self._in_hand = RequestInHand()
        self._requests = CountedRequests(self, connections.limits, self._waits)
        # as uvicorn makes its own
        self.parser = httptools.HttpRequestParser(self._requests)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)

    # What the transport reports

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(OneWrite(transport, self.loop))  # type: ignore[arg-type]  # what uvicorn uses of one
        self._waits.head_s = self.loop.time()
        if not self._all.admit(self):
            if self._all.may_be_answered():
                self._refuse(CONNECTIONS_FULL)
            else:
                transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._all.forget(self)
        self._drop_requests()
        super().connection_lost(exc)

    def eof_received(self) -> None:
        self._waits.head_s = None  # the transport closes itself now

    def data_received(self, data: bytes) -> None:
        if self._waits.leaving_s is not None:
            return
        self._unset_keepalive_if_required()
        self._requests.receive(len(data), is_answering=self._in_hand.is_answering)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # no protocol to upgrade to: the request has been taken as one of HTTP/1.1
        except httptools.HttpParserError:
            self._refuse(self._requests.refusal or NO_HTTP)
            return
        refusal = self._requests.head_grew_too_large()
        if refusal is not None:
            self._refuse(refusal)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._waits.unread_s = self.loop.time()
        self._waits.unsent_bytes = self.transport.get_write_buffer_size()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._waits.unread_s = None

    # What uvicorn does with a request

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._in_hand.take(cycle)
        if cycle.scope["http_version"] == "1.0":
            app = _without_chunks(app, cycle)
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._requests.is_in_head:  # it had to wait for this answer anyway
            self._waits.head_s = self.loop.time()

    # The bounds

    def excuse(self, stood_s: float) -> None:
        """No bound counts the last *stood_s*, in which this process did nothing."""
        self._waits.excuse(stood_s)

    def look(self, now_s: float) -> None:
        """Applies the bounds, as of *now_s*."""
        waits, limits = self._waits, self._all.limits
        if waits.unread_s is None and waits.leaving_s is None and self.transport.is_closing():
            waits.unread_s = now_s  # answered and closed, except for bytes that the client has yet to read
        if waits.unread_s is not None:
            waits.note_unsent(self.transport.get_write_buffer_size(), now_s)
        if self.flow.read_paused:  # by us: no fault of the client
            waits.body_moved_s = now_s
        match overdue(waits, limits, now_s):
            case "leaving":
                self.transport.abort()
            case "unread":
                log.info("client_does_not_read", unsent_bytes=waits.unsent_bytes)
                self.transport.abort()
            case "head" if not self._in_hand.is_answering:
                self._refuse(late_head(limits))
            case "body":
                self._refuse(late_body(limits))
            case _:
                pass

    def _refuse(self, refusal: ConnectionRefusal) -> None:
        """Answers with *refusal*, unless the client would take it for the answer of another request, and closes."""
        if self._waits.leaving_s is not None or self.transport.is_closing():
            return
        self._waits.leaving_s = self.loop.time()
        self._unset_keepalive_if_required()
        if self._in_hand.may_be_refused(self.cycle, is_in_head=self._requests.is_in_head):
            answer = answer_of(refusal)
            self.transport.write(answer.content)
            self._all.log_refused(answer, self.client, self._in_hand.scope)
        self._drop_requests()
        # Closing a connection with unread bytes resets it, and most clients then never see the answer. So what still
        # comes is thrown away, for `linger_s` at most.
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        else:
            self.transport.close()

    def _drop_requests(self) -> None:
        """Answers none of the client's other requests."""
        self.pipeline.clear()
        self._in_hand.disconnect()


def _without_chunks(app: ASGI3Application, cycle: RequestResponseCycle) -> ASGI3Application:
    """*app* for a client of HTTP/1.0, to whom chunks would be part of the body (RFC 9112, 7.1). An answer without a
    declared length ends with the connection, which uvicorn closes after every answer to such a client.
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
        # `behind_proxies` reads these headers, of trusted proxies alone: anybody can write them
        proxy_headers=False,
        lifespan="off",
        loop="none",
        timeout_keep_alive=int(IDLE_S),
        timeout_graceful_shutdown=5,
        ssl_context_factory=None if tls is None else lambda *_: tls,
    )
