"""The nats-server that a backup is read with takes a port that nothing else can have taken, and says why it ends."""

import stat
import sys
from pathlib import Path
from typing import Final

import pytest

from contracts.settings import Catalog
from ops.commands.backup.layout import BackupError
from ops.commands.backup.reading import opened
from ops.commands.backup.saving import backup
from ops.nats.link import NatsLink
from ops.nats.provisioning import wanted
from ops.nats.records import TaskRecords
from ops.nats.server import find_nats_server
from tests.kit.records import pending_task
from tests.kit.support import KEEP_S

# Stands before nats-server: whatever port it is told to take, something else has taken in the meantime.
LATE: Final = """#!{python}
import os, socket, sys
port = int(sys.argv[sys.argv.index("-p") + 1])
if port > 0:
    taken = socket.create_server(("127.0.0.1", port))
    os.set_inheritable(taken.fileno(), True)
os.execv({program!r}, [{program!r}, *sys.argv[1:]])
"""
BROKEN: Final = """#!/bin/sh
echo "cannot start: the disk is full" >&2
exit 1
"""


def instead(monkeypatch: pytest.MonkeyPatch, path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(stat.S_IRWXU)
    monkeypatch.setenv("WARMLANE_NATS_SERVER", str(path))


@pytest.fixture
async def saved(link: NatsLink, catalog: Catalog, tmp_path: Path) -> Path:
    task = pending_task()
    await TaskRecords(link).create(task.id, task)
    await backup(link, wanted(catalog, keep_s=KEEP_S), tmp_path / "saved", lambda *_: None)
    return tmp_path / "saved"


async def test_a_port_that_is_taken_meanwhile_is_no_matter(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    instead(monkeypatch, tmp_path / "late", LATE.format(python=sys.executable, program=str(find_nats_server())))
    async with opened(saved) as link:
        assert len(await TaskRecords(link).entries()) == 1


async def test_a_server_that_does_not_start_is_quoted(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    instead(monkeypatch, tmp_path / "broken", BROKEN)
    with pytest.raises(BackupError, match="no nats-server starts here: cannot start: the disk is full"):
        async with opened(saved):
            pass
