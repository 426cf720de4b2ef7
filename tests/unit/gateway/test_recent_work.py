"""The last hour: what counts, that it counts once, and in which minute."""

from datetime import datetime, timedelta
from typing import Any

from msgspec.structs import replace

from contracts import lifecycle
from contracts.memory import SwapReceipt
from contracts.tasks import FailureCode, GenerationTask, TaskStatus, VideoFile
from gateway.boards.recent_work import SWAPS_MAX, RecentWork
from tests.kit.records import NOW, TASK_ID, after, pending_task

MODELS = ("anisora", "phr00t")
VIDEO = VideoFile(path=f"videos/{TASK_ID}.0.mp4", bytes=9, sha256="cd" * 32, width=96, height=64, frames=17, fps=16)
SWAP = SwapReceipt(slot="cpu-0", released_model=None, loaded_model="anisora", how="nothing_resident", probe="rss")
PENDING, PROCESSING = TaskStatus.PENDING, TaskStatus.PROCESSING


def claimed(waited_s: float, **changes: Any) -> GenerationTask:
    task = pending_task(**changes)
    return lifecycle.claim(task, owner="o", worker="w", lease_s=20, now=task.queued_at + timedelta(seconds=waited_s))


def done(task: GenerationTask, at: datetime, swap: SwapReceipt | None = None) -> GenerationTask:
    return lifecycle.finish(task, video=VIDEO, memory=None, swap=swap, now=at)


def counts(recent: RecentWork, now: datetime = NOW) -> list[tuple[Any, ...]]:
    return [
        (
            each.model,
            each.route,
            each.started,
            each.wait_sum_s,
            each.wait_max_s,
            each.done,
            each.failed,
            each.overloaded,
        )
        for each in recent.minutes(MODELS, now)
    ]


def test_a_task_is_counted_once_when_it_starts_and_once_when_it_ends() -> None:
    recent = RecentWork()
    task = claimed(2)
    recent.take_in(None, pending_task(), NOW)
    recent.take_in(PENDING, task, NOW)
    recent.take_in(PROCESSING, replace(task, lease_expires_at=after(30)), NOW)  # its lease is renewed
    ended = done(task, after(4))
    recent.take_in(PROCESSING, ended, NOW)
    recent.take_in(TaskStatus.DONE, ended, NOW)  # the bucket is read once more
    recent.take_in(None, claimed(6, id="other", route="degraded"), NOW)
    assert counts(recent) == [("anisora", "degraded", 1, 6, 6, 0, 0, 0), ("anisora", "lane", 1, 2, 2, 1, 0, 0)]


def test_what_ended_without_a_worker_started_nowhere() -> None:
    recent = RecentWork()
    for code in (FailureCode.QUEUE_OVERLOADED, FailureCode.CANCELLED):
        failed = lifecycle.fail(pending_task(), code=code, message="x", now=after(1))
        recent.take_in(PENDING, failed, NOW)
    recent.refused("phr00t", NOW)
    assert counts(recent) == [("anisora", "lane", 0, 0, 0, 0, 1, 1), ("phr00t", "degraded", 0, 0, 0, 0, 0, 1)]


def test_a_task_that_waits_again_started_before_and_not_now() -> None:
    """Its worker was lost: the claim is from before it was queued again."""
    recent = RecentWork()
    again = replace(claimed(1), status=PENDING, queued_at=after(20), owner=None)
    recent.take_in(PROCESSING, again, NOW)
    recent.take_in(PENDING, lifecycle.fail(again, code=FailureCode.WORKER_LOST, message="x", now=after(21)), NOW)
    assert counts(recent) == [("anisora", "lane", 0, 0, 0, 0, 1, 0)]


def test_a_gateway_that_starts_reads_the_hour_before_and_nothing_older() -> None:
    recent = RecentWork()
    now = after(3_600)
    for age_s in (10, 3_500, 3_800, 90_000):
        at = now - timedelta(seconds=age_s)
        task = claimed(1, id=f"task-{age_s}", queued_at=at, created_at=at)
        recent.take_in(None, done(task, at + timedelta(seconds=2)), now)
    assert len(recent.minutes(MODELS, now)) == 2
    assert recent.since(now) <= recent.minutes(MODELS, now)[0].at
    later = now + timedelta(hours=2)
    recent.refused("phr00t", later)
    assert len(recent._minutes) == 1  # what is over is forgotten
    assert recent.minutes(("anisora",), later) == []


def test_the_newest_swaps_are_kept() -> None:
    recent = RecentWork()
    for number in range(SWAPS_MAX + 5):
        task = claimed(1, id=f"task-{number}")
        recent.take_in(PROCESSING, done(task, after(number + 2), swap=SWAP), after(number))
    recent.take_in(PROCESSING, done(claimed(1), after(500)), after(500))  # without a swap
    swaps = recent.swaps(MODELS)
    assert len(swaps) == SWAPS_MAX
    assert (swaps[0].task_id, swaps[-1].task_id) == (f"task-{SWAPS_MAX + 4}", "task-5")
    assert (swaps[0].worker, swaps[0].swap) == ("w", SWAP)
    assert recent.swaps(("phr00t",)) == []
