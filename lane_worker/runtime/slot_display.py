"""What a worker shows of its slot in KV `slots`, and the quarantine that is kept there (design §3, §7, ADR 0010).

It is for display, with one exception: no worker opens a slot whose entry reads `quarantined`. An operator lifts that,
with `warmlane slots lift SLOT` or `nats kv del slots SLOT`. Shared by both kinds of worker.
"""

import asyncio
import contextlib
from typing import Final

import structlog

from contracts.lanes import SlotState, VideoPipelineSlot
from contracts.topology import SLOTS_REFRESH_S
from lane_worker.runtime.slot_entry import SlotEntry
from ops.nats.bucket import Versioned
from ops.nats.errors import TransportUnavailable, WrongRevision
from ops.nats.link import NatsLink
from ops.telemetry.seldom import Seldom
from ops.waiting import set_within

RETRY_S: Final = 0.2
# How often a worker that waits for a lift reads the entry itself, in case the watch delivers nothing.
POLL_S: Final = 5.0
LEAVE_S: Final = 3.0

log = structlog.get_logger("slot_display")


class SlotDisplay:
    """The entry of one slot, as one worker writes it. `start` it and keep `run` running."""

    def __init__(self, link: NatsLink, *, slot: str, worker: str) -> None:
        self._entry = SlotEntry(link, slot=slot, worker=worker)
        self._wanted: VideoPipelineSlot | None = None
        # what was stored of that, or given up because the entry is another worker's
        self._stored: VideoPipelineSlot | None = None
        self._revision: int | None = None
        # whether the entry seen last is ours; one that another worker wrote is not ours to write again when it is gone
        self._is_ours = False
        self._seen = 0
        self.quarantine: VideoPipelineSlot | None = None
        """The entry that keeps everybody off the slot, ours or another worker's, as far as it is known here."""
        self._news = asyncio.Event()
        self._seldom = Seldom()
        self._changed = asyncio.Event()

    async def start(self) -> None:
        """Watches the entry; returns once it is known. Raises TransportUnavailable."""
        await self._entry.watch(self._see, on_again=self._again)

    def take(self) -> None:
        """This worker opens the slot now: what it shows from here on replaces what another worker showed.

        Once another worker has written the entry, this one writes nothing until its next `take`.
        """
        self._revision = None

    def show(self, state: SlotState, model: str | None, detail: str = "") -> None:
        """The slot is in *state* now. The last call wins, except that only a lift ends `quarantined`."""
        if self.quarantine is not None:
            return
        self._wanted = self._entry.of(state, model, detail)
        if state is SlotState.QUARANTINED:
            self.quarantine = self._wanted
        self._news.set()

    async def run(self) -> None:
        """Stores what is shown, and tries until it is stored. Runs until cancelled."""
        while True:
            if not await set_within(SLOTS_REFRESH_S, self._news):
                await self.refresh()
            self._news.clear()
            while (wanted := self._wanted) is not None and wanted is not self._stored:
                try:
                    await self._store(wanted)
                except WrongRevision:
                    continue  # somebody wrote in between: look again
                except TransportUnavailable as error:
                    self._seldom.log(
                        log.warning, "slot_not_shown", slot=self._entry.slot, state=wanted.state.value, error=str(error)
                    )
                    await asyncio.sleep(RETRY_S)
                    continue
                self._stored = wanted
                self._changed.set()

    async def settled(self) -> None:
        """Returns once what was shown last is stored, or is not ours to store any more: `quarantine` is known then."""
        while self._wanted is not self._stored:
            self._changed.clear()
            await self._changed.wait()

    async def refresh(self) -> None:
        """Rewrites what this worker shows: readers trust only what is rewritten often (`contracts.lanes.is_shown`)."""
        with contextlib.suppress(TransportUnavailable, WrongRevision):
            if self._stands is not None:
                shown, revision = self._stands
                self._revision = await self._entry.write(shown, revision=revision)
                self._seen = max(self._seen, self._revision)

    @property
    def _stands(self) -> tuple[VideoPipelineSlot, int] | None:
        """What this worker shows, and its revision; None where another worker has the slot, or it is quarantined."""
        if self._stored is None or self._stored is not self._wanted or self._revision is None:
            return None
        is_quarantined = self.quarantine is not None or self._stored.state is SlotState.QUARANTINED
        return None if is_quarantined else (self._stored, self._revision)

    async def leave(self) -> None:
        """Waits some seconds until the last state is stored, and then removes it, unless it is a quarantine.

        `run` must still be running.
        """
        with contextlib.suppress(TimeoutError, TransportUnavailable, WrongRevision):
            async with asyncio.timeout(LEAVE_S):
                await self.settled()
                if self._stands is not None:
                    await self._entry.remove(self._stands[1])

    async def look(self) -> VideoPipelineSlot | None:
        """`quarantine`, read from the server itself. Call it before the slot is opened. Raises TransportUnavailable."""
        self._see(await self._entry.read())
        return self.quarantine

    async def usable(self) -> None:
        """Returns when the slot is not quarantined, as the server itself says; waits for the lift if it is."""
        is_logged = False
        while True:
            self._changed.clear()
            with contextlib.suppress(TransportUnavailable):
                if await self.look() is None:
                    return
            if self.quarantine is not None and not is_logged:
                is_logged = True
                advice = f"find out what holds its memory, then `warmlane slots lift {self._entry.slot}`"
                log.error("slot_quarantined", slot=self._entry.slot, why=self.quarantine.detail, advice=advice)
            await set_within(POLL_S if is_logged else RETRY_S, self._changed)

    async def _store(self, wanted: VideoPipelineSlot) -> None:
        entry = await self._entry.read()
        there = None if entry is None else entry.value
        if there is not None:
            if not self._entry.is_ours(there) and (self._revision is not None or there.since > wanted.since):
                # The other worker opened the slot after us, so our state is out of date. Even a quarantine is: what
                # our probe saw was the other's pipeline.
                log.warning("slot_is_anothers", slot=self._entry.slot, state=wanted.state.value, worker=there.worker)
                self._stored = wanted
                self._is_ours = False
                self._know(there)
                return
            if there.state is SlotState.QUARANTINED and wanted.state is not SlotState.QUARANTINED:
                log.warning("slot_stays_quarantined", slot=self._entry.slot, state=wanted.state.value)
                self._know(there)
                return
        revision = 0 if entry is None else entry.revision
        self._revision = await self._entry.write(wanted, revision=revision)
        self._seen = max(self._seen, self._revision)
        self._is_ours = True

    def _again(self) -> None:
        """The bucket went back: what was seen there counts no more, and what this worker shows is shown again.

        That includes a quarantine of ours: the card has not changed. Where a lift was lost, an operator lifts it again.
        """
        self._seen = 0
        if self._wanted is not None and self._revision is not None:
            self._revision = self._stored = None
            self._news.set()

    def _see(self, entry: Versioned[VideoPipelineSlot] | None) -> None:
        """Takes the entry as the server had it, unless it is older than what was seen or written here."""
        revision = 0 if entry is None else entry.revision
        if revision <= self._seen and entry is not None:
            return
        if self._wanted is not self._stored and self._wanted is self.quarantine:
            return  # ours is not stored yet, so nobody can have lifted it
        self._seen = max(self._seen, revision)
        self._know(None if entry is None else entry.value)

    def _know(self, there: VideoPipelineSlot | None) -> None:
        before = self.quarantine
        self.quarantine = there if there is not None and there.state is SlotState.QUARANTINED else None
        if before is not None and self.quarantine is None:
            log.info("slot_not_quarantined", slot=self._entry.slot)
        elif there is None and self._is_ours and self._wanted is self._stored:
            self._stored = None  # somebody removed what this worker shows, or wrote what cannot be read: shown again
            self._news.set()
        elif there is not None and not self._entry.is_ours(there):
            self._is_ours = False
        self._changed.set()
