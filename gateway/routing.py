"""Where a request goes. Pure: no clock, no I/O, no logging."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final, Literal

from msgspec import Struct

from contracts.lanes import LaneReport, LaneState
from contracts.tasks import LaneInput, RoutingDecision

FallbackCause = Literal["manual", "quota", "capacity"]
READY_STATES: Final = frozenset({LaneState.WARM, LaneState.BUSY})


class ToLane(Struct, frozen=True):
    """A dedicated warm lane takes it."""


class ToDegraded(Struct, frozen=True):
    """No lane of the model can take it, because of *cause*."""

    cause: FallbackCause


Route = ToLane | ToDegraded


def route(reports: Sequence[LaneReport], *, forced_degraded: bool, health_timeout_s: float, now: datetime) -> Route:
    """FR-020, for the reports of one model.

    1. The operator forced it: ToDegraded(manual).
    2. Some lane is warm or busy, and was healthy within *health_timeout_s* (FR-021 b): ToLane.
    3. The provider denied a lane (FR-021 a): ToDegraded(quota).
    4. Otherwise: ToDegraded(capacity).
    """
    if forced_degraded:  # 1
        return ToDegraded("manual")
    if any(is_ready(report, health_timeout_s=health_timeout_s, now=now) for report in reports):  # 2
        return ToLane()
    if any(report.state is LaneState.QUOTA_DENIED for report in reports):  # 3
        return ToDegraded("quota")
    return ToDegraded("capacity")  # 4


def is_ready(report: LaneReport, *, health_timeout_s: float, now: datetime) -> bool:
    """Whether the lane of *report* takes requests: warm or busy, and heard of within *health_timeout_s*."""
    return report.state in READY_STATES and report.healthy_at >= now - timedelta(seconds=health_timeout_s)


def decision_of(
    outcome: Route, reports: Sequence[LaneReport], *, forced_degraded: bool, now: datetime
) -> RoutingDecision:
    """The inputs and the outcome as they are kept on the task (design §5)."""
    return RoutingDecision(
        at=now,
        forced_degraded=forced_degraded,
        lanes=tuple(
            LaneInput(worker=report.worker, state=report.state.value, healthy_at=report.healthy_at)
            for report in reports
        ),
        outcome="lane" if isinstance(outcome, ToLane) else f"degraded: {outcome.cause}",
    )
