"""A file of the artifact store as an answer: whole or in part, and its conditions."""

from typing import Any

from litestar import Request, Response
from litestar.response import Stream
from msgspec import Struct

from gateway.http.conditions import conditions_of, precondition_failed, tag_of, to_read
from gateway.http.media_types import sent_as
from gateway.http.problems import ProblemError
from gateway.http.ranges import RangeNotSatisfiable, content_range, parse_range, range_applies
from gateway.services import Services
from ops.artifacts import StorageFailed

_Request = Request[Any, Any, Any]


class StoredFile(Struct, frozen=True, kw_only=True):
    """A file that a record names, at *path* in the store. *name* is the file name for a client that saves it; *what*
    names its kind in errors, as in `video`."""

    path: str
    bytes: int
    sha256: str
    media_type: str
    name: str
    what: str

    @property
    def headers(self) -> dict[str, str]:
        return {
            "ETag": f'"{self.sha256}"',
            "Accept-Ranges": "bytes",
            "Cache-Control": "private, max-age=3600, immutable",
            "Vary": "Accept",
            "Content-Disposition": f'inline; filename="{self.name}"',
            "X-Content-Type-Options": "nosniff",
        }


async def require_stored(file: StoredFile, services: Services) -> None:
    """Raises the problem `storage_unavailable`, or `video_expired` where the store lacks *file* or a part of it."""
    try:
        size = await services.artifacts.size(file.path)
    except StorageFailed as error:
        raise ProblemError("storage_unavailable", f"the {file.what} cannot be read now; try again") from error
    if size != file.bytes:
        raise ProblemError("video_expired", f"the {file.what} is gone from the store; submit the request again")


def file_answer(request: _Request, services: Services, file: StoredFile) -> Response[Any]:
    """*file*, or the range of it that *request* asks for; 304 where the client has it already.

    Raises the problems `precondition_failed` and `range_not_satisfiable`.
    """
    headers = file.headers
    if _is_known(request, headers):
        return _not_modified(headers)
    wanted = request.headers.get("range") if range_applies(request.headers.get("if-range"), headers["ETag"]) else None
    try:
        part = parse_range(wanted, file.bytes)
    except RangeNotSatisfiable as error:
        raise ProblemError(
            "range_not_satisfiable",
            f"the {file.what} has {file.bytes} bytes",
            headers={"Content-Range": error.content_range},
        ) from error
    first, last = part or (0, file.bytes - 1)
    headers["Content-Length"] = str(last - first + 1)
    if part is not None:
        headers["Content-Range"] = content_range(first, last, file.bytes)
    return Stream(
        services.artifacts.read(file.path, first, last + 1),
        status_code=200 if part is None else 206,
        # as a header: in Litestar the media type of the route overrides that of a stream
        headers=headers | {"Content-Type": _media_type(request, file)},
    )


def whole_answer(request: _Request, services: Services, file: StoredFile, *, location: str) -> Response[Any]:
    """All of *file*, which was made for *request* and is at *location* from now on; ranges and conditions do not
    apply."""
    headers = file.headers | {"Content-Length": str(file.bytes), "Location": location}
    return Stream(
        services.artifacts.read(file.path, 0, file.bytes),
        status_code=200,
        headers=headers | {"Content-Type": _media_type(request, file)},
    )


async def link_answer(request: _Request, services: Services, file: StoredFile) -> Response[Any] | None:
    """A redirect to where the client downloads *file* without this gateway, or 304 where the client has it already.
    None where this gateway gives no links. A client with the link needs no key until the link expires.

    Raises the problems `precondition_failed` and `storage_unavailable`.
    """
    if services.links_last_s is None:
        return None
    headers = file.headers
    if _is_known(request, headers):
        return _not_modified(headers)
    try:
        link = await services.artifacts.link(file.path, lasts_s=services.links_last_s)
    except StorageFailed as error:
        raise ProblemError("storage_unavailable", f"the {file.what} cannot be read now; try again") from error
    if link is None:
        return None
    # no cache may keep a link that expires before the file does
    return Response(
        b"",
        status_code=302,
        media_type=file.media_type,
        headers={"Location": link, "ETag": headers["ETag"], "Cache-Control": "private, no-store"},
    )


def head_answer(request: _Request, file: StoredFile) -> Response[None]:
    """The headers of *file* without its bytes. `Range` means nothing here (RFC 9110).

    Raises the problem `precondition_failed`.
    """
    headers = file.headers
    if _is_known(request, headers):
        return _not_modified(headers)
    return Response(
        b"",  # type: ignore[arg-type]  # Litestar wants None declared, and cannot render None as this media type
        media_type=_media_type(request, file),
        headers={**headers, "Content-Length": str(file.bytes)},
    )


def _media_type(request: _Request, file: StoredFile) -> str:
    return sent_as(file.media_type, ", ".join(request.headers.getall("accept", [])))


def _is_known(request: _Request, headers: dict[str, str]) -> bool:
    verdict = to_read(conditions_of(request), tag_of(headers["ETag"]))
    if verdict == "failed":
        raise precondition_failed(headers["ETag"])
    return verdict == "not modified"


def _not_modified(headers: dict[str, str]) -> Response[Any]:
    return Response(b"", status_code=304, headers=headers)
