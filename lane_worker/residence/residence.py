"""The one pipeline of a slot: `ready(model)` makes room, proves it, and loads (FR-001..003, design §7).

Both kinds of worker use it. They ask for the outcome and never look at the state first.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from typing import Final, NoReturn

import msgspec
import structlog
from msgspec.structs import replace
from opentelemetry.trace import Span

from contracts.generation import parameter_errors
from contracts.lanes import SlotState
from contracts.settings import ModelEntry
from contracts.tasks import GenerationTask, MemoryReading, SwapReceipt
from lane_worker.forking.host import Host, HostLost, LoadFailed, SlotTaken
from lane_worker.forking.host_messages import Failed, Ready, Rehearsed
from lane_worker.residence.creep import READINGS, creep_bytes
from lane_worker.residence.fit import Demand, Refusal
from lane_worker.residence.patience import PatientProbe
from lane_worker.residence.read_ahead import ReadAhead
from lane_worker.residence.rehearsal import to_rehearse
from lane_worker.residence.release import Released, Sample, StillHeld, Unmeasurable, Verdict, judge, own_figure
from ops.machine.memory import MB, Holder, MemoryProbe, Reading, rss_bytes
from ops.telemetry import metrics
from ops.telemetry.tracing import span

AFTER_KILL_S: Final = 30.0
# A driver without persistence mode takes seconds to wake each card up. The next try asks again.
FIRST_ANSWER_S: Final = 30.0
# Of the metric `releases`: those of a receipt, and four more.
RELEASE_OUTCOMES: Final = (
    "nothing_resident",
    "unloaded",
    "killed",
    "renewed",
    "escalated",
    "unreadable",
    "quarantined",
)
NO_PROBE: Final = "nothing here can measure memory, so the host is killed between models"
DIED: Final = "the host had ended before"
_ADVICE: Final = "end what holds the memory of {slot}, then lift the quarantine"
# How many of the processes on a card a quarantine names; those that hold most come first.
HOLDERS_TOLD: Final = 5

log = structlog.get_logger("residence")


class Quarantined(Exception):
    """The slot's memory was not given back, even by a killed host. Nothing loads until `Residence.lift`.

    *detail* is for operators; the text, which a client may come to read, names no process of the machine.
    """

    def __init__(self, receipt: SwapReceipt, detail: str) -> None:
        super().__init__(f"{receipt.reason}; {_ADVICE.format(slot=receipt.slot)}")
        self.receipt = receipt
        self.detail = detail


class MemoryUnreadable(HostLost):
    """The slot's memory cannot be read, so nothing is loaded, and no host runs. The text says what the driver said.

    Nothing is known to be held there: it is no quarantine, and the next call asks again (ADR 0027).
    """


class Residence:
    """What is resident on one slot. Not for several concurrent callers, except the properties and `lift`.

    *on_state* is told every change at once: the state, the model that it is about, and a detail for people. *on_wait*
    is told why nothing goes on yet, while the driver has not answered for the first time.
    Without a *probe* the host is killed between models, and no release can be verified.
    """

    def __init__(
        self,
        *,
        host: Host,
        slot: str,
        models: Mapping[str, ModelEntry],
        probe: MemoryProbe | None,
        on_state: Callable[[SlotState, str | None, str], None],
        on_wait: Callable[[str], None] = lambda _: None,
        after_kill_s: float = AFTER_KILL_S,
        first_answer_s: float = FIRST_ANSWER_S,
    ) -> None:
        self.host = host
        self.last_swap: SwapReceipt | None = None
        """The receipt of the last swap, as far as it came; None where the last call did not come to one."""
        self.memory: MemoryReading | None = None
        """What the host held when it had loaded last."""
        self._slot = slot
        self._models = models
        self._to_rehearse = to_rehearse(entry.checkpoint for entry in models.values())
        self._probe = probe
        self._patient = None if probe is None else PatientProbe(probe)
        self._show = on_state
        self._on_wait = on_wait
        self._after_kill_s = after_kill_s
        self._first_answer_s = first_answer_s
        self.read_ahead = ReadAhead()
        """Of the weights that are wanted next (ADR 0023)."""
        self._term = 0
        self._is_open = False  # whether the slot is, or was last, ours to speak of
        self._model: str | None = None
        self._quarantine: Quarantined | None = None
        self._used = False  # whether this host was ever told to load
        self._proven = True  # whether the slot is known to be empty, but for this host and what it loads
        self._base_bytes: int | None = None  # in use when the child was warm and empty
        self._floor_bytes: int | None = None  # and before there was that child
        self._pid: int | None = None  # of this host, or of the one that has ended
        self._own_base_bytes: int | None = None  # of this by that child, where the driver tells processes apart
        self._verdict: Verdict = Unmeasurable()  # of the last release

        self._stayed: list[int] = []  # in use after each release of this host
        self._creeps = False  # whether the last release was the last one of its host, because more stays each time
        self._escalated = False  # whether the last release needed force that nobody had asked for
        for outcome in RELEASE_OUTCOMES:
            metrics.releases.begin(slot, outcome)

    @property
    def resident(self) -> str | None:
        """The model that is loaded; None when none is, or its host is gone."""
        return None if self.host.pid is None else self._model

    @property
    def quarantined(self) -> bool:
        """Whether nothing may be loaded until `lift`."""
        return self._quarantine is not None

    def lift(self) -> None:
        """An operator says that the slot is usable: what is in use there now is nobody's leftover."""
        if self._quarantine is not None:
            log.info("quarantine_lifted", slot=self._slot)
            self._quarantine, self._proven = None, True
            self._show(SlotState.EMPTY, None, "")

    async def open(self, *, term: int = 0) -> Ready:
        """Starts the host, under leadership *term*; it holds the slot's lock then, and nothing is resident.

        Call it first, and after `close`; a host that dies in between is started again by `ready`, or by this.
        A model that this slot cannot serve with the options of its checkpoint is told at once: in the log, and as the
        slot's detail. Raises SlotTaken, HostLost, MemoryUnreadable, Quarantined.
        """
        self._refuse_in_quarantine()
        self._term = term
        ready = await self._start()
        reading = await self._read()
        refusals = [(await self._demand(entry)).refusal(reading) for entry in self._models.values()]
        told = [refusal.message for refusal in refusals if refusal is not None]
        for message in told:
            log.error("cannot_be_served", slot=self._slot, error=message)
        if told:
            self._show(SlotState.EMPTY, None, "; ".join(told))
        return ready

    async def ready(self, model: str) -> SwapReceipt | None:
        """Makes *model* resident, and returns the receipt; None where it was resident already.

        Whatever was resident is released and proven gone before anything is loaded. Raises Quarantined where that
        fails, MemoryUnreadable, LoadFailed, LoadTimedOut, HostLost (also where another process has taken the slot).
        Then nothing is resident, and the next call tries again, unless the slot is quarantined. Only what the slot can
        never serve (LoadFailed) leaves everything as it was.
        """
        self._refuse_in_quarantine()
        if self.resident == model:
            return None
        return await self._swap(model, kill_because="")

    async def renew(self, model: str, reason: str) -> SwapReceipt:
        """As `ready`, but in a fresh host: the present one is killed, for *reason*, and its memory proven free."""
        self._refuse_in_quarantine()
        return await self._swap(model, kill_because=reason)

    def objection(self, task: GenerationTask) -> str | None:
        """Why *task* cannot be run, by the limits of its model; None if it can, or if the load will tell."""
        entry = self._models.get(task.model)
        errors = [] if entry is None else parameter_errors(task.parameters, entry)
        return "; ".join(error.message for error in errors) or None

    async def device(self) -> Reading | None:
        """What is in use on the card now and what is free, for the memory line. None on a CPU, or if unknown."""
        return await self._read() if self._probe is not None and self._probe.name != "rss" else None

    async def evict(self) -> None:
        """Releases what is resident and proves it gone. The host stays, empty, and keeps the slot, unless the proof
        needed its end.

        Raises Quarantined, MemoryUnreadable, HostLost.
        """
        self._refuse_in_quarantine()
        receipt = SwapReceipt(
            slot=self._slot,
            released_model=self._model,
            loaded_model="",
            how="nothing_resident",
            probe="none" if self._probe is None else self._probe.name,
        )
        with span("evict", {"model": self._model or ""}) as current:
            receipt = await self._verify(await self._release(receipt, "", await self._read()))
            _describe(current, receipt)
        self._count_release(receipt)
        holders = await self._holders()
        log.info("evicted", proven=self._proven, holders=_by_name(holders), **msgspec.structs.asdict(receipt))
        if not self._proven:
            self._not_proven(receipt, holders)
        self._show(SlotState.EMPTY, None, "")

    async def close(self) -> None:
        """Ends the host, which unloads and unlocks. Bounded."""
        self.read_ahead.stop()
        self._model = None
        await self.host.close()
        # From here on others may use the slot: what is in use then is no leftover of ours.
        self._proven = True
        if self._is_open and not self.quarantined:
            self._show(SlotState.EMPTY, None, "")
        self._is_open = False

    # The swap

    async def _swap(self, model: str, *, kill_because: str) -> SwapReceipt:
        self.last_swap = None
        entry = self._models.get(model)
        if entry is None:
            text = f"this worker's settings have no model {model}"
            raise LoadFailed(Failed(None, "inference_failed", text, MemoryReading(rss_bytes=0)))
        demand = await self._demand(entry)
        reading = await self._read()
        self._refuse(demand.refusal(reading))
        receipt = self.last_swap = SwapReceipt(
            slot=self._slot,
            released_model=self._model,
            loaded_model=model,
            how="nothing_resident",
            probe="none" if self._probe is None else self._probe.name,
            needed_bytes=demand.need.slot_bytes,
        )
        outcome = "failed"
        holders: tuple[Holder, ...] = ()
        self.read_ahead.begin(self.host.folder_of(entry))
        try:
            with span("swap.release") as current:
                receipt = self.last_swap = await self._release(receipt, kill_because, reading)
                _describe(current, receipt)
            with span("swap.verify") as current:
                receipt = self.last_swap = await self._verify(receipt)
                _describe(current, receipt)
                self._count_release(receipt)
                holders = await self._holders()  # told, and no part of the proof
                if not self._proven:
                    self._not_proven(receipt, holders)
            with span("load") as current:
                self._refuse(demand.host_refusal())
                receipt = self.last_swap = await self._load(receipt, entry)
                _describe(current, receipt)
            metrics.swap_duration.record(receipt.release_s, model, "release")
            metrics.swap_duration.record(receipt.verify_s, model, "verify")
            metrics.swap_duration.record(receipt.load_s, model, "load")
            for part, seconds in (("read", receipt.read_s), ("copy", receipt.copy_s)):
                if seconds is not None:
                    metrics.swap_duration.record(seconds, model, part)
            outcome = "loaded"
        except BaseException as error:
            outcome = type(error).__name__
            self.read_ahead.stop()
            if not self.quarantined:
                self._show(SlotState.EMPTY, None, str(error))
            raise
        finally:
            report = log.info if outcome == "loaded" else log.warning
            report("swap", outcome=outcome, holders=_by_name(holders), **msgspec.structs.asdict(receipt))
        return receipt

    async def _demand(self, entry: ModelEntry) -> Demand:
        unified = self._probe is not None and self._probe.name == "unified"
        return await asyncio.to_thread(Demand.of, entry, self.host.models_dir, slot=self._slot, unified=unified)

    def _refuse(self, refusal: Refusal | None) -> None:
        if refusal is None:
            return
        held_bytes = 0
        if self.host.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                held_bytes = rss_bytes(self.host.pid)
        memory, is_gone = MemoryReading(rss_bytes=held_bytes), held_bytes == 0
        raise LoadFailed(Failed(None, refusal.code, refusal.message, memory, is_gone))

    async def _release(self, receipt: SwapReceipt, kill_because: str, reading: Reading | None) -> SwapReceipt:
        """§7, step 2: the host gives back what it has, or is killed. *reading* was taken before."""
        begun_s = time.monotonic()
        self._escalated = self._creeps = False
        if self._model is not None:
            self._show(SlotState.RELEASING, self._model, kill_because)
        self._model = None
        before = reading if self.host.pid is not None else None
        if self.host.pid is None and self._proven:
            await self._restart()
        elif self.host.pid is None:
            receipt = replace(receipt, how="killed", reason=DIED)
        elif kill_because:
            receipt = await self._kill(receipt, kill_because)
        elif not self._used:
            pass
        elif self._probe is None:
            receipt = await self._kill(receipt, NO_PROBE)
        else:
            receipt = await self._unload(receipt)
        return replace(
            receipt,
            before_bytes=None if before is None else before.used_bytes,
            release_s=_since(begun_s),
        )

    async def _unload(self, receipt: SwapReceipt) -> SwapReceipt:
        try:
            unloaded = await self.host.unload()
        except HostLost as error:
            self._escalated = True
            return replace(receipt, how="killed", reason=str(error))
        log.info("unloaded", alive=unloaded.alive, allocated_bytes=unloaded.allocated_bytes)
        if not unloaded.alive:
            return replace(receipt, how="unloaded")
        receipt, self._escalated = replace(receipt, alive=unloaded.alive), True
        return await self._kill(receipt, f"still alive after the release: {', '.join(unloaded.alive)}")

    async def _kill(self, receipt: SwapReceipt, reason: str) -> SwapReceipt:
        # one that survives SIGKILL is found out by the probe, and by the next start
        with contextlib.suppress(HostLost):
            await self.host.kill()
        return replace(receipt, how="killed", reason=reason)

    async def _verify(self, receipt: SwapReceipt) -> SwapReceipt:
        """§7, steps 3 and 4: proof, if need be after a kill. `_proven` is the result, `_verdict` says why."""
        begun_s = time.monotonic()
        if self._probe is None:
            self._proven = True
            return receipt
        self._proven = False
        if self.host.pid is not None:
            receipt = await self._poll(
                receipt, self._probe, self._base_bytes, self._own_base_bytes, self._probe.deadline_s
            )
            if not self._proven:
                self._escalated = True
                receipt = await self._kill(receipt, f"{self._words()} after {self._probe.deadline_s:g} s")
            elif receipt.proof == "no_pipeline":
                self._base_bytes = receipt.after_bytes
            elif receipt.how == "unloaded":
                receipt = await self._end_what_creeps(receipt, self._probe)
        if not self._proven:
            own_base_bytes = None if self._own_base_bytes is None else 0
            receipt = await self._poll(receipt, self._probe, self._floor_bytes, own_base_bytes, self._after_kill_s)
            if not self._proven:
                after = f"{self._words()} {self._after_kill_s:g} s after the host had ended"
                receipt = replace(receipt, reason=f"{receipt.reason}; {after}")
        return replace(receipt, verify_s=_since(begun_s))

    async def _end_what_creeps(self, receipt: SwapReceipt, probe: MemoryProbe) -> SwapReceipt:
        """Ends a host whose leftovers go on growing, now that it is empty: long before they are a failed release."""
        stayed_bytes = receipt.own_bytes if receipt.proof == "own_figure" else receipt.after_bytes
        self._stayed = [*self._stayed, stayed_bytes or 0][-READINGS:]
        grows_bytes = creep_bytes(self._stayed, tolerance_bytes=probe.absolute_bytes)
        if grows_bytes is None:
            return receipt
        self._creeps = True
        reason = f"each release left {grows_bytes // MB} MB more than the one before, so the host was renewed"
        log.warning("host_creeps", slot=self._slot, bytes_per_release=grows_bytes, stayed_bytes=self._stayed)
        with contextlib.suppress(HostLost):  # the start that follows finds it out, and says so
            await self.host.kill()
        return replace(receipt, reason=reason)

    async def _poll(
        self,
        receipt: SwapReceipt,
        probe: MemoryProbe,
        base_bytes: int | None,
        own_base_bytes: int | None,
        deadline_s: float,
    ) -> SwapReceipt:
        samples: list[Sample] = []
        while True:
            samples.append(await self._sample())
            self._verdict = judge(
                samples,
                base_bytes=base_bytes,
                own_base_bytes=own_base_bytes,
                tolerance_bytes=probe.absolute_bytes,
                needed_bytes=receipt.needed_bytes,
                no_pipeline=self.host.pid is None or not self._used,
            )
            self._proven = isinstance(self._verdict, Released)
            if self._proven or samples[-1].at_s - samples[0].at_s >= deadline_s:
                break
            await asyncio.sleep(probe.poll_s)
        return replace(
            receipt,
            probe=probe.name,
            proof=self._verdict.proof if isinstance(self._verdict, Released) else "",
            base_bytes=base_bytes,
            own_base_bytes=own_base_bytes,
            tolerance_bytes=probe.absolute_bytes,
            after_bytes=samples[-1].used_bytes,
            own_bytes=samples[-1].own_bytes,
            free_bytes=samples[-1].free_bytes,
            samples=receipt.samples + len(samples),
        )

    def _count_release(self, receipt: SwapReceipt) -> None:
        if self._proven:
            outcome: str = "escalated" if self._escalated else "renewed" if self._creeps else receipt.how
        else:
            outcome = "unreadable" if isinstance(self._verdict, Unmeasurable) else "quarantined"
        metrics.releases.add(self._slot, outcome)

    def _not_proven(self, receipt: SwapReceipt, holders: tuple[Holder, ...]) -> NoReturn:
        if isinstance(self._verdict, Unmeasurable):
            raise self._unreadable()
        raise self._enter_quarantine(receipt, holders)

    def _unreadable(self) -> MemoryUnreadable:
        return MemoryUnreadable(f"{self._words()}, so nothing is loaded on {self._slot}")

    def _enter_quarantine(self, receipt: SwapReceipt, holders: tuple[Holder, ...]) -> Quarantined:
        free = "an unknown number" if receipt.free_bytes is None else f"{receipt.free_bytes:,}"
        there = "".join(f"; {holder}" for holder in holders[:HOLDERS_TOLD])
        detail = (
            f"{receipt.reason}; {receipt.needed_bytes:,} bytes are needed and {free} are free{there}; "
            f"{_ADVICE.format(slot=self._slot)}"
        )
        self._quarantine = Quarantined(receipt, detail)
        self._show(SlotState.QUARANTINED, None, detail)
        return self._quarantine

    def _refuse_in_quarantine(self) -> None:
        if self._quarantine is not None:
            raise Quarantined(self._quarantine.receipt, self._quarantine.detail)

    async def _load(self, receipt: SwapReceipt, entry: ModelEntry) -> SwapReceipt:
        begun_s = time.monotonic()
        if self.host.pid is None:
            await self._restart()
        self._show(SlotState.LOADING, entry.name, "")
        self._used, self._proven = True, False
        loaded = await self.host.load(entry)
        self._model, self.memory = entry.name, loaded.memory
        self._show(SlotState.RESIDENT, entry.name, "")
        return replace(receipt, load_s=_since(begun_s), read_s=loaded.read_s, copy_s=loaded.copy_s)

    # The host and its memory

    async def _start(self) -> Ready:
        """A fresh host, empty. The base is raised here only, and only where the last release was proven."""
        self._model, self._used, self._stayed = None, False, []
        with contextlib.suppress(HostLost):  # the start below finds it out, and says so
            await self.host.kill()
        floor = await self._answered()
        ready = await self.host.start(term=self._term, rehearse=self._to_rehearse)
        self._is_open, self._pid = True, self.host.pid
        _tell_rehearsal(ready.rehearsed, self._slot)
        base = await self._settled()
        before, after = ({} if reading is None else reading.by_pid for reading in (floor, base))
        self._own_base_bytes = own_figure(self._pid or 0, before, after)
        base_bytes = None if base is None else base.used_bytes
        floor_bytes = None if floor is None else floor.used_bytes
        if not self._proven:
            base_bytes = _lower(base_bytes, self._base_bytes)
            floor_bytes = _lower(floor_bytes, self._floor_bytes)
        self._base_bytes = base_bytes
        # before our host had the lock, the memory of the slot's last holder may still have been on its way out
        self._floor_bytes = _lower(floor_bytes, base_bytes)
        self._show(SlotState.EMPTY, None, "")
        return ready

    async def _answered(self) -> Reading | None:
        """What is in use before there is a host, once the driver answers. Raises MemoryUnreadable."""
        if self._probe is None:
            return None
        self._verdict = Unmeasurable()
        begun_s, told = time.monotonic(), False
        while (reading := await self._read()) is None:
            if time.monotonic() - begun_s >= self._first_answer_s:
                raise self._unreadable()
            if not told:
                log.warning("memory_not_read_yet", slot=self._slot, error=self._words())
                self._on_wait(f"{self._words()}; it is asked for {self._first_answer_s:g} s")
                told = True
            await asyncio.sleep(self._probe.poll_s)
        return reading

    async def _restart(self) -> None:
        try:
            await self._start()
        except SlotTaken as error:
            raise HostLost(str(error)) from error

    async def _settled(self) -> Reading | None:
        """The memory once it has stopped falling: the slot's last holder may have ended a moment ago."""
        last = await self._read()
        if self._probe is None or last is None:
            return None
        deadline_s = time.monotonic() + self._probe.deadline_s
        while True:
            await asyncio.sleep(self._probe.poll_s)
            reading = await self._read()
            if reading is None:
                return None
            fell_bytes = last.used_bytes - reading.used_bytes
            if fell_bytes <= self._probe.absolute_bytes or time.monotonic() >= deadline_s:
                return min(last, reading, key=lambda each: each.used_bytes)
            last = reading

    async def _sample(self) -> Sample:
        reading = await self._read()
        if reading is None:
            return Sample(time.monotonic(), None, None)
        own_bytes = None if self._own_base_bytes is None else reading.by_pid.get(self._pid or 0)
        return Sample(time.monotonic(), reading.used_bytes, reading.free_bytes, own_bytes)

    async def _read(self) -> Reading | None:
        return None if self._patient is None else await self._patient.read(self.host.pid)

    async def _holders(self) -> tuple[Holder, ...]:
        return () if self._patient is None else await self._patient.holders()

    def _words(self) -> str:
        if isinstance(self._verdict, StillHeld):
            return f"{self._verdict.bytes} bytes more were in use, or fewer free, than allowed"
        trouble = "" if self._patient is None else self._patient.trouble
        return f"the memory could not be read ({trouble})" if trouble else "the memory could not be read"


def _tell_rehearsal(rehearsed: Rehearsed | None, slot: str) -> None:
    if rehearsed is not None and rehearsed.error:  # what its first task takes once may then look like a leak
        log.warning("not_rehearsed", slot=slot, error=rehearsed.error, seconds=rehearsed.seconds)
    elif rehearsed is not None:
        log.info("rehearsed", slot=slot, seconds=rehearsed.seconds)


def _since(begun_s: float) -> float:
    return round(time.monotonic() - begun_s, 4)


def _lower(one: int | None, other: int | None) -> int | None:
    """The lower one of those that are known."""
    return min((each for each in (one, other) if each is not None), default=None)


def _by_name(holders: tuple[Holder, ...]) -> list[str]:
    return [str(holder) for holder in holders]


def _describe(current: Span, receipt: SwapReceipt) -> None:
    figures = msgspec.structs.asdict(receipt)
    current.set_attributes({f"warmlane.swap.{name}": value for name, value in figures.items() if value is not None})
