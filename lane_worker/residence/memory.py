"""A slot's memory, as its probe reports it. Waits for a slow driver, but not for ever."""

import asyncio
import time
from collections.abc import Callable
from typing import Final, Literal

import structlog

from lane_worker.residence.baseline import Baseline
from lane_worker.residence.patience import PatientProbe
from lane_worker.residence.quarantine import MemoryUnreadable
from lane_worker.residence.release import MemorySample, StillHeld, Unmeasurable, Verdict
from ops.machine.readings import Holder, MemoryProbe, Reading

# A driver without persistence mode takes seconds to wake each card up. The next try asks again.
FIRST_ANSWER_S: Final = 30.0

log = structlog.get_logger("residence")


class SlotMemory:
    """The memory of *slot*. Without a *probe* every reading is missing, and no release can be verified.

    *on_wait* is called with the reason for the wait, while the driver has not answered for the first time.
    """

    def __init__(
        self,
        slot: str,
        probe: MemoryProbe | None,
        *,
        on_wait: Callable[[str], None] = lambda _: None,
        first_answer_s: float = FIRST_ANSWER_S,
    ) -> None:
        self.probe = probe
        self._slot = slot
        self._patient = None if probe is None else PatientProbe(probe)
        self._on_wait = on_wait
        self._first_answer_s = first_answer_s

    @property
    def name(self) -> Literal["nvml", "unified", "rss", "none"]:
        """The probe's name, as receipts have it."""
        return "none" if self.probe is None else self.probe.name

    async def read(self, pid: int | None) -> Reading | None:
        """What is in use while *pid* is the pipeline host; None where it cannot be read."""
        return None if self._patient is None else await self._patient.read(pid)

    @property
    def is_card(self) -> bool:
        """Whether it is the memory of a card; on a CPU there are only the host's own figures."""
        return self.name not in {"none", "rss"}

    async def sample(self, pid: int | None, baseline: Baseline) -> MemorySample:
        """One look, with the host's own figure where the driver reported one when the host was empty."""
        reading = await self.read(pid)
        if reading is None:
            return MemorySample(time.monotonic(), None, None)
        own_bytes = None if baseline.own_base_bytes is None else reading.by_pid.get(baseline.pid or 0)
        return MemorySample(time.monotonic(), reading.used_bytes, reading.free_bytes, own_bytes)

    async def holders(self) -> tuple[Holder, ...]:
        """Who uses the slot, for people to read."""
        return () if self._patient is None else await self._patient.holders()

    async def answered(self) -> Reading | None:
        """Waits until the driver answers, and returns what is in use before there is a host. Raises
        MemoryUnreadable."""
        if self.probe is None:
            return None
        begun_s, is_logged = time.monotonic(), False
        while (reading := await self.read(None)) is None:
            if time.monotonic() - begun_s >= self._first_answer_s:
                raise self.unreadable()
            if not is_logged:
                why = self.words(Unmeasurable())
                log.warning("memory_not_read_yet", slot=self._slot, error=why)
                self._on_wait(f"{why}; it is asked for {self._first_answer_s:g} s")
                is_logged = True
            await asyncio.sleep(self.probe.poll_s)
        return reading

    async def settled(self, pid: int | None) -> Reading | None:
        """The memory once it has stopped falling: the slot's last holder may have ended a moment ago."""
        last = await self.read(pid)
        if self.probe is None or last is None:
            return None
        deadline_s = time.monotonic() + self.probe.deadline_s
        while True:
            await asyncio.sleep(self.probe.poll_s)
            reading = await self.read(pid)
            if reading is None:
                return None
            fell_bytes = last.used_bytes - reading.used_bytes
            if fell_bytes <= self.probe.absolute_bytes or time.monotonic() >= deadline_s:
                return min(last, reading, key=lambda each: each.used_bytes)
            last = reading

    def unreadable(self) -> MemoryUnreadable:
        """The error of a slot whose memory cannot be read."""
        return MemoryUnreadable(f"{self.words(Unmeasurable())}, so nothing is loaded on {self._slot}")

    def words(self, verdict: Verdict | None) -> str:
        """Why *verdict* is no release, in words for a receipt's reason."""
        if isinstance(verdict, StillHeld):
            return f"{verdict.bytes} bytes more were in use, or fewer free, than allowed"
        trouble = "" if self._patient is None else self._patient.trouble
        return f"the memory could not be read ({trouble})" if trouble else "the memory could not be read"
