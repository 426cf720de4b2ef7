"""What became of a task, and the `Runner` that reports it. The loop that settles tasks and their runners share this."""

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Protocol

from msgspec import Struct

from contracts.memory import MemoryReading, SwapReceipt
from contracts.progress import StepsDone
from contracts.tasks import FailureCode, GenerationTask
from lane_worker.forking.host_messages import WrittenVideo


class Succeeded(Struct, frozen=True):
    """The video lies at *path*, not yet published."""

    path: Path
    video: WrittenVideo
    memory: MemoryReading
    started_at: datetime
    inference_s: float
    encode_s: float
    swap: SwapReceipt | None = None


class Unsuccessful(Struct, frozen=True):
    """The task fails with *code*."""

    code: FailureCode
    message: str
    memory: MemoryReading | None
    swap: SwapReceipt | None = None


class Stopped(Struct, frozen=True):
    """Stopped because somebody else moved the record: nothing to settle."""


class GaveUp(Struct, frozen=True):
    """The host is gone, or this worker is asked to stop (*on_purpose*): another attempt may succeed."""

    reason: str
    on_purpose: bool = False


Result = Succeeded | Unsuccessful | Stopped | GaveUp


class Runner(Protocol):
    """Runs one task. Memory is clean and its log line written when `run` returns, on every path (FR-008, FR-009)."""

    async def run(self, task: GenerationTask, image: Path | None, on_progress: Callable[[StepsDone], None]) -> Result:
        """Runs *task*; *image* is its input image, None where it has none or where the worker could
        not get it."""
        ...

    def stop(self, task_id: str) -> None:
        """Stops *task_id* within one step; `run` then returns Stopped."""
        ...
