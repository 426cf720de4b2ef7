"""The methods that every path has beside its own: `HEAD` where there is `GET`, and `OPTIONS` (RFC 9110 §9.3)."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from litestar import Response, head, route
from litestar.enums import HttpMethod, MediaType
from litestar.handlers import HTTPRouteHandler
from litestar.types import ASGIApp, Receive, Scope, Send

HEAD: Final = HttpMethod.HEAD
GET: Final = HttpMethod.GET


def with_heads_and_options(handlers: Iterable[HTTPRouteHandler]) -> list[HTTPRouteHandler]:
    """*handlers*, and the HEAD and OPTIONS that they lack. OPTIONS come first: Litestar's own name only the first
    method."""
    every = list(handlers)
    every += heads_of(every)
    methods: dict[str, set[str]] = {}
    for handler in every:
        for path in handler.paths:
            methods.setdefault(path, set()).update(handler.http_methods)
    return [*(options_of(path, names) for path, names in methods.items()), *every]


def heads_of(handlers: Iterable[HTTPRouteHandler]) -> Iterator[HTTPRouteHandler]:
    """A HEAD for every GET whose path has none: the GET's handler answers, and `outgoing` leaves the body out.

    A GET that would send much, or go on for long, needs a HEAD of its own.
    """
    every = list(handlers)
    own = {path for each in every if HEAD in each.http_methods for path in each.paths}
    for handler in every:
        paths = sorted(handler.paths - own)
        if GET in handler.http_methods and paths:
            yield head_of(paths, handler.opt)


def head_of(paths: list[str], opt: Mapping[str, Any]) -> HTTPRouteHandler:
    """The HEAD of *paths*, with the *opt* of their GET: it needs the same scope."""
    return head(paths, opt=opt, include_in_schema=False, middleware=[_as_get])(_answered_by_get)


async def _answered_by_get() -> None:
    raise AssertionError("the GET of the same path answers")


def _as_get(app: ASGIApp) -> ASGIApp:
    # runs inside everything that judges by the method: the path has both
    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, "method": "GET"}, receive, send)  # type: ignore[arg-type]  # the scope that it was

    return serve


def options_of(path: str, methods: Iterable[str]) -> HTTPRouteHandler:
    """The OPTIONS of *path*, which has *methods* beside it."""
    allow = ", ".join(sorted({HttpMethod.OPTIONS, *methods}))

    async def options() -> Response[None]:
        return Response(None, status_code=204, media_type=MediaType.TEXT, headers={"Allow": allow})

    return route(path, http_method=[HttpMethod.OPTIONS], include_in_schema=False)(options)
