"""Reads a backup by restoring it into a nats-server of its own, which ends when the reading ends."""

import asyncio
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from contracts.nesting import decode_json
from contracts.topology import TASKS, bucket_stream
from ops.commands.backup.layout import BackupError, read_manifest
from ops.commands.backup.restoring import restore
from ops.machine.processes import die_with_parent
from ops.nats.access import NatsAccess, environment_for, make_users, password_variable
from ops.nats.link import NatsLink
from ops.nats.server import ANY_PORT, embedded_command, embedded_url

# A server that is started on a busy machine may take this long to answer.
STARTS_S: Final = 60.0
LOOK_S: Final = 0.02
LOG: Final = "nats-server.log"


class _Ports(Struct, frozen=True):
    """What nats-server writes into its ports file: *nats* are the addresses for clients."""

    nats: list[str]


@asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[NatsLink]:
    """A server that holds what the backup in *folder* holds, while the block runs. The backup stays as it is.

    Raises BackupError if *folder* is no whole backup or has no records of tasks, and if the server does not start;
    NoNatsServer, TransportUnavailable, OSError.
    """
    manifest = read_manifest(folder)
    if bucket_stream(TASKS) not in {stream.name for stream in manifest.streams}:
        raise BackupError(f"{folder} holds no records of tasks; name a folder that `warmlane backup` has written")
    with tempfile.TemporaryDirectory(prefix="warmlane-backup-") as name:
        place = Path(name)
        command = [*embedded_command(place, ANY_PORT), "--ports_file_dir", name]
        users = make_users(place, embedded_url(ANY_PORT))
        with (place / LOG).open("wb") as log:
            server = await asyncio.create_subprocess_exec(
                *command,
                stdout=log,
                stderr=log,
                env=environment_for(None, os.environ) | users,
                preexec_fn=partial(die_with_parent, os.getpid()) if sys.platform == "linux" else None,
            )
        try:
            url = await _address(server, place)
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


async def _address(server: asyncio.subprocess.Process, place: Path) -> str:
    """Where *server* listens: it chose a free port itself, so nothing can take that port before it listens there."""
    until_s = time.monotonic() + STARTS_S
    while server.returncode is None and time.monotonic() < until_s:
        for path in place.glob("*.ports"):
            with contextlib.suppress(msgspec.DecodeError):  # it is being written
                return decode_json(path.read_bytes(), _Ports).nats[0]
        await asyncio.sleep(LOOK_S)
    lines = (place / LOG).read_text(errors="replace").splitlines()
    raise BackupError(
        f"the backup cannot be read, since no nats-server starts here: {lines[-1] if lines else 'it logs nothing'}"
    )
