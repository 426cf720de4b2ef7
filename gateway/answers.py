"""Answers of the two routes that are called most, made with a third of the work of Litestar's own response."""

from typing import Any, Generic, TypeVar

import msgspec
from litestar import Request, Response
from litestar.types import ASGIApp, Receive, Scope, Send

T = TypeVar("T")
_CONTENT_TYPE = (b"content-type", b"application/json")


class JsonAnswer(Response[T], Generic[T]):
    """*content* as JSON, with *headers*, whose names are in small letters and whose values are ASCII.

    It has no cookies, no background task, and no other media type: what Litestar looks for in every response.
    """

    def __init__(self, content: T, *, headers: dict[str, str], status_code: int = 200) -> None:
        self.content = content
        self.headers = headers
        self.status_code = status_code

    def to_asgi_response(self, app: Any, request: Request[Any, Any, Any], **_: Any) -> ASGIApp:  # type: ignore[override]
        """What sends it."""
        body = msgspec.json.encode(self.content)
        raw = [(name.encode(), value.encode()) for name, value in self.headers.items()]
        raw += (_CONTENT_TYPE, (b"content-length", b"%d" % len(body)))
        start = {"type": "http.response.start", "status": self.status_code, "headers": raw}

        async def send_it(scope: Scope, receive: Receive, send: Send) -> None:
            await send(start)  # type: ignore[arg-type]  # an event as ASGI has it
            await send({"type": "http.response.body", "body": body, "more_body": False})

        return send_it
