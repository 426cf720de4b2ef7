"""Event streams: what is sent on one. How many are open, and for whom, is in `gateway/boards/open_streams.py`.

The form is that of the HTML standard (https://html.spec.whatwg.org/multipage/server-sent-events.html). What it says of
`data` lines matters here: a block that has one, even an empty one, is an event, and a page's handler is called with it.
"""

import contextlib
from collections.abc import AsyncIterator
from typing import Any, Final

from litestar.response import ServerSentEventMessage, Stream
from litestar.response.base import ASGIResponse
from litestar.types import Receive, Scope, Send

from gateway.boards.open_streams import Place

# By then somebody's stream may have ended: tasks take seconds to minutes.
RETRY_AFTER_S: Final = 5.0
# A browser comes back after this time when a stream ends before its task. Its own default is 3 to 5 s.
COME_BACK_S: Final = 2.0
# A stream on which nothing happens says so this often.
KEEP_ALIVE_S: Final = 15.0

STILL_THERE: Final = ServerSentEventMessage(data=None, comment="still there").encode()
"""What keeps a silent stream open, and calls no handler: a comment, without a line of data."""


def beginning() -> bytes:
    """What stands first on a stream: when a client is to come back."""
    return ServerSentEventMessage(data=None, retry=round(COME_BACK_S * 1000)).encode()


def event(name: str, data: bytes, *, id: int) -> bytes:
    """The event *name*, with *data* in UTF-8. A client that comes back sends *id* as `Last-Event-ID`."""
    return ServerSentEventMessage(data=data, event=name, id=id).encode()


def without_id(name: str, data: bytes) -> bytes:
    """The event *name*, after which a client that comes back still sends the id that it had before."""
    return ServerSentEventMessage(data=data, event=name).encode()


def with_id(block: bytes, id: int) -> bytes:
    """*block*, an event or a comment, with *id* as that which a client sends when it comes back."""
    return b"id: %d\r\n%b" % (id, block)


class EventStream(Stream):
    """An answer of server-sent events that holds *place*, if any, until the client has gone or the events have ended.

    Around the whole answer, and not in the iterator: one that never began to run would never free it.
    """

    def __init__(self, events: AsyncIterator[bytes] | tuple[bytes, ...], *, place: Place | None = None) -> None:
        # no proxy keeps, packs or holds back what is to be seen at once (X-Accel-Buffering is nginx's)
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
