"""Checks the ports that a process is to listen on, and reports what is wrong before anything is started."""

import errno
import socket
from collections.abc import Mapping
from typing import Final

import click

# With these errors another port would not help.
_OF_THE_ADDRESS: Final = {
    errno.EADDRNOTAVAIL: "{host} is not an address of this machine; choose one that is, or 0.0.0.0 for all of them, "
    "with {host_option}",
    errno.EAFNOSUPPORT: "this machine has no addresses such as {host}; choose another with {host_option}",
}
_OF_THE_PORT: Final = {
    errno.EADDRINUSE: "port {port} on {host} is taken ({why}); choose another with {option}, "
    "or stop what listens there",
    errno.EACCES: "port {port} on {host} is for privileged users ({why}); choose one from 1024 on with {option}",
    errno.EPERM: "port {port} on {host} is for privileged users ({why}); choose one from 1024 on with {option}",
}
_ELSE: Final = "cannot listen on port {port} of {host} ({why}); choose another with {option}, or another {host_option}"


def listener(host: str, port: int) -> socket.socket:
    """A listening socket on *host*, an address. Raises OSError."""
    return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)


def why_not(error: OSError, host: str, port: int, *, option: str, host_option: str = "--host") -> str:
    """What keeps a process from listening, and the option that helps. Pure."""
    text = (_OF_THE_ADDRESS | _OF_THE_PORT).get(error.errno or 0, _ELSE)
    return text.format(host=host, port=port, why=error.strerror, option=option, host_option=host_option)


def require_free(host: str, port: int, *, option: str, host_option: str = "--host") -> None:
    """Raises click.ClickException when *port* cannot be listened on."""
    try:
        listener(host, port).close()
    except OSError as error:
        raise click.ClickException(why_not(error, host, port, option=option, host_option=host_option)) from error


def require_distinct(ports: Mapping[str, int | None]) -> None:
    """Raises click.UsageError when two options of one command ask for the same port. None asks for no port."""
    asked: dict[int, str] = {}
    for option, port in ports.items():
        if port is None:
            continue
        if port in asked:
            raise click.UsageError(f"{asked[port]} and {option} are both {port}; each needs a port of its own")
        asked[port] = option
