"""One inference in a pipeline host: its deadlines, its cancel, and its end, whatever the child does."""

import asyncio
import contextlib
import time
from collections.abc import Callable
from pathlib import Path

import structlog

from contracts.settings import Timeouts
from lane_worker.forking.host_child import HostChild
from lane_worker.forking.host_messages import Cancel, Cancelled, Failed, Finished, FromChild, Generate, StepFinished
from lane_worker.forking.outcome import HostLost, Lost, Outcome, TimedOut

log = structlog.get_logger("host")


class Inference:
    """One inference in *child*, which has a model. `run` it once; `cancel` it meanwhile."""

    def __init__(
        self, child: HostChild, timeouts: Timeouts, request: Generate, on_progress: Callable[[StepFinished], None]
    ) -> None:
        self.task_id = request.task_id
        self._child = child
        self._timeouts = timeouts
        self._request = request
        self._on_progress = on_progress
        self._cancelled_at_s: float | None = None
        self._overrun: TimedOut | None = None
        self._total_at_s = self._step_at_s = 0.0

    async def run(self) -> Outcome:
        """Runs it to its end, as `Host.generate` describes. Raises HostLost when the child survives SIGKILL."""
        try:
            outcome = await self._watch()
        except BaseException:
            self._child.end()
            raise
        if isinstance(outcome, Failed):
            log_snapshot(outcome, self.task_id)
        if isinstance(outcome, Lost) or (isinstance(outcome, Failed) and outcome.fatal):
            await self._child.kill()
        if self._child.is_gone:
            _remove_video(Path(self._request.video_path))
        return outcome

    def cancel(self) -> None:
        """The child was asked to stop: from the first call on it has the grace of one step."""
        if self._cancelled_at_s is None:
            self._cancelled_at_s = time.monotonic()

    async def _watch(self) -> Outcome:
        self._child.send(self._request)
        begun_s = time.monotonic()
        self._total_at_s, self._step_at_s = begun_s + self._timeouts.total_s, begun_s + self._timeouts.step_s
        outcome: Outcome | None = None
        while outcome is None:
            cancelled_at_s = self._cancelled_at_s
            until_s = min(self._total_at_s, self._step_at_s)
            if cancelled_at_s is not None:
                until_s = cancelled_at_s + self._timeouts.step_s
            try:
                async with asyncio.timeout(max(0.0, until_s - time.monotonic())):
                    message = await self._child.next_message()
            except TimeoutError:
                outcome = await self._out_of_time(cancelled_at_s)
            except HostLost as error:
                outcome = Lost(self.task_id, str(error))
            else:
                outcome = await self._received(message)
        return outcome

    async def _out_of_time(self, cancelled_at_s: float | None) -> Outcome | None:
        """The inference's outcome, now that a deadline has passed; None where the child still has its grace.

        *cancelled_at_s* is when the cancel came that set the deadline; None where no cancel set it.
        """
        step_s = self._timeouts.step_s
        if self._overrun is not None:
            await self._child.kill()
            return self._overrun
        if cancelled_at_s is not None:
            await self._child.kill()
            return Lost(self.task_id, f"it ignored its cancel for {step_s:g} s and was killed")
        if self._cancelled_at_s is not None:
            return None  # a cancel came while we waited: its grace is not over
        if self._total_at_s <= self._step_at_s:
            self._overrun = TimedOut(self.task_id, "total_s", self._timeouts.total_s, None)
        else:
            self._overrun = TimedOut(self.task_id, "step_s", step_s, None)
        self._child.send(Cancel(self.task_id))
        self._total_at_s = self._step_at_s = time.monotonic() + step_s
        return None

    async def _received(self, message: FromChild) -> Outcome | None:
        """The outcome that *message* brings; None where the inference goes on."""
        match message:
            case StepFinished(task_id) if task_id == self.task_id:
                if self._overrun is None:
                    self._step_at_s = time.monotonic() + self._timeouts.step_s
                self._on_progress(message)
                return None
            case Cancelled(task_id, memory) if task_id == self.task_id:
                if self._overrun is not None:
                    return TimedOut(task_id, self._overrun.limit, self._overrun.seconds, memory)
                return message
            case Finished(task_id) | Failed(task_id) if task_id == self.task_id:
                return message
        return Lost(self.task_id, str(await self._child.nonsense(message)))


def log_snapshot(failure: Failed, what: str) -> None:
    """Logs the path of the memory snapshot that *failure*, of *what*, left, if it left one."""
    if failure.snapshot:
        log.warning(
            "oom_snapshot", of=what, path=failure.snapshot, hint="docs/models/gpu-memory.md says how to read it"
        )


def _remove_video(path: Path) -> None:
    # what an interrupted encoder left, and a video that was finished but never reported
    for leftover in (path, path.with_name(path.name + ".part")):
        with contextlib.suppress(OSError):
            leftover.unlink(missing_ok=True)
