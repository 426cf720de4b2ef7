"""The tasks whose records were deleted, by the deletion markers that the server keeps. In memory, pure."""

from datetime import datetime, timedelta


class ForgottenTasks:
    """Their ids, each until its marker expires. The task board feeds it."""

    def __init__(self) -> None:
        self._since: dict[str, datetime] = {}

    def __contains__(self, task_id: str) -> bool:
        return task_id in self._since

    def note(self, task_id: str, at: datetime) -> None:
        """A marker stands in the place of the record of *task_id*, since *at*."""
        self._since[task_id] = at

    def ids(self) -> frozenset[str]:
        """All of them."""
        return frozenset(self._since)

    def drop_expired(self, *, keep_s: float, now: datetime) -> None:
        """Forgets the markers that the server has dropped by age."""
        oldest = now - timedelta(seconds=keep_s)
        self._since = {task_id: at for task_id, at in self._since.items() if at >= oldest}
