"""Requests as the parser finds them on a connection, counted before uvicorn takes them."""

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gateway.server.limits import Limits, Waits
from gateway.server.refusal import ConnectionRefusal


class CountedRequests:
    """Takes the calls of one connection's parser: counts, notes in *waits* what the gateway waits for, and calls
    *protocol*.

    A bound that is broken stops the parser by a ValueError, which comes out of `feed_data` as an HttpParserError; then
    `refusal` says why.
    """

    def __init__(self, protocol: HttpToolsProtocol, limits: Limits, waits: Waits) -> None:
        self._protocol, self._limits, self._waits = protocol, limits, waits
        self._head_bytes = self._head_read_bytes = 0
        self._is_in_message = False
        self.is_in_head = False
        """Whether a request head has begun, and is not complete."""
        self.refusal: ConnectionRefusal | None = None
        """Why the parser was stopped: the bound that was broken."""

    def receive(self, size_bytes: int, *, is_answering: bool) -> None:
        """A piece of *size_bytes* has come, and is about to be parsed; *is_answering*: an answer is on its way."""
        if not self._is_in_message and self._waits.head_s is None and not is_answering:
            # also blank lines, which the parser skips before a head: they must not keep a connection open
            self._waits.head_s = self._now_s()
        if not self._is_in_message or self.is_in_head:
            self._head_bytes += size_bytes

    def head_grew_too_large(self) -> ConnectionRefusal | None:
        """Why a request head without its end is refused; None if it may go on."""
        return self._too_large() if self.is_in_head and self._head_bytes > self._limits.head_max_bytes else None

    # What the parser reports

    def on_message_begin(self) -> None:
        self._protocol.on_message_begin()
        self._is_in_message = self.is_in_head = True
        if self._waits.head_s is None:
            self._waits.head_s = self._now_s()

    def on_url(self, url: bytes) -> None:
        self._protocol.on_url(url)
        self._count_head(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        self._protocol.on_header(name, value)
        self._count_head(len(name) + len(value) + len(b": \r\n"))

    def on_headers_complete(self) -> None:
        protocol = self._protocol
        self.is_in_head = False
        self._head_bytes = self._head_read_bytes = 0
        self._waits.head_s = None
        self._waits.body_s = self._waits.body_moved_s = self._now_s()
        if len(protocol.pipeline) >= self._limits.pipelined_max:
            self._stop(ConnectionRefusal("malformed_request", "too many requests before the first answer"))
        if protocol.parser.get_http_version() == "1.0":
            protocol.expect_100_continue = False  # RFC 9110, 10.1.1: such a client does not wait for it
        protocol.on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._waits.body_moved_s = self._now_s()
        self._protocol.on_body(body)

    def on_message_complete(self) -> None:
        self._is_in_message = False
        self._waits.body_s = None
        self._protocol.on_message_complete()

    def _count_head(self, read_bytes: int) -> None:
        # a head that came in one piece with a body is counted here; a head without its end, by `receive`
        self._head_read_bytes += read_bytes
        if self._head_read_bytes > self._limits.head_max_bytes:
            self._stop(self._too_large())
        if len(self._protocol.headers) > self._limits.headers_max:
            detail = f"the request has more than {self._limits.headers_max} headers"
            self._stop(ConnectionRefusal("headers_too_large", detail))

    def _too_large(self) -> ConnectionRefusal:
        return ConnectionRefusal(
            "headers_too_large", f"the request head has more than {self._limits.head_max_bytes} bytes"
        )

    def _stop(self, refusal: ConnectionRefusal) -> None:
        self.refusal = refusal
        raise ValueError(refusal.code)

    def _now_s(self) -> float:
        return self._protocol.loop.time()
