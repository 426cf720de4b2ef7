"""Whether a batch finds places."""

import pytest

from contracts.topology import DEGRADED
from gateway.rules.room import has_room

LANE = "LANE_ANISORA"


@pytest.mark.parametrize(
    ("streams", "free", "expected"),
    [
        ([DEGRADED] * 3, {DEGRADED: 3}, True),
        ([DEGRADED] * 4, {DEGRADED: 3}, False),
        ([LANE] * 3, {LANE: 3, DEGRADED: 0}, True),
        ([LANE] * 4, {LANE: 3, DEGRADED: 1}, True),  # the fourth goes where a single task would
        ([LANE] * 4 + [DEGRADED], {LANE: 3, DEGRADED: 1}, False),
        ([], {DEGRADED: 0}, True),
        ([DEGRADED], {DEGRADED: -1}, False),
    ],
)
def test_each_request_needs_a_place(streams: list[str], free: dict[str, int], expected: bool) -> None:
    assert has_room(streams, free) is expected
