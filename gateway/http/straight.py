"""Calls the busiest routes without Litestar's path from a route to its function: no parameters to parse, no
dependencies to make, no kinds of response to choose from. That path is a tenth of an acceptance's CPU time."""

from collections.abc import Callable, Collection

from litestar.handlers import HTTPRouteHandler
from litestar.types import ASGIApp, Receive, Scope, Send

from gateway.http.lookup import CallerRequest
from gateway.http.problems import ProblemError, answer_of
from gateway.services import Services


def straight(routes: Collection[HTTPRouteHandler], services: Services) -> Callable[[ASGIApp], ASGIApp]:
    """The innermost middleware. Each function of *routes* takes only `request` and *services*, and returns a
    `JsonAnswer`; what else a route declares is for the API's description. Litestar serves the other routes."""
    functions = {route.fn for route in routes}

    def around(app: ASGIApp) -> ASGIApp:
        async def serve(scope: Scope, receive: Receive, send: Send) -> None:
            handler: HTTPRouteHandler = scope["route_handler"]  # type: ignore[assignment]  # there are no others
            if handler.fn not in functions:
                await app(scope, receive, send)
                return
            try:
                answer = await handler.fn(request=CallerRequest(scope, receive, send), services=services)
            except ProblemError as error:
                # here, and not in Litestar: the answer goes through the other middleware like any other
                answer = answer_of(error)
            await answer.to_asgi_response(None, None)(scope, receive, send)

        return serve

    return around
