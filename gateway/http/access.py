"""Who may call what, judged before anything else of a request is looked at (ADR 0015).

Every route declares what it needs (`needs`, `needs_nothing`); a route that declares nothing needs `admin`. A request is
refused in the order 413, 401, 403, 415, 400, 422, 429, 412, 503. The first three are judged from the headers alone, so
that a client without a key cannot make the gateway read a body. A body that turns out to be too large while it is read
is 413 only then. A body that is costly to parse is 429 before it is parsed.
"""

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, Final

from limits import RateLimitItemPerSecond
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter
from litestar.connection import ASGIConnection
from litestar.exceptions import HTTPException
from litestar.handlers import HTTPRouteHandler
from litestar.types import ASGIApp, Receive, Scope, Send
from msgspec import Struct

from contracts.hosts import host_name, names_loopback
from contracts.keys import ApiKey
from contracts.keys import Scope as KeyScope
from gateway.boards.key_board import Caller, KeyBoard
from gateway.http.noted import noted
from gateway.http.problems import ProblemError
from gateway.http.queries import require_known_query

SECURITY_SCHEME: Final = "apiKey"
_REALM: Final = 'Bearer realm="warmlane"'
_NEEDS: Final = "needs"


class Needs(Struct, frozen=True):
    """What a route needs. *scope* None: any valid key. *counts_late*: its handler calls `Turn.take` itself, after it
    has looked at the body."""

    needs_key: bool = True
    scope: KeyScope | None = "admin"
    counts_late: bool = False


def needs(scope: KeyScope | None, *, counts_late: bool = False) -> dict[str, Any]:
    """For the decorator of a route that needs a key with *scope*, or any key: `@get("/tasks", **needs("read"))`."""
    roles = [] if scope is None else [scope]
    return {"opt": {_NEEDS: Needs(True, scope, counts_late)}, "security": [{SECURITY_SCHEME: roles}]}


def needs_nothing() -> dict[str, Any]:
    """`opt` of a route that anybody may call: probes, and the page where a key can be entered."""
    return {_NEEDS: Needs(needs_key=False)}


# For a route that declares nothing.
_MOST: Final = Needs()


class Turn(Struct, frozen=True):
    """Whether *key* may make its request now, by its rate limit; *key* is None for a request without one."""

    key: ApiKey | None = None
    wait_s: float = 0.0

    def take(self) -> None:
        """Raises the problem `rate_limited` where the key has to wait."""
        if self.key is not None and self.wait_s > 0:
            raise ProblemError(
                "rate_limited",
                f"this key may make {self.key.burst} requests in any {self.key.burst_s} s; "
                "try again after the time in Retry-After",
                retry_after_s=self.wait_s,
            )


class RateLimits:
    """Counts the requests of each key in this process: N gateways allow N times as much."""

    def __init__(self) -> None:
        self._limiter = MovingWindowRateLimiter(MemoryStorage())

    def turn(self, key: ApiKey | None) -> Turn:
        """Counts a request of *key*. A request that has to wait is not counted."""
        if key is None or key.burst is None:
            return Turn()
        limit = RateLimitItemPerSecond(key.burst, key.burst_s)
        if self._limiter.hit(limit, key.id):
            return Turn(key)
        # when the oldest request leaves the window, by the clock that the library itself reads
        free_at_s = self._limiter.get_window_stats(limit, key.id).reset_time
        return Turn(key, max(0.001, free_at_s - time.time()))


def access_control(
    keys: KeyBoard, limits: RateLimits, *, max_body_bytes: int, allowed_hosts: Collection[str] = ()
) -> Callable[[ASGIApp], ASGIApp]:
    """The middleware of every route: it leaves the caller in `request.user` and their turn in `request.auth`.

    It runs once the route is found, and before anything reads the body or the parameters.
    """

    def around(app: ASGIApp) -> ASGIApp:
        async def admit(scope: Scope, receive: Receive, send: Send) -> None:
            handler: HTTPRouteHandler = scope["route_handler"]  # type: ignore[assignment]  # there are no others
            if _is_too_large(_header(scope, b"content-length"), max_body_bytes):
                raise HTTPException(status_code=413)
            if handler.http_methods != {"OPTIONS"}:  # Litestar answers those itself, with the methods of the path
                wanted = handler.opt.get(_NEEDS, _MOST)
                _admit(scope, wanted, keys, limits, allowed_hosts)
                if not wanted.counts_late:  # a handler that counts late looks at its body first
                    require_known_query(scope)
            await app(scope, receive, send)

        return admit

    return around


def _admit(scope: Scope, wanted: Needs, keys: KeyBoard, limits: RateLimits, allowed_hosts: Collection[str]) -> None:
    """Raises the problem with which the request is refused."""
    if not wanted.needs_key:
        return
    sent = [value.decode("latin-1") for name, value in scope["headers"] if name == b"authorization"]
    caller = keys.caller(sent)
    _note(caller, keys, sent)
    if caller is None:
        raise unauthorized(ASGIConnection(scope))
    if caller.key is None and is_foreign(scope["headers"], allowed_hosts):
        raise ProblemError(
            "foreign_host",
            "call it as 127.0.0.1 or localhost, or ask an operator for an API key; an operator may also allow the name "
            "with --allowed-host",
        )
    turn = limits.turn(caller.key)
    if wanted.scope is not None and not caller.may(wanted.scope):
        raise _forbidden(ASGIConnection(scope), caller, wanted.scope)
    if not wanted.counts_late:
        turn.take()
    scope["user"], scope["auth"] = caller, turn


def _note(caller: Caller | None, keys: KeyBoard, sent: Sequence[str]) -> None:
    """Notes for the access log whose key it is, even if the key is no longer in force or comes with a wrong secret."""
    of_request = noted()
    if caller is not None:
        of_request.caller = caller.name
        of_request.key = "" if caller.key is None else caller.key.id
        return
    key = keys.claimed(sent)
    if key is not None:
        of_request.caller, of_request.key, of_request.counts = key.caller, key.id, False


def is_foreign(headers: Iterable[tuple[bytes, bytes]], allowed_hosts: Collection[str]) -> bool:
    """Whether a request without a key may come from somebody who is not on this machine. Pure.

    It trusts no header: a header can make a request foreign, but never local.

    1. The client called a name (Host, X-Forwarded-Host) that is neither this machine's own nor one of *allowed_hosts*.
       A web page whose own name was made to resolve to 127.0.0.1 sends that name (DNS rebinding), and its browser would
       treat the answers as the page's own.
    2. A proxy on this machine called it by this machine's name for a client elsewhere (X-Forwarded-For, X-Real-IP,
       Forwarded). Under an allowed name a proxy may do that.
    """
    called: list[bytes] = []
    is_passed_on = False
    for name, value in headers:
        if name == b"host":
            called.append(value)
        elif name == b"x-forwarded-host":
            called += value.split(b",")
        elif name == b"forwarded":
            is_passed_on = True
        elif name in _FORWARDED_FOR:
            is_passed_on = is_passed_on or not all(map(_is_near, value.decode("latin-1").split(",")))
    names = [each.decode("latin-1").strip() for each in called]
    if not names or not all(names_loopback(name) or host_name(name) in allowed_hosts for name in names):  # 1
        return True
    return is_passed_on and not any(host_name(name) in allowed_hosts for name in names)  # 2


_FORWARDED_FOR: Final = frozenset({b"x-forwarded-for", b"x-real-ip"})


def _is_near(address: str) -> bool:
    address = address.strip()
    return names_loopback(f"[{address}]" if address.count(":") > 1 and "[" not in address else address)


def _header(scope: Scope, wanted: bytes) -> bytes:
    # the first of several, as in Litestar, but without decoding all headers of each request
    for name, value in scope["headers"]:
        if name == wanted:
            return value
    return b""


def _is_too_large(declared: bytes, max_body_bytes: int) -> bool:
    return declared.isdigit() and int(declared[:20]) > max_body_bytes


def unauthorized(connection: ASGIConnection[Any, Any, Any, Any]) -> ProblemError:
    """The problem of a request without a valid key. It does not say what was wrong with a key that was sent."""
    if "authorization" not in connection.headers:
        return ProblemError(
            "unauthorized",
            "send the header Authorization: Bearer KEY; an operator makes a key with `warmlane keys add`",
            headers={"WWW-Authenticate": _REALM, **_hang_up(connection)},
        )
    return ProblemError(
        "unauthorized",
        "this API key is not known, or was revoked; the header is Authorization: Bearer KEY",
        headers={"WWW-Authenticate": f'{_REALM}, error="invalid_token"', **_hang_up(connection)},
    )


def _forbidden(connection: ASGIConnection[Any, Any, Any, Any], caller: Caller, scope: KeyScope) -> ProblemError:
    return ProblemError(
        "forbidden",
        f"this needs a key with the scope {scope}; this one has {' and '.join(caller.scopes)}",
        headers={
            "WWW-Authenticate": f'{_REALM}, error="insufficient_scope", scope="{scope}"',
            **_hang_up(connection),
        },
    )


def _hang_up(connection: ASGIConnection[Any, Any, Any, Any]) -> dict[str, str]:
    # a body without a declared length has no end that the server could wait for (ADR 0005)
    return {"Connection": "close"} if "transfer-encoding" in connection.headers else {}
