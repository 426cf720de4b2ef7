"""How an attempt at a task ended, from what its pipeline host answered. Pure: no clock, no I/O, no logging."""

from datetime import datetime
from pathlib import Path
from typing import Final

from msgspec import Struct

from contracts.memory import MemoryReading, SwapReceipt
from contracts.tasks import FailureCode
from lane_worker.forking import host_messages as messages
from lane_worker.forking.outcome import HostLost, LoadFailed, LoadTimedOut, Lost, Outcome, TimedOut
from lane_worker.residence.quarantine import Quarantined
from lane_worker.runtime.outcome import GaveUp, Result, Stopped, Succeeded, Unsuccessful

# What a client reads when its model does not load: the details name folders, and are for the log.
LOAD_FAILURES: Final = {
    "out_of_memory": "there was not enough memory to load the model; submit it again later",
    "storage_failed": "the model could not be read; the operator has to look at the worker's log",
}


class Ended(Struct, frozen=True):
    """The end of an attempt: *outcome* for its memory line, *result* for its record.

    *memory* is what the host held after its cleanup; None when the host is gone.
    """

    outcome: str
    memory: MemoryReading | None
    result: Result


def failure(code: FailureCode, message: str, memory: MemoryReading | None, swap: SwapReceipt | None = None) -> Ended:
    """The task fails with *code*; its client reads *message*."""
    return Ended(code.value, memory, Unsuccessful(code, message, memory, swap))


def ended_by_load(error: Quarantined | HostLost | LoadFailed) -> Ended:
    """The end of an attempt whose model was not made resident, because of *error*."""
    match error:
        case Quarantined():
            return Ended("quarantined", None, GaveUp(str(error)))
        case LoadTimedOut():
            message = "the model took too long to load; submit it again later"
            return failure(FailureCode.INFERENCE_TIMEOUT, message, None, error.receipt)
        case HostLost():
            return Ended("host_lost", None, GaveUp(str(error)))
        case LoadFailed(failure=failed):
            message = LOAD_FAILURES.get(failed.code, "the model could not be loaded; submit it again later")
            memory = None if failed.fatal else failed.memory
            return failure(FailureCode(failed.code), message, memory, error.receipt)


def ended_by(outcome: Outcome, *, video_path: Path, started_at: datetime, swap: SwapReceipt | None) -> Ended:
    """The end of an attempt whose inference, which began at *started_at* after *swap*, ended as *outcome*."""
    match outcome:
        case messages.Finished():
            result = Succeeded(
                path=video_path,
                video=outcome.video,
                memory=outcome.memory,
                started_at=started_at,
                inference_s=outcome.inference_s,
                encode_s=outcome.encode_s,
                swap=swap,
            )
            return Ended("done", outcome.memory, result)
        case messages.Cancelled():
            return Ended("cancelled", outcome.memory, Stopped())
        case messages.Failed():
            memory = None if outcome.fatal else outcome.memory
            return failure(FailureCode(outcome.code), outcome.message, memory, swap)
        case TimedOut():
            what = "one step" if outcome.limit == "step_s" else "the inference"
            message = f"{what} took longer than {outcome.seconds:g} s and was stopped"
            return failure(FailureCode.INFERENCE_TIMEOUT, message, outcome.memory, swap)
        case Lost():
            return Ended("host_lost", None, GaveUp(outcome.reason))
