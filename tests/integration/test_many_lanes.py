"""A gateway with many lanes; `python -m tests.drills.many_lanes` measures it."""

from datetime import UTC, datetime
from pathlib import Path

from contracts.lanes import LaneState
from gateway.boards.lane_board import LaneBoard
from ops.nats.link import NatsLink
from tests.drills.many_lanes import board_of, measure
from tests.kit.gateway import report_lane


async def test_the_figures_can_be_measured(tmp_path: Path) -> None:
    cpu, decision = await measure(tmp_path, lanes=10, over_s=0.5, decisions=100)
    assert cpu >= 0
    assert decision > 0


async def test_a_decision_keeps_every_lane_and_one_ready_lane_is_enough(link: NatsLink) -> None:
    for number in range(100):
        state = LaneState.WARM if number == 99 else LaneState.UNHEALTHY
        await report_lane(link, "anisora", state, worker=f"anisora-{number}")
    board: LaneBoard = await board_of(link, 100)
    route, decision = board.route("anisora", datetime.now(UTC))
    assert (route, len(decision.lanes)) == ("lane", 100)
