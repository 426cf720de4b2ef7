"""`warmlane nats-server`: the server of `warmlane up` by itself."""

import os
from pathlib import Path

import click

from ops.commands.addresses import Addresses, published
from ops.commands.options import data_dir_option, nats_port_option
from ops.machine.ports import require_free
from ops.nats.access import environment_for, make_users
from ops.nats.server import NATS_HOST, NoNatsServer, embedded_command, embedded_url
from ops.nats.store_lock import holding_store
from ops.telemetry.service_manager import report_when_listening


@click.command(epilog="Examples:\n\n  warmlane nats-server\n\n  warmlane nats-server --data-dir /srv/warmlane &")
@data_dir_option
@nats_port_option
def command(data_dir: Path, nats_port: int) -> None:
    """Run the nats-server of `warmlane up` by itself: the same store, the same users, nothing else.

    Use it for work that must be done while nothing else runs, such as `warmlane restore`. A data folder has one
    nats-server: while a `warmlane up` runs on the same folder, this command does not start, whatever the port.
    """
    data_dir = data_dir.absolute()
    with holding_store(data_dir, "nats-server", nats_port=nats_port) as lock:
        require_free(NATS_HOST, nats_port, option="--nats-port")
        try:
            arguments = embedded_command(data_dir, nats_port)
            users = make_users(data_dir, embedded_url(nats_port))
        except (NoNatsServer, OSError) as error:
            raise click.ClickException(str(error)) from error
        os.set_inheritable(lock, True)
        addresses = Addresses(pid=os.getpid(), command="nats-server", nats_url=embedded_url(nats_port))
        with published(data_dir, addresses, outlives=True):
            report_when_listening(NATS_HOST, nats_port)
            os.execve(arguments[0], arguments, environment_for(None, os.environ) | users)  # noqa: S606  # our own program
