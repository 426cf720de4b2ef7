"""What a slot held before anything was loaded: the measure of every release (design §7). Pure."""

from msgspec import Struct

from lane_worker.residence.release import own_figure
from ops.machine.readings import Reading


class Baseline(Struct, frozen=True):
    """The memory in use around the start of host *pid*; a figure that could not be read is None.

    *base_bytes*: when the host was there, warm and empty. *floor_bytes*: before the host was there. *own_base_bytes*:
    the host's own part of the base, where the driver distinguishes processes.
    """

    pid: int | None = None
    base_bytes: int | None = None
    floor_bytes: int | None = None
    own_base_bytes: int | None = None


def baseline_of(
    pid: int | None, *, floor: Reading | None, base: Reading | None, last: Baseline, is_proven: bool
) -> Baseline:
    """The baseline of the fresh host *pid*, by the readings before (*floor*) and after (*base*) its start.

    It may be above that of the *last* host only where the last release is proven: otherwise memory that was not given
    back would be taken for the slot's own. The floor is never above the base: before our host had the lock, the memory
    of the slot's last holder may still have been on its way out.
    """
    before, after = ({} if reading is None else reading.by_pid for reading in (floor, base))
    base_bytes = None if base is None else base.used_bytes
    floor_bytes = None if floor is None else floor.used_bytes
    if not is_proven:
        base_bytes = _lower(base_bytes, last.base_bytes)
        floor_bytes = _lower(floor_bytes, last.floor_bytes)
    return Baseline(pid, base_bytes, _lower(floor_bytes, base_bytes), own_figure(pid or 0, before, after))


def _lower(one: int | None, other: int | None) -> int | None:
    """The lower figure; where one is unknown, the other."""
    return min((each for each in (one, other) if each is not None), default=None)
