"""FR-020 and FR-021, rule by rule."""

import msgspec
import pytest

from contracts.lanes import LaneReport, LaneState, LeavingFor
from contracts.tasks import RoutingDecision
from gateway.rules.routing import (
    OUTCOMES,
    RULES,
    Route,
    ToDegraded,
    ToLane,
    decision_of,
    derive,
    input_of,
    judged_at,
    route,
)
from tests.kit.records import NOW, after


def lane(
    state: LaneState, *, silent_s: float = 0, worker: str = "anisora-0", leaving_for: LeavingFor | None = None
) -> LaneReport:
    healthy_at = after(-silent_s)
    return LaneReport(model="anisora", worker=worker, state=state, healthy_at=healthy_at, leaving_for=leaving_for)


def leaving(*, silent_s: float = 0) -> LaneReport:
    return lane(LaneState.DRAINING, silent_s=silent_s, leaving_for="quota")


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
        pytest.param([lane(LaneState.QUOTA_DENIED, silent_s=60)], False, ToDegraded("quota"), id="3-said-60-s-ago"),
        pytest.param(
            [lane(LaneState.QUOTA_DENIED, silent_s=60.001)], False, ToDegraded("capacity"), id="4-a-denial-of-old"
        ),
        pytest.param([leaving()], False, ToDegraded("quota"), id="3-leaves-for-the-quota"),
        pytest.param([leaving(silent_s=60.001)], False, ToDegraded("capacity"), id="4-left-for-it-long-ago"),
        pytest.param([leaving(), lane(LaneState.WARM, worker="anisora-1")], False, ToLane(), id="2-another-one-leaves"),
        pytest.param([lane(LaneState.DRAINING)], False, ToDegraded("capacity"), id="4-leaves-for-no-denial"),
        pytest.param([], False, ToDegraded("capacity"), id="4-no-lane"),
    ],
)
def test_route(reports: list[LaneReport], forced: bool, expected: Route) -> None:
    assert route(reports, forced_degraded=forced, health_timeout_s=60, now=NOW) == expected


@pytest.mark.parametrize(
    ("reports", "forced", "expected"),
    [
        pytest.param([lane(LaneState.WARM)], False, ToDegraded("capacity"), id="2-they-had-their-turn"),
        pytest.param([lane(LaneState.WARM)], True, ToDegraded("manual"), id="1-comes-first"),
        pytest.param([lane(LaneState.QUOTA_DENIED)], False, ToDegraded("quota"), id="3-none-is-ready"),
    ],
)
def test_lanes_that_passed_on_a_task_do_not_get_it_again(
    reports: list[LaneReport], forced: bool, expected: Route
) -> None:
    """FR-021 c, and a lane's queue that is full: rule 4 of design §5."""
    assert route(reports, forced_degraded=forced, health_timeout_s=60, now=NOW, lanes_passed=True) == expected


@pytest.mark.parametrize("state", sorted(set(LaneState) - {LaneState.WARM, LaneState.BUSY, LaneState.QUOTA_DENIED}))
def test_only_warm_and_busy_lanes_take_requests(state: LaneState) -> None:
    assert route([lane(state)], forced_degraded=False, health_timeout_s=60, now=NOW) == ToDegraded("capacity")


@pytest.mark.parametrize(
    ("outcome", "rule", "text"),
    [
        (ToDegraded("manual"), 1, "degraded: manual"),
        (ToLane(), 2, "lane"),
        (ToDegraded("quota"), 3, "degraded: quota"),
        (ToDegraded("capacity"), 4, "degraded: capacity"),
    ],
)
def test_the_decision_names_the_rule_that_applied(outcome: Route, rule: int, text: str) -> None:
    assert (outcome.rule, str(outcome)) == (rule, text)


def test_every_outcome_has_a_rule_and_every_rule_a_reason() -> None:
    assert sorted(outcome.rule for outcome in OUTCOMES) == sorted(RULES)


@pytest.mark.parametrize(
    ("cut_s", "unbroken_s", "expected_s"),
    [
        pytest.param(None, 3600, 0, id="never-cut-off"),
        pytest.param(-30, 0, -30, id="still-cut-off"),
        pytest.param(-30, 9.999, -30, id="within-the-grace-period"),
        pytest.param(-30, 10, 0, id="after-it"),
        pytest.param(0.1, 0, 0, id="never-later-than-now"),
    ],
)
def test_silence_is_judged_as_of_the_cut_until_the_grace_period_is_over(
    cut_s: float | None, unbroken_s: float, expected_s: float
) -> None:
    cut_at = None if cut_s is None else after(cut_s)
    assert judged_at(NOW, cut_at=cut_at, unbroken_s=unbroken_s, grace_s=10) == after(expected_s)


@pytest.mark.parametrize(
    ("silent_before_cut_s", "expected"),
    [
        pytest.param(60.0, ToLane(), id="ready-when-the-connection-broke"),
        pytest.param(60.001, ToDegraded("capacity"), id="lost-before"),
    ],
)
def test_a_cut_does_not_make_lanes_silent(silent_before_cut_s: float, expected: Route) -> None:
    cut_at = after(-45)
    judged = judged_at(NOW, cut_at=cut_at, unbroken_s=9, grace_s=10)
    reports = [lane(LaneState.WARM, silent_s=45 + silent_before_cut_s)]
    assert route(reports, forced_degraded=False, health_timeout_s=60, now=judged) == expected


@pytest.mark.parametrize("judged_s", [0, -30])
@pytest.mark.parametrize("forced", [False, True])
@pytest.mark.parametrize(("silent_s", "lanes_passed"), [(61, False), (0, False), (0, True), (61, True), (90, False)])
@pytest.mark.parametrize(
    "other", [lane(LaneState.QUOTA_DENIED), lane(LaneState.QUOTA_DENIED, silent_s=90), leaving(), leaving(silent_s=90)]
)
def test_the_stored_decision_derives_the_same_answer(
    other: LaneReport, silent_s: float, lanes_passed: bool, forced: bool, judged_s: float
) -> None:
    reports = [lane(LaneState.WARM, silent_s=silent_s, worker="anisora-1"), other]
    judged = after(judged_s)
    outcome = route(reports, forced_degraded=forced, health_timeout_s=50, now=judged, lanes_passed=lanes_passed)
    decision = decision_of(
        outcome,
        [input_of(report) for report in reports],
        forced_degraded=forced,
        health_timeout_s=50,
        judged_at=judged,
        now=NOW,
        lanes_passed=lanes_passed,
    )
    stored = msgspec.json.decode(msgspec.json.encode(decision), type=RoutingDecision)
    assert derive(stored, lanes_passed=stored.lanes_passed) == outcome
    assert (stored.at, stored.outcome) == (NOW, str(outcome))
