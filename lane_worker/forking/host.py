"""The worker's side of the pipeline host: start, deadlines, kill. Never imports torch (design §7).

Whatever the child does (die, hang, talk nonsense, overrun its time), every call here returns within its bound.
"""

import asyncio
import contextlib
import itertools
import os
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, Literal

import structlog
from msgspec import Struct

from contracts.checkpoints import Checkpoint
from contracts.settings import ModelEntry, Timeouts
from contracts.tasks import MemoryReading, SwapReceipt
from lane_worker.forking import allocator
from lane_worker.forking.allocator import AllocatorMisconfigured
from lane_worker.forking.host_messages import (
    LENGTH,
    PID,
    BadMessage,
    Cancel,
    Cancelled,
    Exit,
    Failed,
    Finished,
    Fork,
    FromChild,
    Generate,
    Load,
    Loaded,
    Ping,
    Pong,
    Ready,
    Role,
    SlotBusy,
    SlotNote,
    StepFinished,
    ToChild,
    Unload,
    Unloaded,
    body_length,
    decode_from_child,
    encode_fork,
    frame,
)
from lane_worker.forking.slot import lock_path, may_take_over, process_start, read_note
from ops.machine.fork_socket import SHARED_FORK_SERVER, importing
from ops.machine.visible_cards import VISIBLE
from ops.nats.access import environment_for
from ops.waiting import set_within

FORK_SERVER: Final = (sys.executable, "-m", "lane_worker.pipelines.forkserver")
SHARED_ANSWERS_S: Final = 5.0
# As long may a shared fork server import torch that all of a machine's workers wait for; then each tries it itself.
SHARED_IMPORTS_S: Final = 60.0
START_S: Final = 120.0  # importing torch takes 6 s on an idle machine
LOCK_WAIT_S: Final = 5.0
UNLOAD_S: Final = 30.0  # to drop 60 GB takes seconds; a child that takes longer is killed, which is quicker
PING_S: Final = 1.0
EXIT_S: Final = 2.0
DEATH_S: Final = 10.0
OOM_FOLDER: Final = "oom"  # of the data folder

log = structlog.get_logger("host")


class HostLost(Exception):
    """The pipeline host is gone (or was killed for a reason that the text gives). It can be started again.

    *receipt* tells the swap that it was part of, if any, as far as that came.
    """

    receipt: SwapReceipt | None = None


class LoadTimedOut(HostLost):
    """The load took longer than the model's `timeouts.load_s`, and the host was killed."""


class SlotTaken(Exception):
    """Another process holds the slot."""

    def __init__(self, slot: str, holder: SlotNote | None) -> None:
        who = "another process" if holder is None else f"process {holder.pid}"
        super().__init__(f"slot {slot} is held by {who}: stop that process, or give this worker another slot")
        self.holder = holder


class LoadFailed(Exception):
    """The model cannot be loaded. The host lives on, empty, unless `failure.fatal`.

    *receipt* tells the swap that it was part of, as far as that came; None where the load was refused before.
    """

    receipt: SwapReceipt | None = None

    def __init__(self, failure: Failed) -> None:
        super().__init__(failure.message)
        self.failure = failure


class Lost(Struct, frozen=True):
    """The host died during *task_id*, or had to be killed because it broke the protocol. No video was left."""

    task_id: str
    reason: str


class TimedOut(Struct, frozen=True):
    """*task_id* overran its time. Either it stopped within the grace of one step (*memory* was read after cleanup),
    or the host was killed (*memory* is None). No video was left. The task's code is `inference_timeout`."""

    task_id: str
    limit: Literal["step_s", "total_s"]
    seconds: float
    memory: MemoryReading | None


Outcome = Finished | Cancelled | Failed | TimedOut | Lost


class ForkServer:
    """The process that has torch imported and forks pipeline hosts. One can serve several `Host`s.

    It is a fork of the one that answers on the socket *shared*, or else a child of this process, made by *command*.
    WARMLANE_FORK_SERVER names the socket for workers (ADR 0018).
    """

    def __init__(self, command: Sequence[str] = FORK_SERVER, *, shared: str | None = None) -> None:
        self._command = command
        self._shared = os.environ.get(SHARED_FORK_SERVER) if command is FORK_SERVER and shared is None else shared
        self._process: asyncio.subprocess.Process | _Adopted | None = None
        self._control: socket.socket | None = None
        self._turn = asyncio.Lock()

    @property
    def pid(self) -> int | None:
        """None when it does not run."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    async def start(self) -> None:
        """Start it unless it runs; its imports go on in the background. Raises OSError, AllocatorMisconfigured."""
        if self.pid is not None:
            return
        await self.close()
        if self._shared and await self._start_shared(self._shared):
            return
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        environment = host_environment(os.environ)
        try:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                str(theirs.fileno()),
                pass_fds=(theirs.fileno(),),
                stdin=asyncio.subprocess.DEVNULL,
                env=environment,
                start_new_session=True,  # a terminal's Ctrl-C goes to the worker only
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self._control = ours
        log.info("fork_server_started", pid=self._process.pid, allocator=environment[allocator.NAMES[0]])

    async def _start_shared(self, path: str) -> bool:
        """Whether the shared fork server at *path* forked one for this worker. What is wrong with it is logged.

        One that still imports torch is waited for: that is sooner there than a second import beside it would be.
        """
        control = socket.socket(socket.AF_UNIX)
        control.setblocking(False)
        try:
            answers_s = await _connect(control, Path(path))
            async with asyncio.timeout(answers_s):
                socket.send_fds(control, [b"\0"], [1, 2])
                answer = await asyncio.get_running_loop().sock_recv(control, PID.size)
                self._process = _Adopted(PID.unpack(answer)[0])
        except (OSError, struct.error, AttributeError) as error:  # AttributeError: a system without pidfd_open
            control.close()
            log.warning("no_shared_fork_server", path=path, error=str(error), hint="start `warmlane fork-server` first")
            return False
        except BaseException:
            control.close()
            raise
        self._control = control
        log.info("fork_server_started", pid=self._process.pid, shared=path)
        return True

    async def fork(self, request: Fork, pipe: socket.socket) -> int:
        """The pid of a new pipeline host that has *pipe*. Raises HostLost when the server has died,
        AllocatorMisconfigured where it must not even start."""
        async with self._turn:
            await self.start()
            assert self._control is not None
            try:
                socket.send_fds(self._control, [encode_fork(request)], [pipe.fileno()])
                answer = await asyncio.get_running_loop().sock_recv(self._control, PID.size)
                return int(PID.unpack(answer)[0])
            except (OSError, struct.error) as error:
                await self.close()
                raise HostLost("the fork server could not start a pipeline host; see its error output") from error
            except BaseException:
                # the answer is still to come, and would be taken for that of the next request
                await self.close()
                raise

    async def close(self) -> None:
        """Kill and reap it. Hosts that it forked live on."""
        process, self._process = self._process, None
        if self._control is not None:
            self._control.close()
            self._control = None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


async def _connect(control: socket.socket, path: Path) -> float:
    """Connects to the shared fork server at *path*; the seconds within which it has to answer. Raises OSError."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(SHARED_ANSWERS_S):
        with contextlib.suppress(FileNotFoundError):
            await loop.sock_connect(control, str(path))
            return SHARED_ANSWERS_S
        with contextlib.suppress(FileNotFoundError):
            await loop.sock_connect(control, str(importing(path)))
            return SHARED_IMPORTS_S
        await loop.sock_connect(control, str(path))  # between the two looks it was ready
        return SHARED_ANSWERS_S


class _Adopted:
    """A fork server that is no child of ours, used like one. Raises OSError when it has ended."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._descriptor = os.pidfd_open(pid)
        self._ended = _process_end(pid)

    @property
    def returncode(self) -> int | None:
        """None while it runs. Only its parent learns what it ended with."""
        return 0 if self._ended.done() else None

    def kill(self) -> None:
        """Raises ProcessLookupError when it has ended."""
        signal.pidfd_send_signal(self._descriptor, signal.SIGKILL)

    async def wait(self) -> None:
        await asyncio.shield(self._ended)
        os.close(self._descriptor)


class Host:
    """One pipeline host child on one slot. Not for several concurrent callers, except `cancel` and the properties."""

    def __init__(
        self,
        *,
        slot: str,
        lock_dir: Path,
        models_dir: Path,
        role: Role = "lane",
        step_seconds: float = 0.0,
        lock_wait_s: float = LOCK_WAIT_S,
        fork_server: ForkServer | None = None,
        oom_dir: Path | None = None,
        oom_snapshots: int = 0,
    ) -> None:
        """*step_seconds* slows each step down, to imitate a real card. Without *fork_server* it has one of its own.

        When a card runs out of memory, a snapshot goes into *oom_dir*; the newest *oom_snapshots* are kept there.
        """
        self._slot = slot
        self._lock_dir = lock_dir
        self._role = role
        self._models_dir = models_dir
        self._step_seconds = step_seconds
        self._lock_wait_s = lock_wait_s
        self._oom = ("", 0) if oom_dir is None else (str(oom_dir), oom_snapshots)
        self._owns_fork_server = fork_server is None
        self._fork_server = ForkServer() if fork_server is None else fork_server
        self._child: _HostChild | None = None
        self._timeouts: Timeouts | None = None
        self._watched: str | None = None
        self._cancelled_at_s: dict[str, float] = {}

    @property
    def pid(self) -> int | None:
        """The child's pid; None when it is not running."""
        return None if self._child is None or self._child.is_gone else self._child.pid

    @property
    def models_dir(self) -> Path:
        """Where the folders of the checkpoints are."""
        return self._models_dir

    @property
    def health_age_s(self) -> float:
        """Seconds since the child last answered. It grows without end while the child hangs or is gone."""
        return float("inf") if self._child is None else time.monotonic() - self._child.answered_at_s

    def folder_of(self, model: ModelEntry) -> Path:
        """Where `load` finds the weights of *model*."""
        return self._models_dir / model.checkpoint.folder

    async def start(self, *, term: int = 0, rehearse: tuple[Checkpoint, ...] = ()) -> Ready:
        """Start the child and take the slot's lock. Any earlier child of this host is killed first.

        So is the child of a degraded worker's earlier leadership than *term*, which may hold the slot for ever: its
        worker was stopped or cut off (design §7). `Ready.unfinished` names the task that the lock's last holder left
        undone. When it is ready it has loaded, run and released a tiny pipeline for each of *rehearse* (ADR 0029), or
        `Ready.rehearsed` says why not. Raises SlotTaken after *lock_wait_s*, HostLost, and AllocatorMisconfigured,
        after which no other start will do better.
        """
        await self.kill()
        self._timeouts = None
        holder = read_note(lock_path(self._lock_dir, self._slot))
        if holder is not None and may_take_over(holder, term=term):
            _kill_process(holder)
        ours, theirs = socket.socketpair()
        try:
            request = Fork(self._slot, str(self._lock_dir), self._lock_wait_s, self._role, term, *self._oom, rehearse)
            async with asyncio.timeout(START_S):
                pid = await self._fork_server.fork(request, theirs)
        except TimeoutError:
            ours.close()
            raise HostLost(f"the pipeline host did not start within {START_S:g} s") from None
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self._child = await _HostChild.connect(pid, ours)
        answer = await self._answer(self._lock_wait_s + START_S, "did not take its slot")
        match answer:
            case Ready():
                return answer
            case SlotBusy():
                await self._child.kill()
                raise SlotTaken(self._slot, answer.holder)
            case Failed():
                await self._child.kill()
                if answer.lasting:
                    raise AllocatorMisconfigured(answer.message)
                raise HostLost(f"the pipeline host could not start: {answer.message}")
        raise await self._nonsense(answer)

    async def load(self, model: ModelEntry) -> Loaded:
        """Load *model*; nothing may be resident. Raises LoadFailed, LoadTimedOut, HostLost."""
        child = self._running()
        child.send(Load(model.name, model.checkpoint, str(self._models_dir), self._step_seconds))
        answer = await self._answer(model.timeouts.load_s, "did not load its model", LoadTimedOut)
        match answer:
            case Loaded():
                self._timeouts = model.timeouts
                return answer
            case Failed():
                _tell_snapshot(answer, model.name)
                if answer.fatal:
                    await child.kill()
                raise LoadFailed(answer)
        raise await self._nonsense(answer)

    async def unload(self) -> Unloaded:
        """Drop the pipeline; the child lives on, empty but for what `Unloaded.alive` names. Raises HostLost.

        That the memory is free is for a probe to say, not for the child.
        """
        child = self._running()
        child.send(Unload())
        answer = await self._answer(UNLOAD_S, "did not unload its model")
        if isinstance(answer, Unloaded):
            self._timeouts = None
            return answer
        if isinstance(answer, Failed):
            await child.kill()
            raise HostLost(f"the pipeline host could not unload its model: {answer.message}")
        raise await self._nonsense(answer)

    async def kill(self) -> None:
        """SIGKILL the child, if there is one, and wait for its end. Raises HostLost when it survives even that."""
        if self._child is not None:
            await self._child.kill()

    async def generate(self, request: Generate, on_progress: Callable[[StepFinished], None]) -> Outcome:
        """Run one inference to its end, whatever that is. *on_progress* is called for step 0 and for every step.

        The limits are `timeouts.step_s` between two signs of progress and `timeouts.total_s` in all; each is followed
        by a cancel, one `step_s` of grace, and SIGKILL. After a `cancel` the child has the same grace. After `Lost`, a
        fatal `Failed`, and a `TimedOut` without memory the child is gone (`pid` is None). So it is when this coroutine
        is cancelled or *on_progress* raises.
        Raises HostLost only when no child with a model runs at the start, or when one survives SIGKILL.
        """
        child, timeouts = self._running(), self._timeouts
        if timeouts is None:
            raise HostLost("no model is loaded; load it first")
        try:
            outcome = await self._watch(child, timeouts, request, on_progress)
        except BaseException:
            child.send_signal(signal.SIGKILL)
            raise
        if isinstance(outcome, Failed):
            _tell_snapshot(outcome, request.task_id)
        if isinstance(outcome, Lost) or (isinstance(outcome, Failed) and outcome.fatal):
            await child.kill()
        if child.is_gone:
            _remove_video(Path(request.video_path))
        return outcome

    async def _watch(
        self, child: "_HostChild", timeouts: Timeouts, request: Generate, on_progress: Callable[[StepFinished], None]
    ) -> Outcome:
        self._watched = request.task_id
        self._cancelled_at_s.clear()
        child.send(request)
        total_at_s = time.monotonic() + timeouts.total_s
        step_at_s = time.monotonic() + timeouts.step_s
        overrun: TimedOut | None = None
        while True:
            cancelled_at_s = self._cancelled_at_s.get(request.task_id)
            until_s = min(total_at_s, step_at_s) if cancelled_at_s is None else cancelled_at_s + timeouts.step_s
            try:
                async with asyncio.timeout(max(0.0, until_s - time.monotonic())):
                    message = await child.next_message()
            except TimeoutError:
                if overrun is not None:
                    await child.kill()
                    return overrun
                if cancelled_at_s is not None:
                    await child.kill()
                    return Lost(request.task_id, f"it ignored its cancel for {timeouts.step_s:g} s and was killed")
                if request.task_id in self._cancelled_at_s:
                    continue  # while we waited: its grace is not over
                if total_at_s <= step_at_s:
                    overrun = TimedOut(request.task_id, "total_s", timeouts.total_s, None)
                else:
                    overrun = TimedOut(request.task_id, "step_s", timeouts.step_s, None)
                child.send(Cancel(request.task_id))
                total_at_s = step_at_s = time.monotonic() + timeouts.step_s
                continue
            except HostLost as error:
                return Lost(request.task_id, str(error))
            match message:
                case StepFinished(task_id) if task_id == request.task_id:
                    if overrun is None:
                        step_at_s = time.monotonic() + timeouts.step_s
                    on_progress(message)
                case Cancelled(task_id, memory) if task_id == request.task_id:
                    if overrun is not None:
                        return TimedOut(task_id, overrun.limit, overrun.seconds, memory)
                    return message
                case Finished(task_id) | Failed(task_id) if task_id == request.task_id:
                    return message
                case _:
                    return Lost(request.task_id, str(await self._nonsense(message)))

    def cancel(self, task_id: str) -> None:
        """Ask the child to stop *task_id* at the next step. `generate` then returns `Cancelled`, or how it ended."""
        if self._child is not None:
            self._child.send(Cancel(task_id))
        if task_id == self._watched:
            self._cancelled_at_s.setdefault(task_id, time.monotonic())

    async def close(self) -> None:
        """End the child, and the fork server if it is this host's own. Bounded; the child is killed if it must be."""
        if self._child is not None:
            self._child.send(Exit())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(EXIT_S):
                    await self._child.gone.wait()
            await self._child.kill()
            self._child = None
        if self._owns_fork_server:
            await self._fork_server.close()

    def _running(self) -> "_HostChild":
        if self._child is None or self._child.is_gone:
            raise HostLost("no pipeline host runs; start it first")
        return self._child

    async def _answer(self, limit_s: float, complaint: str, overrun: type[HostLost] = HostLost) -> FromChild:
        child = self._running()
        try:
            async with asyncio.timeout(limit_s):
                return await child.next_message()
        except TimeoutError:
            await child.kill()
            raise overrun(f"the pipeline host {complaint} within {limit_s:g} s and was killed") from None
        except asyncio.CancelledError:
            child.send_signal(signal.SIGKILL)
            raise

    async def _nonsense(self, message: FromChild) -> HostLost:
        assert self._child is not None
        await self._child.kill()
        return HostLost(f"the pipeline host sent an unexpected {type(message).__name__} and was killed")


class _HostChild:
    """A running child and our end of its pipe. It is `gone` when the process has ended, and its memory with it."""

    def __init__(self, pid: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.pid = pid
        self._ended = _process_end(pid)
        self.gone = asyncio.Event()
        self.answered_at_s = time.monotonic()
        self._reader = reader
        self._writer = writer
        self._end = "the pipeline host died"
        self._messages: asyncio.Queue[FromChild | None] = asyncio.Queue()
        self._tasks = [asyncio.create_task(self._read()), asyncio.create_task(self._ping())]

    @classmethod
    async def connect(cls, pid: int, pipe: socket.socket) -> "_HostChild":
        return cls(pid, *await asyncio.open_connection(sock=pipe))

    @property
    def is_gone(self) -> bool:
        return self.gone.is_set()

    def send(self, message: ToChild) -> None:
        # Not drained: a child that reads nothing must not hold us up. Its deadlines end it, and the buffer with it.
        if not self._writer.is_closing():
            self._writer.write(frame(message))

    async def next_message(self) -> FromChild:
        """Raises HostLost when the child is gone and everything that it had sent was taken."""
        message = await self._messages.get()
        if message is None:
            self._messages.put_nowait(None)
            raise HostLost(self._end)
        return message

    def send_signal(self, number: signal.Signals) -> None:
        # until it is gone the pid is this child's
        if not self.is_gone:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    async def kill(self) -> None:
        """SIGKILL, and wait until it is gone. Raises HostLost when even that does not end it (a driver that hangs)."""
        self.send_signal(signal.SIGKILL)
        if not await set_within(DEATH_S, self.gone):
            raise HostLost(f"process {self.pid} survives SIGKILL; its slot stays locked until it ends")

    async def _read(self) -> None:
        try:
            while True:
                head = await self._reader.readexactly(LENGTH.size)
                message = decode_from_child(await self._reader.readexactly(body_length(head)))
                if isinstance(message, Pong):
                    self.answered_at_s = time.monotonic()
                else:
                    self._messages.put_nowait(message)
        except BadMessage as error:
            self._end = f"the pipeline host broke the protocol and was killed: {error}"
        except (asyncio.IncompleteReadError, OSError):
            pass  # the usual end of the pipe
        finally:
            # A child without a pipe is of no use. And its pipe may close before its card does: only its end counts.
            self.send_signal(signal.SIGKILL)
            await self._ended
            self.gone.set()
            self._messages.put_nowait(None)
            self._writer.close()
            self._tasks[1].cancel()

    async def _ping(self) -> None:
        for number in itertools.count(1):
            self.send(Ping(number))
            await asyncio.sleep(PING_S)


def _process_end(pid: int) -> asyncio.Future[None]:
    """Done when process *pid* has ended, whoever its parent is."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()
    try:
        descriptor = os.pidfd_open(pid)
    except (AttributeError, OSError):
        # It has ended already; or this is macOS, or a kernel before 5.3, where the end of the pipe has to do.
        ended.set_result(None)
        return ended

    def on_end() -> None:
        loop.remove_reader(descriptor)
        os.close(descriptor)
        ended.set_result(None)

    loop.add_reader(descriptor, on_end)
    return ended


def _kill_process(noted: SlotNote) -> None:
    """SIGKILL the process of a slot's note, unless it has ended: its pid may be another process's now."""
    try:
        descriptor = os.pidfd_open(noted.pid)
    except (AttributeError, OSError):  # it has ended; or this system cannot distinguish processes that had one pid
        return
    try:
        # looked up after the descriptor was opened, so that it is of the very process that is killed
        if noted.started is not None and process_start(noted.pid) == noted.started:
            log.warning("pipeline_host_put_aside", pid=noted.pid, term=noted.term)
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
    except ProcessLookupError:
        return
    finally:
        os.close(descriptor)


def _tell_snapshot(failure: Failed, what: str) -> None:
    if failure.snapshot:
        log.warning(
            "oom_snapshot", of=what, path=failure.snapshot, hint="docs/models/gpu-memory.md says how to read it"
        )


def _remove_video(path: Path) -> None:
    # what an encoder left that was cut off; and a video that was finished but never reported
    for leftover in (path, path.with_name(path.name + ".part")):
        with contextlib.suppress(OSError):
            leftover.unlink(missing_ok=True)


def host_environment(base: Mapping[str, str]) -> dict[str, str]:
    """The environment in which torch is imported; some of it is read at the import only.

    Raises AllocatorMisconfigured where *base* asks for another allocator (FR-010).
    """
    inherited = environment_for(None, base)
    # An instance in it (MIG-…) would have torch start CUDA at its import, since it cannot count those without, and no
    # fork of the process could use it then. Each host sets it to its own slot.
    inherited.pop(VISIBLE, None)
    return {
        # Without it MKL's rounding may depend on where in memory a tensor lies: one seed then made two videos on a CPU.
        "MKL_CBWR": "AUTO",
        # whoever takes over the process that decodes what clients send must not find a password there
        **inherited,
        **allocator.environment(base),
        # nothing is downloaded, and the libraries say nothing: a warning may quote a prompt
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "DIFFUSERS_VERBOSITY": "error",
        "TRANSFORMERS_VERBOSITY": "error",
    }
