"""What the board concludes from heartbeats."""

from datetime import datetime

import msgspec
import pytest
from structlog.testing import capture_logs

from contracts.lanes import LaneState, LeavingFor
from gateway.boards.lane_board import LaneBoard
from ops.nats.bucket import Versioned
from ops.nats.buckets import HEARTBEATS, SWITCHES
from ops.nats.entry import Entry
from tests.kit.records import NOW, after, lane_report


def board_with(*entries: Entry) -> LaneBoard:
    board = LaneBoard(health_timeout_s=60, grace_s=10)
    for entry in entries:
        board.on_lane(Versioned(HEARTBEATS, entry))
    return board


def heartbeat(
    at: datetime,
    *,
    health_age_s: float = 0,
    state: LaneState = LaneState.WARM,
    worker: str = "a-0",
    leaving_for: LeavingFor | None = None,
) -> Entry:
    report = lane_report(worker, state, model="anisora", health_age_s=health_age_s, leaving_for=leaving_for)
    return Entry(f"anisora.{worker}", msgspec.json.encode(report), 1, at)


@pytest.mark.parametrize(
    ("heard_s", "health_age_s", "expected"),
    [
        pytest.param(60.0, 0, "lane", id="silent-for-exactly-60-s"),
        pytest.param(60.001, 0, "degraded: capacity", id="silent-for-longer"),
        pytest.param(2.5, 57.5, "lane", id="frozen-host-at-exactly-60-s"),
        pytest.param(2.5, 57.501, "degraded: capacity", id="frozen-host-for-longer"),
    ],
)
def test_the_60_s_rule_counts_from_the_servers_time_and_the_hosts_age(
    heard_s: float, health_age_s: float, expected: str
) -> None:
    """FR-021 b: the lane goes on reporting `warm` when its host hangs; only the age shows that."""
    board = board_with(heartbeat(after(-heard_s), health_age_s=health_age_s))
    assert str(board.outcome("anisora", NOW)) == expected
    assert board.route("anisora", NOW)[1].outcome == expected


@pytest.mark.parametrize(("heard_s", "expected"), [(60.0, "degraded: quota"), (60.001, "degraded: capacity")])
@pytest.mark.parametrize(("state", "leaving_for"), [(LaneState.QUOTA_DENIED, None), (LaneState.DRAINING, "quota")])
def test_a_denial_counts_as_long_as_somebody_repeats_it(
    state: LaneState, leaving_for: LeavingFor | None, heard_s: float, expected: str
) -> None:
    """FR-021 a: its supervisor reports it every few seconds; without a supervisor nobody knows."""
    board = board_with(heartbeat(after(-heard_s), state=state, leaving_for=leaving_for))
    assert str(board.outcome("anisora", NOW)) == expected
    assert board.route("anisora", NOW)[1].outcome == expected


def test_a_heartbeat_of_an_earlier_version_gets_the_later_fields() -> None:
    entry = heartbeat(NOW, state=LaneState.DRAINING)
    stored = msgspec.json.decode(entry.value or b"")
    del stored["leaving_for"], stored["in_hand"]
    board = board_with(Entry(entry.key, msgspec.json.encode(stored), 1, NOW))
    assert str(board.outcome("anisora", NOW)) == "degraded: capacity"


def test_a_lane_that_left_is_forgotten_and_others_stay() -> None:
    board = board_with(heartbeat(NOW), heartbeat(NOW, worker="a-1"), Entry("anisora.a-0", None, 2, NOW))
    assert [lane.heartbeat.worker for lane in board.lanes("anisora")] == ["a-1"]


def test_a_lane_that_the_server_dropped_by_age_is_forgotten() -> None:
    board = board_with(heartbeat(after(-600)), heartbeat(after(-601), health_age_s=5, worker="a-1"))
    board.drop_expired(NOW)
    assert [lane.heartbeat.worker for lane in board.lanes("anisora")] == ["a-0"]


def test_since_is_when_the_state_changed() -> None:
    board = board_with(
        heartbeat(NOW, state=LaneState.LOADING), heartbeat(after(5)), heartbeat(after(10)), heartbeat(after(15))
    )
    (lane,) = board.lanes("anisora")
    assert (lane.since, lane.report.healthy_at) == (after(5), after(15))


def test_a_lane_that_is_switched_off_is_not_asked() -> None:
    board = board_with(heartbeat(NOW))
    board.switches.on_entry(Versioned(SWITCHES, Entry("lanes.anisora", b"degraded", 1, NOW)))
    assert board.cause("anisora", NOW) == "manual"
    assert board.states("anisora", NOW) == ([LaneState.WARM], True)


def test_a_lane_that_is_busy_and_warm_again_is_no_news_for_an_operator() -> None:
    states = [LaneState.STARTING, LaneState.WARM, LaneState.BUSY, LaneState.WARM, LaneState.BUSY, LaneState.DRAINING]
    with capture_logs() as lines:
        board_with(*(heartbeat(NOW, state=state) for state in states))
    logged = [(line["state"], line["log_level"]) for line in lines if line["event"] == "lane_state"]
    assert [state for state, level in logged if level == "info"] == ["starting", "warm", "draining"]
    assert [state for state, level in logged if level == "debug"] == ["busy", "warm", "busy"]
