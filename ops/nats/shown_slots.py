"""What workers show of their slots in KV `slots`, and the lifting of a quarantine."""

from datetime import datetime

from msgspec.structs import replace

from contracts.lanes import SlotState, VideoPipelineSlot, is_shown
from ops.nats.bucket import Bucket
from ops.nats.buckets import SHOWN_SLOTS
from ops.nats.errors import WrongRevision
from ops.nats.link import NatsLink


class NotQuarantined(Exception):
    """There is nothing to lift. The text says why."""


class NoSuchSlot(NotQuarantined):
    """No worker has shown a slot of this name."""


async def read_slots(link: NatsLink, *, now: datetime) -> list[VideoPipelineSlot]:
    """Every slot that a worker shows, or that is quarantined, by name. What cannot be read is left out.

    Raises TransportUnavailable.
    """
    entries = await Bucket(link, SHOWN_SLOTS, reports=False).entries()
    return [
        entry.value
        for entry in sorted(entries, key=lambda entry: entry.key)
        if entry.value is not None and is_shown(entry.value, written_at=entry.time, now=now)
    ]


async def lift(link: NatsLink, slot: str, *, now: datetime) -> VideoPipelineSlot:
    """quarantined → empty, by compare-and-set. Returns the slot as it was. Its worker watches the bucket, and takes up
    work at once.

    Raises NotQuarantined, even for a slot that no worker has shown; ValueError for a text that is no name of a slot;
    TransportUnavailable.
    """
    bucket = Bucket(link, SHOWN_SLOTS, reports=False)
    while True:
        entry = await bucket.get(slot)
        shown = None if entry is None else entry.value
        if entry is None or shown is None:
            raise NoSuchSlot(f"no worker has shown a slot {slot}; `warmlane slots` lists them")
        if shown.state is not SlotState.QUARANTINED:
            raise NotQuarantined(f"slot {slot} is {shown.state.value}, not quarantined: there is nothing to lift")
        lifted = replace(shown, state=SlotState.EMPTY, model=None, since=now, detail="lifted by an operator")
        try:
            await bucket.update(slot, lifted, revision=entry.revision)
        except WrongRevision:
            continue
        return shown
