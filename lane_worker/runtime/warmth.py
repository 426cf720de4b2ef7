"""When a lane gives up its warm pipeline by itself (FR-019, design §6). Pure: no clock, no I/O, no logging."""

from collections.abc import Iterable
from datetime import datetime, timedelta
from enum import Enum, auto
from typing import Final

from msgspec import Struct

from contracts.lanes import LaneReport, LaneState
from contracts.memory import MemoryReading
from contracts.settings import Warmth

MB: Final = 1_000_000
READY: Final = frozenset({LaneState.WARM, LaneState.BUSY})
COMING: Final = frozenset({LaneState.STARTING, LaneState.LOADING, LaneState.UNHEALTHY})


class Others(Enum):
    """The other lanes of the model: one is WARM; or one may become it (COMING); or there is none to wait for."""

    NONE = auto()
    COMING = auto()
    WARM = auto()


class Wear(Struct, frozen=True):
    """What a pipeline has been through: the tasks since its load, and what they left in memory."""

    tasks: int
    residue_bytes: int


class Stay(Struct, frozen=True):
    """Keep it."""


class Recycle(Struct, frozen=True):
    """Load it anew in a fresh host, for *reason*."""

    reason: str


class Evict(Struct, frozen=True):
    """Unload it, until somebody asks for it."""


Step = Stay | Recycle | Evict


def next_step(warmth: Warmth, wear: Wear, *, idle_s: float, queue_is_empty: bool, others: Others) -> Step:
    """What an idle lane does with its warm pipeline. *others* matters only where `worn_out` gives a reason.

    1. It is worn out, and another lane is warm: Recycle.
    2. It is worn out, there is no other lane to wait for, and nothing waits in the queue: Recycle.
    3. It is worn out twice over: Recycle, at any moment.
    4. It has had no task for `evict_idle_s`: Evict.
    5. Otherwise: Stay. A task of the same model is never a reason to load (FR-019).
    """
    reason = worn_out(warmth, wear)
    if reason is not None:
        if others is Others.WARM:  # 1
            return Recycle(reason)
        if others is Others.NONE and queue_is_empty:  # 2
            return Recycle(reason)
        if worn_out(warmth, wear, times=2) is not None:  # 3
            return Recycle(reason)
    if 0 < warmth.evict_idle_s <= idle_s:  # 4
        return Evict()
    return Stay()  # 5


def worn_out(warmth: Warmth, wear: Wear, *, times: int = 1) -> str | None:
    """Why a pipeline is to be loaded anew: a limit of *warmth*, *times* over, is reached. None where none is."""
    if 0 < warmth.recycle_after_tasks * times <= wear.tasks:
        return f"{wear.tasks} tasks since the load"
    if 0 < warmth.recycle_residue_bytes * times <= wear.residue_bytes:
        return f"tasks left {wear.residue_bytes // MB} MB behind"
    return None


def residue_bytes(clean: MemoryReading | None, now: MemoryReading | None) -> int:
    """How much more is held *now* than when the pipeline was *clean*; the card's figure or the system's, the larger."""
    if clean is None or now is None:
        return 0
    card_bytes = 0
    if clean.cuda_reserved_bytes is not None and now.cuda_reserved_bytes is not None:
        card_bytes = now.cuda_reserved_bytes - clean.cuda_reserved_bytes
    return max(0, now.rss_bytes - clean.rss_bytes, card_bytes)


def others_of(reports: Iterable[LaneReport], worker: str, *, health_timeout_s: float, now: datetime) -> Others:
    """What *reports*, all of one model, say of the lanes but *worker*. A lane that is silent for too long is gone."""
    oldest = now - timedelta(seconds=health_timeout_s)
    states = {report.state for report in reports if report.worker != worker and report.healthy_at >= oldest}
    if states & READY:
        return Others.WARM
    return Others.COMING if states & COMING else Others.NONE
