"""How many tasks may wait and run for one caller, as its API key says."""

from typing import Final

from contracts.tasks import TaskStatus
from gateway.boards.key_board import Caller
from gateway.boards.task_index import TaskIndex
from gateway.http.problems import ProblemError

# The gateway cannot know when a place becomes free.
RETRY_S: Final = 5.0


def require_within_bounds(caller: Caller, index: TaskIndex, count: int = 1) -> None:
    """Raises the problem `too_many_tasks` where, by *index*, the key of *caller* does not allow *count* more
    tasks."""
    if caller.key is None:
        return
    bounds = (
        (caller.key.max_waiting, TaskStatus.PENDING, "wait", count),
        (caller.key.max_running, TaskStatus.PROCESSING, "run", 1),  # they all wait at first
    )
    for most, status, what, more in bounds:
        if most is None:
            continue
        there = index.count(caller.name, status)
        if there + more > most:
            bound = f"this key allows {most}"
            if more > 1:
                bound = f"{more} more would exceed the {most} that this key allows"
            raise ProblemError(
                "too_many_tasks",
                f"{there} tasks of yours {what}, and {bound}; try again when one has ended, or cancel one",
                retry_after_s=RETRY_S,
            )
