"""The checker: a good history passes, and the smallest bad one for each part of each invariant does not."""

from collections.abc import Callable
from typing import Any, Final

import pytest
from msgspec.structs import replace

from contracts import lifecycle
from contracts.keys import ANONYMOUS
from contracts.memory import MemoryReading, SwapReceipt
from contracts.tasks import FailureCode, GenerationTask, VideoFile, keyed_task_id
from contracts.topology import DEGRADED
from tests.faults.checker import Violation, check
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


@pytest.mark.parametrize(
    "history",
    [
        pytest.param(GOOD, id="done"),
        pytest.param(
            good(
                revisions=AGAIN,
                artifacts=(video(1),),
            ),
            id="done-in-the-second-attempt",
        ),
        pytest.param(
            good(
                revisions=AGAIN,
                faults=(fault("kill-lane", 1.5, 1.5, "anisora-0"),),
                artifacts=(video(0), video(1)),
            ),
            id="a-killed-worker-leaves-its-video",
        ),
        pytest.param(
            good(
                revisions=stored((WAITING, 0), (failed(WAITING, FailureCode.CANCELLED), 3)),
                artifacts=(),
                calls=(submit(), submit(kind="cancel", status=200)),
                queues=(),
            ),
            id="cancelled",
        ),
        pytest.param(
            good(
                revisions=stored(
                    (WAITING, 0), (CLAIMED, 1), (failed(CLAIMED, FailureCode.STORAGE_FAILED, memory=MEMORY), 3)
                ),
                faults=(fault("store-full", 0, 5),),
                artifacts=(),
            ),
            id="storage-failed",
        ),
        pytest.param(
            good(
                revisions=stored((ON_DEGRADED, 0), (REFUSED, 29.6)),
                queues=(),
                artifacts=(),
                calls=(submit(status=503, code="queue_overloaded", limit="wait"),),
            ),
            id="refused-after-a-wait",
        ),
        pytest.param(
            good(revisions=(), artifacts=(), calls=(submit("", 503, code="queue_overloaded", limit="depth"),)),
            id="refused-at-the-door",
        ),
        pytest.param(
            good(
                revisions=stored((ON_DEGRADED, 0), (REFUSED, 44)),
                queues=(),
                artifacts=(),
                faults=(fault("kill-nats", 20, 43.5),),
            ),
            id="4-late-since-the-server-was-away",
        ),
        pytest.param(
            good(hosts=(hosts(0.4, host(8), holder=8), hosts(0.8, host(8)))), id="5-two-looks-that-do-not-agree"
        ),
        pytest.param(good(queues=(queue(0.5, TASK_ID), queue(0.9))), id="1-claimed-while-the-queue-was-being-read"),
        pytest.param(good(calls=(submit("", None),)), id="6-no-answer-so-it-may-run"),
        pytest.param(
            good(revisions=(), lost=GOOD.revisions, faults=(CUT,), artifacts=()),
            id="lost-with-the-tail",
        ),
        pytest.param(
            good(
                # it had ended, ran again, and was reported as done in between
                lost=stored((CLAIMED, 1), (DONE, 2)),
                revisions=stored((WAITING, 0), (requeued(CLAIMED, 12), 12), (REFUSED, 20)),
                calls=(submit(), submit(kind="poll", status=200, task_status="done", ended_at=after(2.5))),
                faults=(CUT,),
                queues=(),
            ),
            id="ended-in-the-tail-and-otherwise-afterwards",
        ),
    ],
)
def test_a_good_history_passes(history: History) -> None:
    assert check(history) == []


@pytest.mark.parametrize(
    ("rule", "history"),
    [
        pytest.param(0, good(gaps=("revision 3 was gone",)), id="0-a-gap"),
        pytest.param(0, good(missed=(TASK_ID,)), id="0-a-watch-missed-a-record"),
        pytest.param(1, good(revisions=(), artifacts=()), id="1-no-record-of-an-id"),
        pytest.param(1, good(revisions=stored((WAITING, 0), (CLAIMED, 1)), artifacts=()), id="1-never-ended"),
        pytest.param(
            1, good(revisions=stored((WAITING, 0), (CLAIMED, 1), (DONE, 2), (DONE, 3))), id="1-written-after-its-end"
        ),
        pytest.param(
            1, good(calls=(submit(), submit(kind="poll", status=200, task_status="failed"))), id="1-showed-another-end"
        ),
        pytest.param(
            1,
            good(revisions=stored((WAITING, 0), (failed(WAITING, FailureCode.CANCELLED), 3)), artifacts=(), queues=()),
            id="1-cancelled-by-nobody",
        ),
        pytest.param(
            1,
            good(
                revisions=stored((WAITING, 0), (failed(WAITING, FailureCode.WORKER_LOST), 3)), artifacts=(), queues=()
            ),
            id="1-lost-a-worker-it-never-had",
        ),
        pytest.param(
            1,
            good(
                revisions=stored(
                    (WAITING, 0), (CLAIMED, 1), (failed(CLAIMED, FailureCode.STORAGE_FAILED, memory=MEMORY), 3)
                ),
                artifacts=(),
            ),
            id="1-storage-failed-on-a-good-store",
        ),
        pytest.param(
            1,
            good(
                revisions=stored((WAITING, 0), (CLAIMED, 1), (failed(CLAIMED, FailureCode.STORAGE_FAILED), 3)),
                faults=(fault("store-full", 0, 5),),
                artifacts=(),
            ),
            id="1-storage-failed-without-a-reading",
        ),
        pytest.param(
            1,
            good(
                revisions=stored((WAITING, 0), (CLAIMED, 1), (failed(CLAIMED, FailureCode.OUT_OF_MEMORY), 3)),
                artifacts=(),
            ),
            id="1-an-end-that-nothing-caused",
        ),
        pytest.param(1, good(queues=(queue(0.5),)), id="1-acked-before-it-was-claimed"),
        pytest.param(1, good(queues=(queue(0.5, "another"),)), id="1-acked-while-another-waits"),
        pytest.param(2, good(artifacts=()), id="2-no-video"),
        pytest.param(
            2,
            good(revisions=stored((WAITING, 0), (CLAIMED, 1), (replace(DONE, video=None), 2)), artifacts=()),
            id="2-done-without-a-video",
        ),
        pytest.param(
            2,
            good(revisions=stored((WAITING, 0), (CLAIMED, 1), (replace(OUT_OF_MEMORY, video=DONE.video), 3))),
            id="2-published-and-failed",
        ),
        pytest.param(2, good(artifacts=(video(sha256="cd"),)), id="2-another-video"),
        pytest.param(2, good(artifacts=(video(frames=0),)), id="2-does-not-play"),
        pytest.param(2, good(artifacts=(video(), video(1))), id="2-two-videos"),
        pytest.param(
            2,
            good(revisions=AGAIN, artifacts=(video(), video(1)), faults=(fault("stop-lane", 0, 9),)),
            id="2-two-videos-and-nobody-was-killed",
        ),
        pytest.param(
            2,
            good(revisions=AGAIN, artifacts=(video(), video(1)), faults=(fault("kill-lane", 0, 0.5, "anisora-0"),)),
            id="2-two-videos-and-it-was-killed-before",
        ),
        pytest.param(
            2,
            good(
                revisions=stored((WAITING, 0), (CLAIMED, 1), (failed(CLAIMED, FailureCode.CANCELLED), 3)),
                calls=(submit(), submit(kind="cancel", status=200)),
            ),
            id="2-a-video-of-what-failed",
        ),
        pytest.param(
            2,
            good(
                revisions=stored((WAITING, 0), (CLAIMED, 1), (DONE, 2), (done(SECOND, 24), 24)),
                artifacts=(video(), video(1)),
            ),
            id="2-published-twice",
        ),
        pytest.param(
            2,
            good(
                calls=(submit(keyed_task_id(ANONYMOUS, "k", 0), key="k"),),
                revisions=stored(
                    *((done(claimed(waiting(keyed_task_id(ANONYMOUS, "k", n)), 1), 2), 2) for n in (0, 1))
                ),
                artifacts=tuple(video(task_id=keyed_task_id(ANONYMOUS, "k", n)) for n in (0, 1)),
            ),
            id="2-one-key-two-tasks",
        ),
        pytest.param(
            3,
            good(revisions=stored((WAITING, 0), (CLAIMED, 1), (claimed(WAITING, 1.5, "owner-2"), 1.5), (DONE, 2))),
            id="3-two-owners",
        ),
        pytest.param(
            3,
            good(revisions=stored((WAITING, 0), (CLAIMED, 1), (requeued(CLAIMED, 22), 22), (DONE, 23))),
            id="3-a-stale-worker-settles",
        ),
        pytest.param(
            3,
            good(
                revisions=stored(
                    (WAITING, 0), (CLAIMED, 1), (requeued(CLAIMED, 5), 5), (SECOND, 23), (done(SECOND, 24), 24)
                ),
                artifacts=(video(1),),
            ),
            id="3-taken-away-while-its-lease-stood",
        ),
        pytest.param(3, good(revisions=stored((WAITING, 0), (DONE, 2))), id="3-done-and-never-claimed"),
        pytest.param(
            3,
            good(revisions=stored((WAITING, 0), (CLAIMED, 1), (replace(DONE, epoch=1), 2)), artifacts=(video(),)),
            id="3-done-at-an-epoch-that-nobody-claimed",
        ),
        pytest.param(
            3,
            good(
                revisions=stored((WAITING, 0), (CLAIMED, 1), (failed(CLAIMED, FailureCode.WORKER_LOST), 3)),
                artifacts=(),
            ),
            id="3-given-up-while-its-lease-stood",
        ),
        pytest.param(
            3,
            good(revisions=stored((WAITING, 0), (replace(CLAIMED, attempt=3), 1), (replace(DONE, attempt=3), 2))),
            id="3-a-third-attempt",
        ),
        pytest.param(4, good(queues=(queue(1.5, stream=DEGRADED, messages=26),)), id="4-too-deep"),
        pytest.param(
            4,
            good(revisions=stored((ON_DEGRADED, 0), (REFUSED, 32)), queues=(), artifacts=()),
            id="4-pending-too-long",
        ),
        pytest.param(
            4,
            good(
                revisions=stored((ON_DEGRADED, 0), (REFUSED, 32)),
                queues=(),
                artifacts=(),
                faults=(fault("kill-nats", 5, 8),),
            ),
            id="4-pending-too-long-after-the-server-was-back",
        ),
        pytest.param(
            4,
            good(
                revisions=stored(
                    (ON_DEGRADED, 0), (claimed(ON_DEGRADED, 31), 31), (done(claimed(ON_DEGRADED, 31), 32), 32)
                ),
                queues=(),
            ),
            id="4-claimed-too-late-and-run",
        ),
        pytest.param(5, good(hosts=(hosts(0.4, host(8)), hosts(0.8, host(8)))), id="5-not-its-slot"),
        pytest.param(5, good(hosts=(hosts(0.4, host(slot=None)), hosts(0.8, host(slot=None)))), id="5-no-slot"),
        pytest.param(
            5,
            good(hosts=tuple(hosts(at_s, host(7, "tiny-anisora", "tiny-phr00t")) for at_s in (0.4, 0.8))),
            id="5-two-models",
        ),
        pytest.param(
            5,
            good(revisions=stored((WAITING, 0), (CLAIMED, 1), (replace(DONE, swap=replace(PROOF, samples=1)), 2))),
            id="5-loaded-without-proof",
        ),
        pytest.param(
            6,
            good(calls=(submit("", 503, code="queue_overloaded", limit="depth"),)),
            id="6-refused-at-the-door-and-run",
        ),
        pytest.param(
            6,
            good(calls=(submit(status=503, code="queue_overloaded", limit="wait"),)),
            id="6-refused-after-a-wait-and-run",
        ),
        pytest.param(6, good(calls=(submit("", 422, code="validation_failed"),)), id="6-invalid-and-run"),
        pytest.param(6, good(calls=(submit(request=2),)), id="6-nobody-asked"),
        pytest.param(
            6,
            good(
                revisions=stored((ON_DEGRADED, 0), (REFUSED, 29.6)),
                calls=(submit("", 503, code="queue_overloaded", limit="depth"),),
                queues=(),
                artifacts=(),
            ),
            id="6-refused-at-the-door-and-recorded",
        ),
        pytest.param(
            6,
            good(calls=(submit("", None, sent=False),)),
            id="6-never-sent",
        ),
        pytest.param(
            6,
            good(
                revisions=stored((ON_DEGRADED, 0), (REFUSED, 29.6)),
                queues=(),
                calls=(submit(status=503, code="queue_overloaded", limit="wait"),),
                artifacts=(Artifact(path=f"images/{TASK_ID}.ab", bytes=1, sha256="ab", frames=0),),
            ),
            id="6-the-image-of-what-was-refused",
        ),
        pytest.param(
            1,
            good(
                revisions=(),
                lost=GOOD.revisions,
                faults=(CUT,),
                artifacts=(),
                calls=(submit(), submit(kind="poll", status=200, ended_at=after(8.1))),
            ),
            id="answered-from-memory-after-it-was-lost",
        ),
        pytest.param(
            1,
            good(lost=stored((CLAIMED, 1)), revisions=stored((WAITING, 0)), faults=(CUT,), artifacts=(), queues=()),
            id="what-is-left-of-it-never-ends",
        ),
        pytest.param(
            1,
            good(
                calls=(
                    submit(),
                    submit(kind="look", status=200, task_status="pending", sent_at=after(8), ended_at=after(9)),
                )
            ),
            id="a-gateway-does-not-know-that-it-ended",
        ),
    ],
)
def test_a_bad_history_is_caught(rule: int, history: History) -> None:
    assert rule in rules(history), check(history)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda history: replace(history, revisions=history.revisions[::-1]), id="order"),
        pytest.param(lambda history: replace(history, calls=history.calls * 2), id="twice"),
    ],
)
def test_the_order_of_what_was_written_down_does_not_matter(change: Callable[[History], History]) -> None:
    assert check(change(GOOD)) == []


def test_a_violation_names_what_it_is_about() -> None:
    bad = good(revisions=(), artifacts=())
    assert check(bad) == [Violation(1, TASK_ID, "lost: a client was given the id, and there is no record")]
