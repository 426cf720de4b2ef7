"""The entry of one slot in KV `slots`, as one worker's process reads and writes it."""

import os
from collections.abc import Callable
from datetime import UTC, datetime

from contracts.lanes import SlotState, VideoPipelineSlot
from ops.nats.bucket import Bucket, Versioned
from ops.nats.buckets import SHOWN_SLOTS
from ops.nats.link import NatsLink


class SlotEntry:
    """The entry of *slot*, for this process of *worker*. Its methods raise TransportUnavailable."""

    def __init__(self, link: NatsLink, *, slot: str, worker: str) -> None:
        self.slot = slot
        self._worker = worker
        self._bucket = Bucket(link, SHOWN_SLOTS)

    def of(self, state: SlotState, model: str | None, detail: str) -> VideoPipelineSlot:
        """What the entry says when this process shows *state*, from now on."""
        return VideoPipelineSlot(
            slot=self.slot,
            worker=self._worker,
            pid=os.getpid(),
            model=model,
            state=state,
            since=datetime.now(UTC),
            detail=detail,
        )

    def is_ours(self, there: VideoPipelineSlot) -> bool:
        """Whether this process wrote *there*."""
        return (there.worker, there.pid) == (self._worker, os.getpid())

    async def watch(
        self, on_change: Callable[[Versioned[VideoPipelineSlot]], None], *, on_again: Callable[[], None]
    ) -> None:
        """Calls *on_change* with the entry now and whenever it changes, and *on_again* after the bucket went back.

        Returns once the entry is known.
        """

        def on_entry(entry: Versioned[VideoPipelineSlot]) -> None:
            if entry.key == self.slot:
                on_change(entry)

        watch = await self._bucket.watch(on_entry, on_again=on_again)
        await watch.wait()

    async def read(self) -> Versioned[VideoPipelineSlot] | None:
        """The entry, from the server itself; None where there never was one."""
        return await self._bucket.get(self.slot)

    async def write(self, shown: VideoPipelineSlot, *, revision: int) -> int:
        """Stores *shown* over *revision*. Returns the new revision. Raises WrongRevision."""
        return await self._bucket.update(self.slot, shown, revision=revision)

    async def remove(self, revision: int) -> None:
        """Removes the entry, if it is still at *revision*. Raises WrongRevision."""
        await self._bucket.delete(self.slot, revision=revision)
