"""Child processes that are started again with backoff when they die, and that die with their parent."""

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final

import click
import structlog
from filelock import FileLock, Timeout

from ops.ending import end
from ops.machine.log_file import LOG_MAX_BYTES, LogFile
from ops.waiting import set_within

BACKOFF_FIRST_S: Final = 0.5
BACKOFF_MAX_S: Final = 15.0
# A process that has lived this long is healthy: its next death starts the backoff anew.
HEALTHY_AFTER_S: Final = 30.0
# Asks a lane to leave, as SIGTERM does, and to report that a quota is why.
LEAVE_FOR_QUOTA: Final = signal.SIGUSR1
_PR_SET_PDEATHSIG: Final = 1

log = structlog.get_logger("processes")


class Process:
    """One child process. `run` keeps it alive until `stop`."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        log_file: Path,
        on_death: Callable[["Process", int, float], None],
        env: dict[str, str] | None = None,
        inherits: Sequence[int] = (),
        log_max_bytes: int = LOG_MAX_BYTES,
    ) -> None:
        """*inherits* are open files that the child gets as they are, such as a lock that it is to hold. What the child
        prints goes to *log_file*, which is kept within *log_max_bytes* (`LogFile`)."""
        self.name = name
        self.command = list(command)
        self.log_file = log_file
        self._log = LogFile(log_file, max_bytes=log_max_bytes)
        self._on_death = on_death
        self._env = env
        self._inherits = tuple(inherits)
        self.last_pid = 0
        """The current process, or else the last one. `last_began_at` is when it was started."""
        self.last_began_at = datetime.fromtimestamp(0, UTC)
        self._child: asyncio.subprocess.Process | None = None
        self._stopping = asyncio.Event()
        self._restarting = False
        self._deaths = 0  # in a row, without having been healthy in between
        self._started_s = 0.0

    @property
    def is_failing(self) -> bool:
        """Whether the process ended by itself and has not been started again yet, or ended more than once lately."""
        if self._deaths == 0 or self._stopping.is_set():
            return False
        if self.pid is None:
            return True
        return self._deaths > 1 and time.monotonic() - self._started_s <= HEALTHY_AFTER_S

    @property
    def pid(self) -> int | None:
        return None if self._child is None or self._child.returncode is not None else self._child.pid

    async def run(self) -> None:
        """Starts the command, and starts it again, with growing pauses, whenever it ends, until `stop`."""
        wait_s = BACKOFF_FIRST_S
        while not self._stopping.is_set():
            self._started_s = time.monotonic()
            status = await self._run_once()
            if self._stopping.is_set():
                return
            if self._restarting:
                self._restarting = False
                continue
            if time.monotonic() - self._started_s > HEALTHY_AFTER_S:
                wait_s, self._deaths = BACKOFF_FIRST_S, 0
            self._deaths += 1
            self._on_death(self, status, wait_s)
            await set_within(wait_s, self._stopping)
            wait_s = min(BACKOFF_MAX_S, wait_s * 2)

    async def _run_once(self) -> int:
        self._log.keep_small()
        self.last_began_at = datetime.now(UTC)
        with self._log.open() as output:
            self._child = await asyncio.create_subprocess_exec(
                *self.command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=self._env,
                pass_fds=self._inherits,
                # a session of its own: Ctrl-C reaches only `warmlane up`, which then stops its children in order
                start_new_session=True,
                preexec_fn=partial(die_with_parent, os.getpid()) if sys.platform == "linux" else None,
            )
            self.last_pid = self._child.pid
            if self._stopping.is_set():  # `stop` was called while the process was being started
                self.send(signal.SIGTERM)
        keeping = asyncio.create_task(self._log.keep())
        try:
            return await self._child.wait()
        finally:
            await end(keeping)

    async def restart(self, *, within_s: float) -> None:
        """Asks the process to end, kills it after *within_s*, and has `run` start it again at once."""
        self._restarting = True
        self.send(signal.SIGTERM)
        if self._child is not None:
            try:
                async with asyncio.timeout(within_s):
                    await self._child.wait()
            except TimeoutError:
                self.send(signal.SIGKILL)

    async def stop(self, *, within_s: float, by: signal.Signals = signal.SIGTERM) -> None:
        """Asks the process to end, with the signal *by*, and kills it after *within_s*. It is not started again."""
        self._stopping.set()
        if self._child is None or self._child.returncode is not None:
            return
        self.send(by)
        try:
            async with asyncio.timeout(within_s):
                await self._child.wait()
        except TimeoutError:
            log.warning("killed", name=self.name, after_s=within_s)
            self.kill()
            await self._child.wait()

    def kill(self) -> None:
        """Kills the process. It is not started again."""
        self._stopping.set()
        self.send(signal.SIGKILL)

    def send(self, number: signal.Signals) -> None:
        """Sends the process a signal, if it runs."""
        if self._child is not None and self._child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._child.send_signal(number)


def warmlane_command(*arguments: str) -> list[str]:
    """The command line of another `warmlane` process, so that its role and model show in the process list."""
    script = Path(sys.executable).with_name("warmlane")
    program = [str(script)] if script.is_file() else [sys.executable, "-m", "ops.cli"]
    return [*program, *arguments]


def die_with_parent(parent_pid: int) -> None:
    """For the child between fork and exec: it gets SIGTERM when the thread of *parent_pid* that forked it ends."""
    # Until exec the child has its parent's handler, which does nothing here: the signal comes only once.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # the embedded server and the workers must not outlive a killed `warmlane up`, nor lanes their supervisor
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent_pid:  # the parent ended before the line above
        os.kill(os.getpid(), signal.SIGTERM)


@contextlib.contextmanager
def only_one(data_dir: Path, command: str) -> Iterator[None]:
    """Holds the lock of `warmlane` *command* in the data folder.

    Raises click.ClickException when another process has it, or the folder cannot be used.
    """
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        held = FileLock(data_dir / f"{command}.lock", fallback_to_soft=False).acquire(blocking=False)
    except Timeout as error:
        raise click.ClickException(
            f"another `warmlane {command}` uses {data_dir}; stop it, or choose another folder with --data-dir"
        ) from error
    except OSError as error:
        raise click.ClickException(f"cannot use --data-dir {data_dir}: {error.strerror}") from error
    with held:
        yield


@contextlib.contextmanager
def asked_to_end() -> Iterator[tuple[asyncio.Event, asyncio.Event]]:
    """Two events: the first Ctrl-C or SIGTERM sets one, the second, or a SIGQUIT, sets both."""
    stop, hurry = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        (hurry if stop.is_set() else stop).set()

    def on_quit() -> None:
        stop.set()
        hurry.set()

    loop = asyncio.get_running_loop()
    handlers = {signal.SIGINT: on_signal, signal.SIGTERM: on_signal, signal.SIGQUIT: on_quit}
    for number, handler in handlers.items():
        loop.add_signal_handler(number, handler)
    try:
        yield stop, hurry
    finally:
        for number in handlers:
            loop.remove_signal_handler(number)
