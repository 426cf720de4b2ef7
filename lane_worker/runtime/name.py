"""A worker's name belongs to one process: two of one name would overwrite each other in KV `lanes`. A slot with a lane
belongs to that lane alone: a second lane could only wait for the card.

Within a data folder a lock decides whose the name is; the kernel drops it with the process. Beyond that, the entry in
KV `lanes` decides: its writer may run with another data folder, or on another machine.
"""

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from enum import Enum, auto
from pathlib import Path
from typing import Final

import msgspec
import psutil
from filelock import FileLock, Timeout
from msgspec import Struct

from contracts.lanes import LaneHeartbeat, LaneState
from contracts.nesting import decode_json
from contracts.topology import is_token
from lane_worker.forking.slot import lock_path
from lane_worker.runtime.cold_start import process_started_at
from ops.machine.running import is_running
from ops.nats.bucket import Bucket
from ops.nats.buckets import HEARTBEATS
from ops.nats.link import NatsLink

FOLDER: Final = "workers"
SLOTS: Final = "slots"
LOOK_S: Final = 0.1
# A lane that lives has reported within this many intervals of its heartbeat.
SILENT_BEATS: Final = 1.5
# What a supervisor reports of a lane that has no process, or none that has reported yet.
_NOBODY: Final = frozenset(
    {LaneState.STARTING, LaneState.CRASH_LOOPING, LaneState.QUOTA_DENIED, LaneState.CAPACITY_DENIED}
)
# Two start times that differ by less are of one process. Each is exact to a hundredth of a second, by a clock that may
# have been set in between.
_SAME_START_S: Final = 2.0


class NameHeld(Exception):
    """Another process works under the name, or is the lane of the slot. The text says which, and what to do."""


class NameHolder(Struct, frozen=True):
    """The process that holds a name, or held it last. One that *leaves* lets go of it soon. *name* is its worker's
    name, and *host* is where it runs: containers that share a data folder have pids of their own. Notes of an earlier
    version lack *host*."""

    pid: int
    started_at: datetime
    leaves: bool = False
    name: str = ""
    host: str = ""

    @property
    def process(self) -> str:
        """The process, for people."""
        return f"process {self.pid} on {f'host {self.host}' if self.host else 'this machine'}"


class HeldName:
    """A name, or the lane of a slot, that is ours until this process ends."""

    def __init__(self, path: Path, before: NameHolder | None, *, name: str) -> None:
        self._path = path
        self._me = NameHolder(os.getpid(), process_started_at(), name=name, host=socket.gethostname())
        self.before = before
        """Who held it last, and is gone."""
        self._write()

    def leaves(self) -> None:
        """This process drains: a successor under the name waits for its end."""
        self._me = msgspec.structs.replace(self._me, leaves=True)
        with contextlib.suppress(OSError):  # then the successor is refused, and started again
            self._write()

    def _write(self) -> None:
        self._path.write_bytes(msgspec.json.encode(self._me) + b"\n")


@contextlib.asynccontextmanager
async def holding_name(data_dir: Path, name: str) -> AsyncIterator[HeldName]:
    """Holds *name* in *data_dir*; waits for a holder that leaves.

    Raises NameHeld at once for one that does not, ValueError for what is no name, OSError.
    """
    if not is_token(name):
        raise ValueError(f"not a name: {name!r}")

    def held(by: NameHolder) -> str:
        return _held(name, by.process, by.started_at)

    async with _holding(data_dir / FOLDER / f"{name}.lock", name, held) as ours:
        yield ours


@contextlib.asynccontextmanager
async def holding_slot(data_dir: Path, slot: str, name: str) -> AsyncIterator[HeldName]:
    """The lane *name* holds *slot* in *data_dir*, before it has a card and after; waits for a lane that leaves.

    Raises NameHeld at once for one that does not, ValueError for what is no slot, OSError.
    """

    def held(by: NameHolder) -> str:
        return (
            f"slot {slot} has a lane: {by.name}, {by.process}, since {by.started_at:%Y-%m-%d %H:%M:%S} UTC; choose "
            "another slot with --slot, or stop that lane first"
        )

    async with _holding(lock_path(data_dir / FOLDER / SLOTS, slot), name, held) as ours:
        yield ours


@contextlib.asynccontextmanager
async def _holding(path: Path, name: str, held: Callable[[NameHolder], str]) -> AsyncIterator[HeldName]:
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, fallback_to_soft=False)
    while True:
        try:
            ours = lock.acquire(blocking=False)
            break
        except Timeout as error:
            holder = _read(path)
            if holder is None or holder.leaves:
                await asyncio.sleep(LOOK_S)
                continue
            raise NameHeld(held(holder)) from error
    with ours:
        yield HeldName(path, _read(path), name=name)


def _read(path: Path) -> NameHolder | None:
    try:
        return decode_json(path.read_bytes(), NameHolder)
    except (OSError, msgspec.DecodeError, ValueError):
        return None


def _held(name: str, process: str, since: datetime) -> str:
    return (
        f"a worker called {name} is already running: {process}, since {since:%Y-%m-%d %H:%M:%S} UTC; choose "
        "another name with --name, or stop that one first"
    )


class Whose(Enum):
    """Whose a name is, as its entry in KV `lanes` shows."""

    OURS = auto()
    ANOTHERS = auto()
    UNCERTAIN = auto()


def whose(
    seen: LaneHeartbeat | None,
    before: NameHolder | None,
    *,
    is_here: bool,
    beats: bool,
    age_s: float,
    silent_s: float,
) -> Whose:
    """Whose the name is, by the entry *seen*: whether the process that wrote it lives. Pure.

    *before* held the name in our data folder and is gone. *is_here*: the writer runs on this machine. *beats*: it has
    reported again since we first looked. *age_s* is the age of its last report; after *silent_s* it counts as gone.

    1. There is no entry, or a supervisor wrote it for a lane without a process: ours.
    2. The writer runs here, or has reported again: another's.
    3. The writer is the process that held the name before us: ours.
    4. The writer was silent for too long: ours.
    5. The writer may run elsewhere: uncertain.
    """
    if seen is None or seen.state in _NOBODY:  # 1
        return Whose.OURS
    if is_here or beats:  # 2
        return Whose.ANOTHERS
    if before is not None and _is_same(seen, before):  # 3
        return Whose.OURS
    return Whose.OURS if age_s > silent_s else Whose.UNCERTAIN  # 4, 5


async def require_nobody(link: NatsLink, key: str, name: str, before: NameHolder | None, *, silent_s: float) -> None:
    """Makes sure that no other lane reports at *key* of KV `lanes`, and waits *silent_s* where that is uncertain.

    Raises NameHeld, TransportUnavailable.
    """
    bucket = Bucket(link, HEARTBEATS, reports=False)
    first = await bucket.get(key)
    entry = first
    while True:
        seen = None if entry is None else entry.value
        beats = entry is not None and first is not None and entry.revision != first.revision
        now = datetime.now(UTC)
        verdict = whose(
            seen,
            before,
            is_here=seen is not None and _runs_here(seen),
            beats=beats and seen is not None and _writer(seen) == _writer(None if first is None else first.value),
            age_s=0.0 if entry is None else (now - entry.time).total_seconds(),
            silent_s=silent_s,
        )
        if verdict is Whose.OURS:
            return
        if verdict is Whose.ANOTHERS and seen is not None:
            where = f"on host {socket.gethostname()}" if _runs_here(seen) else "on another machine"
            raise NameHeld(_held(name, f"process {seen.pid} {where}", seen.started_at))
        await asyncio.sleep(LOOK_S)
        entry = await bucket.get(key)


def _writer(seen: LaneHeartbeat | None) -> tuple[int, datetime] | None:
    return None if seen is None else (seen.pid, seen.started_at)


def _is_same(seen: LaneHeartbeat, holder: NameHolder) -> bool:
    return seen.pid == holder.pid and abs((seen.started_at - holder.started_at).total_seconds()) < _SAME_START_S


def _runs_here(seen: LaneHeartbeat) -> bool:
    if seen.pid == os.getpid():
        return False
    if not is_running(seen.pid):
        return False
    try:
        began_at = process_started_at(seen.pid)
    except psutil.Error:
        return False
    return abs((seen.started_at - began_at).total_seconds()) < _SAME_START_S
