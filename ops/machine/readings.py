"""Readings of a slot's memory, and the processes that hold it."""

from collections.abc import Mapping
from typing import Final, Literal, Protocol

from msgspec import Struct

GIB: Final = 1 << 30
MB: Final = 1_000_000


class Holder(Struct, frozen=True, kw_only=True):
    """A process that has a CUDA context on a card, as the driver lists it. It is for people to read: verdicts use
    `Reading.by_pid`.

    *used_bytes* is None where the driver does not report it. In a container *pid* may be the host's number for the
    process; *name* is None where no process here has that number. *name* is never the command line, which may hold a
    secret.
    """

    pid: int
    used_bytes: int | None
    name: str | None = None

    def __str__(self) -> str:
        name = "" if self.name is None else f" ({self.name})"
        held = "an unknown amount" if self.used_bytes is None else f"{self.used_bytes / GIB:.2f} GiB"
        return f"process {self.pid}{name} holds {held}"


class Reading(Struct, frozen=True):
    """One look at a slot's memory: in use, and free for a pipeline to come.

    *by_pid* is what each process there uses, as the driver lists it; empty where it does not.
    """

    used_bytes: int
    free_bytes: int
    by_pid: Mapping[int, int] = {}


class MemoryProbe(Protocol):
    """Reads the memory of one slot (design §7).

    *absolute_bytes* is the noise that it cannot distinguish from a leak (ADR 0029). A worker that waits for a pipeline
    to be gone asks the probe every *poll_s* seconds, for *deadline_s* at most.
    """

    @property
    def name(self) -> Literal["nvml", "unified", "rss"]: ...

    absolute_bytes: int
    poll_s: float
    deadline_s: float
    trouble: str
    """Why the last `read` returned None, and what to do; empty where it did not."""

    def read(self, pid: int | None) -> Reading | None:
        """The memory while *pid* is the pipeline host; None where it cannot be read. Never raises. May block."""
        ...

    def holders(self) -> tuple[Holder, ...]:
        """Who uses the slot, for people to read; empty where that is not known. Never raises. May block."""
        ...
