"""Which task gives up its place on a full degraded queue: the rules one by one, and what has to hold of any answer."""

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts import lifecycle
from contracts.lifecycle import IllegalTransition
from contracts.tasks import FailureCode, GenerationTask, Priority, TaskStatus
from gateway.rules.displacement import displaced, may_be_displaced
from tests.kit.records import after, pending_task, processing_task

INTERACTIVE, STANDARD, BACKGROUND = Priority


def waiting(number: int, priority: Priority = BACKGROUND, **changes: Any) -> GenerationTask:
    """A task on the degraded queue that came *number* seconds after the first one could have."""
    return pending_task(
        f"{number:08d}-0000-7000-8000-000000000000",
        **{"route": "degraded", "priority": priority, "queued_at": after(number)} | changes,
    )


@pytest.mark.parametrize(
    ("task", "arrival", "expected"),
    [
        pytest.param(waiting(1), INTERACTIVE, True, id="a-lower-class"),
        pytest.param(waiting(1), STANDARD, True, id="the-next-lower-class"),
        pytest.param(processing_task(route="degraded", priority=BACKGROUND), INTERACTIVE, False, id="1-claimed"),
        pytest.param(waiting(1, status=TaskStatus.FAILED), INTERACTIVE, False, id="1-ended"),
        pytest.param(waiting(1, route="lane"), INTERACTIVE, False, id="1-on-a-lane"),
        pytest.param(waiting(1), BACKGROUND, False, id="2-its-own-class"),
        pytest.param(waiting(1, STANDARD), BACKGROUND, False, id="2-a-higher-class"),
        pytest.param(waiting(1, epoch=1), INTERACTIVE, False, id="3-a-lane-did-not-take-it"),
        pytest.param(waiting(1, epoch=1, attempt=1), INTERACTIVE, False, id="3-its-worker-was-lost"),
    ],
)
def test_who_may_be_displaced(task: GenerationTask, arrival: Priority, expected: bool) -> None:
    assert may_be_displaced(task, arrival) is expected
    assert displaced([task], arrival) == (task if expected else None)


def test_the_newest_of_the_lowest_class_gives_up_its_place() -> None:
    tasks = [waiting(1), waiting(2), waiting(3, STANDARD), waiting(4, INTERACTIVE)]
    assert displaced(tasks, INTERACTIVE) == tasks[1]
    assert displaced(tasks, STANDARD) == tasks[1]
    assert displaced(tasks, INTERACTIVE, passed={tasks[1].id}) == tasks[0]
    assert displaced(tasks[2:], INTERACTIVE) == tasks[2]
    assert displaced(tasks, BACKGROUND) is None


QUEUES = st.lists(
    st.builds(
        lambda number, priority, route, epoch, status: waiting(
            number, priority, route=route, epoch=epoch, status=status
        ),
        st.integers(0, 99),
        st.sampled_from(Priority),
        st.sampled_from(("degraded", "degraded", "lane")),
        st.sampled_from((0, 0, 0, 1)),
        st.sampled_from((TaskStatus.PENDING, TaskStatus.PENDING, *TaskStatus)),
    ),
    max_size=25,
    unique_by=lambda task: task.id,
)


@given(QUEUES, st.sampled_from(Priority), st.randoms(use_true_random=False))
def test_what_holds_of_any_queue(tasks: list[GenerationTask], arrival: Priority, chance: random.Random) -> None:
    chosen = displaced(tasks, arrival)
    shuffled = list(tasks)
    chance.shuffle(shuffled)
    assert displaced(shuffled, arrival) == chosen, "the order of what waits does not matter"
    able = [task for task in tasks if may_be_displaced(task, arrival)]
    if chosen is None:
        assert not able
        return
    assert chosen in able
    assert chosen.status is TaskStatus.PENDING
    assert chosen.priority.rank > arrival.rank
    for other in able:
        assert other.priority.rank <= chosen.priority.rank, "nobody of a lower class keeps a place"
        assert other.priority is not chosen.priority or other.queued_at <= chosen.queued_at, "nobody newer keeps one"


@given(QUEUES, st.sampled_from(Priority))
def test_who_asks_again_and_again_comes_to_an_end_and_asks_nobody_twice(
    tasks: list[GenerationTask], arrival: Priority
) -> None:
    asked: list[str] = []
    while (chosen := displaced(tasks, arrival, passed=asked)) is not None:
        asked.append(chosen.id)
    assert len(asked) == len(set(asked)) == sum(may_be_displaced(task, arrival) for task in tasks)


def test_a_displaced_task_ends_as_refused_and_says_why() -> None:
    ended = lifecycle.displace(waiting(1), by=waiting(2, INTERACTIVE), now=after(3))
    assert (ended.status, ended.was_refused, ended.displaced_by) == (TaskStatus.FAILED, True, waiting(2).id)
    assert ended.error is not None
    assert ended.error.code is FailureCode.QUEUE_OVERLOADED
    assert [line.event for line in ended.timeline] == ["displaced", "fail"]
    assert ended.error.message == "a request of the class interactive took its place; submit it again later"


@pytest.mark.parametrize("status", [TaskStatus.PROCESSING, TaskStatus.DONE, TaskStatus.FAILED])
def test_what_does_not_wait_cannot_be_displaced(status: TaskStatus) -> None:
    with pytest.raises(IllegalTransition):
        lifecycle.displace(waiting(1, status=status), by=waiting(2, INTERACTIVE), now=after(3))
