"""The reason why a process cannot listen is reported exactly, before anything starts."""

import errno
import socket

import click
import pytest

from ops.machine.ports import require_distinct, require_free, why_not
from tests.kit.support import free_port


def test_a_taken_port_is_reported_as_taken() -> None:
    port = free_port()  # which no outgoing connection takes when it is free again
    taken = rf"port {port} on 127.0.0.1 is taken .*another with --port"
    with socket.create_server(("127.0.0.1", port)), pytest.raises(click.ClickException, match=taken):
        require_free("127.0.0.1", port, option="--port")
    require_free("127.0.0.1", port, option="--port")


@pytest.mark.parametrize("host", ["203.0.113.7", "2001:db8::7"])  # for documentation: nobody's
def test_an_address_of_another_machine_is_not_taken(host: str) -> None:
    with pytest.raises(click.ClickException) as raised:
        require_free(host, 8000, option="--port")
    assert "taken" not in raised.value.message
    assert (
        f"addresses such as {host}" in raised.value.message or "not an address of this machine" in raised.value.message
    )
    assert "--host" in raised.value.message


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.EADDRINUSE, "is taken"),
        (errno.EADDRNOTAVAIL, "is not an address of this machine"),
        (errno.EACCES, "is for privileged users"),
        (errno.EAFNOSUPPORT, "this machine has no addresses such as"),
        (errno.ENOBUFS, "cannot listen on port 80"),
    ],
)
def test_why_not(number: int, expected: str) -> None:
    assert expected in why_not(OSError(number, "…"), "127.0.0.1", 80, option="--port")


def test_two_options_need_two_ports() -> None:
    require_distinct({"--port": 8000, "--nats-port": 4222, "--metrics-port": None, "--other": None})
    with pytest.raises(click.UsageError, match="--nats-port and --metrics-port are both 9000"):
        require_distinct({"--port": 8000, "--nats-port": 9000, "--metrics-port": 9000})
