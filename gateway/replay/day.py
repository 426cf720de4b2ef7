"""A recorded day, from the records of its tasks: the requests that came, how long each took, and what became of it.
Pure."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Final, Literal

from msgspec import Struct

from contracts.lanes import LaneReport, LaneState
from contracts.order import Costs
from contracts.tasks import FailureCode, GenerationTask, RoutingDecision, TaskStatus
from contracts.topology import DEGRADED_MAX_MSGS
from gateway.rules.routing import ToLane, derive, is_ready, reports_of, route
from ops.simulation import Arrival

End = Literal["served", "refused", "withdrawn"]
# A worker takes the next task, if one waits, within this time. After a longer pause it stood idle.
AT_ONCE_S: Final = 2.0


class Fate(Struct, frozen=True, kw_only=True):
    """What became of one request. *wait_s* is from its arrival to its start; None for one that was not served."""

    model: str
    caller: str
    end: End
    wait_s: float | None = None
    swapped: bool = False
    on_lane: bool = False


class DayMeasured(Struct, frozen=True, kw_only=True):
    """How long the day's runs and swaps took: the mean of each model, on the degraded worker and on lanes."""

    degraded: Costs
    lane_run_s: Mapping[str, float]


class RecordedDay(Struct, frozen=True, kw_only=True):
    """The requests of a day in order of arrival, and the *fates* that they met, one for each.

    *unended* counts tasks that have not ended yet, *unqueued* those that never waited; neither are among the requests.
    *lanes* is the most lanes of a model that routing saw ready at once. The waits are the longest that a queue allowed;
    None if no task waited there. *orders* are the orders by which the degraded worker served. *full_s* is how long its
    queue was full: requests that it refused then have no record.
    """

    begun_at: datetime
    ended_at: datetime
    tasks: Sequence[GenerationTask]
    fates: Sequence[Fate]
    measured: DayMeasured
    lanes: Mapping[str, int]
    lane_wait_s: float | None
    degraded_wait_s: float | None
    orders: Sequence[str]
    full_s: float
    unended: int
    unqueued: int


class NoTasks(Exception):
    """The records hold no task that has ended. The text says what to do."""


def recorded_day(records: Iterable[GenerationTask]) -> RecordedDay:
    """The day of *records*. Raises NoTasks where none of them was served, refused or withdrawn."""
    all_tasks = sorted(records, key=lambda task: (task.created_at, task.id))
    fates = [(task, _fate(task)) for task in all_tasks]
    known = [(task, fate) for task, fate in fates if fate is not None]
    if not known:
        raise NoTasks("no task in these records has ended; replay a day on which tasks were served or refused")
    tasks = [task for task, _ in known]
    unended = sum(not task.status.is_terminal for task in all_tasks)
    return RecordedDay(
        begun_at=tasks[0].created_at,
        ended_at=max(task.finished_at or task.created_at for task in tasks),
        tasks=tasks,
        fates=[fate for _, fate in known],
        measured=measured(tasks),
        lanes=_lanes_seen(tasks),
        lane_wait_s=_wait_of(tasks, "lane"),
        degraded_wait_s=_wait_of(tasks, "degraded"),
        orders=sorted({task.order.order for task in tasks if task.order is not None}),
        full_s=_full_s(tasks),
        unended=unended,
        unqueued=len(all_tasks) - len(known) - unended,
    )


def arrivals(day: RecordedDay, *, lanes: Mapping[str, int] | None) -> list[Arrival]:
    """The requests of *day*, each sent where `route` sends it: with the lanes that its own decision saw, or with as
    many warm ones as *lanes* gives. Each takes as long as it took then; a request that was not served takes the
    mean."""
    took_s = runs_s(day.tasks)
    return [
        Arrival(
            at_s=_seconds(task.created_at - day.begun_at),
            model=task.model,
            caller=task.caller,
            priority=task.priority,
            run_s=took_s.get(task.id),
            withdrawn_s=_withdrawn_s(task, fate, day.begun_at),
            to_lane=_is_for_lane(task, lanes),
        )
        for task, fate in zip(day.tasks, day.fates, strict=True)
    ]


def measured(tasks: Sequence[GenerationTask]) -> DayMeasured:
    """The mean times of *tasks*. A model that only lanes ran takes as long on the degraded worker, and the reverse."""
    took_s = runs_s(tasks)
    by_route: dict[str, dict[str, list[float]]] = {"lane": {}, "degraded": {}}
    swaps_s: dict[str, list[float]] = {}
    for task in tasks:
        if task.id in took_s:
            by_route[task.route].setdefault(task.model, []).append(took_s[task.id])
        if task.route == "degraded" and task.swap is not None:
            swaps_s.setdefault(task.model, []).append(swap_s(task))
    on_lane, on_degraded = _means(by_route["lane"]), _means(by_route["degraded"])
    return DayMeasured(
        degraded=Costs(run_s=on_lane | on_degraded, swap_s=_means(swaps_s)), lane_run_s=on_degraded | on_lane
    )


def swap_s(task: GenerationTask) -> float:
    """How long the swap before *task* took; 0 if there was none."""
    swap = task.swap
    return 0.0 if swap is None else swap.release_s + swap.verify_s + swap.load_s


def runs_s(tasks: Sequence[GenerationTask]) -> dict[str, float]:
    """By its id, how long each task that was served kept its worker, without the swap.

    If the next task waited already, that is until the worker took the next task: the time between the two is part of
    the work.
    """
    by_worker: dict[str, list[GenerationTask]] = {}
    for task in tasks:
        if task.claimed_at is not None and task.finished_at is not None and task.worker is not None:
            by_worker.setdefault(task.worker, []).append(task)
    found = {}
    for served in by_worker.values():
        served.sort(key=_claimed_at)
        for task in served:
            found[task.id] = _seconds(_finished_at(task) - _claimed_at(task))
        for task, following in pairwise(served):
            pause_s = _seconds(_claimed_at(following) - _finished_at(task))
            if following.queued_at <= _finished_at(task) and 0 <= pause_s <= AT_ONCE_S:
                found[task.id] = _seconds(_claimed_at(following) - _claimed_at(task))
    swaps_s = {task.id: swap_s(task) for task in tasks if task.route == "degraded"}
    return {task_id: max(0.0, took_s - swaps_s.get(task_id, 0.0)) for task_id, took_s in found.items()}


def _fate(task: GenerationTask) -> Fate | None:
    """None for a task that has not ended, or that never waited: its image could not be stored, for example."""
    if not task.status.is_terminal:
        return None
    if task.claimed_at is not None:
        return Fate(
            model=task.model,
            caller=task.caller,
            end="served",
            wait_s=_seconds(_first_claim(task) - task.created_at),
            swapped=task.route == "degraded" and task.swap is not None,
            on_lane=task.route == "lane",
        )
    if task.withdrawn or _has_failed(task, FailureCode.CANCELLED):
        return Fate(model=task.model, caller=task.caller, end="withdrawn")
    if _has_failed(task, FailureCode.QUEUE_OVERLOADED):
        return Fate(model=task.model, caller=task.caller, end="refused")
    return None


def _has_failed(task: GenerationTask, code: FailureCode) -> bool:
    return task.status is TaskStatus.FAILED and task.error is not None and task.error.code is code


def _first_claim(task: GenerationTask) -> datetime:
    claims = [entry.at for entry in task.timeline if entry.event == "claim"]
    return claims[0] if claims else _claimed_at(task)


def _withdrawn_s(task: GenerationTask, fate: Fate, begun_at: datetime) -> float:
    if fate.end != "withdrawn" or task.finished_at is None:
        return math.inf
    return _seconds(task.finished_at - begun_at)


def _is_for_lane(task: GenerationTask, lanes: Mapping[str, int] | None) -> bool:
    decision = _decision(task)
    if decision is None:
        return task.route == "lane" or any(entry.event == "reroute" for entry in task.timeline)
    if lanes is None:
        return isinstance(derive(decision, lanes_passed=False), ToLane)
    warm = [
        LaneReport(model=task.model, worker=f"{task.model}-{number}", state=LaneState.WARM, healthy_at=decision.at)
        for number in range(lanes.get(task.model, 0))
    ]
    outcome = route(
        warm,
        forced_degraded=decision.forced_degraded,
        health_timeout_s=decision.health_timeout_s,
        now=decision.at,
    )
    return isinstance(outcome, ToLane)


def _lanes_seen(tasks: Iterable[GenerationTask]) -> dict[str, int]:
    found: dict[str, int] = {}
    for task in tasks:
        decision = _decision(task)
        ready = 0 if decision is None else _ready(decision)
        found[task.model] = max(found.get(task.model, 0), ready, int(task.route == "lane"))
    return found


def _decision(task: GenerationTask) -> RoutingDecision | None:
    """The decision of *task*; None where it has none, or a later version took it, with lane states of its own."""
    try:
        if task.decision is not None:
            reports_of(task.decision)
    except ValueError:
        return None
    return task.decision


def _ready(decision: RoutingDecision) -> int:
    now = decision.judged_at or decision.at
    return sum(is_ready(report, health_timeout_s=decision.health_timeout_s, now=now) for report in reports_of(decision))


def _wait_of(tasks: Iterable[GenerationTask], route: Literal["lane", "degraded"]) -> float | None:
    return max((_seconds(task.deadline_at - task.queued_at) for task in tasks if task.route == route), default=None)


def _full_s(tasks: Iterable[GenerationTask]) -> float:
    """How long all places of the degraded queue were taken."""
    steps: list[tuple[datetime, int]] = []
    for task in tasks:
        left_at = task.claimed_at or task.finished_at
        if task.route == "degraded" and left_at is not None and left_at > task.queued_at:
            steps += [(task.queued_at, 1), (left_at, -1)]
    steps.sort()
    waiting, full = 0, timedelta()
    for (at, by), (following_at, _) in pairwise(steps):
        waiting += by
        if waiting >= DEGRADED_MAX_MSGS:
            full += following_at - at
    return _seconds(full)


def _means(seconds: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {model: statistics.fmean(each) for model, each in seconds.items()}


def _claimed_at(task: GenerationTask) -> datetime:
    assert task.claimed_at is not None
    return task.claimed_at


def _finished_at(task: GenerationTask) -> datetime:
    assert task.finished_at is not None
    return task.finished_at


def _seconds(span: timedelta) -> float:
    return span.total_seconds()
