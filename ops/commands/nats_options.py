"""The options of every command that speaks to nats-server."""

import os
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click
from msgspec.structs import replace

from ops.commands.addresses import DEFAULT_NATS_URL, address_of
from ops.commands.option_types import NatsUrls
from ops.commands.variables import option_or_variable
from ops.nats.access import DEFAULT_DATA_DIR, NatsAccess, Role, access

_nats_url_option = option_or_variable(
    "--nats-url",
    envvar="WARMLANE_NATS_URL",
    type=NatsUrls(),
    show_default=f"of the `warmlane up` in the data folder, else {DEFAULT_NATS_URL}",
    help="Where the nats-server listens; the servers of a cluster separated by commas.",
)
_nats_ca_option = option_or_variable(
    "--nats-ca",
    envvar="WARMLANE_NATS_CA",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Certificates (PEM) that a nats-server at tls:// is checked against. [default: those of the system]",
)


def nats_access(role: Role, urls: str, *, data_dir: Path | None = None, ca: Path | None = None) -> NatsAccess:
    """How *role* connects to the server at *urls*, even for a command without an option for the data folder."""
    folder = data_dir or Path(os.environ.get("WARMLANE_DATA_DIR") or DEFAULT_DATA_DIR)
    return access(role, urls, data_dir=folder, ca=ca)


_auth_dir_option = option_or_variable(
    "--data-dir",
    "auth_dir",
    envvar="WARMLANE_DATA_DIR",
    type=click.Path(path_type=Path, file_okay=False),
    default=DEFAULT_DATA_DIR,
    help="Data folder of `warmlane up`, which holds the address and the passwords of its nats-server.",
)


def nats_options(role: Role, *, asks_for_folder: bool = False) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """`--nats-url` and `--nats-ca`; the command receives *nats*: how *role* connects to that server.

    *asks_for_folder* adds `--data-dir`, for a command that needs the data folder only for the address and the password.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @_nats_url_option
        @_nats_ca_option
        @wraps(function)
        def command(
            *args: Any, nats_url: str | None, nats_ca: Path | None, auth_dir: Path | None = None, **options: Any
        ) -> Any:
            folder: Path = auth_dir or options["data_dir"]
            named = "data_dir" if auth_dir is None else "auth_dir"
            address = address_of("nats_url", "nats_url", nats_url, folder, named)
            nats = replace(nats_access(role, address.url, data_dir=folder, ca=nats_ca), said_by=address.said_by)
            return function(*args, nats=nats, **options)

        return _auth_dir_option(command) if asks_for_folder else command

    return decorate
