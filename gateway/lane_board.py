"""Which lanes there are, held in memory by watching KV `lanes` and KV `control`."""

from datetime import datetime, timedelta
from typing import Final

import msgspec
import structlog

from contracts.lanes import LaneHeartbeat, LaneReport, LaneState
from contracts.tasks import RoutingDecision
from contracts.topology import CONTROL, LANES
from gateway.routing import READY_STATES, Route, decision_of, is_ready, route
from ops.nats_link import Entry, NatsLink

ALIVE_STATES: Final = READY_STATES | {LaneState.STARTING, LaneState.LOADING}

log = structlog.get_logger("lane_board")


class LaneBoard:
    """The lanes as this gateway knows them. `start` it before use."""

    def __init__(self, *, health_timeout_s: float) -> None:
        self._health_timeout_s = health_timeout_s
        self._lanes: dict[str, LaneReport] = {}
        self._modes: dict[str, str] = {}

    async def start(self, link: NatsLink) -> None:
        """Watches both buckets; returns once what is there now has been seen. Raises TransportUnavailable."""
        for synced in [await link.watch(LANES, self.on_lane), await link.watch(CONTROL, self.on_control)]:
            await synced.wait()

    def on_lane(self, entry: Entry) -> None:
        """A heartbeat arrived, or a lane left."""
        if entry.value is None:
            self._lanes.pop(entry.key, None)
            return
        try:
            heartbeat = msgspec.json.decode(entry.value, type=LaneHeartbeat)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            log.warning("unreadable_heartbeat", key=entry.key, error=str(error))
            return
        before = self._lanes.get(entry.key)
        self._lanes[entry.key] = LaneReport(
            model=heartbeat.model,
            worker=heartbeat.worker,
            state=heartbeat.state,
            healthy_at=entry.time - timedelta(seconds=heartbeat.health_age_s),
        )
        if before is None or before.state is not heartbeat.state:
            log.info("lane_state", model=heartbeat.model, worker=heartbeat.worker, state=heartbeat.state.value)

    def on_control(self, entry: Entry) -> None:
        """The operator's switch `lanes.<model>` changed. Anything but `auto` and `degraded` is ignored, and said."""
        prefix, _, model = entry.key.partition(".")
        mode = "auto" if entry.value is None else entry.value.decode(errors="replace").strip()
        if prefix != "lanes" or mode not in {"auto", "degraded"}:
            log.warning("control_ignored", key=entry.key, expected="lanes.<model> = auto or degraded")
            return
        self._modes[model] = mode

    def reports(self, model: str) -> list[LaneReport]:
        """What the lanes of *model* last said."""
        return [report for report in self._lanes.values() if report.model == model]

    def route(self, model: str, now: datetime) -> tuple[Route, RoutingDecision]:
        """Where a request for *model* goes at *now*, and the inputs of that decision."""
        reports = self.reports(model)
        forced = self._modes.get(model) == "degraded"
        outcome = route(reports, forced_degraded=forced, health_timeout_s=self._health_timeout_s, now=now)
        return outcome, decision_of(outcome, reports, forced_degraded=forced, now=now)

    def is_alive(self, model: str, now: datetime) -> bool:
        """Whether a lane of *model* was heard of lately and works, or is on its way to it."""
        return any(state in ALIVE_STATES for state in self.states(model, now)[0])

    def states(self, model: str, now: datetime) -> tuple[list[LaneState], bool]:
        """The states of *model*'s lanes that were heard of lately, and whether one of them is ready."""
        oldest = now - timedelta(seconds=self._health_timeout_s)
        recent = [report for report in self.reports(model) if report.healthy_at >= oldest]
        ready = any(is_ready(report, health_timeout_s=self._health_timeout_s, now=now) for report in recent)
        return [report.state for report in recent], ready
