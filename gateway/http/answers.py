"""JSON answers and problems, made with a third of the work of Litestar's own responses."""

from collections.abc import Mapping
from typing import Any, Final, Generic, TypeVar

import msgspec
from litestar import Request, Response
from litestar.types import ASGIApp, Receive, Scope, Send

T = TypeVar("T")
JSON: Final = "application/json"


class JsonAnswer(Response[T], Generic[T]):
    """*content* as JSON of that *media_type*, with *headers* in ASCII.

    It has no cookies, no background task and no other media type, for which Litestar looks in every response.
    """

    def __init__(
        self, content: T, *, headers: Mapping[str, str], status_code: int = 200, media_type: str = JSON
    ) -> None:
        self.content = content
        self.headers = dict(headers)
        self.status_code = status_code
        self.media_type = media_type

    def to_asgi_response(self, app: Any, request: Request[Any, Any, Any], **_: Any) -> ASGIApp:  # type: ignore[override]
        """The ASGI application that sends it."""
        body = msgspec.json.encode(self.content)
        raw = [(name.lower().encode(), value.encode()) for name, value in self.headers.items()]
        raw += ((b"content-type", str(self.media_type).encode()), (b"content-length", b"%d" % len(body)))
        start = {"type": "http.response.start", "status": self.status_code, "headers": raw}

        async def send_it(scope: Scope, receive: Receive, send: Send) -> None:
            await send(start)  # type: ignore[arg-type]  # an event as ASGI has it
            await send({"type": "http.response.body", "body": body, "more_body": False})

        return send_it
