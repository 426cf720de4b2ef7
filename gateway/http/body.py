"""Reads the body of a request once, and no more of it than the limit allows."""

from collections.abc import AsyncIterator, Collection
from typing import Any, Final

from litestar import Request
from litestar.exceptions import HTTPException

from gateway.http.problems import ProblemError

# An 8 MiB image as base64, and the rest of the request.
MAX_BODY_BYTES: Final = 12 * 1024 * 1024


JSON: Final = "application/json"
# A larger body counts towards the key's rate limit before it is parsed, and a thread parses it.
COSTLY_BYTES: Final = 8 * 1024


async def read_body(request: Request[Any, Any, Any], *, max_bytes: int = MAX_BODY_BYTES) -> bytes:
    """The whole body. One of more than *max_bytes* is refused as 413, before anything but the request's key is judged.

    This does what `Request.body` does, without a generator and without Litestar's view of the headers, which would take
    a tenth of a refusal's CPU time. `access_control` has already judged a declared length. Raises HTTPException (413),
    ProblemError.
    """
    chunks: list[bytes] = []
    size_bytes = 0
    while True:
        event: Any = await request.receive()
        if event["type"] == "http.disconnect":  # nobody reads the answer
            raise ProblemError("malformed_body", "the body was cut off")
        chunks.append(event["body"])
        size_bytes += len(event["body"])
        if size_bytes > max_bytes:
            raise HTTPException(status_code=413)
        if not event.get("more_body", False):
            return b"".join(chunks)


async def body_chunks(request: Request[Any, Any, Any], *, max_bytes: int) -> AsyncIterator[bytes]:
    """The body in chunks as they come, for a reader that does not keep all of it; otherwise as `read_body`."""
    size_bytes = 0
    while True:
        event: Any = await request.receive()
        if event["type"] == "http.disconnect":  # nobody reads the answer
            raise ProblemError("malformed_body", "the body was cut off")
        size_bytes += len(event["body"])
        if size_bytes > max_bytes:
            raise HTTPException(status_code=413)
        yield event["body"]
        if not event.get("more_body", False):
            return


def too_much_beside(beside_image_bytes: int, max_bytes: int) -> ProblemError:
    """The problem of a body of which more than *max_bytes* are not the image."""
    detail = f"the body has {beside_image_bytes} bytes beside the image; at most {max_bytes} are allowed"
    return ProblemError("body_too_large", detail)


def media_type_of(request: Request[Any, Any, Any]) -> str:
    """The declared media type of the body, in lower case and without parameters; empty if none is declared."""
    declared: str = request.headers.get("content-type", "")
    return declared.partition(";")[0].strip().lower()


def require_json(request: Request[Any, Any, Any]) -> None:
    """Raises the problem `unsupported_media_type` unless the body is declared as JSON, without a content encoding."""
    require_media_type(request, (JSON,))


def require_media_type(request: Request[Any, Any, Any], accepted: Collection[str]) -> None:
    """Raises the problem `unsupported_media_type` unless the body is declared as an *accepted* type, without a content
    encoding."""
    if media_type_of(request) not in accepted:
        raise ProblemError("unsupported_media_type", f"send it as {' or '.join(accepted)}")
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        raise ProblemError(
            "unsupported_media_type",
            f"send it as it is, without Content-Encoding: {encoding[:32]}",
            headers={"Accept-Encoding": "identity"},
        )
