"""Reads a backup: it is restored into a nats-server of its own, which ends with the reading."""

import asyncio
import contextlib
import os
import socket
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final

from contracts.topology import TASKS, bucket_stream
from ops.commands.backup.layout import BackupError, read_manifest
from ops.commands.backup.restoring import restore
from ops.machine.processes import die_with_parent
from ops.nats.access import NatsAccess, environment_for, make_users, password_variable
from ops.nats.link import NatsLink
from ops.nats.server import NATS_HOST, embedded_command, embedded_url

# A server that is started on a busy machine may take so long to answer.
STARTS_S: Final = 60.0


@asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[NatsLink]:
    """A server that holds what the backup in *folder* holds, for as long as it is read. The backup stays as it is.

    Raises BackupError for a folder that is no whole backup, or has no records of tasks; NoNatsServer,
    TransportUnavailable, OSError.
    """
    manifest = read_manifest(folder)
    if bucket_stream(TASKS) not in {stream.name for stream in manifest.streams}:
        raise BackupError(f"{folder} holds no records of tasks; name a folder that `warmlane backup` has written")
    with tempfile.TemporaryDirectory(prefix="warmlane-backup-") as place:
        port = _free_port()
        url, command = embedded_url(port), embedded_command(Path(place), port)
        users = make_users(Path(place), url)
        with (Path(place) / "nats-server.log").open("wb") as log:
            server = await asyncio.create_subprocess_exec(
                *command,
                stdout=log,
                stderr=log,
                env=environment_for(None, os.environ) | users,
                preexec_fn=partial(die_with_parent, os.getpid()) if sys.platform == "linux" else None,
            )
        try:
            nats = NatsAccess(urls=url, user="admin", password=users[password_variable("admin")])
            link = await NatsLink.connect(nats, name="backup", wait_s=STARTS_S)
            try:
                await restore(link, folder, lambda *_: None, replicas=1)
                yield link
            finally:
                await link.close()
        finally:
            with contextlib.suppress(ProcessLookupError):
                server.kill()  # its store is thrown away
            await server.wait()


def _free_port() -> int:
    with socket.create_server((NATS_HOST, 0)) as found:
        port: int = found.getsockname()[1]
        return port
