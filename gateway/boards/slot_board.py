"""What is resident on which slot, held in memory by watching KV `slots`."""

from collections.abc import Callable
from datetime import datetime

from contracts.lanes import VideoPipelineSlot, is_shown
from ops.nats.bucket import Bucket, Versioned
from ops.nats.buckets import SHOWN_SLOTS
from ops.nats.link import NatsLink


class SlotBoard:
    """The slots of all workers. `start` it before use."""

    def __init__(self, *, judged_at: Callable[[datetime], datetime]) -> None:
        """*judged_at* gives the moment as of which silence is judged (`LaneBoard.judged_at`)."""
        self._judged_at = judged_at
        self._slots: dict[str, tuple[VideoPipelineSlot, datetime]] = {}

    async def start(self, link: NatsLink) -> None:
        """Watches the bucket; returns once what is there now has been seen. Raises TransportUnavailable."""
        await (await Bucket(link, SHOWN_SLOTS).watch(self.on_entry)).wait()

    def on_entry(self, entry: Versioned[VideoPipelineSlot]) -> None:
        """What is resident on a slot has changed, or the slot is gone."""
        slot = entry.value
        if slot is None:
            self._slots.pop(entry.key, None)
        else:
            self._slots[entry.key] = slot, entry.time

    def slots(self, now: datetime) -> list[VideoPipelineSlot]:
        """What is resident on which slot, by name. Of a worker that is gone, only a quarantined slot is shown."""
        judged = self._judged_at(now)
        return [slot for _, (slot, at) in sorted(self._slots.items()) if is_shown(slot, written_at=at, now=judged)]
