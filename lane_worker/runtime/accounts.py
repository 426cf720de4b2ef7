"""The memory line of every attempt on a slot, also of one that died with its host or its worker (FR-009, SC-003)."""

from msgspec.structs import replace

from contracts.memory import MemoryReading
from contracts.tasks import GenerationTask
from lane_worker.forking.host_messages import Ready
from lane_worker.residence.residence import Residence
from lane_worker.runtime.ended import Ended
from lane_worker.runtime.memory_line import log_memory, with_device
from lane_worker.runtime.outcome import Result, Succeeded, Unsuccessful
from ops.machine.readings import Reading


class Accounts:
    """The memory lines of one slot."""

    def __init__(self, residence: Residence, slot: str) -> None:
        self.memory: MemoryReading | None = None
        """What the host held after the cleanup of its last task; None when it was gone then."""
        self._residence = residence
        self._slot = slot
        self._last: tuple[str, int] | None = None

    async def close(self, task: GenerationTask, ended: Ended) -> Result:
        """Writes the memory line of *ended*. Returns its result with what is in use on the card: the host knows only
        what its own process uses."""
        memory = await self._write(task, ended)
        match ended.result:
            case Succeeded() as done:
                return replace(done, memory=memory or done.memory)
            case Unsuccessful() as unsuccessful:
                return replace(unsuccessful, memory=memory)
        return ended.result

    async def close_for_last_holder(self, ready: Ready) -> None:
        """Writes the memory line that the slot's last holder could not: it died in the middle of a task (FR-009)."""
        note = ready.unfinished
        if note is None or note.task_id is None or not note.attempt:  # attempt 0 was a warm-up
            return
        if (note.task_id, note.attempt) == self._last:
            return
        log_memory(
            outcome="worker_lost",
            memory=None,
            task_id=note.task_id,
            attempt=note.attempt,
            model=note.model or "",
            slot=self._slot,
            device=await self.device(),
        )

    async def device(self) -> Reading | None:
        """What is in use on the card now and what is free. None on a CPU, or if unknown."""
        memory = self._residence.memory
        return await memory.read(self._residence.host.pid) if memory.is_card else None

    async def _write(self, task: GenerationTask, ended: Ended) -> MemoryReading | None:
        device = None
        try:
            device = await self.device()
        finally:  # SC-003: also for a task that is cancelled meanwhile
            self._last = (task.id, task.attempt)
            self.memory = None if ended.memory is None else with_device(ended.memory, device)
            log_memory(
                outcome=ended.outcome,
                memory=ended.memory,
                task_id=task.id,
                attempt=task.attempt,
                model=task.model,
                slot=self._slot,
                device=device,
            )
        return self.memory
