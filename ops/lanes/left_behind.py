"""What processes that are gone left in KV `lanes` and `slots`, which a new `warmlane up` clears away.

By themselves a lane's word goes after ten minutes, and a slot is not shown after three. Here more is known: all that
was connected to the server of `warmlane up` ran on this machine.
"""

from collections.abc import Callable

import structlog

from contracts.lanes import SlotState, decode_heartbeat, decode_slot
from contracts.topology import LANES, SLOTS
from contracts.wire import Unreadable
from ops.nats.link import Entry, NatsLink, WrongRevision

log = structlog.get_logger("left_behind")


def pid_in(bucket: str, value: bytes) -> int | None:
    """The process whose word *value* of *bucket* is; None where that stays whoever wrote it: a quarantine, or what
    cannot be read. Pure."""
    try:
        if bucket == LANES:
            return decode_heartbeat(value).pid
        slot = decode_slot(value)
    except Unreadable:
        return None
    return None if slot.state is SlotState.QUARANTINED else slot.pid


async def forget_the_dead(link: NatsLink, *, is_alive: Callable[[int], bool]) -> int:
    """Removes what processes said that are not *is_alive*; how many entries. Raises TransportUnavailable."""
    removed = 0
    for bucket in (LANES, SLOTS):
        found: list[Entry] = []
        await (await link.watch(bucket, found.append)).wait()
        for entry in found:
            pid = None if entry.value is None else pid_in(bucket, entry.value)
            if pid is None or is_alive(pid):
                continue
            try:
                await link.delete(bucket, entry.key, revision=entry.revision)
            except WrongRevision:
                continue  # somebody has spoken
            removed += 1
    if removed:
        log.info("forgotten", entries=removed)
    return removed
