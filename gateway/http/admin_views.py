"""What operators see: the structs of `contracts.api.admin`, filled in."""

from collections.abc import Collection, Iterable
from datetime import datetime
from typing import Final, Literal

from contracts.api.admin import (
    ColdStartsView,
    EstimateView,
    ExplainView,
    FallbacksView,
    HistoryView,
    KeyView,
    LaneView,
    LeaderView,
    MinuteView,
    ModelLanes,
    ModeView,
    OrderView,
    QueueView,
    RouteView,
    RunningView,
    SwapsView,
    SwapView,
    WaitingView,
)
from contracts.api.tasks import QueuePlace
from contracts.keys import ApiKey
from contracts.lanes import ColdStart, FallbackEpisode, Leadership
from contracts.order import groups, waiting_of, words
from contracts.settings import ModelEntry
from contracts.tasks import GenerationTask
from gateway.boards.cold_starts import TARGET_S, share_within
from gateway.boards.lane_board import Lane, LaneBoard
from gateway.boards.recent_work import MINUTE, RecentWork
from gateway.boards.switches import Mode
from gateway.rules.routing import OUTCOMES, RULES, Route, derive
from ops.nats.streams import Depth


def route_view(outcome: Route) -> RouteView:
    """*outcome* with the rule that leads to it."""
    return RouteView(outcome=str(outcome), rule=outcome.rule, reason=RULES[outcome.rule])


def model_lanes(entry: ModelEntry, board: LaneBoard, now: datetime) -> ModelLanes:
    """The lanes of one model."""
    mode = board.switches.mode(entry.name)
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
    """The worker that leads, if one does."""
    if leadership is None:
        return None
    return LeaderView(worker=leadership.worker, slot=leadership.slot, pid=leadership.pid, since=leadership.since)


def order_view(leadership: Leadership | None, waiting: Iterable[GenerationTask], now: datetime) -> OrderView | None:
    """How the leader orders the *waiting* tasks, if it has published that."""
    state = None if leadership is None else leadership.order
    if state is None:
        return None
    tally = state.tally
    busy_s = tally.running_s + tally.swapping_s
    return OrderView(
        name=state.order,
        swap_share=state.swap_share,
        slice_max_s=state.slice_max_s,
        turn_share=state.turn_share,
        loaded=state.loaded,
        tasks=tally.tasks,
        swaps=tally.swaps,
        swaps_per_task=round(tally.swaps / tally.tasks, 3) if tally.tasks else None,
        swap_time_share=round(tally.swapping_s / busy_s, 3) if busy_s else None,
        slice_ends=tally.slice_ends,
        waiting=groups([waiting_of(task) for task in waiting], now_s=now.timestamp()),
    )


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
    waiting: tuple[WaitingView, ...],
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
        waiting=waiting,
        running=running,
        estimates=estimates,
    )


def waiting_view(task: GenerationTask, place: QueuePlace, now: datetime) -> WaitingView:
    """One task that waits at *place*."""
    return WaitingView(
        id=task.id,
        model=task.model,
        priority=task.priority,
        caller=task.caller,
        position=place.position,
        age_s=max(0.0, round((now - task.queued_at).total_seconds(), 1)),
        left_s=max(0.0, round((task.deadline_at - now).total_seconds(), 1)),
        expected_wait_s=place.expected_wait_s,
    )


def history_view(recent: RecentWork, models: Collection[str], now: datetime) -> HistoryView:
    """The last hour of *models*."""
    return HistoryView(
        now=now,
        since=recent.since(now),
        bucket_s=MINUTE.total_seconds(),
        buckets=tuple(
            MinuteView(
                at=each.at,
                model=each.model,
                route=each.route,
                started=each.started,
                wait_sum_s=round(each.wait_sum_s, 3),
                wait_max_s=round(each.wait_max_s, 3),
                done=each.done,
                failed=each.failed,
                overloaded=each.overloaded,
            )
            for each in recent.minutes(models, now)
        ),
    )


def swaps_view(recent: RecentWork, models: Collection[str]) -> SwapsView:
    """The newest swaps to one of *models*."""
    return SwapsView(
        swaps=tuple(
            SwapView(task_id=each.task_id, model=each.model, worker=each.worker, at=each.at, swap=each.swap)
            for each in recent.swaps(models)
        )
    )


def key_view(key: ApiKey) -> KeyView:
    """What may be shown of *key*: neither its secret nor the hash of it that is stored."""
    return KeyView(
        id=key.id,
        caller=key.caller,
        scopes=key.scopes,
        created_at=key.created_at,
        revoked_at=key.revoked_at,
        rate_per_s=key.rate_per_s,
        burst_s=key.burst_s,
        highest_priority=key.highest_priority,
        max_waiting=key.max_waiting,
        max_running=key.max_running,
    )


def estimate_view(model: str, service_s: float | None, wait_s: float | None) -> EstimateView:
    """The measured service time of one model, and the wait that follows from it."""
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
    """Why *task* is where it is; *now* is where a new request for its model would go."""
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
        order=task.order,
        chosen=None if task.order is None else words(task.order.rules),
        displaced=task.displaced,
        displaced_by=task.displaced_by,
        swap=task.swap,
        trace_id=task.trace_id,
    )


_ROUTES: Final = tuple(route_view(outcome) for outcome in OUTCOMES)


def _stored_route(outcome: str) -> RouteView | None:
    return next((view for view in _ROUTES if view.outcome == outcome), None)


def _tenths(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 1)
