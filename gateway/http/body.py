"""The body of a request: read once, whole, and never more of it than may be sent."""

from typing import Any, Final

from litestar import Request
from litestar.exceptions import HTTPException

from gateway.http.problems import ProblemError

# An 8 MiB image as base64, and the rest of the request.
MAX_BODY_BYTES: Final = 12 * 1024 * 1024


# From this size on a key's turn is taken before the body is parsed, and a thread parses it.
COSTLY_BYTES: Final = 8 * 1024


async def read_body(request: Request[Any, Any, Any], *, max_bytes: int = MAX_BODY_BYTES) -> bytes:
    """The whole body. More than *max_bytes* is refused as 413, before anything of the request but its key is judged.

    This does what `Request.body` does, without a generator and without Litestar's view of the headers, which would be a
    tenth of a refusal's CPU time. `access_control` has judged a declared length before. Raises HTTPException (413),
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


def require_json(request: Request[Any, Any, Any]) -> None:
    """Raises the problem `unsupported_media_type` unless the body is declared as JSON, and as nothing around it."""
    headers = request.headers  # Litestar looks them up anew each time
    media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise ProblemError("unsupported_media_type", "send it as application/json")
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        raise ProblemError(
            "unsupported_media_type",
            f"send it as it is, without Content-Encoding: {encoding[:32]}",
            headers={"Accept-Encoding": "identity"},
        )
