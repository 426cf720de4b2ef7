"""Requests from pages of other origins: Litestar's CORS, with refusals that give the reason, and a complete `Vary`."""

from collections.abc import Collection, Mapping
from typing import Final

from litestar.config.cors import CORSConfig
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from contracts.hosts import host_name
from gateway.http.problems import ProblemError, answer_of

# The headers that a page may always send (the Fetch Standard's safelist).
SAFE_HEADERS: Final = frozenset({"accept", "accept-language", "content-language", "content-type"})
_SHOWN_CHARS: Final = 128
_NOT_ALLOWED: Final = "pages of {!a} may not call this gateway; an operator allows them with --cors-origin"
# The methods that a page of another origin must not use without its reader's knowledge.
CHANGING: Final = frozenset({"POST", "PUT", "DELETE"})
_VARY: Final = ("Accept-Encoding", "Origin")
# A request without these does not come from a page.
_OF_PAGES: Final = frozenset({b"origin", b"sec-fetch-site"})


def objection(cors: CORSConfig | None, preflight: Mapping[str, str]) -> str | None:
    """Why a preflight request with the headers *preflight* is refused, by the first of these; None if it is not. Pure.

    1. No origin is allowed, or this one is not.
    2. Pages may not use the method.
    3. Pages may not send one of the headers.
    """
    origin = preflight.get("origin", "")
    if cors is None or not cors.is_origin_allowed(origin):  # 1
        return _NOT_ALLOWED.format(origin[:_SHOWN_CHARS])
    method = preflight.get("access-control-request-method")
    if method is not None and method not in cors.allow_methods:  # 2
        return f"the method {method[:_SHOWN_CHARS]!a} may not be used; pages may use {', '.join(cors.allow_methods)}"
    wanted = [name.strip().lower() for name in preflight.get("access-control-request-headers", "").split(",")]
    refused = [name for name in wanted if name and name not in {*cors.allow_headers, *SAFE_HEADERS}]
    if refused:  # 3
        return (
            f"the header {refused[0][:_SHOWN_CHARS]!a} may not be sent; pages may send {', '.join(cors.allow_headers)}"
        )
    return None


def comes_from_elsewhere(headers: Mapping[str, str], cors: CORSConfig | None, allowed_hosts: Collection[str]) -> bool:
    """Whether a page of an origin that may not call made this request, which changes something. Pure.

    A browser sends a preflight request before most of what a page sends elsewhere, but not before a form or an empty
    `POST`. Only browsers send the headers that this looks at.

    1. It carries a key: no. A browser adds none by itself, so the page was allowed to send the header, or is the
       gateway's own.
    2. The browser says that the page is of this origin, or that no page made the request: no.
    3. It names no origin: only if it has Sec-Fetch-Site, which a browser sends.
    4. Its origin is the one that was called, or has a name of *allowed_hosts* (behind a proxy), or is one of *cors*:
       no. Any other origin: yes.
    """
    if "authorization" in headers:  # 1
        return False
    if headers.get("sec-fetch-site") in ("same-origin", "none"):  # 2
        return False
    origin = headers.get("origin")
    if origin is None:  # 3
        return "sec-fetch-site" in headers
    called = {headers.get("host", "").lower(), *map(str.strip, headers.get("x-forwarded-host", "").lower().split(","))}
    authority = origin.lower().partition("://")[2]
    is_ours = bool(authority) and (authority in called or host_name(authority) in allowed_hosts)
    return not (is_ours or (cors is not None and cors.is_origin_allowed(origin)))  # 4


def cross_origin(app: ASGIApp, cors: CORSConfig | None, allowed_hosts: Collection[str] = ()) -> ASGIApp:
    """*app*, which answers what *cors* allows; the rest is refused with a problem document."""

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        if scope.get("method") in CHANGING and not _OF_PAGES.isdisjoint([name for name, _ in scope["headers"]]):
            sent = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
            if comes_from_elsewhere(sent, cors, allowed_hosts):
                origin = sent.get("origin", "another origin")[:_SHOWN_CHARS]
                refusal = answer_of(ProblemError("cross_origin_refused", _NOT_ALLOWED.format(origin)))
                await refusal.to_asgi_response(None, None)(scope, receive, send)  # type: ignore[arg-type]  # JsonAnswer
                return
        if scope.get("method") == "OPTIONS":
            asked = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
            # without CORS, an OPTIONS with an origin is a preflight request only if it also names a method
            if "origin" in asked and (cors is not None or "access-control-request-method" in asked):
                detail = objection(cors, asked)
                if detail is not None:
                    refusal = answer_of(ProblemError("cross_origin_refused", detail))
                    await refusal.to_asgi_response(None, None)(scope, receive, send)  # type: ignore[arg-type]  # JsonAnswer
                    return
        await app(scope, receive, send if cors is None else _with_vary(send))

    return serve


def _with_vary(send: Send) -> Send:
    async def varied(message: Message) -> None:
        if message["type"] == "http.response.start":
            # even for a client without an origin: a cache may give its answer to one that has an origin; and Litestar
            # leaves the encoding out
            own = ", ".join(value.decode("latin-1") for name, value in message["headers"] if name == b"vary")
            names = dict.fromkeys([*filter(None, map(str.strip, own.split(","))), *_VARY])
            others = [each for each in message["headers"] if each[0] != b"vary"]
            message["headers"] = [*others, (b"vary", ", ".join(names).encode("latin-1"))]
        await send(message)

    return varied
