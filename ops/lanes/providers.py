"""Where lanes come from: a provider starts them, or says why it does not (design §6)."""

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final, Protocol

import msgspec
from msgspec import Struct

from contracts.lanes import LeavingFor
from contracts.nesting import decode_json
from ops.lanes.plan import Death, DenialKind, Want
from ops.machine.log_file import LOG_MAX_BYTES
from ops.machine.processes import LEAVE_FOR_QUOTA, Process, warmlane_command
from ops.nats.access import environment_for
from ops.telemetry.export import METRICS_LISTEN

# Enough of a log for the last line of a process.
LOG_TAIL_BYTES: Final = 16 * 1024
ERROR_MAX_CHARS: Final = 300


class LaneDenied(Exception):
    """The provider does not start the lane. *kind* says whether it may not (quota) or cannot (capacity)."""

    def __init__(self, kind: DenialKind, text: str) -> None:
        super().__init__(text)
        self.kind: DenialKind = kind


class GrantedLane(Protocol):
    """A lane that a provider granted. The provider restarts it, with backoff, whenever it ends, until it is stopped."""

    @property
    def slot(self) -> str:
        """Where it runs."""
        ...

    @property
    def pid(self) -> int | None:
        """Its process, as its heartbeat names it; None between two starts."""
        ...

    async def stop(self, *, within_s: float, leaving_for: LeavingFor | None = None) -> None:
        """Drains the lane, which reports what it is *leaving_for*; ends it after *within_s* at the latest; frees its
        slot."""
        ...

    def kill(self) -> None:
        """Kills the lane; a `stop` under way returns."""
        ...


class LaneProvider(Protocol):
    """Starts lanes."""

    async def start(self, want: Want, on_death: Callable[[Death], None]) -> GrantedLane:
        """Starts the lane, and calls *on_death* whenever its process ends by itself. Raises LaneDenied."""
        ...


class ProcessProvider:
    """The provider `process`: one process per slot, on this machine. The slots are its cards' UUIDs, or cpu-N.

    The processes die with this one (SIGTERM, so that they drain). *arguments* are those of every `warmlane lane`;
    *group* holds the tasks that watch the processes. Each lane logs to a file of its name in *logs*, which is kept
    within *log_max_bytes*.
    """

    def __init__(
        self,
        slots: Iterable[str],
        *,
        arguments: Sequence[str],
        logs: Path,
        group: asyncio.TaskGroup,
        log_max_bytes: int = LOG_MAX_BYTES,
    ) -> None:
        self._slots: dict[str, _ProcessLane | None] = dict.fromkeys(slots)
        self._arguments = arguments
        self._logs, self._log_max_bytes = logs, log_max_bytes
        self._group = group

    async def start(self, want: Want, on_death: Callable[[Death], None]) -> GrantedLane:
        """Starts the lane on the first free slot. Raises LaneDenied (`capacity`) when there is none."""
        slot = next((slot for slot, lane in self._slots.items() if lane is None), None)
        if slot is None:
            count = len(self._slots)
            taken = f"all {count} slots for lanes are taken" if count > 1 else "the only slot for lanes is taken"
            raise LaneDenied("capacity", taken if count else "the only slot is the degraded worker's")

        def on_end(process: Process, status: int, wait_s: float) -> None:
            how = how_it_ended(status, process.log_file)
            on_death(Death(how, process.last_pid, process.last_began_at, again_at_s=time.monotonic() + wait_s))

        command = warmlane_command("lane", "--model", want.model, "--name", want.name, "--slot", slot, *self._arguments)
        process = Process(
            want.name,
            command,
            log_file=self._logs / f"{want.name}.log",
            on_death=on_end,
            env=environment_for("lane", {name: os.environ[name] for name in os.environ.keys() - set(METRICS_LISTEN)}),
            log_max_bytes=self._log_max_bytes,
        )
        self._slots[slot] = lane = _ProcessLane(slot, process, self._free)
        self._group.create_task(process.run())
        return lane

    def _free(self, slot: str) -> None:
        self._slots[slot] = None


class _ProcessLane:
    def __init__(self, slot: str, process: Process, free: Callable[[str], None]) -> None:
        self.slot = slot
        self._process = process
        self._free = free

    @property
    def pid(self) -> int | None:
        return self._process.pid

    async def stop(self, *, within_s: float, leaving_for: LeavingFor | None = None) -> None:
        by = LEAVE_FOR_QUOTA if leaving_for == "quota" else signal.SIGTERM
        await self._process.stop(within_s=within_s, by=by)
        self._free(self.slot)

    def kill(self) -> None:
        self._process.kill()


def how_it_ended(status: int, log_file: Path) -> str:
    """The exit *status* of a process in words, with the last error in its log unless a signal ended it."""
    if status < 0:
        try:
            return f"signal {-status}, {signal.Signals(-status).name}"
        except ValueError:
            return f"signal {-status}"
    error = last_error(_tail(log_file)) if status else ""
    return f"status {status}: {error}" if error else f"status {status}"


class _LogLine(Struct, frozen=True):
    event: str
    level: str = "info"
    error: str = ""


def last_error(log: str) -> str:
    """The last error in *log*: a line that is not JSON (a refusal, the end of a traceback), or one of level error."""
    for line in reversed(log.splitlines()):
        text = _error_in(line.strip())
        if text:
            return text if len(text) <= ERROR_MAX_CHARS else text[: ERROR_MAX_CHARS - 1] + "…"
    return ""


def _error_in(line: str) -> str:
    if not line.startswith("{"):
        return line.removeprefix("Error: ")
    try:
        logged = decode_json(line.encode(errors="surrogateescape"), _LogLine)
    except msgspec.DecodeError:
        return line
    if logged.level not in {"error", "critical"}:
        return ""
    return f"{logged.event}: {logged.error}" if logged.error else logged.event


def _tail(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - LOG_TAIL_BYTES))
            return file.read().decode(errors="replace")
    except OSError:
        return ""
