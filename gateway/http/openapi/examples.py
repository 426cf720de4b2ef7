"""Answers as a client may meet them: tasks in every state, and every problem document."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import msgspec
from litestar.openapi.spec import Example

from contracts.api.problems import Problem
from contracts.api.tasks import QueuePlace
from contracts.generation.errors import FieldError
from contracts.memory import MemoryReading, SwapReceipt
from contracts.progress import StepsDone
from contracts.tasks import (
    FailureCode,
    GenerationParameters,
    GenerationTask,
    ReplacedParameter,
    TaskError,
    TaskStatus,
    TimelineEntry,
    VideoFile,
)
from gateway.http.problem_kinds import PROBLEMS, TYPE_PREFIX

EXAMPLE_PROMPT: Final = "A paper boat sails down a rainy street, hand-drawn"


def _at(seconds: float) -> datetime:
    return datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC) + timedelta(seconds=seconds)


PENDING: Final = GenerationTask(
    id="019cab2e-5c00-7c3f-9b1a-2f6f0d4d7a55",
    model="anisora",
    parameters=GenerationParameters(
        prompt=EXAMPLE_PROMPT,
        negative_prompt="",
        image=None,
        width=96,
        height=64,
        num_frames=17,
        fps=16,
        seed=7,
        steps=8,
        cfg=1.0,
    ),
    request_sha256="",
    status=TaskStatus.PENDING,
    route="lane",
    epoch=1,
    created_at=_at(0),
    queued_at=_at(0),
    deadline_at=_at(30),
    timeline=(TimelineEntry(at=_at(0), event="accepted", detail="to lane.anisora"),),
)
REPLACED: Final = msgspec.structs.replace(PENDING, replaced=(ReplacedParameter(field="steps", used=8, got=20),))
_CLAIMED: Final = TimelineEntry(at=_at(0.005), event="claim", detail="attempt 1 by anisora-1")


def _after_claim(**changes: Any) -> GenerationTask:
    known = {name: getattr(PENDING, name) for name in PENDING.__struct_fields__}
    return GenerationTask(**known | {"attempt": 1, "worker": "anisora-1", "claimed_at": _at(0.005)} | changes)


DONE: Final = _after_claim(
    status=TaskStatus.DONE,
    finished_at=_at(0.6),
    progress=StepsDone(step=8, steps=8),
    video=VideoFile(path="", bytes=18231, sha256="9f86d081" * 8, width=96, height=64, frames=17, fps=16),
    memory=MemoryReading(rss_bytes=431_000_000, cleanup_s=0.04),
    timeline=(*PENDING.timeline, _CLAIMED, TimelineEntry(at=_at(0.6), event="finish")),
)
FAILED: Final = _after_claim(
    status=TaskStatus.FAILED,
    attempt=2,
    finished_at=_at(41),
    error=TaskError(code=FailureCode.WORKER_LOST, message="2 workers were lost while they ran it"),
    timeline=(*PENDING.timeline, _CLAIMED, TimelineEntry(at=_at(41), event="fail", detail="worker_lost")),
)
CANCELLED: Final = _after_claim(
    status=TaskStatus.FAILED,
    finished_at=_at(0.3),
    progress=StepsDone(step=3, steps=8),
    error=TaskError(code=FailureCode.CANCELLED, message="cancelled on request"),
    timeline=(*PENDING.timeline, _CLAIMED, TimelineEntry(at=_at(0.3), event="fail", detail="cancelled")),
)
SWAPPED: Final = msgspec.structs.replace(
    DONE,
    route="degraded",
    worker="degraded-0",
    finished_at=_at(1.4),
    swap=SwapReceipt(
        slot="cpu-2",
        released_model="phr00t",
        loaded_model="anisora",
        how="unloaded",
        probe="rss",
        base_bytes=402_000_000,
        before_bytes=1_077_000_000,
        after_bytes=411_000_000,
        tolerance_bytes=48_000_000,
        free_bytes=12_000_000_000,
        needed_bytes=837_000_000,
        samples=2,
        release_s=0.11,
        verify_s=0.1,
        load_s=0.42,
        read_s=0.4,
        copy_s=0.0,
        first_step_s=0.11,
    ),
    timeline=(
        TimelineEntry(at=_at(0), event="accepted", detail="to degraded.anisora"),
        TimelineEntry(at=_at(0.005), event="claim", detail="attempt 1 by degraded-0"),
        TimelineEntry(at=_at(1.4), event="finish"),
    ),
)
EXAMPLE_ETAG: Final = f'"{"9f86d081" * 8}"'

_EXAMPLE_ERRORS: Final = [
    FieldError(
        pointer="/num_frames",
        code="not_a_multiple",
        message="num_frames: expected 8 k + 1, got 16",
        expected={"multiple_of": 8, "plus": 1},
        got=16,
    ),
    FieldError(pointer="/steps", code="fixed_value", message="steps: expected 8, got 7", expected=8, got=7),
]
_EXAMPLE_EXTRAS: Final[Mapping[str, Mapping[str, Any]]] = {
    "validation_failed": {"errors": _EXAMPLE_ERRORS},
    "video_not_ready": {"instance": "/tasks/019cab2e-5c00-7c3f-9b1a-2f6f0d4d7a55"},
    "queue_overloaded": {"limit": "depth", "retry_after_s": 12.5},
    "storage_unavailable": {"retry_after_s": 5.0},
    "transport_unavailable": {"outcome": "unknown", "retry_after_s": 5.0},
    "rate_limited": {"retry_after_s": 0.4},
}


def example_problem(code: str) -> Problem:
    """The problem document *code* with a detail as a client may meet it."""
    kind = PROBLEMS[code]
    return Problem(
        type=TYPE_PREFIX + code,
        title=kind.title,
        status=kind.status,
        detail=kind.detail,
        code=code,
        **_EXAMPLE_EXTRAS.get(code, {}),
    )


class NamedExample(Example):
    """An example that does not show its id: Litestar takes its name from the id, but OpenAPI does not allow an id."""

    @property
    def _exclude_fields(self) -> set[str]:
        return {"id"}


def place_in_example(task: GenerationTask) -> QueuePlace | None:
    """Where *task*, one of the examples, stands in its queue."""
    return QueuePlace(position=3, expected_wait_s=4.2) if task.status is TaskStatus.PENDING else None


def problem_example(code: str) -> Example:
    """`example_problem` as an entry of the document."""
    return NamedExample(id=code, summary=PROBLEMS[code].title, value=example_problem(code))
