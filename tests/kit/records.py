"""Records for tests: one valid task, the same task in later states, and the report of a lane."""

import hashlib
from datetime import UTC, datetime, timedelta
from typing import Any

from msgspec.structs import replace

from contracts import lifecycle
from contracts.lanes import LaneHeartbeat, LaneState, SlotState, VideoPipelineSlot
from contracts.tasks import GenerationParameters, GenerationTask, RoutingDecision, TaskStatus, VideoFile

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
TASK_ID = "01890a5d-ac96-774b-bcce-b302099a8057"
DECISION = RoutingDecision(at=NOW, forced_degraded=False, lanes=(), outcome="lane")


def after(seconds: float) -> datetime:
    """*seconds* after NOW."""
    return NOW + timedelta(seconds=seconds)


def small_parameters(**changes: Any) -> GenerationParameters:
    """The parameters of a video that a tiny pipeline makes in a moment, with *changes*."""
    parameters = GenerationParameters(
        prompt="a cat",
        negative_prompt="",
        image=None,
        width=32,
        height=32,
        num_frames=5,
        fps=8,
        seed=1,
        steps=2,
        cfg=1.0,
    )
    return replace(parameters, **changes)


def pending_task(task_id: str = TASK_ID, **changes: Any) -> GenerationTask:
    """A task that waits on a lane since NOW, overdue after 30 s."""
    task = GenerationTask(
        id=task_id,
        model="anisora",
        parameters=small_parameters(prompt="a red fox", width=96, height=64, num_frames=17, fps=16, seed=7, steps=8),
        request_sha256="0" * 64,
        status=TaskStatus.PENDING,
        route="lane",
        epoch=0,
        created_at=NOW,
        queued_at=NOW,
        deadline_at=after(30),
    )
    return replace(task, **changes)


def video_of(task: GenerationTask, content: bytes, **changes: Any) -> VideoFile:
    """The video of *task* with that *content*, as its record has it."""
    sha256 = hashlib.sha256(content).hexdigest()
    video = VideoFile(path=task.video_path, bytes=len(content), sha256=sha256, width=96, height=64, frames=17, fps=16)
    return replace(video, **changes)


def quarantined_slot(name: str) -> VideoPipelineSlot:
    """A slot of the degraded worker on which a host left 12 MB."""
    return VideoPipelineSlot(
        slot=name,
        worker="degraded-0",
        pid=1,
        model=None,
        state=SlotState.QUARANTINED,
        since=datetime.now(UTC),
        detail="12 MB too much",
    )


def lane_report(worker: str = "anisora-0", state: LaneState = LaneState.WARM, **changes: Any) -> LaneHeartbeat:
    """What the lane *worker* reports about itself. It started at NOW."""
    report = LaneHeartbeat(
        model=worker.rpartition("-")[0],
        worker=worker,
        state=state,
        health_age_s=0.0,
        slot="cpu-0",
        pid=1,
        started_at=NOW,
    )
    return replace(report, **changes)


def processing_task(
    owner: str = "owner-1", *, lease_s: float = 20, now: datetime = NOW, **changes: Any
) -> GenerationTask:
    """A task that *owner* claimed at *now*."""
    return replace(
        lifecycle.claim(pending_task(), owner=owner, worker="anisora-0", lease_s=lease_s, now=now), **changes
    )
