"""Histories for the checker of faults, entry by entry."""

from typing import Any, Final

from msgspec.structs import replace

from contracts import lifecycle
from contracts.memory import MemoryReading, SwapReceipt
from contracts.tasks import FailureCode, GenerationTask, VideoFile
from tests.faults.checker import check
from tests.faults.history import (
    Artifact,
    Call,
    Fault,
    FaultKind,
    History,
    HostProcess,
    HostSample,
    Limits,
    QueueSample,
    Revision,
)
from tests.kit.records import DECISION, NOW, TASK_ID, after, pending_task

LIMITS: Final = Limits(wait_limit_s=30, attempts=2, depth=25, late_s=1)
MEMORY: Final = MemoryReading(rss_bytes=400_000_000)
PROOF: Final = SwapReceipt(
    slot="cpu-2",
    released_model="phr00t",
    loaded_model="anisora",
    how="unloaded",
    probe="rss",
    base_bytes=100,
    before_bytes=900,
    after_bytes=110,
    tolerance_bytes=20,
    free_bytes=10_000,
    needed_bytes=800,
    samples=2,
)


def waiting(task_id: str = TASK_ID, *, request: int = 1, **changes: Any) -> GenerationTask:
    """A task that a client has just submitted."""
    task = pending_task(task_id, **changes)
    return replace(task, parameters=replace(task.parameters, prompt=f"request {request}"))


def claimed(task: GenerationTask, at_s: float, owner: str = "owner-1") -> GenerationTask:
    return lifecycle.claim(task, owner=owner, worker="anisora-0", lease_s=20, now=after(at_s))


def done(task: GenerationTask, at_s: float) -> GenerationTask:
    video = VideoFile(path=task.video_path, bytes=7, sha256="ab", width=32, height=32, frames=5, fps=16)
    return lifecycle.finish(task, video=video, memory=MEMORY, swap=PROOF, now=after(at_s))


def failed(task: GenerationTask, code: FailureCode, at_s: float = 3, **changes: Any) -> GenerationTask:
    return lifecycle.fail(task, code=code, message="", now=after(at_s), **changes)


def requeued(task: GenerationTask, at_s: float) -> GenerationTask:
    return lifecycle.requeue(task, route="lane", decision=DECISION, wait_s=30, now=after(at_s))


def rerouted(task: GenerationTask, at_s: float) -> GenerationTask:
    return lifecycle.reroute(task, decision=DECISION, wait_s=30, now=after(at_s))


def stored(*tasks: tuple[GenerationTask, float]) -> tuple[Revision, ...]:
    """The revisions of a run: what was stored, and how many seconds after NOW."""
    return tuple(Revision(sequence=n, at=after(at_s), task=task) for n, (task, at_s) in enumerate(tasks, 1))


def submit(task_id: str = TASK_ID, status: int | None = 202, *, request: int = 1, **changes: Any) -> Call:
    call = Call(
        request=request,
        kind="submit",
        gateway="gateway-a",
        sent_at=NOW,
        ended_at=after(0.1),
        status=status,
        task_id=task_id,
        task_status="pending" if status == 202 else "",
    )
    return replace(call, **changes)


def fault(kind: FaultKind, at_s: float, until_s: float, *workers: str) -> Fault:
    return Fault(kind=kind, target="", at=after(at_s), until=after(until_s), workers=workers)


def video(epoch: int = 0, task_id: str = TASK_ID, **changes: Any) -> Artifact:
    artifact = Artifact(path=f"videos/{task_id}.{epoch}.mp4", bytes=7, sha256="ab", frames=5)
    return replace(artifact, **changes)


def queue(at_s: float, *task_ids: str, stream: str = "LANE_ANISORA", messages: int | None = None) -> QueueSample:
    count = len(task_ids) if messages is None else messages
    return QueueSample(at=after(at_s), stream=stream, messages=count, task_ids=task_ids)


def hosts(at_s: float, *hosts: HostProcess, holder: int = 7) -> HostSample:
    return HostSample(at=after(at_s), holders={"cpu-0": holder}, hosts=hosts)


def host(pid: int = 7, *models: str, slot: str | None = "cpu-0") -> HostProcess:
    return HostProcess(pid=pid, started=1, slot=slot, models=models or ("tiny-anisora",))


WAITING: Final = waiting()
CLAIMED: Final = claimed(WAITING, 1)
DONE: Final = done(CLAIMED, 2)
GOOD: Final = History(
    seed=1,
    limits=LIMITS,
    calls=(submit(),),
    revisions=stored((WAITING, 0), (CLAIMED, 1), (DONE, 2)),
    queues=(queue(0.5, TASK_ID), queue(1.5)),
    hosts=(hosts(0.4, host()), hosts(0.8, host())),
    artifacts=(video(),),
)
SECOND: Final = claimed(requeued(CLAIMED, 22), 23, "owner-2")
AGAIN: Final = stored((WAITING, 0), (CLAIMED, 1), (requeued(CLAIMED, 22), 22), (SECOND, 23), (done(SECOND, 24), 24))
ON_DEGRADED: Final = waiting(route="degraded")
OUT_OF_MEMORY: Final = failed(CLAIMED, FailureCode.OUT_OF_MEMORY)
REFUSED: Final = failed(ON_DEGRADED, FailureCode.QUEUE_OVERLOADED, 29.6)


CUT: Final = replace(fault("tail-lost", 0.05, 3), lost_since=after(0.05))


def rules(history: History) -> set[int]:
    return {violation.rule for violation in check(history)}


def good(**changes: Any) -> History:
    return replace(GOOD, **changes)
