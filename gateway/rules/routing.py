"""Where a request goes. Pure: no clock, no I/O, no logging."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final

from msgspec import Struct

from contracts.lanes import FallbackCause, LaneReport, LaneState
from contracts.tasks import LaneInput, RoutingDecision

READY_STATES: Final = frozenset({LaneState.WARM, LaneState.BUSY})

# The rules of `route`, in words for an operator.
RULES: Final[Mapping[int, str]] = {
    1: "the operator switched the model to degraded",
    2: "a lane is warm or busy, and was heard from in time",
    3: "no lane is ready, and the provider denied a lane for its quota, or made it leave for that reason",
    4: "no lane is ready, or the lanes had their turn and did not take it",
}
_RULE_OF: Final[Mapping[FallbackCause, int]] = {"manual": 1, "quota": 3, "capacity": 4}


class ToLane(Struct, frozen=True):
    """A dedicated warm lane takes it."""

    @property
    def rule(self) -> int:
        """The rule of `route` that fired."""
        return 2

    def __str__(self) -> str:
        return "lane"


class ToDegraded(Struct, frozen=True):
    """No lane of the model can take it, because of *cause*."""

    cause: FallbackCause

    @property
    def rule(self) -> int:
        """The rule of `route` that fired."""
        return _RULE_OF[self.cause]

    def __str__(self) -> str:
        return f"degraded: {self.cause}"


Route = ToLane | ToDegraded
OUTCOMES: Final[tuple[Route, ...]] = (ToLane(), ToDegraded("manual"), ToDegraded("quota"), ToDegraded("capacity"))


def route(
    reports: Sequence[LaneReport],
    *,
    forced_degraded: bool,
    health_timeout_s: float,
    now: datetime,
    lanes_passed: bool = False,
) -> Route:
    """FR-020, for the reports of one model. *now* is the moment as of which silence is judged (`judged_at`).

    *lanes_passed*: the lanes had their turn, and their queue was full, or none took the task in time (FR-021 c).

    1. The operator forced it: ToDegraded(manual).
    2. Some lane is warm or busy, and was healthy within *health_timeout_s* (FR-021 b): ToLane, unless *lanes_passed*.
    3. None is, and a lane reported within *health_timeout_s* that the provider denied it for its quota, or has it leave
       for that (FR-021 a): ToDegraded(quota).
    4. Otherwise: ToDegraded(capacity).
    """
    if forced_degraded:  # 1
        return ToDegraded("manual")
    ready = any(is_ready(report, health_timeout_s=health_timeout_s, now=now) for report in reports)
    if ready and not lanes_passed:  # 2
        return ToLane()
    if not ready and any(is_denied(report, health_timeout_s=health_timeout_s, now=now) for report in reports):  # 3
        return ToDegraded("quota")
    return ToDegraded("capacity")  # 4


def is_ready(report: LaneReport, *, health_timeout_s: float, now: datetime) -> bool:
    """Whether the lane of *report* takes requests: it is warm or busy, and was heard from within *health_timeout_s*."""
    return report.state in READY_STATES and _is_heard(report, health_timeout_s, now)


def is_denied(report: LaneReport, *, health_timeout_s: float, now: datetime) -> bool:
    """Whether the provider's quota keeps the lane of *report* away, as it reported within *health_timeout_s*."""
    says_so = report.state is LaneState.QUOTA_DENIED or report.leaving_for == "quota"
    return says_so and _is_heard(report, health_timeout_s, now)


def _is_heard(report: LaneReport, health_timeout_s: float, now: datetime) -> bool:
    return report.healthy_at >= now - timedelta(seconds=health_timeout_s)


def judged_at(now: datetime, *, cut_at: datetime | None, unbroken_s: float, grace_s: float) -> datetime:
    """The moment as of which the silence of lanes is judged (design §6).

    A gateway that was cut off at *cut_at* heard from no lane meanwhile. Until its connection has stood for *grace_s*
    again, lanes that were ready at the cut count as ready; what it hears of them since then counts as always.
    """
    return now if cut_at is None or unbroken_s >= grace_s else min(cut_at, now)


def input_of(report: LaneReport) -> LaneInput:
    """*report* as a decision keeps it."""
    return LaneInput(
        worker=report.worker,
        state=report.state.value,
        healthy_at=report.healthy_at,
        leaving_for=report.leaving_for,
    )


def decision_of(
    outcome: Route,
    lanes: Sequence[LaneInput],
    *,
    forced_degraded: bool,
    health_timeout_s: float,
    judged_at: datetime,
    now: datetime,
    lanes_passed: bool = False,
) -> RoutingDecision:
    """The inputs and the outcome as they are kept on the task (design §5)."""
    return RoutingDecision(
        at=now,
        forced_degraded=forced_degraded,
        lanes=tuple(lanes),
        outcome=str(outcome),
        lanes_passed=lanes_passed,
        health_timeout_s=health_timeout_s,
        judged_at=None if judged_at == now else judged_at,
    )


def derive(decision: RoutingDecision, *, lanes_passed: bool) -> Route:
    """`route` for the inputs that *decision* kept. With its own *lanes_passed* the outcome is the same again.

    Raises ValueError for a state that this version does not know.
    """
    return route(
        reports_of(decision),
        forced_degraded=decision.forced_degraded,
        health_timeout_s=decision.health_timeout_s,
        now=decision.judged_at or decision.at,
        lanes_passed=lanes_passed,
    )


def reports_of(decision: RoutingDecision) -> list[LaneReport]:
    """The lanes as *decision* saw them. Raises ValueError for a state that this version does not know."""
    return [
        LaneReport(
            model="",
            worker=lane.worker,
            state=LaneState(lane.state),
            healthy_at=lane.healthy_at,
            leaving_for=lane.leaving_for,
        )
        for lane in decision.lanes
    ]
