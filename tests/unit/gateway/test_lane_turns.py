"""The places of tasks that wait for lanes, in the order in which lanes take them (ADR 0042)."""

import heapq
import random

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from contracts.api.tasks import QueuePlace
from contracts.order import Costs, Ledger, OnCard, Policy, Waiting, choose, started
from contracts.settings import Catalog
from contracts.tasks import Priority
from contracts.topology import LANE_LOOK_MAX
from gateway.boards.work_queues import WorkQueues
from gateway.placing.lane_turns import lane_forecast
from tests.kit.records import after
from tests.unit.gateway.test_estimate import Scene, claimed, served, waiting

INTERACTIVE, STANDARD, BACKGROUND = Priority
POLICY = Policy()


def tasks(priorities: list[Priority], callers: list[str]) -> list[Waiting]:
    return [
        Waiting(
            task_id=f"{number:04d}",
            model="a",
            queued_s=float(number),
            deadline_s=number + 30.0,
            priority=priority,
            caller=callers[number % len(callers)],
        )
        for number, priority in enumerate(priorities)
    ]


@given(
    st.lists(st.sampled_from(Priority), min_size=1, max_size=20),
    st.lists(st.sampled_from(("one", "two", "three")), min_size=1, max_size=4),
    st.lists(st.integers(0, 9).map(float), min_size=1, max_size=3),
    st.integers(1, 9).map(float),
)
def test_the_forecast_is_what_lanes_do_that_share_a_queue(
    priorities: list[Priority], callers: list[str], free_s: list[float], service_s: float
) -> None:
    """Each lane, when it is free, chooses by `choose` from all that waits then."""
    queue = tasks(priorities, callers)
    found = lane_forecast(queue, model="a", service_s=service_s, free_s=free_s, ledger=Ledger(), policy=POLICY)
    left, lanes, ledger = list(queue), sorted(free_s), Ledger()
    costs, loaded = Costs(run_s={"a": service_s}), OnCard("a", 0.0)
    order = []
    while left:
        now_s = heapq.heappop(lanes)
        there = [replace(task, deadline_s=1e9) for task in left]
        choice = choose(there, loaded=loaded, costs=costs, ledger=ledger, policy=POLICY, now_s=now_s)
        assert choice is not None
        order.append((choice.task.task_id, now_s))
        ledger = started(ledger, choice.task, there, loaded=loaded, costs=costs, now_s=now_s)
        left = [task for task in left if task.task_id != choice.task.task_id]
        heapq.heappush(lanes, now_s + service_s)
    assert [(task_id, each.start_s) for task_id, each in found.items()] == order
    assert [each.position for each in found.values()] == list(range(1, len(queue) + 1))


def test_who_stands_behind_what_a_lane_sees_comes_in_order_of_arrival() -> None:
    queue = tasks([BACKGROUND] * (LANE_LOOK_MAX + 1) + [INTERACTIVE], ["one"])
    found = lane_forecast(queue, model="a", service_s=1.0, free_s=[0.0], ledger=Ledger(), policy=POLICY)
    assert [each.position for each in found.values()] == list(range(1, LANE_LOOK_MAX + 3))
    assert list(found)[-1] == queue[-1].task_id


def test_a_higher_class_stands_before_the_rest_of_a_lanes_queue(catalog: Catalog) -> None:
    background = [replace(waiting(number, number, route="lane"), priority=BACKGROUND) for number in range(1, 4)]
    urgent = replace(waiting(5, 5, route="lane"), priority=INTERACTIVE)
    scene = Scene(catalog, served(0, 10, route="lane"), *background, urgent)
    now = after(6)
    assert scene.estimates.place(urgent, now) == QueuePlace(position=1, expected_wait_s=0.0)
    assert scene.estimates.place(background[0], now) == QueuePlace(position=2, expected_wait_s=10.0)
    assert scene.queues.ahead_of(background[2]) == 3
    # one that came just now is placed by its class, until the next forecast
    newer = replace(waiting(6, 6, route="lane"), priority=STANDARD)
    scene.queues.take_in(newer)
    assert scene.estimates.place(newer, now) == QueuePlace(position=2, expected_wait_s=10.0)
    assert scene.estimates.place(background[2], after(7)) == QueuePlace(position=5, expected_wait_s=40.0)


def test_whose_caller_had_more_of_the_lanes_stands_behind(catalog: Catalog) -> None:
    """Every claim of a task that waited is charged to its caller, as the lanes do it themselves."""
    first = replace(waiting(1, 1, route="lane"), caller="many")
    scene = Scene(catalog, served(0, 10, route="lane"), first)
    rest = [replace(waiting(number, number, route="lane"), caller="many") for number in (2, 3)]
    single = replace(waiting(4, 4, route="lane"), caller="single")
    for task in (*rest, single):
        scene.queues.take_in(task)
    scene.queues.take_in(claimed(first, 5))
    assert [scene.estimates.place(task, after(6)) for task in (single, *rest)] == [
        QueuePlace(position=1, expected_wait_s=9.0),
        QueuePlace(position=2, expected_wait_s=19.0),
        QueuePlace(position=3, expected_wait_s=29.0),
    ]


@given(st.randoms(use_true_random=False), st.integers(1, 40))
def test_a_queue_knows_whether_all_that_wait_are_alike(chance: random.Random, steps: int) -> None:
    queues = WorkQueues()
    known = {}
    for _ in range(steps):
        number = chance.randrange(6)
        task = replace(
            waiting(number, number, route="lane"),
            priority=chance.choice(tuple(Priority)),
            caller=chance.choice(("one", "two")),
        )
        if chance.random() < 0.4:
            task = claimed(task, 9)
        before = queues.moves
        queues.take_in(task)
        known[task.id] = task
        kinds = {(each.priority, each.caller) for each in known.values() if each.claimed_at is None}
        queue = queues.of("lane", "anisora")
        assert queue.is_uniform is (len(kinds) <= 1)
        assert queues.moves >= before
