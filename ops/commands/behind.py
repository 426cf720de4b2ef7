"""The options of a gateway behind a reverse proxy (docs/operate/behind-nginx.md)."""

import ipaddress
from collections.abc import Callable
from functools import wraps
from typing import Any

import click
from msgspec import Struct

from contracts.hosts import OWN_SEGMENTS, host_name, path_prefix
from ops.commands.variables import option_or_variable

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class RootPath(click.ParamType[str]):
    """The path under which a proxy offers the API, as in `/warmlane`; empty for the root."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        prefix = path_prefix(str(value))
        if prefix is None:
            self.fail(
                f"{value!r} is not a path such as /warmlane: it begins with a slash, has letters, digits and -._~ "
                f"between slashes, and does not begin as a path of the API does ({', '.join(sorted(OWN_SEGMENTS))})",
                param,
                ctx,
            )
        return prefix


def split_words(text: str) -> list[str]:
    """The values in an environment variable, separated by blanks or commas."""
    return text.replace(",", " ").split()


class NetworkType(click.ParamType[Network]):
    """An address, or a network in CIDR form."""

    name = "network"

    def split_envvar_value(self, rv: str) -> list[str]:
        return split_words(rv)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Network:
        try:
            return ipaddress.ip_network(value)
        except ValueError as error:
            self.fail(
                f"{str(value)!r} is neither an address such as 127.0.0.1 nor a network such as 10.1.0.0/16 ({error})",
                param,
                ctx,
            )


webhooks_allow_option = option_or_variable(
    "--webhooks-allow",
    "webhooks_allow",
    envvar="WARMLANE_WEBHOOKS_ALLOW",
    type=NetworkType(),
    multiple=True,
    help="Deliver webhooks to this address or network too (127.0.0.0/8 is the loopback), and not only to the public "
    "internet; plain http is allowed to these addresses. May be repeated; the variable separates several by blanks or "
    "commas. [default: none]",
)


class HostName(click.ParamType[str]):
    """A name or address by which clients call, without a port."""

    name = "host"

    def split_envvar_value(self, rv: str) -> list[str]:
        return split_words(rv)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(value)
        name = host_name(text)
        if not name or "*" in name or text.lower().removesuffix(".") not in {name, f"[{name}]"}:
            self.fail(f"{text!r} is not a name such as video.example.org, without a scheme, a port or a *", param, ctx)
        return name


class Behind(Struct, frozen=True):
    """How clients reach a gateway through proxies. The defaults are for a gateway without a proxy."""

    root_path: str = ""
    trusted: tuple[Network, ...] = ()
    allowed_hosts: tuple[str, ...] = ()

    def arguments(self) -> list[str]:
        """These settings as options for the command line of another process."""
        arguments = ["--root-path", self.root_path] if self.root_path else []
        for network in self.trusted:
            arguments += ("--trusted-proxy", str(network))
        for host in self.allowed_hosts:
            arguments += ("--allowed-host", f"[{host}]" if ":" in host else host)
        return arguments


def behind_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """`--root-path`, `--trusted-proxy` and `--allowed-host`; the command receives them as *behind*, a `Behind`."""

    @option_or_variable(
        "--root-path",
        envvar="WARMLANE_ROOT_PATH",
        type=RootPath(),
        default="",
        help="The path under which a proxy offers the API, as in /warmlane: every path in an answer begins with it, "
        "whether the proxy takes it off a request or not. [default: none]",
    )
    @option_or_variable(
        "--trusted-proxy",
        "trusted_proxies",
        envvar="WARMLANE_TRUSTED_PROXIES",
        type=NetworkType(),
        multiple=True,
        help="Believe X-Forwarded-Prefix, -For and -Proto from this address or network (10.1.0.0/16). May be "
        "repeated; the variable separates several by blanks or commas. [default: nobody's]",
    )
    @option_or_variable(
        "--allowed-host",
        "allowed_hosts",
        envvar="WARMLANE_ALLOWED_HOSTS",
        type=HostName(),
        multiple=True,
        help="While there is no API key: a name besides localhost under which anybody may call, as in "
        "video.example.org. May be repeated; the variable separates several by blanks or commas. "
        "[default: none]",
    )
    @wraps(function)
    def command(
        *args: Any, root_path: str, trusted_proxies: tuple[Network, ...], allowed_hosts: tuple[str, ...], **options: Any
    ) -> Any:
        return function(*args, behind=Behind(root_path, trusted_proxies, allowed_hosts), **options)

    return command
