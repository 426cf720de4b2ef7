"""A steered worker that makes real MP4s and thumbnails without torch, at once or when the test says so."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from msgspec.structs import replace

from contracts.progress import StepsDone
from contracts.tasks import GenerationTask
from lane_worker.pipelines.thumbnail import thumbnail_of
from lane_worker.pipelines.video import write_video
from lane_worker.runtime.outcome import Result, Succeeded
from tests.kit.steered import SteeredRunner

FRAMES = 17


class FilmingRunner(SteeredRunner):
    """Ends each task with the same real video, or with `result` where the test has set one. A task goes on until
    `may_end` is set."""

    def __init__(self, scratch: Path) -> None:
        super().__init__(scratch)
        self.may_end.set()
        self._frames = np.zeros((FRAMES, 64, 96, 3), np.uint8)

    async def run(self, task: GenerationTask, image: Path | None, on_progress: Callable[[StepsDone], None]) -> Result:
        self.stopped.clear()
        result = await super().run(task, image, on_progress)
        if not isinstance(result, Succeeded):
            return result
        video = write_video(self._frames, result.path, fps=16)
        return replace(result, video=replace(video, thumbnail=thumbnail_of(self._frames)))
