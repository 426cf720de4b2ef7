"""claim → run → settle against a real server: which worker wins, what it publishes, what is left behind (design §4)."""

import asyncio
import contextlib
from datetime import UTC, datetime
from pathlib import Path

import pytest
from msgspec.structs import replace
from opentelemetry.trace import NonRecordingSpan

from contracts import lifecycle
from contracts.progress import StepsDone
from contracts.settings import Windows
from contracts.tasks import (
    FailureCode,
    GenerationTask,
    ImageReference,
    TaskStatus,
    encode_task,
)
from contracts.topology import TASKS
from lane_worker.runtime.scratch import LOCK
from ops.artifacts import Artifacts
from ops.nats.errors import WrongRevision
from ops.nats.link import NatsLink
from ops.telemetry.tracing import traceparent_of
from tests.kit.behind import js_of
from tests.kit.looping import (
    OTHER_ID,
    PROCESS,
    STREAM,
    becomes,
    fresh_task,
    queue,
    queue_is_empty,
    recorded,
    windows,
    worker,
)
from tests.kit.records import DECISION
from tests.kit.spans import kept_spans
from tests.kit.steered import CONTENT, MEMORY, RECEIPT, THUMBNAIL, Worker
from tests.kit.support import eventually

__all__ = ["windows", "worker"]  # fixtures


async def test_done_means_published(link: NatsLink, worker: Worker) -> None:
    task = fresh_task()
    await queue(link, task)
    await worker.runner.started.wait()
    processing = await becomes(link, task.id, TaskStatus.PROCESSING)
    assert (processing.owner, processing.attempt, processing.worker) == ("one", 1, "worker-one")
    await queue_is_empty(link)  # the queue holds only what waits; the record holds what runs
    assert not (worker.artifacts / task.video_path).exists()
    worker.runner.may_end.set()
    done = await becomes(link, task.id, TaskStatus.DONE)
    assert done.video is not None
    assert (worker.artifacts / done.video.path).read_bytes() == CONTENT
    assert done.video.thumbnail is not None
    assert (worker.artifacts / done.video.thumbnail.path).read_bytes() == THUMBNAIL
    assert done.video.thumbnail.bytes == len(THUMBNAIL)
    assert (done.memory, done.swap, done.lease_expires_at) == (MEMORY, RECEIPT, None)
    assert [path.name for path in worker.folder.iterdir()] == [LOCK]


async def test_the_message_makes_the_record_where_the_gateway_was_slower(link: NatsLink, worker: Worker) -> None:
    task = fresh_task()
    await queue(link, task, record=False)
    processing = await becomes(link, task.id, TaskStatus.PROCESSING)
    assert (processing.attempt, processing.owner) == (1, "one")
    worker.runner.may_end.set()
    await becomes(link, task.id, TaskStatus.DONE)


async def test_two_workers_and_a_message_that_comes_twice(
    link: NatsLink, worker: Worker, windows: Windows, tmp_path: Path
) -> None:
    """Invariant 3: one of the workers runs the task."""
    other = Worker(link, windows, tmp_path, "two")
    task = fresh_task()
    await link.entries.create(TASKS, task.id, encode_task(task))
    await asyncio.gather(*(queue(link, task, record=False, message_id=f"copy-{n}") for n in range(6)))
    for each in (worker, other):
        each.runner.may_end.set()
    await becomes(link, task.id, TaskStatus.DONE)
    await queue_is_empty(link)
    assert len(worker.runner.ran) + len(other.runner.ran) == 1
    await other.close()


async def test_a_message_of_an_older_placement_is_dropped(link: NatsLink, worker: Worker) -> None:
    task = fresh_task()
    newer = replace(task, epoch=1)
    await link.entries.create(TASKS, task.id, encode_task(newer))
    await queue(link, task, record=False)
    await queue_is_empty(link)
    assert worker.runner.ran == []
    await queue(link, newer, record=False)
    await worker.runner.started.wait()
    worker.runner.may_end.set()
    assert (await becomes(link, task.id, TaskStatus.DONE)).epoch == 1


async def test_a_message_ahead_of_its_record_waits_for_it(link: NatsLink, worker: Worker) -> None:
    task = fresh_task()
    revision = await link.entries.create(TASKS, task.id, encode_task(task))
    newer = replace(task, epoch=1)
    await queue(link, newer, record=False)

    async def delivered() -> bool:
        waiting: int | None = (await js_of(link).consumer_info(STREAM, "worker")).num_ack_pending
        return waiting == 1

    await eventually(delivered)
    assert worker.runner.ran == []
    await link.entries.update(TASKS, task.id, encode_task(newer), revision=revision)
    await worker.runner.started.wait()
    worker.runner.may_end.set()
    await becomes(link, task.id, TaskStatus.DONE)


@pytest.mark.parametrize("garbage", [b"", b"\xff", b"{}", b'{"id":"\xff"}', b"x" * 1_000_000, b"[" * 100_000])
async def test_a_poisoned_message_leaves_the_queue(garbage: bytes, link: NatsLink, worker: Worker) -> None:
    await link.messages.publish("lane.anisora.poison", garbage)
    await queue_is_empty(link)
    task = fresh_task()
    await queue(link, task)
    worker.runner.may_end.set()
    await becomes(link, task.id, TaskStatus.DONE)


async def test_a_poisoned_record_is_not_run(link: NatsLink, worker: Worker) -> None:
    task = fresh_task()
    await link.entries.put(TASKS, task.id, b"\xff")
    await queue(link, task, record=False)
    await queue_is_empty(link)
    assert worker.runner.ran == []


async def test_the_lease_is_renewed_and_progress_is_recorded(link: NatsLink, worker: Worker) -> None:
    task = fresh_task()
    await queue(link, task)
    await worker.runner.started.wait()
    first = (await recorded(link, task.id))[0].lease_expires_at
    assert first is not None
    worker.runner.report(StepsDone(step=3, steps=8))

    async def renewed() -> bool:
        current = (await recorded(link, task.id))[0]
        assert current.lease_expires_at is not None
        return current.lease_expires_at > first and current.progress == StepsDone(step=3, steps=8)

    await eventually(renewed)
    worker.runner.may_end.set()
    await becomes(link, task.id, TaskStatus.DONE)


async def test_a_cancelled_task_is_stopped_and_nothing_of_it_stays(link: NatsLink, worker: Worker) -> None:
    task = fresh_task()
    await queue(link, task)
    await worker.runner.started.wait()
    await cancel(link, task.id)
    async with asyncio.timeout(60):
        await worker.runner.stopped.wait()
    await worker.idle.wait()
    assert [path.name for path in worker.folder.iterdir()] == [LOCK]
    cancelled, _ = await recorded(link, task.id)
    assert cancelled.error is not None
    assert cancelled.error.code is FailureCode.CANCELLED


async def cancel(link: NatsLink, task_id: str) -> None:
    for _ in range(10):
        current, revision = await recorded(link, task_id)
        cancelled = lifecycle.fail(current, code=FailureCode.CANCELLED, message="", now=datetime.now(UTC))
        with contextlib.suppress(WrongRevision):  # the worker renewed the lease meanwhile: read again
            await link.entries.update(TASKS, task_id, encode_task(cancelled), revision=revision)
            return
    raise AssertionError("never got in between two renewals")


async def test_a_worker_that_lost_its_task_publishes_nothing(link: NatsLink, worker: Worker) -> None:
    """Fencing: the task went back to the queue while the worker was silent. The worker discards its late result."""
    task = fresh_task()
    await queue(link, task)
    await worker.runner.started.wait()
    worker.runner.stop = lambda task_id: None  # type: ignore[method-assign]  # it hears the notice too late
    for _ in range(20):
        current, revision = await recorded(link, task.id)
        taken = lifecycle.requeue(current, route="lane", decision=DECISION, wait_s=60, now=datetime.now(UTC))
        with contextlib.suppress(WrongRevision):
            await link.entries.update(TASKS, task.id, encode_task(taken), revision=revision)
            break
    worker.runner.may_end.set()
    await worker.idle.wait()
    assert [path.name for path in worker.folder.iterdir()] == [LOCK]
    assert not (worker.artifacts / task.video_path).exists()
    assert not (worker.artifacts / task.thumbnail_path).exists()
    current, _ = await recorded(link, task.id)
    assert (current.status, current.epoch, current.video) == (TaskStatus.PENDING, 1, None)


def task_with_image() -> GenerationTask:
    image = ImageReference(sha256="ab" * 32, media_type="image/png", bytes=3, width=1, height=1)
    task = fresh_task()
    return replace(task, parameters=replace(task.parameters, image=image))


async def test_the_image_may_come_long_after_the_message(
    link: NatsLink, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gateway first publishes the message and then stores the image, and a store may be slow: the worker waits
    under its lease."""
    looks, get = 0, Artifacts.get

    async def counted(artifacts: Artifacts, path: str) -> bytes | None:
        nonlocal looks
        looks += 1
        return await get(artifacts, path)

    monkeypatch.setattr(Artifacts, "get", counted)
    task = task_with_image()
    assert task.image_path is not None
    await queue(link, task)
    await eventually(lambda: asyncio.sleep(0, looks >= 9))  # 2.7 s; the worker once gave up after 2
    assert (await becomes(link, task.id, TaskStatus.PROCESSING)).lease_expires_at is not None
    assert not worker.runner.started.is_set()
    await Artifacts.in_folder(worker.artifacts).put(task.image_path, b"png")
    await worker.runner.started.wait()
    assert worker.runner.image is not None
    assert worker.runner.image.read_bytes() == b"png"
    worker.runner.may_end.set()
    await becomes(link, task.id, TaskStatus.DONE)


async def test_a_worker_that_waits_for_an_image_learns_that_the_task_has_ended(link: NatsLink, worker: Worker) -> None:
    waits_for_ever, task = task_with_image(), replace(fresh_task(), id=OTHER_ID)
    await queue(link, waits_for_ever)
    await becomes(link, waits_for_ever.id, TaskStatus.PROCESSING)

    async def end_it() -> int | None:
        held, revision = await recorded(link, waits_for_ever.id)
        ended = lifecycle.fail(held, code=FailureCode.STORAGE_FAILED, message="no image", now=datetime.now(UTC))
        with contextlib.suppress(WrongRevision):  # the lease was renewed meanwhile
            return await link.entries.update(TASKS, held.id, encode_task(ended), revision=revision)
        return None

    await eventually(end_it)
    await queue(link, task)
    await worker.runner.started.wait()
    assert [each.id for each in worker.runner.ran] == [task.id]


async def test_an_image_that_never_comes(link: NatsLink, windows: Windows, tmp_path: Path) -> None:
    worker = Worker(link, replace(windows, wait_limit_s=0.1), tmp_path, "impatient")
    worker.runner.may_end.set()
    task = task_with_image()
    await queue(link, task)
    await worker.runner.started.wait()  # a real runner ends it as `storage_failed`
    assert worker.runner.image is None
    await worker.close()


async def test_a_refused_task_leaves_no_image_behind(link: NatsLink, worker: Worker) -> None:
    """The task waited too long on the degraded queue: the worker does not run it, and its image goes (invariant 6)."""
    task = replace(task_with_image(), route="degraded", deadline_at=datetime.now(UTC))
    assert task.image_path is not None
    await Artifacts.in_folder(worker.artifacts).put(task.image_path, b"png")
    await queue(link, task)
    failed = await becomes(link, task.id, TaskStatus.FAILED)
    assert failed.error is not None
    assert failed.error.code is FailureCode.QUEUE_OVERLOADED
    await eventually(lambda: asyncio.sleep(0, not (worker.artifacts / str(task.image_path)).exists()))
    assert worker.runner.ran == []


async def test_the_work_is_a_span_of_the_tasks_trace(
    link: NatsLink, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    spans = kept_spans(monkeypatch)
    trace_id, parent_id = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    task = replace(fresh_task(), traceparent=f"00-{trace_id}-{parent_id}-01")
    worker.runner.may_end.set()
    await queue(link, task)
    await worker.idle.wait()
    by_name = {span.name: span for span in spans.get_finished_spans()}
    begun = {name: span.start_time or 0 for name, span in by_name.items()}
    span, waited, claim = by_name[PROCESS], by_name["queue.wait"], by_name["claim"]
    assert waited.parent is not None
    assert waited.parent.span_id == int(parent_id, 16)
    # during its parent, the root
    assert datetime.fromtimestamp(begun["queue.wait"] / 1e9, UTC) == task.queued_at
    assert begun["queue.wait"] <= begun["claim"] <= begun[PROCESS]
    assert claim.parent is not None
    assert claim.parent.span_id == waited.context.span_id
    assert claim.end_time == waited.end_time
    assert span.parent is not None
    assert (f"{span.context.trace_id:032x}", f"{span.parent.span_id:016x}") == (trace_id, parent_id)
    said = dict(span.attributes or {})
    assert {
        "task.id": task.id,
        "model": "anisora",
        "warmlane.route": "lane",
        "warmlane.attempt": 1,
    }.items() <= said.items()


async def test_a_second_attempt_is_linked_to_the_first_and_its_cancel_is_recorded(
    link: NatsLink, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    spans = kept_spans(monkeypatch)
    sender = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    first = sender.replace("b7ad6b7169203331", "00f067aa0ba902b7")
    await queue(link, replace(fresh_task(), epoch=1, attempt=1, traceparent=sender, attempt_traceparent=first))
    await worker.runner.started.wait()
    held, _ = await recorded(link, worker.runner.ran[0].id)
    await cancel(link, held.id)
    await worker.idle.wait()
    (span,) = (span for span in spans.get_finished_spans() if span.name == PROCESS)
    # the record named the span before it began: a process that finds the worker lost can end the span
    assert held.attempt_traceparent == traceparent_of(NonRecordingSpan(span.context))
    assert [f"{link.context.span_id:016x}" for link in span.links] == ["00f067aa0ba902b7"]
    assert (span.attributes or {})["warmlane.outcome"] == "cancelled"
    assert span.status.description == "cancelled"
    assert [event.name for event in span.events] == ["exception"]
