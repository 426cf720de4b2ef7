"""How a request to a pipeline host can end: the errors, and the outcomes of an inference."""

from typing import Literal

from msgspec import Struct

from contracts.memory import MemoryReading, SwapReceipt
from lane_worker.forking.host_messages import Cancelled, Failed, Finished, SlotNote


class HostLost(Exception):
    """The pipeline host is gone (or was killed for a reason that the text gives). It can be started again.

    *receipt* is that of the swap during which it was lost, if any, as far as the swap came.
    """

    receipt: SwapReceipt | None = None


class LoadTimedOut(HostLost):
    """The load took longer than the model's `timeouts.load_s`, and the host was killed."""


class SlotTaken(Exception):
    """Another process holds the slot."""

    def __init__(self, slot: str, holder: SlotNote | None) -> None:
        who = "another process" if holder is None else holder.who
        super().__init__(f"slot {slot} is held by {who}: stop that one, or give this worker another slot")
        self.holder = holder


class LoadFailed(Exception):
    """The model cannot be loaded. The host lives on, empty, unless `failure.fatal`.

    *receipt* is that of the swap, as far as the swap came; None where the load was refused before it.
    """

    receipt: SwapReceipt | None = None

    def __init__(self, failure: Failed) -> None:
        super().__init__(failure.message)
        self.failure = failure


class Lost(Struct, frozen=True):
    """The host died during *task_id*, or had to be killed because it broke the protocol. No video was left."""

    task_id: str
    reason: str


class TimedOut(Struct, frozen=True):
    """*task_id* overran its time. Either it stopped within the grace of one step (*memory* was read after cleanup),
    or the host was killed (*memory* is None). No video was left. The task's code is `inference_timeout`."""

    task_id: str
    limit: Literal["step_s", "total_s"]
    seconds: float
    memory: MemoryReading | None


Outcome = Finished | Cancelled | Failed | TimedOut | Lost
