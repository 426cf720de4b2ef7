"""One attempt at a claimed task, from its lease to its record: keep, fetch the image, run, settle (design §4)."""

from pathlib import Path

import structlog

from contracts.settings import Windows
from contracts.tasks import FailureCode, GenerationTask
from lane_worker.runtime.held import HeldTask, OwnershipLost
from lane_worker.runtime.input_image import input_image
from lane_worker.runtime.lease import LeaseKeeper
from lane_worker.runtime.outcome import Runner
from lane_worker.runtime.scratch import Scratch, make_room
from lane_worker.runtime.settling import Settlement
from ops.artifacts import Artifacts
from ops.nats.link import NatsLink
from ops.telemetry.tracing import OUTCOME, SUPERSEDED, current_span, failed

log = structlog.get_logger("loop")


class Attempt:
    """What this worker does for *held*. `run` it once."""

    def __init__(
        self,
        held: HeldTask,
        *,
        link: NatsLink,
        artifacts: Artifacts,
        windows: Windows,
        runner: Runner,
        scratch: Scratch,
    ) -> None:
        task_id = held.task.id
        self._held = held
        self._artifacts = artifacts
        self._wait_limit_s = windows.wait_limit_s
        self._runner = runner
        self._scratch = scratch
        self._keeper = LeaseKeeper(link, held, windows=windows, on_lost=lambda: runner.stop(task_id))
        self._settlement = Settlement(held, self._keeper, artifacts)
        self._runs = False

    async def run(self) -> None:
        """Runs the task until its record has its end, or until the task is not this worker's any more."""
        image: Path | None = None
        try:
            async with self._keeper:
                make_room(self._scratch, self._held.task.id)
                image = await input_image(self._held, self._artifacts, self._scratch, wait_limit_s=self._wait_limit_s)
                self._runs = True
                result = await self._runner.run(self._held.task, image, self._keeper.report)
                self._runs = False
                # still inside: the lease must stand until the record is settled
                await self._settlement.settle(result)
        except OwnershipLost as lost:
            await self._lost(lost.record)
        finally:
            self._runs = False
            if image is not None:
                image.unlink(missing_ok=True)

    def renew_now(self) -> None:
        """Renews the lease at once, as after a reconnect."""
        self._keeper.renew_now()

    def waits_for_server_s(self, now_s: float) -> float:
        """For how many seconds a task that has run has only been waiting for a server that does not answer. 0 where the
        server answers, or the task still runs. By the monotonic clock."""
        since_s = None if self._runs else self._held.unanswered_since_s
        return 0.0 if since_s is None else now_s - since_s

    async def _lost(self, record: GenerationTask | None) -> None:
        task = self._held.task
        outcome = outcome_of(task, record)
        current_span().set_attribute(OUTCOME, outcome)
        if outcome == FailureCode.CANCELLED.value:
            failed(current_span(), outcome)
        log.info("ownership_lost", task_id=task.id, epoch=task.epoch)
        await self._settlement.discard_video(record)


def outcome_of(ours: GenerationTask, record: GenerationTask | None) -> str:
    """What became of an attempt at *ours* that is not this worker's any more, by its *record*. Pure.

    `superseded`: the process that took the attempt for lost has sent its span, so this worker does not send it too.
    """
    if record is not None and record.epoch == ours.epoch and record.error is not None:
        return "cancelled" if record.error.code is FailureCode.CANCELLED else SUPERSEDED
    return SUPERSEDED if record is not None and record.epoch > ours.epoch else "taken_back"
