"""Whether the receiver of a run was told of every end, and of nothing else (invariant 7 of design §4)."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Final

from contracts.tasks import GenerationTask, TaskStatus
from tests.faults.history import Delivered
from tests.faults.story import Story, Violation

RULE: Final = 7
ENDS: Final = {TaskStatus.DONE: "task.done", TaskStatus.FAILED: "task.failed"}


def is_owed(task: GenerationTask) -> bool:
    """Whether somebody is to be told how *task* ended: it did, and its caller may know of it."""
    return task.status in ENDS and (task.promised or not task.was_refused)


def missing(tasks: Sequence[GenerationTask], delivered: Sequence[Delivered]) -> list[str]:
    """Those of *tasks* that ended, and whose end has not come yet."""
    came = {(each.task_id, each.type) for each in delivered}
    return [task.id for task in tasks if is_owed(task) and (task.id, ENDS[task.status]) not in came]


def delivered_what_ended(story: Story) -> Iterator[Violation]:
    """7. A receiver is told the end of every task that ended, the one that it had, under one id, and of no other task.

    Not of tasks of which the server lost something: what was told of them may have been lost.
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
