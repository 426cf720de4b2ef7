"""The verdicts of `make autoscaling`."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from msgspec.structs import replace

from tests.drills.autoscaling import demand_shown
from tests.drills.autoscaling_report import LanePod, Look, Seen, judge, last_state, markdown, merged

ROSE = datetime(2026, 11, 28, 1, 0, tzinfo=UTC)


def after(seconds: float) -> datetime:
    return ROSE + timedelta(seconds=seconds)


def look(at_s: float, lanes: int, *, ready: int | None = None, wanted: int | None = None) -> Look:
    return Look(
        at=after(at_s),
        wanted=lanes if wanted is None else wanted,
        demand_for_each=1.0,
        ready=lanes if ready is None else ready,
        staying=lanes,
    )


def status(**states: str) -> dict[str, Any]:
    lanes = [{"worker": worker, "state": state} for worker, state in states.items()]
    return {"what": "status", "lanes": lanes}


def ended(**changes: Any) -> dict[str, Any]:
    return {"what": "ended", "status": "done", "route": "lane", "attempt": 1, "code": None, "took_s": 9.0} | changes


ACCEPTED: dict[str, Any] = {"what": "accepted"}
RECORDS: dict[str, Any] = {"what": "records", "lost": [], "doubled": []}
SAID = [
    ACCEPTED,
    status(a="warm", b="busy"),
    status(a="busy", b="warm"),
    status(b="draining"),
    ended(),
    RECORDS,
    RECORDS,
]
WELL = Seen(
    rose_at=ROSE,
    fell_at=after(100),
    looks=[look(-10, 1), look(20, 2, ready=1), look(25, 2), look(25, 2), look(300, 1)],
    pods=[
        LanePod(name="a", made_at=after(-500), ready_at=after(-400)),
        LanePod(name="b", made_at=after(15), ready_at=after(25), told_to_go_at=after(170)),
    ],
    said=SAID,
    most=2,
)


def test_a_run_in_which_lanes_followed() -> None:
    found = judge(WELL)
    assert found.faults == []
    assert found.figures["lane 2"] == "made 15 s after the load rose, warm 10 s later"
    assert found.figures["`b` asked to leave"] == "70 s after the load fell, warm before"
    assert found.figures["busy when asked to leave"] == "0"
    page = markdown(WELL, found, about={"nodes": "1"})
    assert "| verdict | as it has to be |" in page
    assert page.count("\n| 25 | 1 | 2 | 2 | 2 |") == 1, "what did not change is not said again"


@pytest.mark.parametrize(
    ("seen", "fault"),
    [
        pytest.param(replace(WELL, most=3), "2 lanes were warm at most, instead of 3", id="1-too-few"),
        pytest.param(replace(WELL, looks=WELL.looks[:-1]), "in the end it was 2 lanes instead of 1", id="1-stay"),
        pytest.param(replace(WELL, said=SAID[:-1]), "a load had no last word", id="2-no-last-word"),
        pytest.param(replace(WELL, said=[*SAID, RECORDS | {"lost": ["x"]}]), "1 lost", id="2-lost"),
        pytest.param(replace(WELL, said=[*SAID, RECORDS | {"doubled": ["x"]}]), "1 doubled", id="2-doubled"),
        pytest.param(
            replace(WELL, said=[*SAID, ended(status="failed", code="queue_overloaded")]),
            "1 failed with queue_overloaded",
            id="2-failed",
        ),
        pytest.param(
            replace(WELL, said=[*SAID, ended(attempt=2)]),
            "1 tasks were begun twice: a run was interrupted",
            id="2-interrupted",
        ),
    ],
)
def test_what_has_to_be_found(seen: Seen, fault: str) -> None:
    assert judge(seen).faults == [fault]


def test_the_last_state_is_that_before_it_was_on_its_way_out() -> None:
    assert last_state("b", SAID) == "warm"
    assert last_state("c", SAID) == ""
    assert last_state("b", SAID[:2]) == "busy"


def test_what_the_api_says_of_pods_is_kept_after_they_are_gone() -> None:
    made = {"name": "a", "creationTimestamp": "2026-11-28T01:00:00Z"}
    ready = {"type": "Ready", "status": "True", "lastTransitionTime": "2026-11-28T01:00:07Z"}
    leaves = {"deletionTimestamp": "2026-11-28T01:33:00Z", "deletionGracePeriodSeconds": 1920}
    pods = merged({}, [{"metadata": made}])
    pods = merged(pods, [{"metadata": made, "status": {"conditions": [ready]}}])
    unready = ready | {"status": "False", "lastTransitionTime": "2026-11-28T01:01:01Z"}
    pods = merged(pods, [{"metadata": made | leaves, "status": {"conditions": [unready]}}])
    assert merged(pods, []) == {"a": LanePod(name="a", made_at=ROSE, ready_at=after(7), told_to_go_at=after(60))}


@pytest.mark.parametrize(("text", "expected"), [("1500m", 1.5), ("2", 2.0)])
def test_the_demand_that_the_autoscaler_was_told(text: str, expected: float) -> None:
    metric = {"type": "External", "external": {"current": {"averageValue": text}}}
    scaler = {"kind": "HorizontalPodAutoscaler", "status": {"currentMetrics": [metric]}}
    assert demand_shown([{"kind": "Pod"}, scaler]) == expected
    assert demand_shown([{"kind": "HorizontalPodAutoscaler", "status": {"currentMetrics": None}}]) is None
