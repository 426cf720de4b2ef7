"""How many tasks want a lane of a model, and how many lanes that makes. Pure: no clock, no I/O, no logging.

The records decide, and every gateway follows all of them. So each gateway reports the same number, also for requests
that another one holds, and after a restart.
"""

import math
from collections.abc import Iterable
from datetime import datetime

from contracts.tasks import GenerationTask, TaskStatus


def demand(model: str, tasks: Iterable[GenerationTask], *, now: datetime) -> int:
    """How many of *tasks* a lane of *model* has in hand, or would have, if there were enough lanes (FR-013).

    1. A task of another model, or one that has ended: no.
    2. A lane runs it: yes. A scaler that left those out would stop busy lanes.
    3. The degraded worker runs it: no. A lane that comes now cannot take it over.
    4. It waits for a lane: yes, also after its deadline, since a lane may take it until its record moves (ADR 0007).
    5. It waits for the degraded worker: yes, held or promised, since no lane had room for it; but not once its deadline
       is past, since no worker will start it.
    """
    return sum(task.model == model and _wants_lane(task, now) for task in tasks)


def _wants_lane(task: GenerationTask, now: datetime) -> bool:
    if task.status.is_terminal:
        return False
    if task.route == "lane":
        return True
    return task.status is TaskStatus.PENDING and now < task.deadline_at


def wanted_lanes(tasks: int, *, tasks_per_lane: float, least: int, most: int) -> int:
    """How many lanes *tasks* need if each is to have *tasks_per_lane* of them: between *least* and *most*.

    It is what KEDA and the autoscaler of Kubernetes derive from the demand and a target value of *tasks_per_lane*.
    ValueError unless 0 < tasks_per_lane and 0 <= least <= most.
    """
    if not tasks_per_lane > 0 or not 0 <= least <= most:
        raise ValueError(f"give 0 < tasks_per_lane and 0 <= least <= most, not {tasks_per_lane=}, {least=} and {most=}")
    return min(most, max(least, math.ceil(tasks / tasks_per_lane)))
