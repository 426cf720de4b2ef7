"""Positions, expected waits and Retry-After, from service times that were measured."""

import heapq
import random
from datetime import datetime
from typing import Any, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from contracts import lifecycle
from contracts.api.tasks import QueuePlace
from contracts.lanes import LaneState, Leadership
from contracts.order import OrderState
from contracts.settings import Catalog
from contracts.tasks import FailureCode, GenerationTask, ImageReference, Priority, TaskStatus, encode_task
from contracts.topology import DEGRADED_MAX_MSGS
from gateway.boards.lane_board import LaneBoard
from gateway.boards.task_board import TaskBoard
from gateway.boards.task_index import paths_of
from gateway.boards.work_queues import SAMPLES_MAX, WorkQueues
from gateway.placing.estimate import Estimates, lane_wait_s
from gateway.placing.turns import retry_after_s
from ops.nats.bucket import Versioned
from ops.nats.buckets import HEARTBEATS, RECORDS
from ops.nats.entry import Entry
from tests.kit import samples
from tests.kit.records import DECISION, NOW, after, lane_report, pending_task

seconds = st.floats(0, 100)


@pytest.mark.parametrize(
    ("ahead", "remaining_s", "lanes", "expected_s"),
    [
        pytest.param(0, [], 1, 0, id="idle"),
        pytest.param(0, [4], 1, 4, id="next"),
        pytest.param(3, [4], 1, 34, id="behind-three"),
        pytest.param(0, [4], 2, 0, id="another-lane-is-idle"),
        pytest.param(3, [4, 7], 2, 17, id="two-lanes"),
        pytest.param(4, [7, 4], 2, 24, id="two-lanes-one-more"),
        pytest.param(1, [4], 0, 14, id="what-runs-proves-a-lane"),
        pytest.param(2, [], 0, 20, id="as-if-there-were-one"),
    ],
)
def test_the_wait_on_lanes(ahead: int, remaining_s: list[float], lanes: int, expected_s: float) -> None:
    assert lane_wait_s(ahead, service_s=10, remaining_s=remaining_s, lanes=lanes) == expected_s


@given(st.integers(0, 60), st.lists(st.floats(0, 10), max_size=5), st.integers(1, 5))
def test_the_wait_on_lanes_is_that_of_lanes_that_take_the_next_when_free(
    ahead: int, remaining_s: list[float], lanes: int
) -> None:
    free_s = [*remaining_s, *[0.0] * (lanes - len(remaining_s))]
    heapq.heapify(free_s)
    for _ in range(ahead):
        heapq.heapreplace(free_s, free_s[0] + 10)
    found_s = lane_wait_s(ahead, service_s=10, remaining_s=remaining_s, lanes=lanes)
    assert found_s == pytest.approx(free_s[0])


@pytest.mark.parametrize(
    ("running_s", "waiting_s", "place_free_s", "expected_s"),
    [
        pytest.param(0, 0, 0, 1, id="at-once"),
        pytest.param(2, 28, 0, 1, id="in-time-already"),
        pytest.param(2, 40, 0, 12, id="work-beyond-the-limit"),
        pytest.param(2, 40, 20, 20, id="no-room-before"),
        pytest.param(2, 70, 0, 30, id="whoever-waits-is-gone-by-then"),
        pytest.param(400, 70, 0, 370, id="but-not-what-runs"),
    ],
)
def test_retry_after(running_s: float, waiting_s: float, place_free_s: float, expected_s: float) -> None:
    answered_s = retry_after_s(running_s=running_s, waiting_s=waiting_s, place_free_s=place_free_s, wait_s=30)
    assert answered_s == expected_s


# What runs and what waits


def waiting(number: int, queued_s: float = 0, *, route: str = "degraded", **changes: Any) -> GenerationTask:
    return pending_task(
        f"task-{number:04}", route=route, queued_at=after(queued_s), deadline_at=after(queued_s + 29.5), **changes
    )


def claimed(task: GenerationTask, at_s: float) -> GenerationTask:
    return lifecycle.claim(task, owner="nonce", worker="degraded-0", lease_s=20, now=after(at_s))


def served(number: int, service_s: float, *, claimed_s: float = 0, **changes: Any) -> GenerationTask:
    """A task that failed *service_s* after it was claimed."""
    now = after(claimed_s + service_s)
    task = claimed(waiting(number, **changes), claimed_s)
    return lifecycle.fail(task, code=FailureCode.INFERENCE_FAILED, message="", now=now)


def queues_with(*tasks: GenerationTask) -> WorkQueues:
    queues = WorkQueues()
    for task in tasks:
        queues.take_in(task)
    return queues


def test_the_service_time_is_the_median_of_what_ran() -> None:
    queues = queues_with(*(served(number, service_s) for number, service_s in enumerate([9, 1, 2])))
    assert queues.service_s("degraded", "anisora") == 2
    assert queues.service_s("lane", "anisora") is None


def test_only_the_newest_service_times_count() -> None:
    queues = queues_with(*(served(number, 100) for number in range(SAMPLES_MAX)))
    for number in range(SAMPLES_MAX):
        queues.take_in(served(100 + number, 2))
    assert queues.service_s("degraded", "anisora") == 2


def test_a_task_that_ended_in_the_queue_was_not_served() -> None:
    refused = lifecycle.fail(waiting(0), code=FailureCode.QUEUE_OVERLOADED, message="", now=after(30))
    lost = lifecycle.requeue(claimed(waiting(1), 1), route="degraded", decision=DECISION, wait_s=30, now=after(21))
    lost = lifecycle.fail(lost, code=FailureCode.WORKER_LOST, message="", now=after(50))
    assert queues_with(refused, lost).service_s("degraded", "anisora") is None


def test_an_unmeasured_model_takes_the_median_of_all_on_the_degraded_worker_only() -> None:
    ran = [served(number, service_s) for number, service_s in enumerate([2, 4, 9])]
    queues = queues_with(*ran, *(replace(task, id=f"lane-{task.id}", route="lane") for task in ran))
    assert queues.service_s("degraded", "phr00t") == 4
    assert queues.service_s("lane", "phr00t") is None


@given(st.randoms(use_true_random=False), st.integers(1, 60))
def test_a_queue_is_in_order_however_its_records_came(chance: random.Random, steps: int) -> None:
    queues = WorkQueues()
    known: dict[str, GenerationTask] = {}
    for _ in range(steps):
        number = chance.randrange(8)
        task = waiting(number, chance.randrange(3), route=chance.choice(["lane", "degraded"]))
        if chance.random() < 0.3:
            task = claimed(task, 5)
        elif chance.random() < 0.3:
            task = lifecycle.fail(task, code=FailureCode.CANCELLED, message="", now=after(6))
        if chance.random() < 0.1:
            queues.forget(task.id)
            known.pop(task.id, None)
        else:
            queues.take_in(task)
            known[task.id] = task
        routes: tuple[Literal["lane", "degraded"], ...] = ("lane", "degraded")
        for route in routes:
            queue = queues.of(route, "anisora")
            here = [task for task in known.values() if task.route == route]
            pending = [task for task in here if task.status is TaskStatus.PENDING]
            assert list(queue.waiting) == sorted(pending, key=lambda task: (task.queued_at, task.id))
            assert [queue.ahead_of(task) for task in queue.waiting] == list(range(len(pending)))
            assert {task.id for task in queue.running} == {
                task.id for task in here if task.status is TaskStatus.PROCESSING
            }


# Estimates


class Scene:
    """Queues, lanes and the estimates over them."""

    def __init__(self, catalog: Catalog, *tasks: GenerationTask, leader: Leadership | None = None) -> None:
        self.queues = queues_with(*tasks)
        self.lanes = LaneBoard(health_timeout_s=60, grace_s=10)
        self.estimates = Estimates(queues=self.queues, lanes=self.lanes, catalog=catalog, leader=lambda _: leader)

    def report(self, worker: str, state: LaneState, at: datetime = NOW) -> None:
        report = msgspec.json.encode(lane_report(worker, state))
        self.lanes.on_lane(Versioned(HEARTBEATS, Entry(f"anisora.{worker}", report, 1, at)))


def test_only_a_task_that_waits_has_a_place(catalog: Catalog) -> None:
    ended = served(0, 5)
    running = claimed(waiting(1), 5)
    scene = Scene(catalog, ended, running)
    assert scene.estimates.place(ended, after(6)) is None
    assert scene.estimates.place(running, after(6)) is None


def test_nothing_measured(catalog: Catalog) -> None:
    first, second = waiting(1), waiting(2, 1)
    scene = Scene(catalog, first, second)
    assert scene.estimates.place(second, after(2)) == QueuePlace(position=2, expected_wait_s=None)
    assert scene.estimates.retry_after_s("anisora", after(2)) == 5


def test_the_place_on_the_degraded_queue(catalog: Catalog) -> None:
    """Remaining time of what runs, then what goes first, each by its model; both models are in one queue."""
    ran = (served(0, 10), served(1, 4, model="phr00t"))
    running = claimed(waiting(2), 20)
    queue = [waiting(3, 21, model="phr00t"), waiting(4, 22), waiting(5, 23, model="phr00t")]
    scene = Scene(catalog, *ran, running, *queue)
    now = after(26)
    assert [scene.estimates.place(task, now) for task in queue] == [
        QueuePlace(position=1, expected_wait_s=4.0),
        QueuePlace(position=2, expected_wait_s=8.0),
        QueuePlace(position=3, expected_wait_s=18.0),
    ]
    # the second would be taken after 8 s, but its wait is over by then
    late = replace(queue[1], deadline_at=after(33))
    scene.queues.take_in(late)
    assert scene.estimates.place(queue[2], now) == QueuePlace(position=2, expected_wait_s=8.0)
    assert scene.estimates.place(late, now) == QueuePlace(position=3, expected_wait_s=12.0)


def test_a_task_that_takes_longer_than_expected_may_end_at_any_moment(catalog: Catalog) -> None:
    task = waiting(2, 1)
    scene = Scene(catalog, served(0, 10), claimed(waiting(1), 1), task)
    assert scene.estimates.place(task, after(29)) == QueuePlace(position=1, expected_wait_s=0.0)


def test_the_places_follow_the_order_of_the_leader(catalog: Catalog) -> None:
    """phr00t is loaded for 20 s more; what runs ends in 3 s. The other model comes after the slice, with a swap."""
    first, *rest = [waiting(3, 21), waiting(4, 22, model="phr00t"), waiting(5, 23), waiting(6, 24, model="phr00t")]
    urgent = replace(waiting(7, 25, model="phr00t"), priority=Priority.INTERACTIVE)
    state = OrderState(
        at=after(26),
        order="swap-aware",
        swap_share=0.2,
        slice_max_s=120,
        turn_share=0.2,
        loaded="phr00t",
        loaded_at=after(16),
        free_at=after(29),
        run_s={"anisora": 3, "phr00t": 2},
        swap_s={"anisora": 4, "phr00t": 4},
    )
    leader = Leadership(worker="degraded-0", owner="o", slot="cpu-0", pid=1, since=NOW, order=state)
    scene = Scene(catalog, claimed(waiting(2), 20), first, *rest, urgent, leader=leader)
    now = after(26)
    assert [scene.estimates.place(task, now) for task in (urgent, rest[0], rest[2], first, rest[1])] == [
        QueuePlace(position=1, expected_wait_s=3.0),
        QueuePlace(position=2, expected_wait_s=5.0),
        QueuePlace(position=3, expected_wait_s=7.0),
        QueuePlace(position=4, expected_wait_s=9.0),
        QueuePlace(position=5, expected_wait_s=16.0),
    ]
    assert scene.queues.ahead_of(claimed(first, 27)) == 0
    scene.queues.take_in(claimed(urgent, 27))
    assert scene.estimates.place(rest[0], now) == QueuePlace(position=1, expected_wait_s=3.0)
    assert scene.estimates.retry_after_s("phr00t", now) == 1


def test_the_place_on_lanes_counts_those_that_are_ready(catalog: Catalog) -> None:
    queue = [waiting(number, number, route="lane") for number in range(1, 6)]
    scene = Scene(catalog, served(0, 10, route="lane"), *queue)
    now = after(6)
    assert scene.estimates.place(queue[4], now) == QueuePlace(position=5, expected_wait_s=40.0)
    scene.report("anisora-0", LaneState.BUSY)
    scene.report("anisora-1", LaneState.WARM)
    scene.report("anisora-2", LaneState.LOADING)
    scene.report("anisora-3", LaneState.WARM, at=after(-60))  # not heard of for 66 s
    assert scene.estimates.place(queue[4], now) == QueuePlace(position=5, expected_wait_s=20.0)
    other = waiting(9, 9, route="lane", model="phr00t")
    scene.queues.take_in(other)
    assert scene.estimates.place(other, now) == QueuePlace(position=1, expected_wait_s=None)


def test_retry_after_counts_all_that_wait(catalog: Catalog) -> None:
    scene = Scene(catalog, served(0, 4), *(waiting(number, number / 10) for number in range(1, 10)))
    now = after(1)
    assert scene.estimates.retry_after_s("anisora", now) == 6.5  # 9 tasks of 4 s, 29.5 s of waiting
    scene.queues.take_in(claimed(waiting(1), 1))
    assert scene.estimates.retry_after_s("phr00t", now) == 6.5


def test_retry_after_is_not_before_a_place_is_free(catalog: Catalog) -> None:
    """25 tasks of half a second would all be taken in time, but the queue is full for 15 s more."""
    ran = [served(0, 20), *(served(number, 0.5, model="phr00t") for number in range(1, 4))]
    running = claimed(waiting(4), 0)
    queue = [waiting(10 + number, number / 10, model="phr00t") for number in range(DEGRADED_MAX_MSGS)]
    scene = Scene(catalog, *ran, running, *queue[1:])
    assert scene.estimates.retry_after_s("phr00t", after(5)) == 1
    scene.queues.take_in(queue[0])
    assert scene.estimates.retry_after_s("phr00t", after(5)) == 15


def test_a_full_queue_has_room_when_the_first_of_it_gives_up(catalog: Catalog) -> None:
    """The running task takes 20 s, but the one that has waited longest gives up in 9.5 s."""
    ran = (served(0, 20), served(1, 0.5, model="phr00t"))
    queue = [waiting(10 + number, number / 10, model="phr00t") for number in range(DEGRADED_MAX_MSGS)]
    scene = Scene(catalog, *ran, claimed(waiting(4), 20), *queue)
    assert scene.estimates.retry_after_s("phr00t", after(20)) == 9.5


@given(st.lists(st.tuples(st.floats(0, 60), st.sampled_from(["anisora", "phr00t"])), max_size=30), st.floats(0, 90))
def test_estimates_are_in_bounds_whatever_waits(queue: list[tuple[float, str]], now_s: float) -> None:
    tasks = [waiting(100 + number, queued_s, model=model) for number, (queued_s, model) in enumerate(queue)]
    scene = Scene(samples.catalog(), served(0, 3), served(1, 11, model="phr00t"), claimed(waiting(2), 5), *tasks)
    places = [scene.estimates.place(task, after(now_s)) for task in scene.queues.of("degraded", "anisora").waiting]
    in_turn = sorted((place for place in places if place), key=lambda place: place.position)
    assert [place.position for place in in_turn] == list(range(1, len(tasks) + 1))
    waits_s = [place.expected_wait_s for place in in_turn if place.expected_wait_s is not None]
    assert len(waits_s) == len(tasks)
    assert waits_s == sorted(waits_s)
    for model in ("anisora", "phr00t"):
        assert 1 <= scene.estimates.retry_after_s(model, after(now_s)) <= 29.5


# The board


def entry(task: GenerationTask, revision: int) -> Entry:
    return Entry(task.id, encode_task(task), revision, NOW)


def test_the_board_feeds_the_queues() -> None:
    board = TaskBoard()
    queue = board.work_queues.of("degraded", "anisora")
    first, second = waiting(1), waiting(2, 1)
    board.on_entry(Versioned(RECORDS, entry(second, 2)))
    board.on_entry(Versioned(RECORDS, entry(first, 3)))
    assert [task.id for task in queue.waiting] == [first.id, second.id]
    board.on_entry(Versioned(RECORDS, entry(claimed(first, 2), 4)))
    board.on_entry(Versioned(RECORDS, entry(first, 3)))  # an old revision, read late
    assert ([task.id for task in queue.waiting], [task.id for task in queue.running]) == ([second.id], [first.id])
    board.on_entry(Versioned(RECORDS, Entry(second.id, None, 5, NOW)))
    assert list(queue.waiting) == []
    board.on_entry(Versioned(RECORDS, entry(served(1, 3), 6)))
    assert (list(queue.running), board.work_queues.service_s("degraded", "anisora")) == ([], 3)


def test_a_refused_task_names_no_image() -> None:
    """Then the janitor removes the files that were stored for it."""
    image = ImageReference(sha256="ab" * 32, media_type="image/png", bytes=1, width=1, height=1)
    task = waiting(1)
    task = replace(task, parameters=replace(task.parameters, image=image))
    board = TaskBoard()
    board.on_entry(Versioned(RECORDS, entry(task, 1)))
    assert task.image_path in paths_of(board.index, task.id)
    refused = lifecycle.fail(task, code=FailureCode.QUEUE_OVERLOADED, message="", now=after(30))
    board.on_entry(Versioned(RECORDS, entry(refused, 2)))
    assert paths_of(board.index, task.id) == ()
