"""Names and addresses of machines, and paths in front of an API, as text. Pure."""

import ipaddress
import re
from functools import lru_cache
from typing import Final
from urllib.parse import urlsplit

# The first segments of the API's own paths. A prefix that began with one could not be distinguished from such a path.
OWN_SEGMENTS: Final = frozenset(
    {
        "admin",
        "docs",
        "generate",
        "healthz",
        "images",
        "livez",
        "metrics",
        "openapi.json",
        "panel",
        "readyz",
        "settings",
        "tasks",
        "v1",
        "webhooks",
    }
)
PREFIX_MAX_CHARS: Final = 256
# What RFC 3986 calls unreserved: the same with or without percent signs, in a header, in JSON and in HTML.
_PREFIX: Final = re.compile(r"(?:/[A-Za-z0-9._~-]+)+")


@lru_cache(maxsize=64)
def host_name(host: str) -> str:
    """The name or address in *host*, which may have a port, as in a URL or the header `Host`: in lower case, without
    IPv6 brackets and without a dot at the end. Empty if *host* is not a host."""
    try:
        return (urlsplit(f"//{host}").hostname or "").removesuffix(".")
    except ValueError:
        return ""


@lru_cache(maxsize=64)
def names_loopback(host: str) -> bool:
    """Whether *host*, with a port or without, as in a URL or the header `Host`, names this very machine."""
    name = host_name(host)
    try:
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def path_prefix(text: str) -> str | None:
    """*text* as the path under which the API is served, as in `/warmlane`, without a slash at its end; empty for the
    root. None if it cannot be one: a prefix consists of unreserved characters, and begins with no path of the API."""
    if text in {"", "/"}:
        return ""
    prefix = text.removesuffix("/")
    segments = prefix.split("/")[1:]
    if len(prefix) > PREFIX_MAX_CHARS or not _PREFIX.fullmatch(prefix):
        return None
    if segments[0] in OWN_SEGMENTS or not {".", ".."}.isdisjoint(segments):
        return None
    return prefix
