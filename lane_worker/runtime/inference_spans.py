"""The spans of what the pipeline host did: it reports its times over the pipe, and its worker records them.

So the process that holds the card needs no exporter, and one that is killed loses no span (design §11).
"""

from datetime import UTC, datetime, timedelta

from contracts.memory import MemoryReading
from contracts.tasks import GenerationTask
from lane_worker.forking import host_messages as messages
from lane_worker.forking.outcome import Lost, Outcome, TimedOut
from lane_worker.runtime.steps import Steps
from ops.telemetry.tracing import of_task, record


def record_inference(task: GenerationTask, outcome: Outcome, steps: Steps, *, host_pid: int) -> None:
    """`inference` with an event for each of *steps*, `encode` and `cleanup`, below the current span.

    *outcome* has come just now.
    """
    now = datetime.now(UTC)
    started_at, inferred_at = steps.started_at, now
    if isinstance(outcome, messages.Finished):
        inferred_at = started_at + timedelta(seconds=outcome.inference_s)
    attributes = of_task(task, **{"warmlane.host_pid": host_pid, "steps": task.parameters.steps})
    if steps.swap is not None and steps.swap.first_step_s is not None:
        attributes["warmlane.swap.first_step_s"] = steps.swap.first_step_s
    events = [("step", datetime.fromtimestamp(step.at_s, UTC), {"warmlane.step": step.step}) for step in steps.finished]
    record("inference", started_at, inferred_at, attributes, events=events, error=_error(outcome))
    if isinstance(outcome, messages.Finished):
        encoded_at = inferred_at + timedelta(seconds=outcome.encode_s)
        video = {"bytes": outcome.video.bytes, "frames": outcome.video.frames}
        record("encode", inferred_at, encoded_at, of_task(task, **video))
    memory = None if isinstance(outcome, Lost) else outcome.memory
    if memory is not None:
        begun_at = now - timedelta(seconds=memory.cleanup_s)
        record("cleanup", begun_at, now, of_task(task, **_figures(memory)))


def _error(outcome: Outcome) -> str | None:
    match outcome:
        case messages.Failed(code=code):
            return code
        case TimedOut():
            return "inference_timeout"
        case Lost():
            return "host_lost"
        case _:  # a task that was cancelled did not fail
            return None


def _figures(memory: MemoryReading) -> dict[str, int]:
    figures = {
        "warmlane.memory.rss_bytes": memory.rss_bytes,
        "warmlane.memory.cuda_allocated_bytes": memory.cuda_allocated_bytes,
        "warmlane.memory.cuda_reserved_bytes": memory.cuda_reserved_bytes,
        "warmlane.memory.cuda_peak_allocated_bytes": memory.cuda_peak_allocated_bytes,
    }
    return {name: figure for name, figure in figures.items() if figure is not None}
