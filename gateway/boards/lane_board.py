"""Which workers there are, and what the operator wants, held in memory by watching KV `lanes`, `control`, `leader` and
`slots`."""

from collections.abc import Container
from datetime import datetime, timedelta
from typing import Final, Literal

import structlog
from msgspec import Struct

from contracts.api.admin import IgnoredControl, LaneMode
from contracts.lanes import (
    FallbackCause,
    LaneHeartbeat,
    LaneReport,
    LaneState,
    Leadership,
    VideoPipelineSlot,
    is_shown,
)
from contracts.tasks import LaneInput, RoutingDecision
from contracts.topology import CONTROL, LANES_TTL_S, LEADER_KEY, LEADER_TTL_S, control_key
from gateway.rules.routing import Route, ToDegraded, ToLane, decision_of, input_of, is_ready, judged_at, route
from ops.nats.bucket import Bucket, Versioned
from ops.nats.buckets import HEARTBEATS, LEADERSHIPS, SHOWN_SLOTS
from ops.nats.link import NatsLink
from ops.nats.watch import Entry

TaskRoute = Literal["lane", "degraded"]
MODES: Final[tuple[LaneMode, ...]] = ("auto", "degraded")
SHOWN_CHARS: Final = 64

log = structlog.get_logger("lane_board")


class Lane(Struct, frozen=True):
    """What a lane last said, and since when it says so, as far as this gateway heard.

    *kept* is what a decision keeps of it: made once for each heartbeat, and not for each of a hundred lanes on each
    request.
    """

    report: LaneReport
    kept: LaneInput
    heartbeat: LaneHeartbeat
    since: datetime


class Mode(Struct, frozen=True):
    """The operator's switch of a model, and when it was set; None if it never was."""

    mode: LaneMode = "auto"
    since: datetime | None = None


class LaneBoard:
    """The lanes as this gateway knows them. `start` it before use."""

    def __init__(self, *, health_timeout_s: float, grace_s: float) -> None:
        self._health_timeout_s = health_timeout_s
        self._grace_s = grace_s
        self._link: NatsLink | None = None
        self._lanes: dict[str, dict[str, Lane]] = {}
        self._modes: dict[str, Mode] = {}
        self._control_revisions: dict[str, int] = {}
        self._ignored: dict[str, IgnoredControl] = {}
        self._leadership: Leadership | None = None
        self._leader_seen_at: datetime | None = None
        self._slots: dict[str, tuple[VideoPipelineSlot, datetime]] = {}

    async def start(self, link: NatsLink) -> None:
        """Watches its buckets; returns once what is there now has been seen. Raises TransportUnavailable."""
        self._link = link
        await (await Bucket(link, HEARTBEATS).watch(self.on_lane)).wait()
        await (await Bucket(link, LEADERSHIPS).watch(self.on_leader)).wait()
        await (await Bucket(link, SHOWN_SLOTS).watch(self.on_slot)).wait()
        # the newest value may be one that is ignored: the last usable one before it stands
        control = await link.watches.start(
            CONTROL, self.on_control, history=True, on_again=self._control_revisions.clear
        )
        await control.wait()

    def on_lane(self, entry: Versioned[LaneHeartbeat]) -> None:
        """A heartbeat arrived, or a lane left."""
        model = entry.key.partition(".")[0]
        lanes = self._lanes.setdefault(model, {})
        if entry.is_deleted:
            lanes.pop(entry.key, None)
            return
        heartbeat = entry.value
        if heartbeat is None:
            return  # it cannot be read: what the lane said before stands
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
            say = log.debug if is_flip else log.info  # between busy and warm it goes with every task
            say("lane_state", model=model, worker=heartbeat.worker, state=heartbeat.state.value)

    def on_control(self, entry: Entry) -> None:
        """The operator's switch `lanes.<model>` changed. Anything but `auto` and `degraded` is ignored, and said."""
        known = self._control_revisions.get(entry.key)
        if known is not None and entry.revision <= known:
            return  # of this key, whose switch may have come from the server's answer before the watch told
        self._control_revisions[entry.key] = entry.revision
        prefix, _, model = entry.key.partition(".")
        value = "auto" if entry.value is None else entry.value.decode(errors="replace").strip()
        mode = next((mode for mode in MODES if mode == value), None)
        if prefix == "lanes" and mode is not None:
            self._modes[model] = Mode(mode, entry.time)
            self._ignored.pop(entry.key, None)
            log.info("lane_mode", model=model, mode=mode)
        elif entry.value is None:
            self._ignored.pop(entry.key, None)
        else:
            self._ignored[entry.key] = IgnoredControl(entry.key, value[:SHOWN_CHARS], entry.time)
            log.warning("control_ignored", key=entry.key, expected="lanes.<model> = auto or degraded")

    def on_leader(self, entry: Versioned[Leadership]) -> None:
        """The leader of the degraded queue took, kept or lost its place."""
        if entry.key != LEADER_KEY:
            return
        self._leader_seen_at = None if entry.is_deleted else entry.time
        self._leadership = entry.value

    def on_slot(self, entry: Versioned[VideoPipelineSlot]) -> None:
        """Something else is resident on a slot, or the slot is gone."""
        slot = entry.value
        if slot is None:
            self._slots.pop(entry.key, None)
        else:
            self._slots[entry.key] = slot, entry.time

    def drop_expired(self, now: datetime) -> None:
        """Forgets lanes whose key the server has dropped by age; expiry sends no message that would tell."""
        oldest = now - timedelta(seconds=LANES_TTL_S)
        for lanes in self._lanes.values():
            for key in [key for key, lane in lanes.items() if _heard_at(lane) < oldest]:
                del lanes[key]

    def degraded_worker_alive(self, now: datetime) -> bool:
        """Whether a worker serves the degraded queue."""
        # a marker tells when the key expires; the age is for one that came and went while the watch was cut off
        return self._leader_seen_at is not None and now - self._leader_seen_at < timedelta(seconds=2 * LEADER_TTL_S)

    def leader(self, now: datetime) -> Leadership | None:
        """Who serves the degraded queue; None if nobody does."""
        return self._leadership if self.degraded_worker_alive(now) else None

    def slots(self, now: datetime) -> list[VideoPipelineSlot]:
        """What is resident on which slot, by name; of a worker that is gone only a quarantine is."""
        judged = self.judged_at(now)
        return [slot for _, (slot, at) in sorted(self._slots.items()) if is_shown(slot, told_at=at, now=judged)]

    def lanes(self, model: str) -> list[Lane]:
        """The lanes of *model*, by name."""
        return [lane for _, lane in sorted(self._lanes.get(model, {}).items())]

    def mode(self, model: str) -> Mode:
        """The operator's switch of *model*."""
        return self._modes.get(model, Mode())

    def mode_revision(self, model: str) -> int:
        """The revision of the switch of *model*, of what is ignored too; 0 where it was never set."""
        return self._control_revisions.get(control_key(model), 0)

    def ignored_control(self, models: Container[str]) -> list[IgnoredControl]:
        """What stands in KV `control` and is ignored, by key; a switch of what is none of *models* too."""
        nobodys = [
            IgnoredControl(control_key(model), mode.mode, mode.since)
            for model, mode in self._modes.items()
            if mode.mode != "auto" and mode.since is not None and model not in models
        ]
        return sorted([*self._ignored.values(), *nobodys], key=lambda ignored: ignored.key)

    def judged_at(self, now: datetime) -> datetime:
        """The moment as of which the silence of lanes is judged: *now*, or the cut from which this gateway recovers."""
        if self._link is None:
            return now
        return judged_at(
            now,
            cut_at=self._link.connection.cut_at,
            unbroken_s=self._link.connection.unbroken_s(),
            grace_s=self._grace_s,
        )

    def reports(self, model: str) -> list[LaneReport]:
        """What the lanes of *model* last said."""
        return [lane.report for lane in self._lanes.get(model, {}).values()]

    def outcome(self, model: str, now: datetime) -> Route:
        """What routing says of a request for *model* at *now*."""
        return route(
            self.reports(model),
            forced_degraded=self.mode(model).mode == "degraded",
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
        forced = self.mode(model).mode == "degraded"
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
        """Whether nobody relies on what *lane* said last: it was not heard of within the health timeout."""
        return lane.report.healthy_at < self.judged_at(now) - timedelta(seconds=self._health_timeout_s)

    def states(self, model: str, now: datetime) -> tuple[list[LaneState], bool]:
        """The states of *model*'s lanes that were heard of lately, and whether one of them is ready."""
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
        """Whether a lane of *model* gave its pipeline up and would load it on demand."""
        return any(lane.report.state is LaneState.EVICTED for lane in self._lanes.get(model, {}).values())


def _heard_at(lane: Lane) -> datetime:
    return lane.report.healthy_at + timedelta(seconds=lane.heartbeat.health_age_s)
