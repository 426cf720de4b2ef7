"""Whether the receiver of a run got the end of every task, and nothing else (invariant 7 of design §4)."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Final

from contracts.tasks import GenerationTask, TaskStatus
from tests.faults.history import Delivered
from tests.faults.story import Story, Violation

RULE: Final = 7
ENDS: Final = {TaskStatus.DONE: "task.done", TaskStatus.FAILED: "task.failed"}


def is_owed(task: GenerationTask) -> bool:
    """Whether the receiver must get the end of *task*: the task has ended, and its caller may know of it."""
    return task.status in ENDS and (task.promised or not task.was_refused)


def missing(tasks: Sequence[GenerationTask], delivered: Sequence[Delivered]) -> list[str]:
    """Those of *tasks* that ended, and whose end was not delivered yet."""
    came = {(each.task_id, each.type) for each in delivered}
    return [task.id for task in tasks if is_owed(task) and (task.id, ENDS[task.status]) not in came]


def delivered_what_ended(story: Story) -> Iterator[Violation]:
    """7. For every task that ended, the receiver gets the end that it had, under one id. It gets no other task's end.

    Tasks of which the server lost something are left out: their deliveries may have been lost with it.
    """
    if story.history.delivered is None:
        return
    came: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for each in story.history.delivered:
        if each.type in ENDS.values():
            came[each.task_id].add((each.type, each.id))
    for task_id in came.keys() | story.lives.keys():
        if task_id in story.torn:
            continue
        last = story.last(task_id)
        types = sorted(kind for kind, _ in came.get(task_id, ()))
        wanted = [ENDS[last.status]] if last is not None and is_owed(last) else []
        if types != wanted:
            yield Violation(
                RULE, task_id, f"told: {types or 'nothing'}, and it is {last.status if last else 'unknown'}"
            )
