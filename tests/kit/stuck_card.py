"""A card that a test keeps full."""

from typing import Literal

from ops.machine.readings import Holder, Reading


class StuckCard:
    """A card that never gives memory back and reports that the host holds it, as only a broken driver does."""

    name: Literal["nvml", "rss"] = "nvml"

    def __init__(self) -> None:
        self.absolute_bytes = 1
        self.poll_s = 0.01
        self.deadline_s = 0.05
        self.trouble = ""
        self.used_bytes = 0
        self._pid: int | None = None

    def read(self, pid: int | None) -> Reading | None:
        self._pid = pid or self._pid
        by_pid = {} if self._pid is None else {self._pid: self.used_bytes}
        return Reading(used_bytes=self.used_bytes, free_bytes=1 << 40, by_pid=by_pid)

    def holders(self) -> tuple[Holder, ...]:
        return (Holder(pid=4711, used_bytes=1 << 30, name="trainer"),)
