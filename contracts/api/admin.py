"""What operators see: lanes, queues, fallbacks, cold starts, and why a task went where it went.

Every key is always present; null means "not yet", "nobody" or "not measured".
"""

from datetime import datetime
from typing import Literal

from msgspec import Struct

from contracts.keys import Scope
from contracts.lanes import ColdStart, FallbackEpisode, LaneMode, LaneState, VideoPipelineSlot
from contracts.memory import SwapReceipt
from contracts.tasks import OrderDecision, Priority, RoutingDecision, TaskStatus, WaitingGroup


class IgnoredControl(Struct, frozen=True):
    """An entry of KV `control` that is not the switch of a lane, or whose value is not a mode."""

    key: str
    value: str
    at: datetime


class RouteView(Struct, frozen=True, kw_only=True):
    """A result of routing: *outcome* is `lane` or `degraded: CAUSE`, *rule* the number of the rule that fired."""

    outcome: str
    rule: int
    reason: str


class LaneView(Struct, frozen=True, kw_only=True):
    """One lane. *health_age_s* is how long ago its pipeline host was last known to answer; *since* is when it entered
    *state*, as far as this gateway knows; *warm_after_s* is how long its cold start took. *silent*: this gateway has
    not heard from it within the health timeout, so routing does not rely on *state*; after ten minutes the lane is
    forgotten."""

    worker: str
    slot: str
    state: LaneState
    detail: str
    health_age_s: float
    silent: bool
    since: datetime
    pid: int
    started_at: datetime
    warm_after_s: float | None


class ModelLanes(Struct, frozen=True, kw_only=True):
    """A model, and where its requests go. *mode* is the operator's switch, set at *mode_since*. *route* is where a
    request would go now; *ready*: it would go to a lane if the switch were `auto`. *wanted* is how many lanes the
    settings, or `--lanes` of this gateway, ask for."""

    model: str
    mode: LaneMode
    mode_since: datetime | None
    ready: bool
    route: RouteView
    wanted: int
    lanes: tuple[LaneView, ...]


class LanesView(Struct, frozen=True, kw_only=True):
    """*now* is this gateway's clock; *judged_at* is the moment as of which the silence of lanes is judged: earlier than
    *now* for a while after the gateway itself was cut off."""

    now: datetime
    judged_at: datetime
    models: tuple[ModelLanes, ...]
    slots: tuple[VideoPipelineSlot, ...]
    ignored_control: tuple[IgnoredControl, ...]


class ModeView(Struct, frozen=True, kw_only=True):
    """The operator's switch of a model: `auto` lets routing decide, `degraded` sends nothing new to its lanes."""

    model: str
    mode: LaneMode
    since: datetime | None


class LeaderView(Struct, frozen=True, kw_only=True):
    """The degraded worker that serves the queue."""

    worker: str
    slot: str
    pid: int
    since: datetime


class RunningView(Struct, frozen=True, kw_only=True):
    """A task that a worker holds; *left_s* is how long it will probably run on, by the measured service times."""

    id: str
    model: str
    worker: str | None
    step: int | None
    steps: int | None
    claimed_at: datetime | None
    left_s: float | None
    trace_id: str | None


class EstimateView(Struct, frozen=True, kw_only=True):
    """*service_s* is the median of the newest tasks of *model*; *wait_s* is how long a request that came now would
    wait."""

    model: str
    service_s: float | None
    wait_s: float | None


class WaitingView(Struct, frozen=True, kw_only=True):
    """A task that waits at *position* of its queue. It has waited for *age_s* so far; its wait ends in *left_s*.
    *expected_wait_s* follows from the measured service times; null before anything was measured."""

    id: str
    model: str
    priority: Priority
    caller: str
    position: int
    age_s: float
    left_s: float
    expected_wait_s: float | None


class QueueView(Struct, frozen=True, kw_only=True):
    """One work queue: *messages* of *max_msgs*, as nats-server counts them now. After *wait_limit_s* in a lane's queue
    a task goes on to the degraded queue; in the degraded queue it ends as `queue_overloaded`. *waiting* are the tasks
    in the queue that this gateway knows, the next one first: 100 at most."""

    stream: str
    route: Literal["lane", "degraded"]
    messages: int
    max_msgs: int
    wait_limit_s: float
    oldest_age_s: float | None
    waiting: tuple[WaitingView, ...]
    running: tuple[RunningView, ...]
    estimates: tuple[EstimateView, ...]


class OrderView(Struct, frozen=True, kw_only=True):
    """How the degraded worker orders its queue (ADR 0038), and how it has used its card since it began to lead.

    At most *swap_share* of the time goes into swaps while two models wait, unless a slice would be longer than
    *slice_max_s*; each waiting class gets *turn_share* at least. *swaps_per_task* and *swap_time_share* (0 to 1) are
    null before the first task. *slice_ends* counts the slices that ended, by what ended them. *waiting* counts the
    waiting tasks by class, the highest first, and by model.
    """

    name: str
    swap_share: float
    slice_max_s: float
    turn_share: float
    loaded: str | None
    tasks: int
    swaps: int
    swaps_per_task: float | None
    swap_time_share: float | None
    slice_ends: dict[str, int]
    waiting: tuple[WaitingGroup, ...]


class QueuesView(Struct, frozen=True, kw_only=True):
    """Every work queue, the worker that serves the degraded queue, and its order. *leader* is null while no worker
    serves that queue, *order* also until its worker has published one."""

    leader: LeaderView | None
    order: OrderView | None
    queues: tuple[QueueView, ...]


class FallbacksView(Struct, frozen=True, kw_only=True):
    """The running episodes, and those that ended, newest first: 64 of each model in all.

    About once a second, each gateway adds the requests that it sent to an episode's *served*."""

    current: tuple[FallbackEpisode, ...]
    past: tuple[FallbackEpisode, ...]


class SwapView(Struct, frozen=True, kw_only=True):
    """A load that the task *task_id*, which ended at *at*, needed on the degraded worker. Its parts are in *swap*."""

    task_id: str
    model: str
    worker: str | None
    at: datetime
    swap: SwapReceipt


class SwapsView(Struct, frozen=True, kw_only=True):
    """The newest swaps, newest first, 64 at most."""

    swaps: tuple[SwapView, ...]


class MinuteView(Struct, frozen=True, kw_only=True):
    """What became of tasks of *model* on *route* in the minute that began at *at*: how many a worker *started*, how
    long these had waited in all and at most, and how many ended as `done`, as `queue_overloaded`, or as failed for
    another reason.

    *overloaded* also counts requests that the degraded queue refused, of which there is no task: those that this
    gateway has refused since it started."""

    at: datetime
    model: str
    route: Literal["lane", "degraded"]
    started: int
    wait_sum_s: float
    wait_max_s: float
    done: int
    failed: int
    overloaded: int


class HistoryView(Struct, frozen=True, kw_only=True):
    """The last hour in *buckets* of *bucket_s* (a minute): one for each minute, model and route in which something
    happened, the oldest first. *since* is the beginning of the oldest minute that is shown; *now* is this gateway's
    clock."""

    now: datetime
    since: datetime
    bucket_s: float
    buckets: tuple[MinuteView, ...]


class KeyView(Struct, frozen=True, kw_only=True):
    """An API key without its secret. *revoked_at* is null while it is in force. A null bound means no bound."""

    id: str
    caller: str
    scopes: tuple[Scope, ...]
    created_at: datetime
    revoked_at: datetime | None
    rate_per_s: float | None
    burst_s: int
    highest_priority: Priority
    max_waiting: int | None
    max_running: int | None


class KeysView(Struct, frozen=True, kw_only=True):
    """Every key on record, the oldest first; revoked ones stay for 30 days. *is_open*: no key was ever made, and
    everybody on the gateway's machine may do everything. *unreadable* names entries that cannot be read; such a key
    lets nobody in."""

    is_open: bool
    keys: tuple[KeyView, ...]
    unreadable: tuple[str, ...]


class NewKeyView(Struct, frozen=True, kw_only=True):
    """A key that was just made, and the only copy of its *secret*: what goes into `Authorization: Bearer`."""

    key: KeyView
    secret: str


class ColdStartsView(Struct, frozen=True, kw_only=True):
    """The newest cold starts, newest first, 64 of each model. *share* (0 to 1) of them were warm within *target_s*
    (SC-006); null when there were none."""

    target_s: float
    share: float | None
    starts: tuple[ColdStart, ...]


class ExplainView(Struct, frozen=True, kw_only=True):
    """Why a task is on its route.

    *decision* is what was stored with it: the inputs of the newest routing decision, and its outcome. *fired* is the
    rule of that outcome; *derived* is the result of the rules for the stored inputs, worked out again; *agrees*: both
    are equal. These four are null for a task that was recorded without a decision. *now* is where a new request for the
    model would go. *order* is why a worker started the task when it did, and what else waited then; *chosen* is the
    same in words. Both are null for a task that no worker chose among others. *displaced* is the task whose place on
    the full degraded queue it took, *displaced_by* the task that took its own place; null if there is none. *swap* is
    what its model's load took, by part, and what proved the room for it; null if the model was resident. *trace_id*
    names its trace; null if tasks are not traced.
    """

    id: str
    model: str
    status: TaskStatus
    route: Literal["lane", "degraded"]
    decision: RoutingDecision | None
    fired: RouteView | None
    derived: RouteView | None
    agrees: bool | None
    now: RouteView
    order: OrderDecision | None
    chosen: str | None
    displaced: str | None
    displaced_by: str | None
    swap: SwapReceipt | None
    trace_id: str | None
