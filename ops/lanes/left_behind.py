"""A new `warmlane up` clears away what dead processes left in KV `lanes` and `slots`.

Otherwise a dead lane's heartbeat would stay for ten minutes, and its slot would be shown for three. `warmlane up` knows
which processes are dead: every process that was connected to its server ran on this machine.
"""

from collections.abc import Callable

import structlog

from contracts.lanes import LaneHeartbeat, SlotState, VideoPipelineSlot
from ops.nats.bucket import Bucket
from ops.nats.buckets import HEARTBEATS, SHOWN_SLOTS
from ops.nats.errors import WrongRevision
from ops.nats.link import NatsLink

log = structlog.get_logger("left_behind")


def pid_in(word: LaneHeartbeat | VideoPipelineSlot | None) -> int | None:
    """The process that wrote *word*; None for an entry that stays in any case: a quarantine, or one that cannot be
    read. Pure."""
    if word is None or (isinstance(word, VideoPipelineSlot) and word.state is SlotState.QUARANTINED):
        return None
    return word.pid


async def forget_the_dead(link: NatsLink, *, is_alive: Callable[[int], bool]) -> int:
    """Removes the entries of processes that are not *is_alive*, and returns how many. Raises TransportUnavailable."""
    buckets: tuple[Bucket[LaneHeartbeat] | Bucket[VideoPipelineSlot], ...] = (
        Bucket(link, HEARTBEATS, reports=False),
        Bucket(link, SHOWN_SLOTS, reports=False),
    )
    removed = 0
    for bucket in buckets:
        for entry in await bucket.entries():
            pid = pid_in(entry.value)
            if pid is None or is_alive(pid):
                continue
            try:
                await bucket.delete(entry.key, revision=entry.revision)
            except WrongRevision:
                continue  # another process has written it since
            removed += 1
    if removed:
        log.info("forgotten", entries=removed)
    return removed
