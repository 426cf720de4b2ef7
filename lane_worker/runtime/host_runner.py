"""Runs tasks in a pipeline host, and writes the memory line on every path. Shared by both kinds of worker."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from contracts.tasks import FailureCode, GenerationTask, MemoryReading, Progress
from lane_worker.runtime import host_messages as messages
from lane_worker.runtime.host import Host, HostLost, Lost, Outcome, TimedOut
from lane_worker.runtime.loop import GaveUp, Result, Stopped, Succeeded, Unsuccessful
from lane_worker.runtime.memory_line import log_memory


class HostRunner:
    """A `Runner` over one host. The host may be gone after `run`: its `pid` tells."""

    def __init__(self, *, host: Host, slot: str, scratch: Path, idle_memory: MemoryReading) -> None:
        """*idle_memory* is the reading after the load: what a task that never reached the host leaves."""
        self._host = host
        self._slot = slot
        self._scratch = scratch
        self._running: str | None = None
        self._idle = idle_memory
        self._leaving: str | None = None
        self.accounted: tuple[str, int] | None = None
        """Task and attempt of the last memory line, so that the note of a dead host is not accounted for twice."""

    def stop(self, task_id: str) -> None:
        """Stops *task_id* within one step; what does not run is left alone."""
        if self._running == task_id:
            self._host.cancel(task_id)

    def leave(self, reason: str) -> None:
        """Stops whatever runs, so that another worker can run it: `run` then returns GaveUp."""
        self._leaving = reason
        if self._running is not None:
            self._host.cancel(self._running)

    async def run(self, task: GenerationTask, image: Path | None, on_progress: Callable[[Progress], None]) -> Result:
        """Runs *task* and returns how it ended; memory is clean and the memory line written by then."""
        if task.parameters.image is not None and image is None:
            self._account(task, "storage_failed", self._idle)
            return Unsuccessful(FailureCode.STORAGE_FAILED, "the input image is missing; submit it again", self._idle)
        started_at = datetime.now(UTC)

        def report(progress: messages.Progress) -> None:
            nonlocal started_at
            if progress.step == 0:
                started_at = datetime.fromtimestamp(progress.at_s, UTC)
            on_progress(Progress(step=progress.step, steps=progress.steps))

        video_path = self._scratch / f"{task.id}.{task.epoch}.mp4"
        request = messages.Generate(
            task_id=task.id,
            attempt=task.attempt,
            parameters=task.parameters,
            video_path=str(video_path),
            image_path=None if image is None else str(image),
        )
        self._running = task.id
        try:
            outcome = await self._host.generate(request, report)
        except HostLost as error:
            outcome = Lost(task.id, str(error))
        finally:
            self._running = None
        return self._result(task, outcome, video_path, started_at)

    def _result(self, task: GenerationTask, outcome: Outcome, video_path: Path, started_at: datetime) -> Result:
        match outcome:
            case messages.Finished():
                self._account(task, "done", outcome.memory)
                return Succeeded(
                    path=video_path,
                    video=outcome.video,
                    memory=outcome.memory,
                    started_at=started_at,
                    inference_s=outcome.inference_s,
                    encode_s=outcome.encode_s,
                )
            case messages.Cancelled():
                self._account(task, "cancelled", outcome.memory)
                return Stopped() if self._leaving is None else GaveUp(self._leaving)
            case messages.Failed():
                self._account(task, outcome.code, None if outcome.fatal else outcome.memory)
                return Unsuccessful(FailureCode(outcome.code), outcome.message, outcome.memory)
            case TimedOut():
                self._account(task, "inference_timeout", outcome.memory)
                what = "one step" if outcome.limit == "step_s" else "the inference"
                message = f"{what} took longer than {outcome.seconds:g} s and was stopped"
                return Unsuccessful(FailureCode.INFERENCE_TIMEOUT, message, outcome.memory)
            case Lost():
                self._account(task, "host_lost", None)
                return GaveUp(outcome.reason)

    def _account(self, task: GenerationTask, outcome: str, memory: MemoryReading | None) -> None:
        self.accounted = (task.id, task.attempt)
        log_memory(
            outcome=outcome, memory=memory, task_id=task.id, attempt=task.attempt, model=task.model, slot=self._slot
        )
