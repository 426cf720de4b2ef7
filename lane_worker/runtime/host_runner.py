"""Runs tasks in a slot's pipeline host, and accounts for their memory on every path. Shared by both kinds of worker."""

from collections.abc import Callable, Mapping
from pathlib import Path

import structlog
from msgspec.structs import replace

from contracts.generation.request import parameter_errors
from contracts.memory import SwapReceipt
from contracts.progress import StepsDone
from contracts.settings import ModelEntry
from contracts.tasks import FailureCode, GenerationTask
from lane_worker.forking.host_messages import Failed, Finished, Generate
from lane_worker.forking.outcome import HostLost, LoadFailed, Lost, Outcome
from lane_worker.residence.quarantine import Quarantined
from lane_worker.residence.residence import Residence
from lane_worker.runtime.accounts import Accounts
from lane_worker.runtime.after_steps import AfterSteps
from lane_worker.runtime.ended import Ended, ended_by, ended_by_load, failure
from lane_worker.runtime.inference_spans import record_inference
from lane_worker.runtime.outcome import GaveUp, Result, Stopped, Succeeded, Unsuccessful
from lane_worker.runtime.steps import Steps
from lane_worker.runtime.streak import Streak, failed, not_loaded
from ops.telemetry import metrics

log = structlog.get_logger("runner")


class HostRunner:
    """A `Runner` over one residence, whose `resident` says what is resident after `run`."""

    def __init__(self, *, residence: Residence, models: Mapping[str, ModelEntry], slot: str, scratch: Path) -> None:
        self.streak = Streak()
        """Tasks that failed in a row, for reasons other than their requests; the worker notes here what it did then."""
        self.accounts = Accounts(residence, slot)
        self._residence = residence
        self._models = models
        self._slot = slot
        self._scratch = scratch
        self._after_steps = AfterSteps()
        self._task_id: str | None = None
        self._stopped = False
        self._leaving: str | None = None

    def stop(self, task_id: str) -> None:
        """Stops *task_id* within one step, or when the swap that it waits for is finished; others are left alone."""
        if self._task_id == task_id:
            self._stopped = True
            self._residence.host.cancel(task_id)

    def leave(self, reason: str) -> None:
        """Stops whatever runs, so that another worker can run it: `run` then returns GaveUp."""
        self._leaving = reason
        if self._task_id is not None:
            self.stop(self._task_id)

    async def run(self, task: GenerationTask, image: Path | None, on_progress: Callable[[StepsDone], None]) -> Result:
        """Runs *task*. If its host runs out of memory, it is tried once more, in a fresh host.

        On return memory is clean, and each try has its memory line.
        """
        refused = self._refusal(task, image)
        if refused is not None:
            return await self.accounts.close(task, refused)
        self._task_id, self._stopped = task.id, False
        try:
            result = await self.accounts.close(task, await self._attempt(task, image, on_progress))
            if isinstance(result, Unsuccessful) and result.code is FailureCode.OUT_OF_MEMORY and not self._stopped:
                log.warning("out_of_memory_so_once_more", task_id=task.id, attempt=task.attempt)
                again = await self._attempt(task, image, on_progress, renew_because="it ran out of memory")
                result = await self.accounts.close(task, again)
            if isinstance(result, Succeeded):
                self.streak = Streak()
            return result
        finally:
            self._task_id = None

    def _refusal(self, task: GenerationTask, image: Path | None) -> Ended | None:
        """Why *task* cannot be run, by the limits of its model or for want of its image; None if it can, or if the
        load will show it."""
        resident = self._residence.resident
        memory = None if resident is None else resident.memory
        entry = self._models.get(task.model)
        errors = [] if entry is None else parameter_errors(task.parameters, entry)
        objection = "; ".join(error.message for error in errors)
        if objection:
            return failure(FailureCode.INVALID_INPUT, objection, memory)
        if task.parameters.image is not None and image is None:
            return failure(FailureCode.STORAGE_FAILED, "the input image is missing; submit it again", memory)
        return None

    async def _attempt(
        self,
        task: GenerationTask,
        image: Path | None,
        on_progress: Callable[[StepsDone], None],
        *,
        renew_because: str = "",
    ) -> Ended:
        before = self._residence.resident
        try:
            resident = await self._residence.ready(task.model, renew_because=renew_because)
        except (Quarantined, HostLost, LoadFailed) as error:
            if isinstance(error, LoadFailed):
                self._count_load(task, error)
            return self._unless_leaving(ended_by_load(error))
        if self._stopped:
            return self._unless_leaving(Ended("cancelled", resident.memory, Stopped()))
        if image is not None and not image.exists():  # somebody may remove it during a swap of minutes
            return Ended("gave_up", resident.memory, GaveUp("the input image was removed before it was read"))
        return await self._infer(task, image, on_progress, None if resident is before else resident.receipt)

    async def _infer(
        self,
        task: GenerationTask,
        image: Path | None,
        on_progress: Callable[[StepsDone], None],
        swap: SwapReceipt | None,
    ) -> Ended:
        video_path = self._scratch / f"{task.id}.{task.epoch}.mp4"
        request = Generate(
            task_id=task.id,
            attempt=task.attempt,
            parameters=task.parameters,
            video_path=str(video_path),
            image_path=None if image is None else str(image),
        )
        pid = self._residence.host.pid or 0
        after_s = self._after_steps.expected_s(task.model, task.parameters)
        steps = Steps(task, self._slot, swap, on_progress, after_s)
        try:
            outcome = await self._residence.host.generate(request, steps.report)
        except HostLost as error:
            outcome = Lost(task.id, str(error))
        if isinstance(outcome, Finished) and steps.finished:
            stepped_s = steps.finished[-1].at_s - steps.started_at.timestamp()
            took_s = outcome.inference_s - stepped_s + outcome.encode_s
            self._after_steps.note(task.model, task.parameters, took_s)
        self._count(outcome)
        record_inference(task, outcome, steps, host_pid=pid)
        ended = ended_by(outcome, video_path=video_path, started_at=steps.started_at, swap=steps.swap)
        return self._unless_leaving(ended)

    def _count_load(self, task: GenerationTask, error: LoadFailed) -> None:
        failure = error.failure
        log.error("load_failed", task_id=task.id, model=task.model, code=failure.code, error=failure.message)
        if failure.fatal:
            metrics.hosts_distrusted.add(self._slot, "fatal")
        if failure.code == "inference_failed" and error.receipt is not None:  # it was tried
            self.streak = failed(self.streak) if failure.fatal else not_loaded(self.streak)

    def _count(self, outcome: Outcome) -> None:
        if isinstance(outcome, Failed) and outcome.fatal:
            metrics.hosts_distrusted.add(self._slot, "fatal")
        if isinstance(outcome, Lost) or (isinstance(outcome, Failed) and outcome.code == "inference_failed"):
            self.streak = failed(self.streak)

    def _unless_leaving(self, ended: Ended) -> Ended:
        """*ended*. A worker that leaves hands the task back on purpose, even if the host died instead of stopping."""
        if self._leaving is None or not isinstance(ended.result, (Stopped, GaveUp)):
            return ended
        return replace(ended, result=GaveUp(self._leaving, on_purpose=True))
