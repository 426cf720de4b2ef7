"""Runs tasks in a pipeline host, and writes the memory line on every path. Shared by both kinds of worker."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import structlog

from contracts.settings import ModelEntry
from contracts.tasks import FailureCode, GenerationTask, MemoryReading, Progress
from lane_worker.runtime import host_messages as messages
from lane_worker.runtime.host import Host, HostLost, TimedOut
from lane_worker.runtime.loop import GaveUp, Result, Stopped, Succeeded, Unsuccessful
from lane_worker.runtime.memory_line import log_memory, log_process_gone

log = structlog.get_logger("runner")


class HostRunner:
    """A `Runner` over one host. `usable` turns false when the host is gone or must not be used again."""

    def __init__(self, *, host: Host, model: ModelEntry, slot: str, scratch: Path) -> None:
        self._host = host
        self._model = model
        self._slot = slot
        self._scratch = scratch
        self._leaving: str | None = None
        self._memory: MemoryReading | None = None
        self.usable = True

    def stop(self, task_id: str) -> None:
        """Stops *task_id* within one step; what does not run is left alone."""
        self._host.cancel(task_id)

    def leave(self, task_id: str, reason: str) -> None:
        """Stops *task_id* so that another worker can run it."""
        self._leaving = reason
        self._host.cancel(task_id)

    async def run(self, task: GenerationTask, image: Path | None, on_progress: Callable[[Progress], None]) -> Result:
        """Runs *task* and returns how it ended; memory is clean and the memory line written by then."""
        if task.parameters.image is not None and image is None:
            return Unsuccessful(
                FailureCode.STORAGE_FAILED, "the input image is missing; submit it again", self._memory
            )
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
        outcome = await self._host.generate(request, report)
        result = self._result(task, outcome, video_path, started_at)
        if not isinstance(result, Succeeded):
            video_path.unlink(missing_ok=True)
        return result
