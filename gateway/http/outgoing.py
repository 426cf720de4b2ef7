"""Applies the client's conditions, compression and HEAD to every answer on its way out.

Only to answers that are sent in one piece: videos and event streams pass unchanged.
"""

import asyncio
import zlib
from typing import Any, Final

from litestar.types import ASGIApp, Message, Receive, Scope, Send
from werkzeug.datastructures import Accept
from werkzeug.http import parse_accept_header

from gateway.http.conditions import GZIP, Conditions, encoded, precondition_failed, tag_of, to_read
from gateway.http.problems import answer_of

GZIP_MIN_BYTES: Final = 2 * 1024
# A body of this size takes a millisecond or more, and is compressed in a thread.
GZIP_THREAD_BYTES: Final = 64 * 1024
_GZIP_LEVEL: Final = 4
_GZIP_WINDOW: Final = 16 + zlib.MAX_WBITS  # with gzip's header, which has no time: equal bodies give equal bytes
_COMPRESSED: Final = (b"application/json", b"application/problem+json", b"text/plain", b"text/html")
# These are sent as they come.
_STREAMED: Final = (b"text/event-stream", b"video/")
_OF_A_BODY: Final = frozenset({b"content-length", b"content-type", b"content-encoding"})
_READING: Final = frozenset({"GET", "HEAD"})

_Headers = list[tuple[bytes, bytes]]


def accepts_gzip(header: str | None) -> bool:
    """Whether a client prefers gzip to no compression, by all lines of `Accept-Encoding` (RFC 9110 §12.5.3).

    1. Without the header, nothing was asked for: no.
    2. gzip, `x-gzip` or `*` has no weight above 0: no.
    3. `identity` is named with a greater weight: no.
    """
    accepted = parse_accept_header(header, Accept)
    named = {name.lower() for name, _ in accepted}
    wanted = next((name for name in (GZIP, "x-gzip", "*") if name in named), None)
    if wanted is None:  # 1, 2
        return False
    weight = accepted.quality(wanted)
    return weight > 0 and not ("identity" in named and accepted.quality("identity") > weight)  # 2, 3


def outgoing(app: ASGIApp) -> ASGIApp:
    """The middleware, around all others."""

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        await app(scope, receive, _Answer(scope, receive, send).send)

    return serve


class _Answer:
    """One answer, whose head is held until its body is there."""

    __slots__ = ("_head", "_receive", "_scope", "_send")

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope, self._receive, self._send = scope, receive, send
        self._head: Any = None

    async def send(self, message: Message) -> None:
        """Takes a message of the handler, and passes it on."""
        if message["type"] == "http.response.start":
            if _value(message["headers"], b"content-type").startswith(_STREAMED):
                await self._send(message)
            else:
                self._head = message
            return
        head, self._head = self._head, None
        if head is not None and message["type"] == "http.response.body" and self._is_to_finish(message):
            await self._finish(head, message["body"])
            return
        if head is not None:
            await self._send(head)
        await self._send(message)

    def _is_to_finish(self, message: Any) -> bool:
        """Whether *message* completes the answer, and what the client asked for may change it."""
        is_whole = not message.get("more_body")
        return is_whole and (len(message["body"]) >= GZIP_MIN_BYTES or self._scope.get("method") in _READING)

    async def _finish(self, head: Any, body: bytes) -> None:
        status, headers = head["status"], list(head["headers"])
        asked = _asked(self._scope)
        method = self._scope.get("method")
        compressed = await _compressed(headers, body, asked.get(b"accept-encoding"))
        if compressed is not None:
            headers, body = compressed
        if status == 200 and method in _READING and (b"if-match" in asked or b"if-none-match" in asked):
            etag = _value(headers, b"etag").decode("latin-1")
            conditions = Conditions.of(asked.get(b"if-match"), asked.get(b"if-none-match"))
            match to_read(conditions, tag_of(etag) if etag else None):
                case "not modified":
                    status, body = 304, b""
                    headers = [(name, value) for name, value in headers if name.lower() not in _OF_A_BODY]
                case "failed":
                    answer = answer_of(precondition_failed(etag or None)).to_asgi_response(None, None)  # type: ignore[arg-type]
                    await answer(self._scope, self._receive, self._send)
                    return
                case "go on":
                    pass
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        await self._send({"type": "http.response.body", "body": b"" if method == "HEAD" else body, "more_body": False})


async def _compressed(headers: _Headers, body: bytes, accepted: str | None) -> tuple[_Headers, bytes] | None:
    """*headers* and *body* as they are sent; None if unchanged. `Vary` says where a client can choose the encoding."""
    if len(body) < GZIP_MIN_BYTES or not _value(headers, b"content-type").startswith(_COMPRESSED):
        return None
    if _value(headers, b"vary"):  # the handler has chosen already
        return None
    headers = [*headers, (b"vary", b"Accept-Encoding")]
    if accepted is None or not accepts_gzip(accepted):
        return headers, body
    body = await asyncio.to_thread(gzipped, body) if len(body) >= GZIP_THREAD_BYTES else gzipped(body)
    sent: _Headers = [(b"content-encoding", GZIP.encode())]
    for name, value in headers:
        if name == b"content-length":
            value = b"%d" % len(body)
        elif name == b"etag":  # a strong tag: other bytes need another one
            value = encoded(value.decode("latin-1"), GZIP).encode("latin-1")
        sent.append((name, value))
    return sent, body


def gzipped(body: bytes) -> bytes:
    """*body* in gzip's format: the same bytes whenever it is called."""
    packer = zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, _GZIP_WINDOW)
    return packer.compress(body) + packer.flush()


_ASKED: Final = frozenset({b"accept-encoding", b"if-match", b"if-none-match"})


def _asked(scope: Scope) -> dict[bytes, str]:
    """The headers of the request that affect its answer, each with all of its lines."""
    found: dict[bytes, str] = {}
    for name, value in scope["headers"]:
        if name in _ASKED:
            text = value.decode("latin-1")
            found[name] = f"{found[name]}, {text}" if name in found else text
    return found


def _value(headers: Any, wanted: bytes) -> bytes:
    for name, value in headers:
        if name.lower() == wanted:
            found: bytes = value
            return found
    return b""
