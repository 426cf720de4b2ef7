"""Runs tasks in a slot's pipeline host, and writes the memory line on every path. Shared by both kinds of worker."""

from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import structlog
from msgspec.structs import replace

from contracts.generation.request import parameter_errors
from contracts.settings import ModelEntry
from contracts.tasks import FailureCode, GenerationTask, MemoryReading, Progress, SwapReceipt
from lane_worker.forking import host_messages as messages
from lane_worker.forking.host import HostLost, LoadFailed, LoadTimedOut, Lost, Outcome, TimedOut
from lane_worker.residence.quarantine import Quarantined
from lane_worker.residence.residence import Residence
from lane_worker.residence.states import Resident
from lane_worker.runtime.inference_spans import record_inference
from lane_worker.runtime.memory_line import log_memory, with_device
from lane_worker.runtime.outcome import GaveUp, Result, Stopped, Succeeded, Unsuccessful
from lane_worker.runtime.streak import Streak, failed, not_loaded
from ops.machine.readings import Reading
from ops.telemetry import metrics

# What a client reads when its model does not load: the details name folders, and are for the log.
LOAD_FAILURES: Final = {
    "out_of_memory": "there was not enough memory to load the model; submit it again later",
    "storage_failed": "the model could not be read; the operator has to look at the worker's log",
}

log = structlog.get_logger("runner")


class HostRunner:
    """A `Runner` over one residence. Its `resident` says what is resident after `run`."""

    def __init__(self, *, residence: Residence, models: Mapping[str, ModelEntry], slot: str, scratch: Path) -> None:
        self.memory: MemoryReading | None = None
        """What the host held after the cleanup of its last task; None when it was gone then."""
        self.streak = Streak()
        """Tasks that failed in a row, for no reason that lies in their requests; the worker notes what it did then."""
        self._residence = residence
        self._models = models
        self._slot = slot
        self._scratch = scratch
        self._task_id: str | None = None
        self._stopped = False
        self._leaving: str | None = None
        self._accounted: tuple[str, int] | None = None

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

    async def run(self, task: GenerationTask, image: Path | None, on_progress: Callable[[Progress], None]) -> Result:
        """Runs *task*, in the second place in a fresh host if the first one runs out of memory.

        Memory is clean and the memory line written on return, one for each place.
        """
        objection = self._objection(task)
        if objection is not None:
            return await self._failed(task, FailureCode.INVALID_INPUT, objection, self._memory())
        if task.parameters.image is not None and image is None:
            message = "the input image is missing; submit it again"
            return await self._failed(task, FailureCode.STORAGE_FAILED, message, self._memory())
        self._task_id, self._stopped = task.id, False
        try:
            result = await self._attempt(self._residence.ready(task.model), task, image, on_progress)
            if isinstance(result, Unsuccessful) and result.code is FailureCode.OUT_OF_MEMORY and not self._stopped:
                log.warning("out_of_memory_so_once_more", task_id=task.id, attempt=task.attempt)
                renewed = self._residence.ready(task.model, renew_because="it ran out of memory")
                result = await self._attempt(renewed, task, image, on_progress)
            if isinstance(result, Succeeded):
                self.streak = Streak()
            return result
        finally:
            self._task_id = None

    async def account_for(self, ready: messages.Ready) -> None:
        """Writes the memory line that the slot's last holder could not: it died in the middle of a task (FR-009)."""
        note = ready.unfinished
        if note is None or note.task_id is None or not note.attempt:  # attempt 0 was a warm-up
            return
        if (note.task_id, note.attempt) == self._accounted:
            return
        log_memory(
            outcome="worker_lost",
            memory=None,
            task_id=note.task_id,
            attempt=note.attempt,
            model=note.model or "",
            slot=self._slot,
            device=await self._device(),
        )

    async def _attempt(
        self,
        loading: Awaitable[Resident],
        task: GenerationTask,
        image: Path | None,
        on_progress: Callable[[Progress], None],
    ) -> Result:
        before = self._residence.resident
        try:
            resident = await loading
        except Quarantined as error:
            await self._account(task, "quarantined", None)
            return self._gave_up(str(error))
        except LoadTimedOut as error:
            message = "the model took too long to load; submit it again later"
            return await self._failed(task, FailureCode.INFERENCE_TIMEOUT, message, None, error.receipt)
        except HostLost as error:
            await self._account(task, "host_lost", None)
            return self._gave_up(str(error))
        except LoadFailed as error:
            failure = error.failure
            log.error("load_failed", task_id=task.id, model=task.model, code=failure.code, error=failure.message)
            message = LOAD_FAILURES.get(failure.code, "the model could not be loaded; submit it again later")
            if failure.fatal:
                metrics.hosts_distrusted.add(self._slot, "fatal")
            if failure.code == "inference_failed" and error.receipt is not None:  # it was tried
                self.streak = failed(self.streak) if failure.fatal else not_loaded(self.streak)
            memory = None if failure.fatal else failure.memory
            return await self._failed(task, FailureCode(failure.code), message, memory, error.receipt)
        if self._stopped:
            await self._account(task, "cancelled", resident.memory)
            return self._stopped_result()
        if image is not None and not image.exists():  # a swap takes minutes, in which somebody may tidy up
            await self._account(task, "gave_up", resident.memory)
            return GaveUp("the input image was removed before it was read")
        swap = None if resident is before else resident.receipt
        return await self._infer(task, image, on_progress, swap)

    def _objection(self, task: GenerationTask) -> str | None:
        """Why *task* cannot be run, by the limits of its model; None if it can, or if the load will tell."""
        entry = self._models.get(task.model)
        errors = [] if entry is None else parameter_errors(task.parameters, entry)
        return "; ".join(error.message for error in errors) or None

    def _memory(self) -> MemoryReading | None:
        resident = self._residence.resident
        return None if resident is None else resident.memory

    async def _device(self) -> Reading | None:
        """What is in use on the card now and what is free, for the memory line. None on a CPU, or if unknown."""
        memory = self._residence.memory
        return await memory.read(self._residence.host.pid) if memory.is_card else None

    async def _infer(
        self,
        task: GenerationTask,
        image: Path | None,
        on_progress: Callable[[Progress], None],
        swap: SwapReceipt | None,
    ) -> Result:
        started_at = datetime.now(UTC)
        steps: list[messages.StepFinished] = []

        def report(progress: messages.StepFinished) -> None:
            nonlocal started_at, swap
            if progress.step == 0:
                started_at = datetime.fromtimestamp(progress.at_s, UTC)
            else:
                if swap is not None and not steps:
                    swap = self._with_first_step(swap, task, started_at, progress)
                steps.append(progress)
            on_progress(Progress(step=progress.step, steps=progress.steps))

        video_path = self._scratch / f"{task.id}.{task.epoch}.mp4"
        request = messages.Generate(
            task_id=task.id,
            attempt=task.attempt,
            parameters=task.parameters,
            video_path=str(video_path),
            image_path=None if image is None else str(image),
        )
        pid = self._residence.host.pid or 0
        try:
            outcome = await self._residence.host.generate(request, report)
        except HostLost as error:
            outcome = Lost(task.id, str(error))
        first_step_s = None if swap is None else swap.first_step_s
        record_inference(task, outcome, started_at, steps, host_pid=pid, first_step_s=first_step_s)
        return await self._result(task, outcome, video_path, started_at, swap)

    def _with_first_step(
        self, swap: SwapReceipt, task: GenerationTask, started_at: datetime, first: messages.StepFinished
    ) -> SwapReceipt:
        """*swap* with the last of its parts: weights are read as they are touched, so a swap costs it too."""
        first_step_s = max(0.0, round(first.at_s - started_at.timestamp(), 4))
        metrics.swap_duration.record(first_step_s, task.model, "first_step")
        log.info("first_step", task_id=task.id, model=task.model, slot=self._slot, first_step_s=first_step_s)
        return replace(swap, first_step_s=first_step_s)

    async def _result(
        self,
        task: GenerationTask,
        outcome: Outcome,
        video_path: Path,
        started_at: datetime,
        swap: SwapReceipt | None,
    ) -> Result:
        match outcome:
            case messages.Finished():
                memory = await self._account(task, "done", outcome.memory)
                return Succeeded(
                    path=video_path,
                    video=outcome.video,
                    memory=memory or outcome.memory,
                    started_at=started_at,
                    inference_s=outcome.inference_s,
                    encode_s=outcome.encode_s,
                    swap=swap,
                )
            case messages.Cancelled():
                await self._account(task, "cancelled", outcome.memory)
                return self._stopped_result()
            case messages.Failed():
                if outcome.fatal:
                    metrics.hosts_distrusted.add(self._slot, "fatal")
                if outcome.code == "inference_failed":
                    self.streak = failed(self.streak)
                memory = None if outcome.fatal else outcome.memory
                return await self._failed(task, FailureCode(outcome.code), outcome.message, memory, swap)
            case TimedOut():
                what = "one step" if outcome.limit == "step_s" else "the inference"
                message = f"{what} took longer than {outcome.seconds:g} s and was stopped"
                return await self._failed(task, FailureCode.INFERENCE_TIMEOUT, message, outcome.memory, swap)
            case Lost():
                self.streak = failed(self.streak)
                await self._account(task, "host_lost", None)
                return self._gave_up(outcome.reason)

    def _stopped_result(self) -> Stopped | GaveUp:
        return Stopped() if self._leaving is None else self._gave_up(self._leaving)

    def _gave_up(self, reason: str) -> GaveUp:
        # whatever ended a host that was to stop its task: it would not have come to that here
        return GaveUp(reason) if self._leaving is None else GaveUp(self._leaving, on_purpose=True)

    async def _failed(
        self,
        task: GenerationTask,
        code: FailureCode,
        message: str,
        memory: MemoryReading | None,
        swap: SwapReceipt | None = None,
    ) -> Unsuccessful:
        memory = await self._account(task, code.value, memory)
        return Unsuccessful(code, message, memory, swap)

    async def _account(self, task: GenerationTask, outcome: str, memory: MemoryReading | None) -> MemoryReading | None:
        """Writes the line. *memory* with what is in use on the card, which the host of one process does not know."""
        device = None
        try:
            device = await self._device()
        finally:  # SC-003: also for a task that is cancelled meanwhile
            self._accounted = (task.id, task.attempt)
            self.memory = None if memory is None else with_device(memory, device)
            log_memory(
                outcome=outcome,
                memory=memory,
                task_id=task.id,
                attempt=task.attempt,
                model=task.model,
                slot=self._slot,
                device=device,
            )
        return self.memory
