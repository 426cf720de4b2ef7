from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from contracts import lifecycle
from contracts.lifecycle import TRANSITIONS, IllegalTransition, TaskEvent
from contracts.memory import MemoryReading
from contracts.progress import StepsDone
from contracts.tasks import TIMELINE_MAX, FailureCode, GenerationTask, TaskStatus, VideoFile, encode_task
from tests.kit.records import DECISION, NOW, pending_task

LATER = NOW + timedelta(seconds=7)
VIDEO = VideoFile(path="videos/a.1.mp4", bytes=9, sha256="cd" * 32, width=96, height=64, frames=17, fps=16)
MEMORY = MemoryReading(rss_bytes=400_000_000)

MOVES: dict[TaskEvent, Callable[[GenerationTask], GenerationTask]] = {
    TaskEvent.CLAIM: lambda it: lifecycle.claim(it, owner="nonce", worker="anisora-1", lease_s=20, now=LATER),
    TaskEvent.REQUEUE: lambda it: lifecycle.requeue(it, route="lane", decision=DECISION, wait_s=30, now=LATER),
    TaskEvent.REROUTE: lambda it: lifecycle.reroute(it, decision=DECISION, wait_s=29.5, now=LATER),
    TaskEvent.FINISH: lambda it: lifecycle.finish(it, video=VIDEO, memory=MEMORY, now=LATER),
    TaskEvent.FAIL: lambda it: lifecycle.fail(it, code=FailureCode.OUT_OF_MEMORY, message="no room", now=LATER),
}


def in_status(status: TaskStatus) -> GenerationTask:
    pending = pending_task()
    match status:
        case TaskStatus.PENDING:
            return pending
        case TaskStatus.PROCESSING:
            return MOVES[TaskEvent.CLAIM](pending)
        case TaskStatus.DONE:
            return MOVES[TaskEvent.FINISH](MOVES[TaskEvent.CLAIM](pending))
        case TaskStatus.FAILED:
            return MOVES[TaskEvent.FAIL](pending)


def test_the_table_is_that_of_the_design() -> None:
    """Design §4: nothing else leaves pending or processing, and nothing leaves an end."""
    drawn = {
        ("pending", "claim"): "processing",
        ("pending", "reroute"): "pending",
        ("pending", "fail"): "failed",
        ("processing", "requeue"): "pending",
        ("processing", "finish"): "done",
        ("processing", "fail"): "failed",
    }
    assert drawn == {(before.value, event.value): after.value for (before, event), after in TRANSITIONS.items()}


@pytest.mark.parametrize("event", MOVES)
@pytest.mark.parametrize("status", TaskStatus)
def test_a_move_goes_as_the_table_says_or_raises_and_changes_nothing(status: TaskStatus, event: TaskEvent) -> None:
    before = in_status(status)
    stored = encode_task(before)
    expected = TRANSITIONS.get((status, event))
    if expected is None:
        with pytest.raises(IllegalTransition, match=f"is {status}: it cannot {event}"):
            MOVES[event](before)
    else:
        after = MOVES[event](before)
        assert after.status is expected
        assert after.timeline[:-1] == before.timeline
        assert (after.timeline[-1].event, after.timeline[-1].at) == (event, LATER)
    assert encode_task(before) == stored


@pytest.mark.parametrize("status", [status for status in TaskStatus if status is not TaskStatus.PROCESSING])
def test_only_a_task_in_process_has_a_lease(status: TaskStatus) -> None:
    with pytest.raises(IllegalTransition):
        lifecycle.renew(in_status(status), progress=StepsDone(step=1, steps=8), lease_s=20, now=LATER)
    with pytest.raises(IllegalTransition):
        lifecycle.release_lease(in_status(status), reason="drained", now=LATER)


def changes(before: GenerationTask, after: GenerationTask) -> dict[str, Any]:
    """What a move changed, besides the timeline."""
    return {
        name: getattr(after, name)
        for name in before.__struct_fields__
        if name != "timeline" and getattr(after, name) != getattr(before, name)
    }


def test_a_claim_counts_the_attempt_and_takes_the_lease() -> None:
    before = pending_task()
    assert changes(before, MOVES[TaskEvent.CLAIM](before)) == {
        "status": TaskStatus.PROCESSING,
        "attempt": 1,
        "owner": "nonce",
        "worker": "anisora-1",
        "claimed_at": LATER,
        "lease_expires_at": LATER + timedelta(seconds=20),
        "progress": StepsDone(step=0, steps=8),
    }


def test_a_renewal_changes_lease_and_progress_only() -> None:
    before = in_status(TaskStatus.PROCESSING)
    later = LATER + timedelta(seconds=5)
    after = lifecycle.renew(before, progress=StepsDone(step=3, steps=8), lease_s=20, now=later)
    assert changes(before, after) == {
        "progress": StepsDone(step=3, steps=8),
        "lease_expires_at": later + timedelta(seconds=20),
    }
    assert after.timeline == before.timeline


def test_a_released_lease_ends_now() -> None:
    before = in_status(TaskStatus.PROCESSING)
    after = lifecycle.release_lease(before, reason="drained", now=LATER)
    assert changes(before, after) == {"lease_expires_at": LATER}
    assert (after.timeline[-1].event, after.timeline[-1].detail) == ("lease_released", "drained")


def test_a_lease_that_is_handed_back_costs_no_attempt() -> None:
    before = in_status(TaskStatus.PROCESSING)
    after = lifecycle.release_lease(before, reason="drained", now=LATER, on_purpose=True)
    assert changes(before, after) == {"lease_expires_at": LATER, "handed_back": 1}
    assert (after.timeline[-1].event, after.timeline[-1].detail) == ("handed_back", "drained")
    assert after.lost_attempts == before.lost_attempts - 1
    assert MOVES[TaskEvent.REQUEUE](after).timeline[-1].detail.endswith("left in attempt 1")
    assert MOVES[TaskEvent.REQUEUE](before).timeline[-1].detail.endswith("was lost in attempt 1")


def test_a_requeue_is_a_new_placement_without_an_owner() -> None:
    before = in_status(TaskStatus.PROCESSING)
    after = MOVES[TaskEvent.REQUEUE](before)
    assert changes(before, after) == {
        "status": TaskStatus.PENDING,
        "epoch": 1,
        "owner": None,
        "decision": DECISION,
        "queued_at": LATER,
        "deadline_at": LATER + timedelta(seconds=30),
        "lease_expires_at": None,
        "progress": None,
    }
    assert after.message_id != before.message_id
    assert after.video_path != before.video_path


def test_a_reroute_is_a_new_placement_on_the_degraded_queue() -> None:
    """FR-021 c."""
    before = pending_task()
    after = MOVES[TaskEvent.REROUTE](before)
    assert changes(before, after) == {
        "route": "degraded",
        "epoch": 1,
        "decision": DECISION,
        "queued_at": LATER,
        "deadline_at": LATER + timedelta(seconds=29.5),
    }
    assert after.message_id != before.message_id
    with pytest.raises(IllegalTransition, match="already"):
        MOVES[TaskEvent.REROUTE](after)


def test_only_a_task_that_waits_and_was_promised_to_nobody_is_withdrawn() -> None:
    """Invariants 1 and 6: a client that got the id finds the task, so only a task without such a client is
    withdrawn."""
    before = pending_task(promised=False)
    after = lifecycle.withdraw(before, now=LATER)
    assert (after.status, after.withdrawn, after.was_refused) == (TaskStatus.FAILED, True, True)
    assert after.error is not None
    assert after.error.code is FailureCode.CANCELLED
    with pytest.raises(IllegalTransition):
        lifecycle.withdraw(lifecycle.promise(before), now=LATER)
    for status in (TaskStatus.PROCESSING, TaskStatus.DONE, TaskStatus.FAILED):
        with pytest.raises(IllegalTransition):
            lifecycle.withdraw(replace(in_status(status), promised=False), now=LATER)


def test_a_promise_changes_nothing_else_and_comes_before_the_end() -> None:
    before = pending_task(promised=False)
    assert changes(before, lifecycle.promise(before)) == {"promised": True}
    with pytest.raises(IllegalTransition):
        lifecycle.promise(in_status(TaskStatus.FAILED))


def test_the_end_of_a_task() -> None:
    before = in_status(TaskStatus.PROCESSING)
    assert changes(before, MOVES[TaskEvent.FINISH](before)) == {
        "status": TaskStatus.DONE,
        "video": VIDEO,
        "memory": MEMORY,
        "finished_at": LATER,
        "lease_expires_at": None,
        "progress": StepsDone(step=8, steps=8),
    }
    failed = lifecycle.fail(before, code=FailureCode.OUT_OF_MEMORY, message="no room", now=LATER, memory=MEMORY)
    assert failed.error is not None
    assert (failed.error.code, failed.memory, failed.lease_expires_at) == (FailureCode.OUT_OF_MEMORY, MEMORY, None)


def test_the_timeline_keeps_its_first_line_and_the_latest() -> None:
    it = pending_task()
    for number in range(100):
        it = lifecycle.with_event(it, f"event {number}", NOW)
    kept = [line.event for line in it.timeline]
    assert kept == ["event 0", *(f"event {number}" for number in range(100 - TIMELINE_MAX + 1, 100))]


@given(st.lists(st.sampled_from(list(MOVES))))
def test_any_history_ends_at_most_once(events: list[TaskEvent]) -> None:
    it = pending_task()
    claims = placements = 0
    for event in events:
        before = it
        try:
            it = MOVES[event](it)
        except IllegalTransition:
            continue
        assert not before.status.is_terminal
        claims += event is TaskEvent.CLAIM
        placements += event in (TaskEvent.REQUEUE, TaskEvent.REROUTE)
        assert (it.owner is not None) >= (it.status is TaskStatus.PROCESSING)
        assert (it.lease_expires_at is not None) == (it.status is TaskStatus.PROCESSING)
        assert (it.video is not None) == (it.status is TaskStatus.DONE)
        assert (it.error is not None) == (it.status is TaskStatus.FAILED)
        assert (it.finished_at is not None) == it.status.is_terminal
    assert (it.attempt, it.epoch) == (claims, placements)
    assert len(it.timeline) <= TIMELINE_MAX
