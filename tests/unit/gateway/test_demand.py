"""How many tasks want a lane of a model, and how many lanes that makes."""

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from contracts.tasks import GenerationTask, TaskStatus
from gateway.boards.work_queues import WorkQueues
from gateway.gauges import Known, _Queues
from gateway.rules.demand import demand, wanted_lanes
from tests.kit.records import after, pending_task

PROCESSING = TaskStatus.PROCESSING
TASKS = st.lists(
    st.builds(
        lambda model, status, route, promised, deadline_s: replace(
            pending_task(), model=model, status=status, route=route, promised=promised, deadline_at=after(deadline_s)
        ),
        st.sampled_from(["anisora", "phr00t"]),
        st.sampled_from(list(TaskStatus)),
        st.sampled_from(["lane", "degraded"]),
        st.booleans(),
        st.integers(-60, 60),
    ),
    max_size=12,
)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"model": "phr00t"}, 0),
        ({"status": TaskStatus.DONE}, 0),
        ({"status": TaskStatus.FAILED}, 0),
        ({"status": PROCESSING}, 1),  # a busy lane is demand
        ({"status": PROCESSING, "route": "degraded"}, 0),
        ({}, 1),
        ({"deadline_at": after(-1)}, 1),
        ({"route": "degraded", "deadline_at": after(1)}, 1),  # held
        ({"route": "degraded", "deadline_at": after(1), "promised": True}, 1),
        ({"route": "degraded", "deadline_at": after(0)}, 0),
    ],
)
def test_what_wants_a_lane(changes: dict[str, Any], expected: int) -> None:
    assert demand("anisora", [replace(pending_task(), **changes)], now=after(0)) == expected


@given(TASKS, TASKS)
def test_demand_adds_up_and_never_falls_below_what_lanes_run(
    some: list[GenerationTask], others: list[GenerationTask]
) -> None:
    total = demand("anisora", some + others, now=after(0))
    assert total == demand("anisora", some, now=after(0)) + demand("anisora", others, now=after(0))
    assert total == demand("anisora", list(reversed(some + others)), now=after(0))
    busy = [task for task in some + others if (task.model, task.status, task.route) == ("anisora", PROCESSING, "lane")]
    assert total >= len(busy)


@given(TASKS, st.integers(0, 60))
def test_demand_only_falls_while_nothing_comes(tasks: list[GenerationTask], later_s: int) -> None:
    assert demand("anisora", tasks, now=after(later_s)) <= demand("anisora", tasks, now=after(0))


@given(st.integers(0, 500), st.integers(0, 500), st.integers(1, 20), st.integers(0, 5), st.integers(0, 20))
def test_wanted_lanes_grow_with_demand_between_their_bounds(
    tasks: int, more: int, per_lane: int, least: int, span: int
) -> None:
    bounds = {"least": least, "most": least + span}
    wanted = wanted_lanes(tasks, tasks_per_lane=per_lane, **bounds)
    assert least <= wanted <= least + span
    assert wanted <= wanted_lanes(tasks + more, tasks_per_lane=per_lane, **bounds)
    assert wanted == least + span or wanted * per_lane >= tasks


@pytest.mark.parametrize(("per_lane", "least", "most"), [(0, 1, 2), (-1, 1, 2), (float("nan"), 1, 2), (1, 3, 2)])
def test_bounds_that_cannot_be_kept_are_refused(per_lane: float, least: int, most: int) -> None:
    with pytest.raises(ValueError, match="tasks_per_lane"):
        wanted_lanes(1, tasks_per_lane=per_lane, least=least, most=most)


def test_every_gateway_reports_it_from_the_records_of_all() -> None:
    late = datetime.now(UTC) + timedelta(seconds=60)
    records = [
        pending_task("waits"),
        pending_task("busy", status=PROCESSING),
        pending_task("held", route="degraded", deadline_at=late),
        pending_task("held-too", route="degraded", deadline_at=late, model="phr00t"),
    ]
    queues = WorkQueues()  # of a gateway that holds none of them, or has just started
    for task in records:
        queues.take_in(task)
    catalog = SimpleNamespace(models={"anisora": None, "phr00t": None}, lane_queue_max_msgs=1)
    known = cast("Known", SimpleNamespace(work_queues=queues, catalog=catalog))
    assert list(_Queues(known).demand()) == [(3, ("anisora",)), (1, ("phr00t",))]
