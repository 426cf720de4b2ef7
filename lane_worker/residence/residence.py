"""The one pipeline of a slot: `ready(model)` makes room, proves it, and loads (FR-001..003, design §7).

Both kinds of worker use it. They ask for an outcome, and never look at the state first.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

import msgspec
import structlog
from msgspec.structs import replace
from opentelemetry.trace import Span

from contracts.lanes import SlotState
from contracts.memory import MemoryReading, SwapReceipt
from contracts.settings import ModelEntry
from lane_worker.forking.host import Host
from lane_worker.forking.host_messages import Failed, Ready, Rehearsed
from lane_worker.forking.outcome import HostLost, LoadFailed, SlotTaken
from lane_worker.residence.baseline import baseline_of
from lane_worker.residence.fit import LoadRefusal, SlotDemand
from lane_worker.residence.memory import FIRST_ANSWER_S, SlotMemory
from lane_worker.residence.proof import AFTER_KILL_S, Given, Proof, Prover, since
from lane_worker.residence.quarantine import Quarantined, quarantine_of
from lane_worker.residence.read_ahead import ReadAhead
from lane_worker.residence.rehearsal import to_rehearse
from lane_worker.residence.release import Unmeasurable
from lane_worker.residence.states import (
    Barred,
    Closed,
    Doubted,
    Empty,
    HandedOver,
    InQuarantine,
    Left,
    Lifted,
    LoadBegun,
    LoadEnded,
    Proven,
    Resident,
    Started,
    State,
    after,
)
from ops.machine.host_memory import rss_bytes
from ops.machine.readings import Holder, MemoryProbe, Reading
from ops.telemetry import metrics
from ops.telemetry.tracing import span

# The outcomes of the metric `releases`: those of a receipt, and four more.
RELEASE_OUTCOMES: Final = (
    "nothing_resident",
    "unloaded",
    "killed",
    "renewed",
    "escalated",
    "unreadable",
    "quarantined",
)

log = structlog.get_logger("residence")


class Residence:
    """What is resident on one slot. Not for several concurrent callers, except the properties and `lift`.

    *on_state* is called at every change: with the state, the model that it is about, and a detail for people.
    *on_wait* is called with the reason for the wait, while the driver has not answered for the first time.
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
        self.memory = SlotMemory(slot, probe, on_wait=on_wait, first_answer_s=first_answer_s)
        self.read_ahead = ReadAhead()
        """Reads the weights that are wanted next (ADR 0023)."""
        self._slot = slot
        self._models = models
        self._show = on_state
        self._prover = Prover(host, slot, self.memory, after_kill_s=after_kill_s)
        self._state: State = Closed()
        self._term = 0
        for outcome in RELEASE_OUTCOMES:
            metrics.releases.begin(slot, outcome)

    @property
    def resident(self) -> Resident | None:
        """What is loaded, the same object until it is loaded anew; None when nothing is, or its host is gone."""
        return self._state if isinstance(self._state, Resident) and self.host.pid is not None else None

    @property
    def quarantined(self) -> bool:
        """Whether nothing may be loaded until `lift`."""
        return isinstance(self._state, InQuarantine)

    def lift(self) -> None:
        """An operator declares the slot usable: memory in use there no longer counts as a leftover of ours."""
        if self.quarantined:
            log.info("quarantine_lifted", slot=self._slot)
            self._state = after(self._state, Lifted())
            self._show(SlotState.EMPTY, None, "")

    async def open(self, *, term: int = 0) -> Ready:
        """Starts the host, under leadership *term*. It then holds the slot's lock, and nothing is resident.

        Call it first, and after `close`; a host that dies in between is started again by `ready`, or by this. Names at
        once, in the log and in the slot's detail, each model that this slot cannot serve with its checkpoint's options.
        Raises SlotTaken, HostLost, MemoryUnreadable, Quarantined.
        """
        _refuse_in_quarantine(self._state)
        self._term = term
        ready = await self._start()
        reading = await self.memory.read(self.host.pid)
        demands = [await _demand(entry, self.host, self._slot, self.memory) for entry in self._models.values()]
        refusals = [demand.refusal(reading) for demand in demands]
        messages = [refusal.message for refusal in refusals if refusal is not None]
        for message in messages:
            log.error("cannot_be_served", slot=self._slot, error=message)
        if messages:
            self._show(SlotState.EMPTY, None, "; ".join(messages))
        return ready

    async def ready(self, model: str, *, renew_because: str = "") -> Resident:
        """Makes *model* resident, and returns what was loaded: the same object again where it was resident already.

        With *renew_because* it is loaded anew in any case, in a fresh host: the present one is killed for that reason.

        Whatever was resident is released and proven gone before anything is loaded. Raises Quarantined where that
        fails, MemoryUnreadable, LoadFailed, LoadTimedOut, HostLost (also where another process has taken the slot).
        After an error nothing is resident, and the next call tries again, unless the slot is quarantined. Only a model
        that the slot can never serve (LoadFailed without a receipt) leaves everything as it was.
        """
        _refuse_in_quarantine(self._state)
        resident = self.resident
        if resident is not None and resident.model == model and not renew_because:
            return resident
        return await self._swap(model, kill_because=renew_because)

    async def evict(self) -> None:
        """Releases what is resident and proves it gone. The host stays, empty, and keeps the slot, unless the proof
        needed its end.

        Raises Quarantined, MemoryUnreadable, HostLost.
        """
        _refuse_in_quarantine(self._state)
        model = self._state.model if isinstance(self._state, Resident) else None
        with span("evict", {"model": model or ""}) as current:
            receipt = SwapReceipt(
                slot=self._slot, released_model=model, loaded_model="", how="nothing_resident", probe=self.memory.name
            )
            proof = await self._prove(await self._release(receipt, "", await self.memory.read(self.host.pid)))
            _describe(current, proof.receipt)
        figures = msgspec.structs.asdict(proof.receipt)
        log.info("evicted", proven=proof.is_proven, holders=_by_name(proof.holders), **figures)
        self._require(proof)
        self._show(SlotState.EMPTY, None, "")

    async def close(self) -> None:
        """Ends the host, which unloads and unlocks, within a bounded time."""
        self.read_ahead.stop()
        self._state = after(self._state, Left()) if isinstance(self._state, Resident) else self._state
        await self.host.close()
        was_ours = isinstance(self._state, Empty)
        self._state = after(self._state, HandedOver())
        if was_ours:
            self._show(SlotState.EMPTY, None, "")

    async def _swap(self, model: str, *, kill_because: str) -> Resident:
        entry = self._models.get(model)
        if entry is None:
            text = f"this worker's settings have no model {model}"
            raise LoadFailed(Failed(None, "inference_failed", text, MemoryReading(rss_bytes=0)))
        demand = await _demand(entry, self.host, self._slot, self.memory)
        reading = await self.memory.read(self.host.pid)
        _refuse(demand.refusal(reading), self.host)
        receipt = SwapReceipt(
            slot=self._slot,
            released_model=self._state.model if isinstance(self._state, Resident) else None,
            loaded_model=model,
            how="nothing_resident",
            probe=self.memory.name,
            needed_bytes=demand.need.slot_bytes,
        )
        outcome = "failed"
        holders: tuple[Holder, ...] = ()
        self.read_ahead.begin(self.host.folder_of(entry))
        try:
            with span("swap.release") as current:
                given = await self._release(receipt, kill_because, reading)
                receipt = given.receipt
                _describe(current, receipt)
            with span("swap.verify") as current:
                proof = await self._prove(given)
                receipt, holders = proof.receipt, proof.holders
                _describe(current, receipt)
                self._require(proof)
            with span("load") as current:
                _refuse(demand.host_refusal(), self.host)
                resident = await self._load(receipt, entry)
                receipt = resident.receipt
                _describe(current, receipt)
            _record_parts(receipt)
            outcome = "loaded"
        except BaseException as error:
            outcome = type(error).__name__
            if isinstance(error, (LoadFailed, HostLost)):
                error.receipt = receipt
            self.read_ahead.stop()
            if not self.quarantined:
                self._show(SlotState.EMPTY, None, str(error))
            raise
        finally:
            report = log.info if outcome == "loaded" else log.warning
            report("swap", outcome=outcome, holders=_by_name(holders), **msgspec.structs.asdict(receipt))
        return resident

    async def _release(self, receipt: SwapReceipt, kill_because: str, reading: Reading | None) -> Given:
        """§7, step 2: the host gives back what it has, or is killed. *reading* was taken before."""
        begun_s = time.monotonic()
        if isinstance(self._state, Resident):
            self._show(SlotState.RELEASING, self._state.model, kill_because)
        self._state = after(self._state, Left())
        before = reading if self.host.pid is not None else None
        if self.host.pid is None and _is_free(self._state):
            await _again(self._start())
            given = Given(receipt)
        else:
            given = await self._prover.release(receipt, kill_because=kill_because, is_used=_is_used(self._state))
        before_bytes = None if before is None else before.used_bytes
        return replace(given, receipt=replace(given.receipt, before_bytes=before_bytes, release_s=since(begun_s)))

    async def _prove(self, given: Given) -> Proof:
        """§7, steps 3 and 4. The processes that hold memory there are looked up for people, and are no part of the
        proof."""
        self._state = after(self._state, Doubted())
        proof = await self._prover.prove(given, is_used=_is_used(self._state))
        if proof.is_proven:
            self._state = after(self._state, Proven())
        metrics.releases.add(self._slot, proof.outcome)
        return replace(proof, holders=await self.memory.holders())

    def _require(self, proof: Proof) -> None:
        """Where *proof* proves nothing, raises MemoryUnreadable, or puts the slot in quarantine and raises
        Quarantined."""
        if proof.is_proven:
            return
        if isinstance(proof.verdict, Unmeasurable):
            raise self.memory.unreadable()
        quarantine = quarantine_of(proof.receipt, proof.holders)
        self._state = after(self._state, Barred(quarantine))
        self._show(SlotState.QUARANTINED, None, quarantine.detail)
        _refuse_in_quarantine(self._state)

    async def _load(self, receipt: SwapReceipt, entry: ModelEntry) -> Resident:
        begun_s = time.monotonic()
        if self.host.pid is None:
            await _again(self._start())
        self._show(SlotState.LOADING, entry.name, "")
        self._state = after(self._state, LoadBegun())
        loaded = await self.host.load(entry)
        receipt = replace(receipt, load_s=since(begun_s), read_s=loaded.read_s, copy_s=loaded.copy_s)
        resident = Resident(entry.name, loaded.memory, receipt)
        self._state = after(self._state, LoadEnded(resident))
        self._show(SlotState.RESIDENT, entry.name, "")
        return resident

    async def _start(self) -> Ready:
        """A fresh host, empty. Raises SlotTaken, HostLost, MemoryUnreadable."""
        if isinstance(self._state, Resident):  # its host has died
            self._state = after(self._state, Left())
        with contextlib.suppress(HostLost):  # the start below finds out, and reports it
            await self.host.kill()
        floor = await self.memory.answered()
        ready = await self.host.start(
            term=self._term, rehearse=to_rehearse(e.checkpoint for e in self._models.values())
        )
        is_proven = _is_free(self._state)
        self._state = after(self._state, Started())
        _log_rehearsal(ready.rehearsed, self._slot)
        base = await self.memory.settled(self.host.pid)
        last = self._prover.baseline
        self._prover.begin(baseline_of(self.host.pid, floor=floor, base=base, last=last, is_proven=is_proven))
        self._show(SlotState.EMPTY, None, "")
        return ready


async def _again(starting: Awaitable[Ready]) -> None:
    """Awaits *starting*, a host's start on a slot that was ours. Raises HostLost where another process has taken it."""
    try:
        await starting
    except SlotTaken as error:
        raise HostLost(str(error)) from error


def _is_free(state: State) -> bool:
    """Whether nothing of an earlier pipeline is on the slot."""
    return isinstance(state, Closed) or (isinstance(state, Empty) and state.is_proven)


def _is_used(state: State) -> bool:
    return isinstance(state, Empty) and state.is_used


def _refuse_in_quarantine(state: State) -> None:
    if isinstance(state, InQuarantine):
        raise Quarantined(state.receipt, state.detail)


async def _demand(entry: ModelEntry, host: Host, slot: str, memory: SlotMemory) -> SlotDemand:
    return await asyncio.to_thread(SlotDemand.of, entry, host.models_dir, slot=slot, unified=memory.name == "unified")


def _refuse(refusal: LoadRefusal | None, host: Host) -> None:
    if refusal is None:
        return
    held_bytes = 0
    if host.pid is not None:
        with contextlib.suppress(ProcessLookupError):
            held_bytes = rss_bytes(host.pid)
    memory, is_gone = MemoryReading(rss_bytes=held_bytes), held_bytes == 0
    raise LoadFailed(Failed(None, refusal.code, refusal.message, memory, is_gone))


def _record_parts(receipt: SwapReceipt) -> None:
    metrics.swap_duration.record(receipt.release_s, receipt.loaded_model, "release")
    metrics.swap_duration.record(receipt.verify_s, receipt.loaded_model, "verify")
    metrics.swap_duration.record(receipt.load_s, receipt.loaded_model, "load")
    for part, seconds in (("read", receipt.read_s), ("copy", receipt.copy_s)):
        if seconds is not None:
            metrics.swap_duration.record(seconds, receipt.loaded_model, part)


def _log_rehearsal(rehearsed: Rehearsed | None, slot: str) -> None:
    if rehearsed is not None and rehearsed.error:  # memory that its first task takes once may then look like a leak
        log.warning("not_rehearsed", slot=slot, error=rehearsed.error, seconds=rehearsed.seconds)
    elif rehearsed is not None:
        log.info("rehearsed", slot=slot, seconds=rehearsed.seconds)


def _by_name(holders: tuple[Holder, ...]) -> list[str]:
    return [str(holder) for holder in holders]


def _describe(current: Span, receipt: SwapReceipt) -> None:
    figures = msgspec.structs.asdict(receipt)
    current.set_attributes({f"warmlane.swap.{name}": value for name, value in figures.items() if value is not None})
