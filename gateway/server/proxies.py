"""Behind a reverse proxy: under which path the API is served, and which proxies may say so.

Anybody can send `X-Forwarded-…`, so these headers count only from an address that the operator named. The prefix is
removed from a path that has it, whether or not a proxy has removed it already. Handlers find it in the scope as
`root_path`, and put it before every path in an answer. No such path names a scheme or a host.
"""

import ipaddress
from collections.abc import Sequence
from typing import Any, Final

from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from contracts.hosts import path_prefix

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_PREFIX: Final = b"x-forwarded-prefix"


def prefix_of(said: Sequence[str], own: str) -> str:
    """The path in front of the API, by the values of `X-Forwarded-Prefix` that a trusted proxy *said*. Pure.

    1. It said nothing: *own*, the gateway's setting.
    2. Each proxy on the way added the prefix that it removed, the outermost first: all of them, one after the other.
    3. One of them is no prefix: *own*.
    """
    if not said:  # 1
        return own
    parts = [path_prefix(part.strip()) for line in said for part in line.split(",")]
    prefix = path_prefix("".join(part or "" for part in parts))
    return own if prefix is None or None in parts else prefix  # 2, 3


def without_prefix(path: str, prefix: str) -> str:
    """*path* as the routes know it, whether it came with *prefix* or without. Pure."""
    if prefix and (path == prefix or path.startswith(f"{prefix}/")):
        return path[len(prefix) :] or "/"
    return path


def is_trusted(peer: str | None, trusted: Sequence[Network]) -> bool:
    """Whether *peer*, the address of a connection, lies in one of *trusted*. Pure."""
    try:
        address = ipaddress.ip_address(peer or "")
    except ValueError:  # a socket without a network address
        return False
    return any(address in network for network in trusted)


def behind_proxies(app: Any, root_path: str, trusted: Sequence[Network]) -> Any:
    """*app*, as served under *root_path*, or under the path that one of the *trusted* proxies names.

    From a trusted proxy, `X-Forwarded-For` names the client in the scope, and `X-Forwarded-Proto` the scheme.
    """
    if not root_path and not trusted:
        return app
    inner = ProxyHeadersMiddleware(app, [str(network) for network in trusted]) if trusted else app

    async def serve(scope: Any, receive: Any, send: Any) -> None:
        prefix = root_path
        if trusted and is_trusted(scope["client"] and scope["client"][0], trusted):
            said = [value.decode("latin-1") for name, value in scope["headers"] if name == _PREFIX]
            prefix = prefix_of(said, root_path)
        if prefix:
            raw = scope["raw_path"].decode("ascii")
            path = {"path": without_prefix(scope["path"], prefix), "raw_path": without_prefix(raw, prefix).encode()}
            scope = scope | path | {"root_path": prefix}
        await inner(scope, receive, send)

    return serve
