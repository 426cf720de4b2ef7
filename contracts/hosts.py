"""Names and addresses of machines, as text. Pure."""

import ipaddress
from functools import lru_cache
from urllib.parse import urlsplit


@lru_cache(maxsize=64)
def names_loopback(host: str) -> bool:
    """Whether *host*, with a port or without, as in a URL or the header `Host`, names this very machine."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
