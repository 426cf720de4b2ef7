"""Tasks held whole: all that have not ended, and the newest that have. In memory, pure."""

from collections import OrderedDict
from typing import Final

from msgspec import Struct

from contracts.tasks import GenerationTask

FINISHED_MAX: Final = 1_000


class Snapshot(Struct, frozen=True, gc=False):
    """A task at one revision of its record."""

    task: GenerationTask
    revision: int


class Snapshots:
    """The newest known snapshot of each task that is held whole."""

    def __init__(self) -> None:
        self._live: dict[str, Snapshot] = {}
        self._finished: OrderedDict[str, Snapshot] = OrderedDict()

    def put(self, snapshot: Snapshot) -> None:
        """Takes in *snapshot* in the place of an earlier one. The oldest task that has ended makes room."""
        task_id = snapshot.task.id
        if snapshot.task.status.is_terminal:
            self._live.pop(task_id, None)
            self._finished[task_id] = snapshot
            if len(self._finished) > FINISHED_MAX:
                self._finished.popitem(last=False)
        else:
            self._live[task_id] = snapshot
            self._finished.pop(task_id, None)

    def pop(self, task_id: str) -> None:
        """Forgets *task_id*; an unknown task is fine."""
        self._live.pop(task_id, None)
        self._finished.pop(task_id, None)

    def get(self, task_id: str) -> Snapshot | None:
        """The snapshot of *task_id*; None where it is not held."""
        return self._live.get(task_id) or self._finished.get(task_id)
