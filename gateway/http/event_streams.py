"""Event streams: what is sent on one. `gateway/boards/open_streams.py` counts how many are open, and for whom.

The format is that of the HTML standard (https://html.spec.whatwg.org/multipage/server-sent-events.html). Its rule on
`data` lines matters here: a block that has one, even an empty one, is an event, and the page's handler is called.
"""

import contextlib
from collections.abc import AsyncIterator
from typing import Any, Final

from litestar.response import ServerSentEventMessage, Stream
from litestar.response.base import ASGIResponse
from litestar.types import Receive, Scope, Send

from gateway.boards.open_streams import Place

# By then another stream may have ended: tasks take seconds to minutes.
RETRY_AFTER_S: Final = 5.0
# A browser reconnects after this time when a stream ends before its task. Its own default is 3 to 5 s.
COME_BACK_S: Final = 2.0
# A stream without events sends a comment this often.
KEEP_ALIVE_S: Final = 15.0

STILL_THERE: Final = ServerSentEventMessage(data=None, comment="still there").encode()
"""A comment, which keeps a silent stream open. It has no `data` line, so it calls no handler."""


def beginning() -> bytes:
    """The first block of a stream: after how long a client is to reconnect."""
    return ServerSentEventMessage(data=None, retry=round(COME_BACK_S * 1000)).encode()


def event(name: str, data: bytes, *, id: int) -> bytes:
    """The event *name*, with *data* in UTF-8. A client that reconnects sends *id* as `Last-Event-ID`."""
    return ServerSentEventMessage(data=data, event=name, id=id).encode()


def without_id(name: str, data: bytes) -> bytes:
    """The event *name*, after which a client that reconnects still sends the id that it had before."""
    return ServerSentEventMessage(data=data, event=name).encode()


def with_id(block: bytes, id: int) -> bytes:
    """*block*, an event or a comment, with the *id* that a client sends when it reconnects."""
    return b"id: %d\r\n%b" % (id, block)


class EventStream(Stream):
    """An answer of server-sent events that holds *place*, if any, until the client has gone or the events have ended.

    The place is held around the whole answer, and not in the iterator: one that never began to run would never free it.
    """

    def __init__(self, events: AsyncIterator[bytes] | tuple[bytes, ...], *, place: Place | None = None) -> None:
        # so that no proxy stores, compresses or buffers the events (X-Accel-Buffering is nginx's)
        headers = {"Cache-Control": "no-store, no-transform", "X-Accel-Buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._place = place

    def to_asgi_response(self, *given: Any, **named: Any) -> ASGIResponse:
        answer = super().to_asgi_response(*given, **named)
        place = self._place

        async def counted(scope: Scope, receive: Receive, send: Send) -> None:
            with contextlib.nullcontext() if place is None else place.held():
                await answer(scope, receive, send)

        return counted  # type: ignore[return-value]  # all that Litestar does with it is to call it
