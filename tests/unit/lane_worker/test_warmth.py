"""When a lane gives up a warm pipeline, and what counts as another lane: pure."""

from datetime import timedelta
from typing import Final

import pytest

from contracts.lanes import LaneReport, LaneState
from contracts.memory import MemoryReading
from contracts.settings import Warmth
from lane_worker.runtime.warmth import Evict, Others, Recycle, Stay, Step, Wear, next_step, others_of, residue_bytes
from tests.kit.records import NOW

WARMTH: Final = Warmth(recycle_after_tasks=10, recycle_residue_bytes=500_000_000, evict_idle_s=60)
NEVER: Final = Warmth(recycle_after_tasks=0, recycle_residue_bytes=0, evict_idle_s=0)
FRESH: Final = Wear(9, 499_999_999)
BY_TASKS: Final = Recycle("10 tasks since the load")
BY_RESIDUE: Final = Recycle("tasks left 500 MB behind")


@pytest.mark.parametrize(
    ("wear", "others", "queue_is_empty", "expected"),
    [
        pytest.param(Wear(10, 0), Others.WARM, False, BY_TASKS, id="1-tasks"),
        pytest.param(Wear(0, 500_000_000), Others.WARM, False, BY_RESIDUE, id="1-residue"),
        pytest.param(Wear(10, 0), Others.NONE, True, BY_TASKS, id="2-nothing-waits"),
        pytest.param(Wear(10, 0), Others.NONE, False, Stay(), id="2-somebody-waits"),
        pytest.param(Wear(19, 999_999_999), Others.COMING, True, Stay(), id="2-another-lane-is-coming"),
        pytest.param(Wear(20, 0), Others.COMING, False, Recycle("20 tasks since the load"), id="3-tasks"),
        pytest.param(Wear(20, 0), Others.NONE, False, Recycle("20 tasks since the load"), id="3-alone"),
        pytest.param(Wear(1, 10**9), Others.NONE, False, Recycle("tasks left 1000 MB behind"), id="3-residue"),
        pytest.param(FRESH, Others.WARM, True, Stay(), id="5-not-yet"),
    ],
)
def test_recycle(wear: Wear, others: Others, queue_is_empty: bool, expected: Step) -> None:
    assert next_step(WARMTH, wear, idle_s=0, queue_is_empty=queue_is_empty, others=others) == expected


@pytest.mark.parametrize(("idle_s", "expected"), [(59.9, Stay()), (60.0, Evict()), (600.0, Evict())])
def test_evict(idle_s: float, expected: Step) -> None:
    assert next_step(WARMTH, FRESH, idle_s=idle_s, queue_is_empty=True, others=Others.NONE) == expected


def test_0_is_never() -> None:
    """As packaged for the eviction; for the others an operator's choice."""
    worn = Wear(10**9, 10**12)
    assert next_step(NEVER, worn, idle_s=10**9, queue_is_empty=True, others=Others.WARM) == Stay()


@pytest.mark.parametrize(
    ("clean", "now", "expected"),
    [
        pytest.param(None, MemoryReading(rss_bytes=9), 0, id="no-reading-before"),
        pytest.param(MemoryReading(rss_bytes=9), None, 0, id="the-host-is-gone"),
        pytest.param(MemoryReading(rss_bytes=9), MemoryReading(rss_bytes=4), 0, id="less"),
        pytest.param(MemoryReading(rss_bytes=9), MemoryReading(rss_bytes=11), 2, id="rss"),
        pytest.param(
            MemoryReading(rss_bytes=9, cuda_reserved_bytes=1),
            MemoryReading(rss_bytes=10, cuda_reserved_bytes=6),
            5,
            id="card",
        ),
        pytest.param(
            MemoryReading(rss_bytes=9), MemoryReading(rss_bytes=9, cuda_reserved_bytes=6), 0, id="card-unknown-before"
        ),
    ],
)
def test_residue(clean: MemoryReading | None, now: MemoryReading | None, expected: int) -> None:
    assert residue_bytes(clean, now) == expected


@pytest.mark.parametrize(
    ("states", "silent_s", "expected"),
    [
        pytest.param([], 0.0, Others.NONE, id="alone"),
        pytest.param([LaneState.BUSY], 0.0, Others.WARM, id="busy"),
        pytest.param([LaneState.LOADING, LaneState.WARM], 60.0, Others.WARM, id="one-of-two"),
        pytest.param([LaneState.WARM], 60.1, Others.NONE, id="silent-for-too-long"),
        pytest.param([LaneState.LOADING], 0.0, Others.COMING, id="loading"),
        pytest.param([LaneState.UNHEALTHY], 0.0, Others.COMING, id="unhealthy"),
        pytest.param(
            [LaneState.QUOTA_DENIED, LaneState.EVICTED, LaneState.DRAINING], 0.0, Others.NONE, id="not-coming"
        ),
    ],
)
def test_others(states: list[LaneState], silent_s: float, expected: Others) -> None:
    def report(worker: str, state: LaneState) -> LaneReport:
        return LaneReport(model="m", worker=worker, state=state, healthy_at=NOW - timedelta(seconds=silent_s))

    reports = [report("me", LaneState.WARM), *(report(f"other-{i}", state) for i, state in enumerate(states))]
    assert others_of(reports, "me", health_timeout_s=60, now=NOW) is expected
