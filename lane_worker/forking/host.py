"""The worker's side of the pipeline host: start, load, generate, unload, kill. Never imports torch (design §7).

Whatever the child does (die, hang, talk nonsense, overrun its time), every call here returns within its bound.
"""

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from contracts.checkpoints import Checkpoint
from contracts.settings import ModelEntry, Timeouts
from lane_worker.forking.allocator import AllocatorMisconfigured
from lane_worker.forking.fork_server import ForkServer
from lane_worker.forking.host_child import HostChild
from lane_worker.forking.host_messages import (
    Cancel,
    Exit,
    Failed,
    Fork,
    Generate,
    Load,
    Loaded,
    Ready,
    Role,
    SlotBusy,
    StepFinished,
    Unload,
    Unloaded,
)
from lane_worker.forking.inference import Inference, log_snapshot
from lane_worker.forking.outcome import HostLost, LoadFailed, LoadTimedOut, Outcome, SlotTaken
from lane_worker.forking.process_end import kill_noted
from lane_worker.forking.slot import lock_path, may_take_over, read_note

START_S: Final = 120.0  # importing torch takes 6 s on an idle machine
LOCK_WAIT_S: Final = 5.0
UNLOAD_S: Final = 30.0  # to drop 60 GB takes seconds; a child that takes longer is killed, which is quicker
EXIT_S: Final = 2.0
OOM_FOLDER: Final = "oom"  # of the data folder


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
        load_seconds: float = 0.0,
        lock_wait_s: float = LOCK_WAIT_S,
        fork_server: ForkServer | None = None,
        oom_dir: Path | None = None,
        oom_snapshots: int = 0,
        worker: str = "",
    ) -> None:
        """*step_seconds* slows each step down, and *load_seconds* each load, to imitate a real card. Without
        *fork_server* the host has one of its own.

        *worker* is the name that the slot's note shows. When a card runs out of memory, a snapshot goes into *oom_dir*;
        the newest *oom_snapshots* are kept there.
        """
        self._slot = slot
        self._lock_dir = lock_dir
        self._role = role
        self._models_dir = models_dir
        self._step_seconds, self._load_seconds = step_seconds, load_seconds
        self._lock_wait_s = lock_wait_s
        self._worker = worker
        self._oom = ("", 0) if oom_dir is None else (str(oom_dir), oom_snapshots)
        self._owns_fork_server = fork_server is None
        self._fork_server = ForkServer() if fork_server is None else fork_server
        self._child: HostChild | None = None
        self._timeouts: Timeouts | None = None
        self._inference: Inference | None = None

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

        A degraded worker's child of an earlier leadership than *term* is killed too. It may hold the slot for ever,
        since its worker was stopped or cut off (design §7). `Ready.unfinished` names the task that the lock's last
        holder left undone. A child that is ready has loaded, run and released a tiny pipeline for each of *rehearse*
        (ADR 0029), or `Ready.rehearsed` says why not. Raises SlotTaken after *lock_wait_s*, HostLost, and
        AllocatorMisconfigured, after which no other start will do better.
        """
        await self.kill()
        self._timeouts = None
        holder = read_note(lock_path(self._lock_dir, self._slot))
        if holder is not None and may_take_over(holder, term=term):
            kill_noted(holder)
        request = Fork(
            self._slot, str(self._lock_dir), self._lock_wait_s, self._role, term, *self._oom, rehearse, self._worker
        )
        child = self._child = await self._fork(request)
        answer = await child.answer(self._lock_wait_s + START_S, "did not take its slot")
        match answer:
            case Ready():
                return answer
            case SlotBusy():
                await child.kill()
                raise SlotTaken(self._slot, answer.holder)
            case Failed():
                await child.kill()
                if answer.lasting:
                    raise AllocatorMisconfigured(answer.message)
                raise HostLost(f"the pipeline host could not start: {answer.message}")
        raise await child.nonsense(answer)

    async def load(self, model: ModelEntry) -> Loaded:
        """Load *model*; nothing may be resident. Raises LoadFailed, LoadTimedOut, HostLost."""
        child = self._running()
        child.send(Load(model.name, model.checkpoint, str(self._models_dir), self._step_seconds, self._load_seconds))
        answer = await child.answer(model.timeouts.load_s, "did not load its model", LoadTimedOut)
        match answer:
            case Loaded():
                self._timeouts = model.timeouts
                return answer
            case Failed():
                log_snapshot(answer, model.name)
                if answer.fatal:
                    await child.kill()
                raise LoadFailed(answer)
        raise await child.nonsense(answer)

    async def unload(self) -> Unloaded:
        """Drop the pipeline; the child lives on, empty but for what `Unloaded.alive` names. Raises HostLost.

        A probe decides whether the memory is free, not the child.
        """
        child = self._running()
        child.send(Unload())
        answer = await child.answer(UNLOAD_S, "did not unload its model")
        if isinstance(answer, Unloaded):
            self._timeouts = None
            return answer
        if isinstance(answer, Failed):
            await child.kill()
            raise HostLost(f"the pipeline host could not unload its model: {answer.message}")
        raise await child.nonsense(answer)

    async def kill(self) -> None:
        """SIGKILL the child, if there is one, and wait for its end. Raises HostLost when it survives even that."""
        if self._child is not None:
            await self._child.kill()

    async def generate(self, request: Generate, on_progress: Callable[[StepFinished], None]) -> Outcome:
        """Run one inference to its end, whatever that is. *on_progress* is called for step 0 and for every step.

        The limits are `timeouts.step_s` between two signs of progress and `timeouts.total_s` in all. A child that
        exceeds one gets a cancel, one `step_s` of grace, and SIGKILL. After a `cancel` it has the same grace. The child
        is gone (`pid` is None) after `Lost`, a fatal `Failed`, and a `TimedOut` without memory. It is also gone when
        this coroutine is cancelled or *on_progress* raises.
        Raises HostLost only when no child with a model runs at the start, or when one survives SIGKILL.
        """
        child, timeouts = self._running(), self._timeouts
        if timeouts is None:
            raise HostLost("no model is loaded; load it first")
        self._inference = Inference(child, timeouts, request, on_progress)
        return await self._inference.run()

    def cancel(self, task_id: str) -> None:
        """Ask the child to stop *task_id* at the next step. `generate` then returns `Cancelled`, or how it ended."""
        if self._child is not None:
            self._child.send(Cancel(task_id))
        if self._inference is not None and self._inference.task_id == task_id:
            self._inference.cancel()

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

    def _running(self) -> HostChild:
        if self._child is None or self._child.is_gone:
            raise HostLost("no pipeline host runs; start it first")
        return self._child

    async def _fork(self, request: Fork) -> HostChild:
        ours, theirs = socket.socketpair()
        exit_reader, exit_writer = socket.socketpair()
        exit_reader.setblocking(False)
        try:
            with theirs, exit_writer:
                async with asyncio.timeout(START_S):
                    pid = await self._fork_server.fork(request, theirs, exit_writer)
        except BaseException as error:
            ours.close()
            exit_reader.close()
            if isinstance(error, TimeoutError):
                raise HostLost(f"the pipeline host did not start within {START_S:g} s") from None
            raise
        return await HostChild.connect(pid, ours, exit_reader)
