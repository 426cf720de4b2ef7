"""What a lane worker says about itself, and what occupies a card."""

from datetime import datetime
from enum import StrEnum

from msgspec import Struct


class LaneState(StrEnum):
    """The states of a lane (design §6). Only `warm` and `busy` take requests."""

    STARTING = "starting"
    LOADING = "loading"
    WARM = "warm"
    BUSY = "busy"
    DRAINING = "draining"
    EVICTED = "evicted"
    UNHEALTHY = "unhealthy"
    QUOTA_DENIED = "quota_denied"
    CAPACITY_DENIED = "capacity_denied"
    CRASH_LOOPING = "crash_looping"


class LaneHeartbeat(Struct, frozen=True, kw_only=True):
    """The value at key `<model>.<worker>` of KV `lanes`, written every few seconds and at once on a change.

    *health_age_s* is how long ago the host child last answered; it stays frozen out of time when the child hangs,
    so the reader can apply the 60 s rule exactly.
    """

    model: str
    worker: str
    state: LaneState
    health_age_s: float
    slot: str
    pid: int
    started_at: datetime
    warm_after_s: float | None = None
    detail: str = ""


class LaneReport(Struct, frozen=True, kw_only=True):
    """A heartbeat as routing uses it: *healthy_at* is the server's time of the entry less its health age."""

    model: str
    worker: str
    state: LaneState
    healthy_at: datetime


class VideoPipelineSlot(Struct, frozen=True, kw_only=True):
    """What is resident on one card (KV `slots`, for display; the lock of design §7 is what guards it)."""

    slot: str
    worker: str
    pid: int
    model: str | None
    state: str
    since: datetime
