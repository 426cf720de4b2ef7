"""What operators see: lanes, queues, fallbacks, cold starts, and why a task went where it went.

Every key is always present; null means "not yet", "nobody" or "not measured".
"""

from datetime import datetime
from typing import Final, Literal

from msgspec import Struct

from contracts.lanes import ColdStart, FallbackEpisode, LaneState, Leadership, VideoPipelineSlot
from contracts.settings import ModelEntry
from contracts.tasks import GenerationTask, RoutingDecision, SwapReceipt, TaskStatus
from gateway.boards.cold_starts import TARGET_S, share_within
from gateway.boards.lane_board import IgnoredControl, Lane, LaneBoard, LaneMode, Mode
from gateway.rules.routing import OUTCOMES, RULES, Route, derive
from ops.nats.link import Depth


class RouteView(Struct, frozen=True, kw_only=True):
    """An answer of routing: *outcome* is `lane` or `degraded: CAUSE`, *rule* the number of the rule that fired."""

    outcome: str
    rule: int
    reason: str


class LaneView(Struct, frozen=True, kw_only=True):
    """One lane. *health_age_s* is how long ago its pipeline host was last known to answer; *since* is when it entered
    *state*, as far as this gateway heard; *warm_after_s* is what its cold start took. *silent*: it was not heard of
    within the health timeout, so that nobody relies on *state*; in ten minutes it is forgotten."""

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
    """A model, and where its requests go. *mode* is the operator's switch, set at *mode_since*. *route* is what routing
    would say of a request now; *ready*: it would say `lane` if the switch were `auto`. *wanted* is how many lanes the
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
    """A task that a worker holds; *left_s* is what the measured service times say."""

    id: str
    model: str
    worker: str | None
    step: int | None
    steps: int | None
    claimed_at: datetime | None
    left_s: float | None
    trace_id: str | None


class EstimateView(Struct, frozen=True, kw_only=True):
    """*service_s* is the median of the newest tasks of *model*; *wait_s* is how long one that came now would wait."""

    model: str
    service_s: float | None
    wait_s: float | None


class QueueView(Struct, frozen=True, kw_only=True):
    """One work queue: *messages* of *max_msgs*, as the server counts them now. After *wait_limit_s* in it a task goes
    on to the degraded queue, or ends there as `queue_overloaded`."""

    stream: str
    route: Literal["lane", "degraded"]
    messages: int
    max_msgs: int
    wait_limit_s: float
    oldest_age_s: float | None
    running: tuple[RunningView, ...]
    estimates: tuple[EstimateView, ...]


class QueuesView(Struct, frozen=True, kw_only=True):
    """Every work queue, and who serves the degraded one; null: nobody."""

    leader: LeaderView | None
    queues: tuple[QueueView, ...]


class FallbacksView(Struct, frozen=True, kw_only=True):
    """The episodes that last, and those that ended, newest first: 64 of each model in all.

    Each gateway adds what it sent to an episode's *served* about once a second."""

    current: tuple[FallbackEpisode, ...]
    past: tuple[FallbackEpisode, ...]


class ColdStartsView(Struct, frozen=True, kw_only=True):
    """The newest cold starts, newest first, 64 of each model; *share* (0 to 1) of them were warm within *target_s*
    (SC-006), null when there were none."""

    target_s: float
    share: float | None
    starts: tuple[ColdStart, ...]


class ExplainView(Struct, frozen=True, kw_only=True):
    """Why a task is on its route.

    *decision* is what was stored with it: the inputs of the newest routing decision, and its outcome. *fired* is the
    rule of that outcome; *derived* is what the rules say of the stored inputs, worked out again; *agrees*: both are
    equal. *now* is what routing would say of a new request for the model. The first three are null for a task that
    was recorded without a decision. *swap* says what its model's load took, by part, and what proved the room for it;
    null where the model was resident. *trace_id* names its trace, null where tasks are not traced.
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
    swap: SwapReceipt | None
    trace_id: str | None


def route_view(outcome: Route) -> RouteView:
    """*outcome* with the rule that leads to it."""
    return RouteView(outcome=str(outcome), rule=outcome.rule, reason=RULES[outcome.rule])


def model_lanes(entry: ModelEntry, board: LaneBoard, now: datetime) -> ModelLanes:
    """The lanes of one model."""
    mode = board.mode(entry.name)
    return ModelLanes(
        model=entry.name,
        mode=mode.mode,
        mode_since=mode.since,
        ready=board.states(entry.name, now)[1],
        route=route_view(board.outcome(entry.name, now)),
        wanted=entry.lanes,
        lanes=tuple(lane_view(lane, now, is_silent=board.is_silent(lane, now)) for lane in board.lanes(entry.name)),
    )


def lane_view(lane: Lane, now: datetime, *, is_silent: bool) -> LaneView:
    """One lane at *now*."""
    said = lane.heartbeat
    return LaneView(
        worker=said.worker,
        slot=said.slot,
        state=said.state,
        detail=said.detail,
        health_age_s=round((now - lane.report.healthy_at).total_seconds(), 3),
        silent=is_silent,
        since=lane.since,
        pid=said.pid,
        started_at=said.started_at,
        warm_after_s=said.warm_after_s,
    )


def mode_view(model: str, mode: Mode) -> ModeView:
    """The switch of *model*."""
    return ModeView(model=model, mode=mode.mode, since=mode.since)


def leader_view(leadership: Leadership | None) -> LeaderView | None:
    """Who leads, if somebody does."""
    if leadership is None:
        return None
    return LeaderView(worker=leadership.worker, slot=leadership.slot, pid=leadership.pid, since=leadership.since)


def running_view(task: GenerationTask, left_s: float | None) -> RunningView:
    """One task that runs."""
    progress = task.progress
    return RunningView(
        id=task.id,
        model=task.model,
        worker=task.worker,
        step=None if progress is None else progress.step,
        steps=None if progress is None else progress.steps,
        claimed_at=task.claimed_at,
        left_s=_tenths(left_s),
        trace_id=task.trace_id,
    )


def queue_view(
    stream: str,
    route: Literal["lane", "degraded"],
    depth: Depth,
    *,
    wait_limit_s: float,
    running: tuple[RunningView, ...],
    estimates: tuple[EstimateView, ...],
    now: datetime,
) -> QueueView:
    """One queue at *now*."""
    age_s = None if depth.oldest_at is None else max(0.0, (now - depth.oldest_at).total_seconds())
    return QueueView(
        stream=stream,
        route=route,
        messages=depth.messages,
        max_msgs=depth.max_msgs,
        wait_limit_s=wait_limit_s,
        oldest_age_s=_tenths(age_s),
        running=running,
        estimates=estimates,
    )


def estimate_view(model: str, service_s: float | None, wait_s: float | None) -> EstimateView:
    """What was measured of one model."""
    return EstimateView(model=model, service_s=_tenths(service_s), wait_s=_tenths(wait_s))


def cold_starts_view(starts: list[ColdStart]) -> ColdStartsView:
    """*starts* with SC-006's share of them."""
    return ColdStartsView(
        target_s=TARGET_S,
        share=share_within(starts, TARGET_S),
        starts=tuple(starts),
    )


def fallbacks_view(episodes: list[FallbackEpisode]) -> FallbacksView:
    """*episodes* in any order."""
    newest_first = sorted(episodes, key=lambda episode: episode.since, reverse=True)
    return FallbacksView(
        current=tuple(episode for episode in newest_first if episode.until is None),
        past=tuple(episode for episode in newest_first if episode.until is not None),
    )


def explain_view(task: GenerationTask, now: Route) -> ExplainView:
    """Why *task* is where it is; *now* is what routing says of a new request for its model."""
    decision = task.decision
    derived = None if decision is None else derive(decision, lanes_passed=decision.lanes_passed)
    return ExplainView(
        id=task.id,
        model=task.model,
        status=task.status,
        route=task.route,
        decision=decision,
        fired=None if decision is None else _stored_route(decision.outcome),
        derived=None if derived is None else route_view(derived),
        agrees=None if decision is None or derived is None else decision.outcome == str(derived),
        now=route_view(now),
        swap=task.swap,
        trace_id=task.trace_id,
    )


_ROUTES: Final = tuple(route_view(outcome) for outcome in OUTCOMES)


def _stored_route(outcome: str) -> RouteView | None:
    return next((view for view in _ROUTES if view.outcome == outcome), None)


def _tenths(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 1)
