"""Addresses that callers name and a gateway connects to: of webhooks, and of images. Pure."""

import re
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final, Literal

from msgspec import Struct

URL_MAX_CHARS: Final = 2_048


class BadUrl(ValueError):
    """The address cannot be connected to. The text says why."""


class NamedUrl(Struct, frozen=True):
    """An address in its parts, so that no code parses it a second time, and differently. *target* is path and query."""

    scheme: Literal["http", "https"]
    host: str
    port: int
    target: str

    @property
    def authority(self) -> str:
        """What goes into `Host`."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def literal(self) -> IPv4Address | IPv6Address | None:
        """The IP address that stands in the place of a name, if one does."""
        try:
            return ip_address(self.host)
        except ValueError:
            return None


_PORTS: Final = {"http": 80, "https": 443}
_UNRESERVED: Final = r"A-Za-z0-9._~!$&'()*+,;=:@%/-"
_URL: Final = re.compile(
    rf"(?P<scheme>https?)://(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::(?P<port>[0-9]{{1,5}}))?"
    rf"(?P<path>/[{_UNRESERVED}]*)?(?P<query>\?[{_UNRESERVED}?]*)?",
    # without ASCII, IGNORECASE would let the long s match a letter from a to z, as no other reader does
    re.ASCII | re.IGNORECASE,
)
_NUMBER: Final = re.compile(r"0[xX][0-9A-Fa-f]*|[0-9]+")


def parse_url(text: str) -> NamedUrl:
    """*text* in its parts. Raises BadUrl.

    It is stricter than most readers of a URL: no user, no fragment, no character that two of them read differently, and
    no number that some of them take for an IP address.
    """
    if len(text) > URL_MAX_CHARS:
        raise BadUrl(f"at most {URL_MAX_CHARS} characters, got {len(text)}")
    match = _URL.fullmatch(text)
    if match is None:
        raise BadUrl("expected https://HOST/PATH, without a user, a fragment or characters that need escaping")
    host = match["host"].lower()
    if host.startswith("["):
        host = host[1:-1]
        try:
            IPv6Address(host)
        except ValueError:
            raise BadUrl("the text in brackets is not an IPv6 address") from None
    elif _NUMBER.fullmatch(host.rstrip(".").rpartition(".")[2]):
        try:
            IPv4Address(host)
        except ValueError:
            raise BadUrl("the host ends in a number, but is not an IPv4 address in dotted form") from None
    elif len(host) > 253 or not all(0 < len(label) <= 63 for label in host.removesuffix(".").split(".")):
        raise BadUrl("the host is not a valid name")
    scheme: Literal["http", "https"] = "https" if match["scheme"].lower() == "https" else "http"
    port = _PORTS[scheme] if match["port"] is None else int(match["port"])
    if not 0 < port < 65_536:
        raise BadUrl("the port is not a number from 1 to 65535")
    return NamedUrl(scheme, host, port, (match["path"] or "/") + (match["query"] or ""))
