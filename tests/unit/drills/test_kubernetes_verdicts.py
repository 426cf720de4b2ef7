"""The verdicts of a drill on Kubernetes."""

from typing import Any

import pytest

from tests.drills.kubernetes_report import Drill, Outcome, faults_of, longest_pause_s, markdown, outcome_of, shown_in

DRILL = Drill(name="lane deleted", what="A lane is deleted.", cause="anisora starting")
LANE = {"model": "anisora", "worker": "a", "state": "warm", "detail": "", "route": "lane"}
STARTING: dict[str, Any] = {"what": "status", "leader": "d-0", "lanes": [LANE | {"state": "starting"}]}
RECORDS: dict[str, Any] = {"what": "records", "lost": [], "doubled": []}


def ended(status: str = "done", *, route: str = "lane", attempt: int = 1, code: str | None = None) -> dict[str, Any]:
    return {"what": "ended", "status": status, "route": route, "attempt": attempt, "code": code, "took_s": 2.0}


ACCEPTED: dict[str, Any] = {"what": "accepted"}
WELL = [ACCEPTED, STARTING, ended(route="degraded", attempt=2), RECORDS]


def test_a_drill_in_which_nothing_was_lost_and_the_cause_was_shown() -> None:
    found = outcome_of(DRILL, WELL, seconds={"warm again after": 4.0})
    assert (found.accepted, found.done, found.by_degraded, found.second_attempts) == (1, 1, 1, 1)
    assert faults_of(found) == []
    assert "| lane deleted | 1 | 1 | 1 | 1 | 0 | 0 | 2.0 s | warm again after 4.0 s | as it has to be |" in markdown(
        [found], about={"nodes": "1"}
    )


@pytest.mark.parametrize(
    ("said", "fault"),
    [
        pytest.param([ACCEPTED, STARTING], "1 lost", id="1-no-last-word"),
        pytest.param([*WELL[:-1], RECORDS | {"lost": ["x"]}], "1 lost", id="1-lost"),
        pytest.param([*WELL[:-1], RECORDS | {"doubled": ["x"]}], "1 doubled", id="1-doubled"),
        pytest.param([STARTING, RECORDS], "nothing was accepted", id="1-nothing"),
        pytest.param([*WELL, {"what": "given_up"}], "1 requests were not accepted", id="2-given-up"),
        pytest.param(
            [*WELL, ended("failed", code="queue_overloaded")], "1 failed with queue_overloaded", id="2-failed"
        ),
        pytest.param([ACCEPTED, ended(), RECORDS], "status did not show 'anisora starting', but []", id="3-no-cause"),
    ],
)
def test_what_has_to_be_found(said: list[dict[str, Any]], fault: str) -> None:
    assert faults_of(outcome_of(DRILL, said, seconds={})) == [fault]


def test_what_was_not_done_is_no_fault_and_says_why() -> None:
    skipped = Outcome(drill=DRILL, skipped="no network plugin")
    assert faults_of(skipped) == []
    assert "not done: no network plugin" in markdown([skipped], about={})
    assert faults_of(outcome_of(DRILL, WELL, seconds={}, broke="not within 60 s")) == ["not within 60 s"]


def test_what_was_shown_is_said_once() -> None:
    gone = {"what": "status", "leader": "d-0", "lanes": [LANE | {"worker": "", "state": "", "route": "degraded"}]}
    well = {"what": "status", "leader": "d-1", "lanes": [LANE]}
    assert shown_in([STARTING, STARTING, gone, well]) == [
        "anisora starting",
        "leader d-0",
        "anisora has no lane",
        "leader d-1",
    ]


def test_the_longest_pause_is_between_two_accepted() -> None:
    said = [ACCEPTED | {"at_s": at_s} for at_s in (1.0, 2.0, 6.5, 7.0)]
    assert longest_pause_s([*said, RECORDS]) == 4.5
    assert longest_pause_s([]) == 0.0
