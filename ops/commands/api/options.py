"""The options of every command that calls a gateway, and the argument that names a task."""

import functools
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click
from msgspec import Struct

from contracts.keys import Presented, parse_presented
from ops.commands.addresses import DEFAULT_URL, address_of
from ops.commands.api.client import CommandClient
from ops.commands.api.problems import KEY_VARIABLE
from ops.commands.variables import option_or_variable
from ops.nats.access import DEFAULT_DATA_DIR

_TASK_ID: Final = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_url_option = option_or_variable(
    "--url",
    envvar="WARMLANE_URL",
    show_default=f"of the `warmlane up` in the data folder, else {DEFAULT_URL}",
    help="Where the gateway answers.",
)
_folder_option = option_or_variable(
    "--data-dir",
    "client_dir",
    envvar="WARMLANE_DATA_DIR",
    type=click.Path(path_type=Path, file_okay=False),
    default=DEFAULT_DATA_DIR,
    help="Data folder of `warmlane up`, where its addresses stand.",
)


class Gateway(Struct, frozen=True):
    """The gateway that a command talks to, and the key that the command presents."""

    url: str
    key: Presented | None = None
    ca: Path | None = None
    said_by: str = ""

    def client(self) -> CommandClient:
        """A connection to it. Raises what `CommandClient` raises."""
        return CommandClient(self.url, key=self.key, ca=self.ca, said_by=self.said_by)


def presented_key(file: Path | None) -> Presented | None:
    """The key in *file*, else the one in WARMLANE_API_KEY, if any.

    Raises click.ClickException if the text does not have the form of a key. The error does not repeat the text.
    """
    try:
        text = os.environ.get(KEY_VARIABLE, "") if file is None else file.read_text(errors="replace")
    except OSError as error:
        raise click.ClickException(f"--api-key-file {file} cannot be read: {error.strerror}") from error
    if file is None and not text.strip():
        return None
    presented = parse_presented(text.strip())
    if presented is None:
        raise click.ClickException(
            f"{KEY_VARIABLE if file is None else file} does not hold an API key as `warmlane keys add` prints it, "
            "which begins with wl_"
        )
    return presented


def gateway_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--url`, `--data-dir`, `--api-key-file` and `--ca`; the command gets them as *gateway*, a `Gateway`."""

    @_url_option
    @_folder_option
    @option_or_variable(
        "--api-key-file",
        envvar="WARMLANE_API_KEY_FILE",
        type=click.Path(path_type=Path, exists=True, dir_okay=False),
        # the key itself is never an option: every user of a machine sees the arguments of its processes
        help=f"File with the API key. [default: what {KEY_VARIABLE} holds]",
    )
    @option_or_variable(
        "--ca",
        envvar="WARMLANE_CA",
        type=click.Path(path_type=Path, exists=True, dir_okay=False),
        help="PEM file of the authority to trust, where the gateway's certificate is a private one.",
    )
    @functools.wraps(command)
    def with_gateway(
        *arguments: Any, url: str | None, client_dir: Path, api_key_file: Path | None, ca: Path | None, **options: Any
    ) -> Any:
        address = address_of("url", "url", url or None, client_dir, "client_dir")
        gateway = Gateway(address.url, presented_key(api_key_file), ca, said_by=address.said_by)
        return command(*arguments, gateway=gateway, **options)

    return with_gateway


def task_id_of(_: click.Context, __: click.Parameter, value: str) -> str:
    """Converts an argument to the ID of a task. Raises click.BadParameter if it cannot be one."""
    if not _TASK_ID.fullmatch(value):
        raise click.BadParameter(f"{value!r} is no id of a task; `warmlane tasks list` shows them")
    return value.lower()
