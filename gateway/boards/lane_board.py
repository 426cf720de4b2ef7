"""The known lanes, held in memory by watching KV `lanes`, and where routing sends a request accordingly."""

from datetime import datetime, timedelta
from typing import Literal

import structlog
from msgspec import Struct

from contracts.lanes import (
    FallbackCause,
    LaneHeartbeat,
    LaneReport,
    LaneState,
)
from contracts.tasks import LaneInput, RoutingDecision
from contracts.topology import LANES_TTL_S
from gateway.boards.switches import Switches
from gateway.rules.routing import Route, ToDegraded, ToLane, decision_of, input_of, is_ready, judged_at, route
from ops.nats.bucket import Bucket, Versioned
from ops.nats.buckets import HEARTBEATS
from ops.nats.link import NatsLink

TaskRoute = Literal["lane", "degraded"]

log = structlog.get_logger("lane_board")


class Lane(Struct, frozen=True):
    """The last report of a lane, and since when its state is the reported one, as far as this gateway heard.

    *kept* is the part that a decision stores. It is made once for each heartbeat, and not for each of a hundred lanes
    on each request.
    """

    report: LaneReport
    kept: LaneInput
    heartbeat: LaneHeartbeat
    since: datetime


class LaneBoard:
    """The lanes as this gateway knows them, with the operator's *switches*. `start` it before use."""

    def __init__(self, *, health_timeout_s: float, grace_s: float) -> None:
        self._health_timeout_s = health_timeout_s
        self._grace_s = grace_s
        self._link: NatsLink | None = None
        self._lanes: dict[str, dict[str, Lane]] = {}
        self.switches = Switches()

    async def start(self, link: NatsLink) -> None:
        """Watches its buckets; returns once what is there now has been seen. Raises TransportUnavailable."""
        self._link = link
        await (await Bucket(link, HEARTBEATS).watch(self.on_lane)).wait()
        await self.switches.start(link)

    def on_lane(self, entry: Versioned[LaneHeartbeat]) -> None:
        """A heartbeat arrived, or a lane left."""
        model = entry.key.partition(".")[0]
        lanes = self._lanes.setdefault(model, {})
        if entry.is_deleted:
            lanes.pop(entry.key, None)
            return
        heartbeat = entry.value
        if heartbeat is None:
            return  # it cannot be read: the lane's last report stands
        before = lanes.get(entry.key)
        is_new = before is None or before.report.state is not heartbeat.state
        report = LaneReport(
            model=model,
            worker=heartbeat.worker,
            state=heartbeat.state,
            healthy_at=entry.time - timedelta(seconds=heartbeat.health_age_s),
            leaving_for=heartbeat.leaving_for,
        )
        since = entry.time if before is None or is_new else before.since
        lanes[entry.key] = Lane(report, input_of(report), heartbeat, since)
        if is_new:
            is_flip = before is not None and before.report.state.readiness is heartbeat.state.readiness
            say = log.debug if is_flip else log.info  # every task takes a lane from warm to busy and back
            say("lane_state", model=model, worker=heartbeat.worker, state=heartbeat.state.value)

    def drop_expired(self, now: datetime) -> None:
        """Forgets lanes whose key the server has dropped by age; the server sends no message about that."""
        oldest = now - timedelta(seconds=LANES_TTL_S)
        for lanes in self._lanes.values():
            for key in [key for key, lane in lanes.items() if _heard_at(lane) < oldest]:
                del lanes[key]

    def lanes(self, model: str) -> list[Lane]:
        """The lanes of *model*, by name."""
        return [lane for _, lane in sorted(self._lanes.get(model, {}).items())]

    def judged_at(self, now: datetime) -> datetime:
        """The moment as of which the silence of lanes is judged: *now*, or, while this gateway recovers from a lost
        connection, the moment when it lost it."""
        if self._link is None:
            return now
        return judged_at(
            now,
            cut_at=self._link.connection.cut_at,
            unbroken_s=self._link.connection.unbroken_s(),
            grace_s=self._grace_s,
        )

    def reports(self, model: str) -> list[LaneReport]:
        """The last report of each lane of *model*."""
        return [lane.report for lane in self._lanes.get(model, {}).values()]

    def outcome(self, model: str, now: datetime) -> Route:
        """Where routing sends a request for *model* at *now*."""
        return route(
            self.reports(model),
            forced_degraded=self.switches.mode(model).mode == "degraded",
            health_timeout_s=self._health_timeout_s,
            now=self.judged_at(now),
        )

    def cause(self, model: str, now: datetime) -> FallbackCause | None:
        """Why a request for *model* would go to the degraded worker at *now*; None if it would go to a lane."""
        outcome = self.outcome(model, now)
        return outcome.cause if isinstance(outcome, ToDegraded) else None

    def route(self, model: str, now: datetime, *, lanes_passed: bool = False) -> tuple[TaskRoute, RoutingDecision]:
        """Where a request for *model* goes at *now*, and the inputs of that decision.

        *lanes_passed*: the lanes had their turn and did not take it.
        """
        reports = self.reports(model)
        forced = self.switches.mode(model).mode == "degraded"
        judged = self.judged_at(now)
        outcome = route(
            reports,
            forced_degraded=forced,
            health_timeout_s=self._health_timeout_s,
            now=judged,
            lanes_passed=lanes_passed,
        )
        decision = decision_of(
            outcome,
            [lane.kept for lane in self._lanes.get(model, {}).values()],
            forced_degraded=forced,
            health_timeout_s=self._health_timeout_s,
            judged_at=judged,
            now=now,
            lanes_passed=lanes_passed,
        )
        return "lane" if isinstance(outcome, ToLane) else "degraded", decision

    def is_silent(self, lane: Lane, now: datetime) -> bool:
        """Whether the last report of *lane* no longer counts: nothing was heard from it within the health timeout."""
        return lane.report.healthy_at < self.judged_at(now) - timedelta(seconds=self._health_timeout_s)

    def states(self, model: str, now: datetime) -> tuple[list[LaneState], bool]:
        """The states of *model*'s lanes that were heard from within the health timeout, and whether one of them is
        ready."""
        judged = self.judged_at(now)
        oldest = judged - timedelta(seconds=self._health_timeout_s)
        recent = [report for report in self.reports(model) if report.healthy_at >= oldest]
        ready = any(is_ready(report, health_timeout_s=self._health_timeout_s, now=judged) for report in recent)
        return [report.state for report in recent], ready

    def ready_count(self, model: str, now: datetime) -> int:
        """How many lanes of *model* take requests at *now*."""
        judged = self.judged_at(now)
        return sum(
            is_ready(report, health_timeout_s=self._health_timeout_s, now=judged) for report in self.reports(model)
        )

    def has_evicted(self, model: str) -> bool:
        """Whether a lane of *model* gave up its pipeline, and would load it on demand."""
        return any(lane.report.state is LaneState.EVICTED for lane in self._lanes.get(model, {}).values())


def _heard_at(lane: Lane) -> datetime:
    return lane.report.healthy_at + timedelta(seconds=lane.heartbeat.health_age_s)
