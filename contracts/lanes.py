"""What a lane worker reports about itself, and what occupies a card."""

from datetime import datetime, timedelta
from enum import StrEnum
from typing import Annotated, Final, Literal, get_args

from msgspec import Meta, Struct

from contracts.nesting import Decoder
from contracts.order import OrderState
from contracts.topology import SLOTS_SHOWN_S
from contracts.wire import Moment, decode


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

    @property
    def readiness(self) -> "LaneState":
        """The state as an operator sees it: a busy lane counts as warm."""
        return LaneState.WARM if self is LaneState.BUSY else self


# Why a lane drains, if the provider denied it. None for any other reason, such as the end of the deployment.
LeavingFor = Literal["quota"]


class InHand(Struct, frozen=True, kw_only=True):
    """A claimed task, and the *owner* under which its record knows the process that holds it."""

    task_id: str
    owner: str


class LaneHeartbeat(Struct, frozen=True, kw_only=True):
    """The value at key `<model>.<worker>` of KV `lanes`, written every few seconds and at once on a change.

    *health_age_s* is how long ago the host child last answered. It grows while the child hangs, so the reader can
    apply the 60 s rule exactly. *in_hand* is the task that a busy lane runs.
    """

    model: str
    worker: str
    state: LaneState
    health_age_s: Annotated[float, Meta(ge=-1e9, le=1e9)]
    slot: str
    pid: int
    started_at: Moment
    warm_after_s: float | None = None
    detail: str = ""
    leaving_for: LeavingFor | None = None
    in_hand: InHand | None = None


class LaneReport(Struct, frozen=True, kw_only=True):
    """A heartbeat as routing uses it: *healthy_at* is the server's time of the entry less its health age."""

    model: str
    worker: str
    state: LaneState
    healthy_at: Moment
    leaving_for: LeavingFor | None = None


LaneMode = Literal["auto", "degraded"]
MODES: Final[tuple[LaneMode, ...]] = get_args(LaneMode)


class LaneSwitch(Struct, frozen=True):
    """The value at key `lanes.<model>` of KV `control`, as an operator typed it: *text*, without blanks around it."""

    text: str

    @property
    def mode(self) -> LaneMode | None:
        """The mode that it names; None for any other text, which is ignored."""
        return next((mode for mode in MODES if mode == self.text), None)


FallbackCause = Literal["manual", "quota", "capacity"]


class FallbackEpisode(Struct, frozen=True, kw_only=True):
    """A span in which requests for *model* went to the degraded worker (KV `fallbacks`).

    The newest one is the value at the model's name; those before are the history of the key `<model>.past`.

    *until* is None while it lasts. *served* counts the requests that were sent there meanwhile, by all gateways;
    *served_by* splits it by gateway process, so that each can see whether its own last count was stored.
    """

    model: str
    cause: FallbackCause
    since: Moment
    until: Moment | None = None
    served: int = 0
    served_by: dict[str, int] = {}


class ColdStart(Struct, frozen=True, kw_only=True):
    """A lane that became warm: the value at *model* in KV `cold_starts`, one revision for each start (SC-006).

    *seconds* is from the start of its process to `warm`; None for a lane that gave up first, for the reason in
    *detail*. The lane writes the entry. If the lane's process ended first, its supervisor writes it. A lane that was
    killed and has no supervisor leaves no entry.
    """

    model: str
    worker: str
    started_at: Moment
    ended_at: Moment
    seconds: float | None
    detail: str = ""


class SlotState(StrEnum):
    """What a slot is doing. While it is `quarantined`, nothing is loaded on it until an operator lifts the
    quarantine."""

    EMPTY = "empty"
    LOADING = "loading"
    RESIDENT = "resident"
    RELEASING = "releasing"
    QUARANTINED = "quarantined"


class VideoPipelineSlot(Struct, frozen=True, kw_only=True):
    """What is resident on one card: the value at the slot's name in KV `slots` (the spec's entity of this name).

    It is for display, except that no worker loads on a slot that reads `quarantined`. The lock of design §7 is what
    keeps two pipelines off a card. The slot's worker writes the entry again every minute, and removes it when it exits;
    a worker that was killed leaves it behind (`is_shown`).
    """

    slot: str
    worker: str
    pid: int
    model: str | None
    state: SlotState
    since: Moment
    detail: str = ""


def is_shown(slot: VideoPipelineSlot, *, written_at: datetime, now: datetime) -> bool:
    """Whether *slot*, which was last written at *written_at*, still shows what is there *now*. Pure.

    1. Only a lift ends a quarantine, whatever became of its worker.
    2. Its worker writes it again within SLOTS_SHOWN_S; otherwise the worker is gone.
    """
    if slot.state is SlotState.QUARANTINED:  # 1
        return True
    return now - written_at <= timedelta(seconds=SLOTS_SHOWN_S)  # 2


class Leadership(Struct, frozen=True, kw_only=True):
    """The value at a key of KV `leader`: who serves the degraded queue (`degraded`), or delivers webhooks (`webhooks`).
    It expires when not refreshed.

    *slot* is empty for a gateway, which has none. *order* is the state of its order at the last refresh; None for a
    leader that has published none. *serves*: it holds what it needs to serve, such as the lock of its slot. A previous
    leader that is stopped and cannot be killed may still hold that lock.
    """

    worker: str
    owner: str
    slot: str
    pid: int
    since: Moment
    order: OrderState | None = None
    serves: bool = True


_HEARTBEATS: Final = Decoder(LaneHeartbeat)
_EPISODES: Final = Decoder(FallbackEpisode)
_COLD_STARTS: Final = Decoder(ColdStart)
_SLOTS: Final = Decoder(VideoPipelineSlot)
_LEADERSHIPS: Final = Decoder(Leadership)


def decode_heartbeat(data: bytes) -> LaneHeartbeat:
    """The heartbeat in *data*. Raises Unreadable."""
    return decode(data, _HEARTBEATS)


def decode_episode(data: bytes) -> FallbackEpisode:
    """The fallback episode in *data*. Raises Unreadable."""
    return decode(data, _EPISODES)


def decode_cold_start(data: bytes) -> ColdStart:
    """The cold start in *data*. Raises Unreadable."""
    return decode(data, _COLD_STARTS)


def decode_slot(data: bytes) -> VideoPipelineSlot:
    """The slot in *data*. Raises Unreadable."""
    return decode(data, _SLOTS)


def decode_switch(data: bytes) -> LaneSwitch:
    """The switch in *data*, which people type. Any text is a switch, and bytes that are not UTF-8 are replaced."""
    return LaneSwitch(data.decode(errors="replace").strip())


def encode_switch(switch: LaneSwitch) -> bytes:
    """*switch* as it is stored."""
    return switch.text.encode()


def decode_leadership(data: bytes) -> Leadership:
    """The leadership in *data*. Raises Unreadable."""
    return decode(data, _LEADERSHIPS)
