"""What the board concludes from the buckets that it watches."""

from datetime import datetime

import msgspec
import pytest
from structlog.testing import capture_logs

from contracts.lanes import LaneHeartbeat, LaneState, LeavingFor
from contracts.topology import LEADER_KEY
from gateway.boards.lane_board import LaneBoard
from ops.nats.bucket import Versioned
from ops.nats.buckets import HEARTBEATS, LEADERSHIPS
from ops.nats.watch import Entry
from tests.kit.records import NOW, after


def leader(at: datetime, value: bytes | None = b"{}", key: str = LEADER_KEY) -> Entry:
    return Entry(key, value, 1, at)


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        pytest.param([], False, id="never-heard-of"),
        pytest.param([leader(NOW)], True, id="serves"),
        pytest.param([leader(after(-3.5)), leader(NOW)], True, id="refreshed"),
        pytest.param([leader(NOW), leader(NOW, None)], False, id="expired"),
        pytest.param([leader(NOW), leader(NOW, None), leader(NOW)], True, id="a-standby-took-over"),
        pytest.param([leader(after(-6))], False, id="a-marker-that-was-missed"),
        pytest.param([leader(NOW, key="another")], False, id="another-key"),
    ],
)
def test_a_degraded_worker_is_alive_while_its_key_is_refreshed(entries: list[Entry], expected: bool) -> None:
    board = LaneBoard(health_timeout_s=60, grace_s=10)
    for entry in entries:
        board.on_leader(Versioned(LEADERSHIPS, entry))
    assert board.degraded_worker_alive(NOW) is expected


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
    said = LaneHeartbeat(
        model="anisora",
        worker=worker,
        state=state,
        health_age_s=health_age_s,
        slot="cpu-0",
        pid=1,
        started_at=NOW,
        leaving_for=leaving_for,
    )
    return Entry(f"anisora.{worker}", msgspec.json.encode(said), 1, at)


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
    """FR-021 b: the lane goes on reporting `warm` when its host hangs; only the age tells."""
    board = board_with(heartbeat(after(-heard_s), health_age_s=health_age_s))
    assert str(board.outcome("anisora", NOW)) == expected
    assert board.route("anisora", NOW)[1].outcome == expected


@pytest.mark.parametrize(("heard_s", "expected"), [(60.0, "degraded: quota"), (60.001, "degraded: capacity")])
@pytest.mark.parametrize(("state", "leaving_for"), [(LaneState.QUOTA_DENIED, None), (LaneState.DRAINING, "quota")])
def test_a_denial_counts_as_long_as_somebody_repeats_it(
    state: LaneState, leaving_for: LeavingFor | None, heard_s: float, expected: str
) -> None:
    """FR-021 a: its supervisor does so every few seconds; when that is gone, nobody knows."""
    board = board_with(heartbeat(after(-heard_s), state=state, leaving_for=leaving_for))
    assert str(board.outcome("anisora", NOW)) == expected
    assert board.route("anisora", NOW)[1].outcome == expected


def test_a_heartbeat_of_before_has_the_fields_that_came_later() -> None:
    entry = heartbeat(NOW, state=LaneState.DRAINING)
    told = msgspec.json.decode(entry.value or b"")
    del told["leaving_for"], told["in_hand"]
    board = board_with(Entry(entry.key, msgspec.json.encode(told), 1, NOW))
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


def control(value: bytes | None, revision: int, key: str = "lanes.anisora") -> Entry:
    return Entry(key, value, revision, after(revision))


@pytest.mark.parametrize(
    ("entries", "mode", "ignored"),
    [
        pytest.param([], "auto", [], id="never-set"),
        pytest.param([control(b"degraded", 1)], "degraded", [], id="degraded"),
        pytest.param([control(b"degraded\n", 1)], "degraded", [], id="with-a-newline"),
        pytest.param([control(b"degraded", 1), control(b"auto", 2)], "auto", [], id="and-back"),
        pytest.param([control(b"degraded", 1), control(None, 2)], "auto", [], id="deleted"),
        pytest.param([control(b"degraded", 1), control(b"auto", 1)], "degraded", [], id="a-revision-twice"),
        pytest.param([control(b"degraded", 1), control(b"Auto", 2)], "degraded", ["Auto"], id="the-last-usable-stays"),
        pytest.param([control(b"off", 1)], "auto", ["off"], id="unusable"),
        pytest.param([control(b"\xff" * 99, 1)], "auto", ["\ufffd" * 64], id="not-text"),
        pytest.param([control(b"off", 1), control(b"degraded", 2)], "degraded", [], id="mended"),
        pytest.param([control(b"degraded", 1, "lane.anisora")], "auto", ["degraded"], id="another-key"),
        pytest.param([control(b"x", 1, "y"), control(None, 2, "y")], "auto", [], id="another-key-is-gone"),
    ],
)
def test_the_operators_switch(entries: list[Entry], mode: str, ignored: list[str]) -> None:
    board = LaneBoard(health_timeout_s=60, grace_s=10)
    with capture_logs() as logged:
        for entry in entries:
            board.on_control(entry)
    assert board.mode("anisora").mode == mode
    assert [entry.value for entry in board.ignored_control(["anisora", "phr00t"])] == ignored
    if ignored:
        assert "control_ignored" in [line["event"] for line in logged]


def test_a_lane_that_is_switched_off_is_not_asked() -> None:
    board = board_with(heartbeat(NOW))
    board.on_control(control(b"degraded", 1))
    assert board.cause("anisora", NOW) == "manual"
    assert board.states("anisora", NOW) == ([LaneState.WARM], True)


def switch(model: str, value: bytes | None, revision: int) -> Entry:
    return Entry(f"lanes.{model}", value, revision, after(revision))


def test_a_switch_that_was_read_hides_no_older_one_of_another_model() -> None:
    """Both feeders: the answer to who set the one, and the watch, which comes to the other later."""
    board = LaneBoard(health_timeout_s=60, grace_s=10)
    board.on_control(switch("phr00t", b"auto", 9))
    for entry in (switch("anisora", b"degraded", 8), switch("phr00t", b"degraded", 7), switch("phr00t", b"auto", 9)):
        board.on_control(entry)
    assert (board.mode("anisora").mode, board.mode("phr00t").mode) == ("degraded", "auto")


def test_a_lane_that_is_busy_and_warm_again_is_no_news_for_an_operator() -> None:
    states = [LaneState.STARTING, LaneState.WARM, LaneState.BUSY, LaneState.WARM, LaneState.BUSY, LaneState.DRAINING]
    with capture_logs() as lines:
        board_with(*(heartbeat(NOW, state=state) for state in states))
    told = [(line["state"], line["log_level"]) for line in lines if line["event"] == "lane_state"]
    assert [state for state, level in told if level == "info"] == ["starting", "warm", "draining"]
    assert [state for state, level in told if level == "debug"] == ["busy", "warm", "busy"]
