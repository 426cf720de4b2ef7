"""The steps of one inference, as its pipeline host reports them."""

from collections.abc import Callable
from datetime import UTC, datetime

import structlog
from msgspec.structs import replace

from contracts.memory import SwapReceipt
from contracts.progress import StepsDone, step_s
from contracts.tasks import GenerationTask
from lane_worker.forking.host_messages import StepFinished
from ops.telemetry import metrics

log = structlog.get_logger("runner")


class Steps:
    """Takes the steps of *task*, and passes them on to *on_progress*. *swap* is the swap before the task, if any.

    *after_s* is what will probably follow the last step, in seconds, where that is known.
    """

    def __init__(
        self,
        task: GenerationTask,
        slot: str,
        swap: SwapReceipt | None,
        on_progress: Callable[[StepsDone], None],
        after_s: float | None = None,
    ) -> None:
        self.started_at = datetime.now(UTC)
        """When the inference began. Until its host reports step 0, this is when it was requested."""
        self.finished: list[StepFinished] = []
        self.swap = swap
        """With the time of the first step, once that is known."""
        self._task = task
        self._slot = slot
        self._on_progress = on_progress
        self._after_s = after_s

    def report(self, progress: StepFinished) -> None:
        """The host has finished a step, or has begun, with step 0."""
        if progress.step == 0:
            self.started_at = datetime.fromtimestamp(progress.at_s, UTC)
        else:
            if not self.finished:
                self._take_first(progress)
            self.finished.append(progress)
        finished_s = [each.at_s for each in self.finished]
        self._on_progress(
            StepsDone(
                step=progress.step,
                steps=progress.steps,
                step_s=step_s(self.started_at.timestamp(), finished_s),
                at=datetime.fromtimestamp(progress.at_s, UTC),
                after_s=self._after_s,
            )
        )

    def _take_first(self, first: StepFinished) -> None:
        """The last part of a swap: weights are read as they are touched, so a swap costs the first step too."""
        if self.swap is None:
            return
        task = self._task
        first_step_s = max(0.0, round(first.at_s - self.started_at.timestamp(), 4))
        metrics.swap_duration.record(first_step_s, task.model, "first_step")
        log.info("first_step", task_id=task.id, model=task.model, slot=self._slot, first_step_s=first_step_s)
        self.swap = replace(self.swap, first_step_s=first_step_s)
