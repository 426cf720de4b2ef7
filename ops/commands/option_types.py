"""What options may hold: sizes, lanes, hosts, origins, addresses of servers."""

import ipaddress
import re
import socket
from typing import Any, Final
from urllib.parse import urlsplit

import click
from msgspec import Struct

from contracts.generation.labels import BadLabel, parse_label

_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)([KMGT])B")


class ByteSize(click.ParamType[int]):
    """A size such as `512MB` or `20GB`, in bytes, as nats.conf means it: 1 KB is 1024."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = _SIZE.fullmatch(str(value))
        if match is None or float(match[1]) <= 0:
            self.fail(f"{value!r} is not a size such as 512MB or 20GB", param, ctx)
        return int(float(match[1]) * 1024 ** (1 + "KMGT".index(match[2])))


def labels_given(ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str] | None:
    """The labels of an option that may be repeated, by key; None without one. Raises click.BadParameter."""
    found: dict[str, str] = {}
    for value in values:
        try:
            key, text = parse_label(value)
        except BadLabel as error:
            raise click.BadParameter(f"{value!r}: {error}", ctx, parameter) from error
        if found.setdefault(key, text) != text:
            raise click.BadParameter(f"{key} has one value, and not {found[key]} and {text}", ctx, parameter)
    return found or None


class Lanes(click.ParamType[dict[str, int]]):
    """Lanes per model, such as `anisora=1,phr00t=1`, as a dict."""

    name = "lanes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, int]:
        if isinstance(value, dict):
            return value
        lanes: dict[str, int] = {}
        for part in str(value).split(","):
            model, equals, count = part.strip().partition("=")
            if not equals or not count.isascii() or not count.isdigit() or model in lanes:
                self.fail(f"{part!r} is not MODEL=COUNT with every model once, as in anisora=1,phr00t=1", param, ctx)
            lanes[model] = int(count)
        return lanes


class ListenHost(Struct, frozen=True):
    """Where to listen: *name* as it was given, and the one *address* that it resolves to."""

    name: str
    address: str

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        return ipaddress.ip_address(self.address).is_loopback

    @property
    def near(self) -> str:
        """Where a program on this machine reaches it. For all addresses of the machine (0.0.0.0, ::), the loopback."""
        address = ipaddress.ip_address(self.address)
        if address.is_unspecified:
            return "127.0.0.1" if address.version == 4 else "::1"
        return self.name

    def url(self, scheme: str, port: int) -> str:
        """The URL to call from this machine."""
        return f"{scheme}://{f'[{self.near}]' if ':' in self.near else self.near}:{port}"

    @classmethod
    def of(cls, name: str) -> "ListenHost":
        """Raises ValueError if *name* is neither an address nor a name that resolves to one."""
        name = "127.0.0.1" if name == "localhost" else name
        try:
            return cls(name, str(ipaddress.ip_address(name)))
        except ValueError:
            pass
        try:
            found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM) if name else []
        except (OSError, UnicodeError) as error:
            raise ValueError(f"{name!r} is neither an address nor a name that is known here ({error})") from error
        if not found:
            raise ValueError("an empty host is no address; 0.0.0.0 stands for all of this machine's")
        # the process listens on the address that was checked, even if the name resolves to another a moment later
        return cls(name, str(found[0][4][0]))


class HostType(click.ParamType[ListenHost]):
    """An address to listen on, or a name that resolves to one."""

    name = "host"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> ListenHost:
        if isinstance(value, ListenHost):
            return value
        try:
            return ListenHost.of(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


class Origin(click.ParamType[str]):
    """A web origin: scheme, host and port, as browsers send it in the header `Origin`."""

    name = "origin"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            parts = urlsplit(str(value))
            usable = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
        except ValueError:
            usable = False
        if not usable or str(value) != f"{parts.scheme}://{parts.netloc}" or "@" in parts.netloc or "*" in parts.netloc:
            self.fail(f"{value!r} is not an origin such as https://app.example.org, without a path", param, ctx)
        return str(value).lower()


class NatsUrls(click.ParamType[str]):
    """One nats-server, or several of a cluster separated by commas as the NATS CLI takes them."""

    name = "url"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        for url in str(value).split(","):
            try:
                parts = urlsplit(url if "://" in url else f"nats://{url}")
                usable = parts.scheme in {"nats", "tls", "ws", "wss"} and parts.hostname and parts.port != 0
            except ValueError:
                usable = False
            if not usable:
                self.fail(f"{url!r} is not the address of a server, as in nats://127.0.0.1:4222", param, ctx)
        return str(value)
