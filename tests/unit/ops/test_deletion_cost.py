"""What a lane's pod costs to delete, rule by rule."""

import pytest

from contracts.lanes import LaneState
from ops.lanes.kubernetes.deletion_cost import (
    ANNOTATION,
    BUSY,
    NOTHING,
    SETTLED_S,
    WARM,
    Occupation,
    cost_of,
    new_costs,
)
from ops.lanes.kubernetes.objects import LANE_LABEL, RELEASE_LABEL, Pod, pod

NOW_S = 1_000.0


@pytest.mark.parametrize(
    ("lane", "expected"),
    [
        pytest.param(Occupation(LaneState.BUSY), BUSY, id="1-runs"),
        pytest.param(Occupation(LaneState.WARM, NOW_S - SETTLED_S + 0.1), BUSY, id="1-between-two-tasks"),
        pytest.param(Occupation(LaneState.WARM, NOW_S - SETTLED_S), WARM, id="2-idle"),
        pytest.param(Occupation(LaneState.WARM), WARM, id="2-never-busy"),
        *(
            pytest.param(Occupation(state, NOW_S), NOTHING, id=f"3-{state}")
            for state in LaneState
            if state not in {LaneState.WARM, LaneState.BUSY}
        ),
        pytest.param(None, NOTHING, id="3-never-spoke"),
    ],
)
def test_cost(lane: Occupation | None, expected: int) -> None:
    assert cost_of(lane, now_s=NOW_S) == expected


def test_a_lane_was_busy_until_it_says_something_else() -> None:
    lane = Occupation(LaneState.WARM).then(LaneState.BUSY, now_s=1.0).then(LaneState.BUSY, now_s=100.0)
    lane = lane.then(LaneState.WARM, now_s=200.0).then(LaneState.WARM, now_s=205.0)
    assert lane == Occupation(LaneState.WARM, 200.0)


def a_pod(name: str, cost: int | None = None, *, entry: str = "anisora", leaves: bool = False) -> Pod:
    metadata: dict[str, object] = {"name": name, "labels": {RELEASE_LABEL: "w", LANE_LABEL: entry}}
    if cost is not None:
        metadata["annotations"] = {ANNOTATION: str(cost), "other": "x"}
    if leaves:
        metadata["deletionTimestamp"] = "2026-11-27T10:35:00Z"
    return pod({"metadata": metadata})


LANES = {name: Occupation(LaneState.WARM) for name in "abc"} | {"busy": Occupation(LaneState.BUSY)}


@pytest.mark.parametrize(
    ("pods", "expected"),
    [
        pytest.param([a_pod("a"), a_pod("busy"), a_pod("b")], {"busy": BUSY, "a": WARM, "b": WARM}, id="dearest-first"),
        pytest.param([a_pod("a")], {}, id="1-alone"),
        pytest.param([a_pod("a"), a_pod("b", entry="phr00t")], {}, id="1-another-deployment"),
        pytest.param([a_pod("a"), a_pod("busy", leaves=True)], {}, id="1-the-other-one-leaves"),
        pytest.param([a_pod("a", WARM), a_pod("busy", BUSY)], {}, id="2-said-already"),
        pytest.param([a_pod("a", BUSY), a_pod("b", WARM)], {"a": WARM}, id="2-idle-now"),
        pytest.param([a_pod("a", WARM), a_pod("new")], {}, id="2-costs-nothing"),
        pytest.param([a_pod("a", WARM), a_pod("new", WARM)], {"new": NOTHING}, id="2-costs-nothing-now"),
    ],
)
def test_new_costs(pods: list[Pod], expected: dict[str, int]) -> None:
    found = new_costs(pods, LANES, now_s=NOW_S)
    assert list(found.items()) == list(expected.items())
