"""How long a lane keeps its warm pipeline: what that has been through, and the decision of `warmth` (FR-019)."""

import time
from datetime import UTC, datetime

from contracts.memory import MemoryReading
from contracts.settings import Warmth, Windows
from lane_worker.residence.states import Resident
from lane_worker.runtime.lanes_beside import lane_reports
from lane_worker.runtime.warmth import Others, Stay, Step, Wear, next_step, others_of, residue_bytes, worn_out
from ops.nats.errors import TransportUnavailable
from ops.nats.link import NatsLink


class Keeping:
    """The wear of the pipeline of the lane *worker* of *model*."""

    def __init__(self, link: NatsLink, *, model: str, worker: str, warmth: Warmth, windows: Windows) -> None:
        self.loaded: Resident | None = None
        """The load that tasks are counted from."""
        self.clean: MemoryReading | None = None
        """What the host held after the generation that warmed it up."""
        self._link = link
        self._model = model
        self._worker = worker
        self._warmth = warmth
        self._windows = windows
        self._tasks = 0
        self._idle_since_s = 0.0

    def warmed_up(self, resident: Resident, clean: MemoryReading) -> None:
        """A generation has warmed *resident* up, and left *clean*."""
        if resident is not self.loaded:  # else nothing was loaded: what tasks have left still counts
            self.loaded, self.clean, self._tasks = resident, clean, 0
        self._idle_since_s = time.monotonic()

    def task_ended(self) -> None:
        """The lane is idle again."""
        self._tasks += 1
        self._idle_since_s = time.monotonic()

    async def next_step(self, resident: Resident | None, memory: MemoryReading | None, *, queue_is_empty: bool) -> Step:
        """What the idle lane does with *resident*, whose host held *memory* after its last task."""
        if resident is not None and resident is not self.loaded:  # a task had it loaded anew
            # `clean` stays: this host had no warm-up, and compared with a mere load its first large task seems to leak
            self.loaded, self._tasks = resident, 0
        wear = Wear(self._tasks, residue_bytes(self.clean, memory) if self._tasks else 0)
        others = Others.NONE
        if worn_out(self._warmth, wear) is not None:
            try:
                others = await self._others()
            except TransportUnavailable:
                return Stay()
        idle_s = time.monotonic() - self._idle_since_s
        return next_step(self._warmth, wear, idle_s=idle_s, queue_is_empty=queue_is_empty, others=others)

    async def _others(self) -> Others:
        """The other lanes of the model as the server has them now. Raises TransportUnavailable."""
        return others_of(
            await lane_reports(self._link, self._model),
            self._worker,
            health_timeout_s=self._windows.health_timeout_s,
            now=datetime.now(UTC),
        )
