"""The panel: a page at `/` for people, and its files below `/panel`, all of which come with the package. HTTP only.

The files are read once, into memory: no path of a request reaches the disk. They change only with the version, and have
tags, so that a reload costs a browser one 304 for each file.
"""

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from litestar import Request, Response, get
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath
from msgspec import Struct
from werkzeug.datastructures import MIMEAccept
from werkzeug.http import parse_accept_header

from gateway.http.access import needs_nothing
from gateway.http.conditions import GZIP, encoded
from gateway.http.outgoing import GZIP_MIN_BYTES, accepts_gzip, gzipped
from gateway.http.problem_kinds import PROBLEMS
from gateway.http.problems import ProblemError
from gateway.http.views import root_of

FOLDER: Final = Path(__file__).parent.parent / "panel" / "static"
PAGE: Final = "index.html"
HTML: Final = "text/html"
MEDIA_TYPES: Final[Mapping[str, str]] = {
    ".html": "text/html",
    ".js": "text/javascript",
    ".mjs": "text/javascript",
    ".css": "text/css",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".webp": "image/webp",
    ".woff2": "font/woff2",
    ".txt": "text/plain",
}
# These are compressed already, or hardly ever read.
_NOT_PACKED: Final = frozenset({".png", ".webp", ".woff2"})
# Nothing but what this gateway serves, and pictures and videos that the page made of what it fetched (ADR 0040).
CONTENT_SECURITY_POLICY: Final = "; ".join(
    (
        "default-src 'self'",
        "img-src 'self' blob:",
        "media-src 'self' blob:",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    )
)
_HEADERS: Final[Mapping[str, str]] = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class PanelFile(Struct, frozen=True):
    """A file as it is sent. *packed* is its content in gzip's format; None where it is never compressed."""

    media_type: str
    content: bytes
    etag: str
    packed: bytes | None


def panel_file(name: str, content: bytes) -> PanelFile:
    """*content* as the file *name*. Raises KeyError where its suffix has no media type."""
    suffix = Path(name).suffix
    packed = None if suffix in _NOT_PACKED or len(content) < GZIP_MIN_BYTES else gzipped(content)
    return PanelFile(MEDIA_TYPES[suffix], content, f'"{hashlib.sha256(content).hexdigest()[:32]}"', packed)


@lru_cache(maxsize=4)
def files_in(folder: Path) -> Mapping[str, PanelFile]:
    """The files of *folder* and of the folders in it, by their paths below it; none where there is no such folder."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix in MEDIA_TYPES)
    return {path.relative_to(folder).as_posix(): panel_file(path.name, path.read_bytes()) for path in paths}


def wants_page(accept: str | None) -> bool:
    """Whether `Accept`, with all of its lines, is that of a browser that shows a page. Pure.

    1. It does not name `text/html`: no. Programs send `*/*`, or nothing.
    2. It names it with a weight of 0: no.
    3. It names `application/json` with a greater weight: no.
    """
    accepted = parse_accept_header(accept, MIMEAccept)
    named = {name.lower(): weight for name, weight in reversed(accepted)}
    if not named.get(HTML):  # 1, 2
        return False
    return named.get("application/json", 0) <= named[HTML]  # 3


def page_under(root: str, page: bytes) -> bytes:
    """*page* for a browser that sees it below the path *root*, to which its addresses are then relative.

    Without a *root* the page is unchanged, and its addresses are relative to where the browser fetched it. That also
    works behind a proxy that strips a prefix without saying so, if the page's address ends with a slash.
    """
    # a prefix has only unreserved characters (`contracts.hosts.path_prefix`)
    return page.replace(b"<head>", b'<head><base href="%b/">' % root.encode(), 1) if root else page


def panel_routes(folder: Path = FOLDER) -> list[HTTPRouteHandler]:
    """`/`, and what is below `/panel`."""
    files = files_in(folder)

    @lru_cache(maxsize=8)
    def page(root: str) -> PanelFile:
        return panel_file(PAGE, page_under(root, files[PAGE].content))

    @get("/", include_in_schema=False, sync_to_thread=False, opt=needs_nothing())
    def get_page(request: Request[Any, Any, Any]) -> Response[bytes]:
        """The panel for a browser. Other clients get the 404 of an unknown path."""
        accept = request.headers.getall("accept", [])
        if PAGE not in files or not wants_page(", ".join(accept)):
            raise ProblemError("not_found", PROBLEMS["not_found"].detail, headers={"Vary": "Accept"})
        return _answer(request, page(root_of(request)), varies=("Accept", "Accept-Encoding"))

    @get("/panel/{path:path}", include_in_schema=False, sync_to_thread=False, opt=needs_nothing())
    def get_file(request: Request[Any, Any, Any], path: FromPath[str]) -> Response[bytes]:
        """A file of the panel."""
        name = path.removeprefix("/")
        file = None if name == PAGE else files.get(name)
        if file is None:
            raise ProblemError("not_found", "the panel has no such file; the panel is at /")
        return _answer(request, file, varies=("Accept-Encoding",))

    return [get_page, get_file]


def _answer(request: Request[Any, Any, Any], file: PanelFile, *, varies: tuple[str, ...]) -> Response[bytes]:
    content, headers = file.content, {**_HEADERS, "ETag": file.etag, "Vary": ", ".join(varies)}
    if file.packed is not None and accepts_gzip(", ".join(request.headers.getall("accept-encoding", [])) or None):
        content = file.packed
        headers |= {"ETag": encoded(file.etag, GZIP), "Content-Encoding": GZIP}
    return Response(content, media_type=file.media_type, headers=headers)
