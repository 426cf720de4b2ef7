"""FR-020 and FR-021, rule by rule."""

import pytest

from contracts.lanes import LaneReport, LaneState
from gateway.routing import Route, ToDegraded, ToLane, decision_of, route
from tests.records import NOW, after


def lane(state: LaneState, *, silent_s: float = 0, worker: str = "anisora-0") -> LaneReport:
    return LaneReport(model="anisora", worker=worker, state=state, healthy_at=after(-silent_s))


@pytest.mark.parametrize(
    ("reports", "forced", "expected"),
    [
        pytest.param([lane(LaneState.WARM)], True, ToDegraded("manual"), id="1-forced"),
        pytest.param([lane(LaneState.WARM)], False, ToLane(), id="2-warm"),
        pytest.param([lane(LaneState.BUSY)], False, ToLane(), id="2-busy"),
        pytest.param([lane(LaneState.WARM, silent_s=60)], False, ToLane(), id="2-silent-60s"),
        pytest.param([lane(LaneState.WARM, silent_s=60.001)], False, ToDegraded("capacity"), id="4-silent-too-long"),
        pytest.param(
            [lane(LaneState.WARM, silent_s=61), lane(LaneState.WARM, worker="anisora-1")],
            False,
            ToLane(),
            id="2-one-of-two",
        ),
        pytest.param(
            [lane(LaneState.QUOTA_DENIED), lane(LaneState.WARM, worker="anisora-1")], False, ToLane(), id="2-before-3"
        ),
        pytest.param([lane(LaneState.QUOTA_DENIED)], False, ToDegraded("quota"), id="3-quota"),
        pytest.param([], False, ToDegraded("capacity"), id="4-no-lane"),
    ],
)
def test_route(reports: list[LaneReport], forced: bool, expected: Route) -> None:
    assert route(reports, forced_degraded=forced, health_timeout_s=60, now=NOW) == expected


@pytest.mark.parametrize("state", sorted(set(LaneState) - {LaneState.WARM, LaneState.BUSY, LaneState.QUOTA_DENIED}))
def test_only_warm_and_busy_lanes_take_requests(state: LaneState) -> None:
    assert route([lane(state)], forced_degraded=False, health_timeout_s=60, now=NOW) == ToDegraded("capacity")


def test_the_stored_decision_derives_the_same_answer() -> None:
    reports = [lane(LaneState.WARM, silent_s=61), lane(LaneState.QUOTA_DENIED, worker="anisora-1")]
    outcome = route(reports, forced_degraded=False, health_timeout_s=60, now=NOW)
    stored = decision_of(outcome, reports, forced_degraded=False, now=NOW)
    again = [
        LaneReport(model="anisora", worker=kept.worker, state=LaneState(kept.state), healthy_at=kept.healthy_at)
        for kept in stored.lanes
    ]
    assert route(again, forced_degraded=stored.forced_degraded, health_timeout_s=60, now=stored.at) == outcome
    assert stored.outcome == "degraded: quota"
