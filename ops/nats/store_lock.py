"""At most one nats-server, on whatever port, uses the JetStream store of a data folder (ADR 0031).

Two servers on one store corrupt it: each believes what it read at its start. The lock is on a file. nats-server
inherits the lock, so it is held until that process is gone, however its parent ended. `filelock` does not serve: when
the parent ends, it unlocks the file for both.
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, TextIO

import click
import msgspec
from msgspec import Struct

from contracts.nesting import decode_json
from ops.machine.running import is_running

LOCK_FILE: Final = "nats.lock"
# The nats-server of a `warmlane up` that was killed ends by itself; the next `warmlane up` waits this long for it.
ENDS_WITHIN_S: Final = 5.0


class StoreHolder(Struct, frozen=True, kw_only=True):
    """The process that holds the store. *pid* is that of *command*, or of nats-server where *command* has ended."""

    pid: int
    command: str
    nats_port: int
    port: int | None = None

    def __str__(self) -> str:
        return f"`warmlane {self.command}` (pid {self.pid}, NATS port {self.nats_port})"


@contextlib.contextmanager
def holding_store(data_dir: Path, command: str, *, nats_port: int, port: int | None = None) -> Iterator[int]:
    """Holds the store of *data_dir* for `warmlane` *command*; yields the descriptor that nats-server is to inherit.

    Raises click.ClickException when another process holds the store, or the folder cannot be used.
    """
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        lock = (data_dir / LOCK_FILE).open("a+", encoding="utf-8")
    except OSError as error:
        raise click.ClickException(f"cannot use --data-dir {data_dir}: {error.strerror}") from error
    with lock:
        _take(lock, data_dir)
        lock.truncate(0)
        lock.write(
            msgspec.json.encode(StoreHolder(pid=os.getpid(), command=command, nats_port=nats_port, port=port)).decode()
        )
        lock.flush()
        yield lock.fileno()


def _take(lock: TextIO, data_dir: Path) -> None:
    until_s = time.monotonic() + ENDS_WITHIN_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError as error:
            holder = store_holder(data_dir)
            if holder is None or (_is_orphan(data_dir) and time.monotonic() < until_s):
                time.sleep(0.05)  # it is about to end
                continue
            raise click.ClickException(
                f"{data_dir} is in use by {holder}, and a store has one nats-server; stop that first, or choose "
                "another folder with --data-dir"
            ) from error


def store_holder(data_dir: Path) -> StoreHolder | None:
    """Who holds the store of *data_dir*; None when nobody does. Changes nothing."""
    path = data_dir / LOCK_FILE
    try:
        with path.open("r", encoding="utf-8") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return None
            except BlockingIOError:
                pass
            return _named(path.read_bytes(), data_dir)
    except OSError:
        return None


def _named(text: bytes, data_dir: Path) -> StoreHolder:
    try:
        holder = decode_json(text, StoreHolder)
    except msgspec.DecodeError:  # it is being written just now
        return StoreHolder(pid=0, command="nats-server", nats_port=0)
    if is_running(holder.pid):
        return holder
    return msgspec.structs.replace(holder, pid=_server_on(data_dir.absolute() / "nats") or holder.pid)


def _is_orphan(data_dir: Path) -> bool:
    """Whether the process that took the lock has ended, and only its nats-server still holds it."""
    with contextlib.suppress(OSError, msgspec.DecodeError):
        return not is_running(decode_json((data_dir / LOCK_FILE).read_bytes(), StoreHolder).pid)
    return False


def _server_on(store: Path) -> int | None:
    """The pid of the nats-server whose store is *store*, where the system shows command lines."""
    wanted = b"\0-sd\0" + os.fsencode(store) + b"\0"
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if wanted in entry.read_bytes():
                return int(entry.parent.name)
    return None
