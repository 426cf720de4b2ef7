"""The gateway's options for images that requests name instead of carrying them (docs/use/images.md)."""

import ipaddress
import re
from collections.abc import Callable
from functools import wraps
from typing import Any, Final

import click
from msgspec import Struct

from contracts.topology import DAY_S
from ops.commands.behind import Network, split_words
from ops.commands.durations import Duration
from ops.commands.variables import option_or_variable

_LABEL: Final = r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?"
_HOST: Final = re.compile(rf"\*|(\*\.)?{_LABEL}(\.{_LABEL})*", re.ASCII)
_NUMBER: Final = re.compile(r"[0-9.]+|0x[0-9a-f]*")


class ImageHostType(click.ParamType[str | Network]):
    """A host from which images may be fetched: a name, `*.DOMAIN`, `*`, an address, or a network in CIDR form."""

    name = "host"

    def split_envvar_value(self, rv: str) -> list[str]:
        return split_words(rv)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str | Network:
        if not isinstance(value, str):  # converted already
            return value  # type: ignore[no-any-return]
        text = value.lower().removesuffix(".")
        try:
            return ipaddress.ip_network(text.removeprefix("[").removesuffix("]"))
        except ValueError:
            pass
        if not _HOST.fullmatch(text) or len(text) > 253 or _NUMBER.fullmatch(text.rpartition(".")[2]):
            self.fail(
                f"{value!r} is not a host such as images.example.com or *.example.com, nor a network such as "
                "10.1.0.0/16; without a scheme, a port or a path",
                param,
                ctx,
            )
        return text


class ImageOptions(Struct, frozen=True):
    """The operator's rules for images: the *hosts* and networks from which the gateway may fetch them, and how long an
    uploaded image is kept at least."""

    hosts: tuple[str | Network, ...] = ()
    keep_s: float = DAY_S

    def arguments(self) -> list[str]:
        """These settings as options for the command line of another process."""
        arguments = ["--images-keep", f"{self.keep_s:g}s"]
        for host in self.hosts:
            arguments += ("--images-allow-host", str(host))
        return arguments


def image_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """`--images-allow-host` and `--images-keep`; the command receives them as *images*, an `ImageOptions`."""

    @option_or_variable(
        "--images-allow-host",
        "image_hosts",
        envvar="WARMLANE_IMAGES_ALLOW_HOST",
        type=ImageHostType(),
        multiple=True,
        help="Fetch the image that a request names by its URL from this host, as in images.example.com, *.example.com, "
        "or * for every host of the public internet. A network, as in 10.1.0.0/16, allows addresses in it, also by "
        "plain http. May be repeated; the variable separates several by blanks or commas. [default: none]",
    )
    @option_or_variable(
        "--images-keep",
        "images_keep_s",
        envvar="WARMLANE_IMAGES_KEEP",
        type=Duration(),
        default="24h",
        help="How long an image that was uploaded with POST /images stays at least; twice as long at most. Tasks have "
        "copies of their own, kept as long as they are.",
    )
    @wraps(function)
    def command(*args: Any, image_hosts: tuple[str | Network, ...], images_keep_s: float, **options: Any) -> Any:
        return function(*args, images=ImageOptions(image_hosts, images_keep_s), **options)

    return command
