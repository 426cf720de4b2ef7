"""Behind a reverse proxy: under which path the API is served, and who is believed about that.

Anybody can send `X-Forwarded-…`, so these headers count only from an address that the operator named. The prefix is
taken off a path that has it, whether a proxy leaves it there or not. Handlers find it in the scope as `root_path`, and
put it before every path in an answer. No such path names a scheme or a host.
"""

import ipaddress
from collections.abc import Sequence
from typing import Any, Final

from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from contracts.hosts import path_prefix

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_PREFIX: Final = b"x-forwarded-prefix"


def prefix_of(said: Sequence[str], own: str) -> str:
    """The path in front of the API, of what a trusted proxy *said* in `X-Forwarded-Prefix`. Pure.

    1. It said nothing: *own*, the gateway's setting.
    2. Each proxy on the way added what it took off, the outermost first: all of them, one after the other.
    3. One of them is no such path: *own*.
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
    except ValueError:  # a socket that is no file of the network
        return False
    return any(address in network for network in trusted)


def behind_proxies(app: Any, root_path: str, trusted: Sequence[Network]) -> Any:
    """*app*, as served under *root_path*, or under what one of the *trusted* proxies says.

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
