"""History in, violations out: the six invariants of design §4, one function each. Pure.

Times are the server's wherever the server has one. An empty list is a proof for the observed run, as far as its history
goes: if the history has a gap, `check` reports the gap.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Final

from contracts.keys import ANONYMOUS
from contracts.lifecycle import TRANSITIONS
from contracts.tasks import FailureCode, GenerationTask, TaskStatus, keyed_task_id
from contracts.topology import DEGRADED, work_stream
from tests.drills.overload import is_proven
from tests.faults.history import History, HostProcess, Revision
from tests.faults.refusals import refused_is_refused
from tests.faults.story import GATEWAY_FAULTS, LIE, LOST, SERVER_FAULTS, STORE_FAULTS, Story, Violation

# The server counts a queue's subjects just after the time that it puts on the answer.
SAMPLE: Final = timedelta(seconds=0.2)
# Clocks of processes against the server's, on one machine.
SKEW: Final = timedelta(seconds=0.25)
KEYED_TRIES: Final = 16
# No fault here can cause these: such an end means that something else is broken.
UNEXPECTED: Final = frozenset(
    {
        FailureCode.OUT_OF_MEMORY,
        FailureCode.INFERENCE_FAILED,
        FailureCode.INFERENCE_TIMEOUT,
        FailureCode.INVALID_INPUT,
    }
)


def check(history: History) -> list[Violation]:
    """Every violation, by invariant."""
    story = Story(history)
    gaps = [Violation(0, "history", gap) for gap in history.gaps]
    # ADR 0037: the slow look mends it, so that no other rule would notice
    gaps += [Violation(0, task_id, "the watch of a gateway missed its record") for task_id in history.missed]
    rules = (one_end, one_video, one_owner, bounded_queue, one_pipeline, refused_is_refused)
    found = {violation for rule in rules for violation in rule(story)}
    return sorted(violation for violation in found if violation.of_all or violation.subject not in story.torn) + gaps


# ── 1 ────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def one_end(story: Story) -> Iterator[Violation]:
    """1. Every id that a client was given reaches exactly one terminal status, and never leaves it.

    So does every other recorded task. Every answer about the end agrees with the record. The reason is true:
    cancelled by a client, worker_lost after a claim, displaced before one, storage_failed while the store was broken
    and with a memory reading from after the cleanup. Until its first claim, a task is in its queue: its message goes
    only after its record has moved.
    """
    yield from _given_ids_end(story)
    for task_id, life in story.lives.items():
        yield from _ends_once(task_id, life)
        yield from _ends_for_a_reason(story, task_id, life)
    yield from _waits_in_its_queue(story)


def _given_ids_end(story: Story) -> Iterator[Violation]:
    for call in story.history.calls:
        if not call.task_id or call.status is None or call.status >= 300 or story.may_be_lost(call.ended_at):
            continue
        last = story.last(call.task_id)
        if last is None:
            yield Violation(1, call.task_id, f"{LOST}a client was given the id, and there is no record")
        elif (
            call.kind == "look"
            and story.lives[call.task_id][-1].at < call.sent_at
            and call.task_status != last.status.value
        ):
            text = f"{LIE}{call.task_status} when all is over, the record says {last.status}"
            yield Violation(1, call.task_id, text)
        elif call.task_status in ("done", "failed") and call.task_status != last.status.value:
            yield Violation(1, call.task_id, f"a client was answered {call.task_status}, the record says {last.status}")


def _ends_once(task_id: str, life: Sequence[Revision]) -> Iterator[Violation]:
    for before, after in pairwise(life):
        if before.task.status.is_terminal:
            text = f"it had ended {before.task.status}, and became {after.task.status} at revision {after.sequence}"
            yield Violation(1, task_id, text)
    if not life[-1].task.status.is_terminal:
        yield Violation(1, task_id, f"{LOST}still {life[-1].task.status} at the end, epoch {life[-1].task.epoch}")


def _ends_for_a_reason(story: Story, task_id: str, life: Sequence[Revision]) -> Iterator[Violation]:
    end = life[-1]
    error = end.task.error
    if error is None:
        return
    cancels = [call for call in story.history.calls if call.kind == "cancel" and call.task_id == task_id]
    if error.code in UNEXPECTED:
        yield Violation(1, task_id, f"nothing here can cause {error.code}: {error.message}")
    elif error.code is FailureCode.CANCELLED and not end.task.withdrawn and not cancels:
        yield Violation(1, task_id, "cancelled, though nobody asked for it")
    elif error.code is FailureCode.WORKER_LOST and not end.task.attempt:
        yield Violation(1, task_id, "worker_lost, though nobody had claimed it")
    elif end.task.displaced_by is not None and any(revision.task.attempt for revision in life):
        yield Violation(1, task_id, f"displaced by {end.task.displaced_by}, though a worker had claimed it")
    elif error.code is FailureCode.STORAGE_FAILED:
        if not story.faults(STORE_FAULTS, life[0].at, end.at):
            yield Violation(1, task_id, "storage_failed, though the store was well")
        if end.task.attempt and end.task.memory is None:
            yield Violation(1, task_id, "storage_failed, and no memory was read after the cleanup")


def _waits_in_its_queue(story: Story) -> Iterator[Violation]:
    samples = defaultdict(list)
    for sample in story.history.queues:
        samples[sample.stream].append(sample)
    for task_id, life in story.lives.items():
        first = life[0].task
        if first.status is not TaskStatus.PENDING or first.epoch:
            continue
        left = next((item for item in life if not _waits_at_first(item.task)), None)
        for sample in samples[work_stream(first.route, first.model)]:
            waits = life[0].at < sample.at < first.deadline_at and (left is None or sample.at + SAMPLE < left.at)
            if waits and task_id not in sample.task_ids:
                yield Violation(1, task_id, "pending and unclaimed, and its message had left the queue")
                break


def _waits_at_first(task: GenerationTask) -> bool:
    return task.status is TaskStatus.PENDING and task.epoch == 0


# ── 2 ────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def one_video(story: Story) -> Iterator[Violation]:
    """2. At most one video is published for an id; it plays; its sha256 matches the record.

    The store is read at the end, before a janitor has run. A video that no record names is from a worker that lost the
    task. That worker removes it itself; only if the worker was killed or the store was broken, the janitor has to.
    A key stands for one task: of the ids that are made from it, at most one was not refused.
    """
    for task_id, life in story.lives.items():
        yield from _published(story, task_id, life)
    for task_id, videos in story.videos.items():
        named = {item.task.video.path for item in story.lives.get(task_id, ()) if item.task.video is not None}
        for video in videos:
            if video.path not in named and not _left_to_the_janitor(story, task_id, video.path):
                yield Violation(2, task_id, f"{video.path} is in the store, and no record publishes it")
    for key in {call.key for call in story.history.calls if call.key is not None}:
        tasks = [story.last(keyed_task_id(ANONYMOUS, key, n)) for n in range(KEYED_TRIES)]
        kept = [task.id for task in tasks if task is not None and not task.was_refused]
        if len(kept) > 1 and not story.torn.intersection(kept):
            yield Violation(2, kept[1], f"doubled: one Idempotency-Key led to {len(kept)} tasks: {', '.join(kept)}")


def _published(story: Story, task_id: str, life: Sequence[Revision]) -> Iterator[Violation]:
    paths = {item.task.video.path for item in life if item.task.video is not None}
    if len(paths) > 1:
        yield Violation(2, task_id, f"doubled: its records published {' and '.join(sorted(paths))}")
    end = life[-1].task
    if end.status is not TaskStatus.DONE:
        if paths:
            yield Violation(2, task_id, f"{end.status}, and a record published a video")
        return
    if end.video is None:
        yield Violation(2, task_id, "done without a video")
        return
    stored = next((video for video in story.videos.get(task_id, ()) if video.path == end.video.path), None)
    if stored is None:
        yield Violation(2, task_id, f"done, and {end.video.path} is not in the store")
    elif (stored.bytes, stored.sha256) != (end.video.bytes, end.video.sha256):
        yield Violation(2, task_id, f"{stored.path} is not the video of the record: {stored.bytes} bytes")
    elif stored.frames != end.video.frames:
        yield Violation(2, task_id, f"{stored.path} plays {stored.frames} frames, not {end.video.frames}")


def _left_to_the_janitor(story: Story, task_id: str, path: str) -> bool:
    for revision in story.lives.get(task_id, ()):
        task = revision.task
        if task.status is not TaskStatus.PROCESSING or task.video_path != path:
            continue
        for fault in story.history.faults:
            if fault.until >= revision.at and (task.worker in fault.workers or fault.kind in STORE_FAULTS):
                return True
    return False


# ── 3 ────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def one_owner(story: Story) -> Iterator[Violation]:
    """3. Two workers never both own an id at the same epoch; a worker that lost its lease can change nothing.

    Every step from one revision to the next is in the table. Its owner makes it at the same epoch, or the process that
    ends the task does. A step to the next epoch comes only after the lease was over.
    """
    for task_id, life in story.lives.items():
        attempts = max(revision.task.lost_attempts for revision in life)
        if attempts > story.limits.attempts:
            yield Violation(3, task_id, f"attempt {attempts} of {story.limits.attempts}")
        for before, after in pairwise(life):
            text = _illegal(before, after)
            if text is not None:
                yield Violation(3, task_id, f"revision {after.sequence}: {text}")


def _illegal(before: Revision, after: Revision) -> str | None:
    was, now = before.task, after.task
    if was.status.is_terminal:
        return None  # invariant 1 covers that
    if now.epoch < was.epoch:
        return f"it stood at epoch {was.epoch}, and one of epoch {now.epoch} changed it to {now.status}"
    if now.epoch > was.epoch:
        if now.epoch != was.epoch + 1 or now.status is not TaskStatus.PENDING:
            return f"from {was.status} at epoch {was.epoch} to {now.status} at epoch {now.epoch}"
        if not _lease_was_over(was, after.at):
            return f"taken from {was.worker}, whose lease stood"
        return None
    if now.error is not None and now.error.code is FailureCode.WORKER_LOST and not _lease_was_over(was, after.at):
        return f"worker_lost, and the lease of {was.worker} stood"
    if was.status is TaskStatus.PROCESSING and now.owner != was.owner:
        return f"{was.worker} owned it, and {now.worker} changed it to {now.status}"
    if now.status is not was.status and now.status not in _targets(was.status):
        return f"from {was.status} to {now.status}"
    return None


def _lease_was_over(task: GenerationTask, at: datetime) -> bool:
    return task.lease_expires_at is None or at >= task.lease_expires_at - SKEW


def _targets(status: TaskStatus) -> set[TaskStatus]:
    """The statuses to which one move leads at the same epoch."""
    return {to for (source, _), to in TRANSITIONS.items() if source is status} - {TaskStatus.PENDING}


# ── 4 ────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def bounded_queue(story: Story) -> Iterator[Violation]:
    """4. DEGRADED never holds more than 25 messages; none is claimed, or still pending, 30 s after it was queued.

    This holds while a server and a gateway live, else from the first look after their return. The limit is the run's
    own. A claim that was stored later is never run. A task that waits on a lane has moved on by then as well
    (FR-021 c), though a lane may have claimed it.
    """
    for sample in story.history.queues:
        if sample.stream == DEGRADED and sample.messages > story.limits.depth:
            yield Violation(4, DEGRADED, f"{sample.messages} messages at {sample.at:%X}")
    for task_id, life in story.lives.items():
        for epoch in sorted({item.task.epoch for item in life}):
            stay = [item for item in life if item.task.epoch == epoch]
            due_at = stay[0].task.queued_at + timedelta(seconds=story.limits.wait_limit_s)
            if stay[0].task.route == "degraded":
                yield from _not_claimed_late(task_id, stay, due_at)
            yield from _not_pending_late(story, task_id, life, stay, due_at)


def _not_claimed_late(task_id: str, stay: Sequence[Revision], due_at: datetime) -> Iterator[Violation]:
    claim = next((item for item in stay if item.task.status is TaskStatus.PROCESSING), None)
    if claim is None or claim.at <= due_at:
        return
    for item in stay:
        ran = item.task.progress is not None and item.task.progress.step > 0
        if ran or item.task.status is TaskStatus.DONE:
            late_s = (claim.at - due_at).total_seconds()
            yield Violation(4, task_id, f"claimed {late_s:.2f} s after its wait limit, and run")
            return


def _not_pending_late(
    story: Story, task_id: str, life: Sequence[Revision], stay: Sequence[Revision], due_at: datetime
) -> Iterator[Violation]:
    waited = [item for item in stay if item.task.status is TaskStatus.PENDING]
    if not waited:
        return
    left = next((item for item in life if item.sequence > waited[-1].sequence), None)
    late_s = timedelta(seconds=story.limits.late_s)
    if left is None:
        return  # it never ended: invariant 1 covers that
    if left.at <= due_at + late_s:
        return
    outages = story.faults((*SERVER_FAULTS, *GATEWAY_FAULTS), waited[0].at, left.at)
    back_at = max((fault.until for fault in outages), default=due_at)
    if left.at > max(back_at, due_at) + late_s:
        over_s = (left.at - due_at).total_seconds()
        yield Violation(4, task_id, f"pending for {over_s:.2f} s after its wait limit, at epoch {left.task.epoch}")


# ── 5 ────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def one_pipeline(story: Story) -> Iterator[Violation]:
    """5. At most one process holds a GPU's lock; at most one heavy pipeline is resident there; no load begins before
    the last release is verified.

    According to the kernel, a process that maps a model's weights has the lock of one slot, and maps one model. Only
    what two samples in a row show counts, since a look at several processes is not a look at one moment. The swap
    receipt of every task that is done must be a proof.
    """
    reported = set()
    for before, after in pairwise(story.history.hosts):
        was = {(host.pid, host.started): _misplaced(host, before.holders) for host in before.hosts}
        for host in after.hosts:
            process = (host.pid, host.started)
            text = _misplaced(host, after.holders)
            if text is not None and was.get(process) is not None and process not in reported:
                reported.add(process)
                yield Violation(5, host.slot or f"process {host.pid}", f"{text} at {after.at:%X}")
    for task_id, life in story.lives.items():
        end = life[-1].task
        if end.status is TaskStatus.DONE and end.swap is not None and not is_proven(end.swap):
            text = f"{end.swap.loaded_model} was loaded on {end.swap.slot} without a proven release"
            yield Violation(5, task_id, f"{text} ({end.swap.how}, {end.swap.samples} samples)")


def _misplaced(host: HostProcess, holders: Mapping[str, int]) -> str | None:
    if not host.models:
        return None
    if len(host.models) > 1:
        return f"process {host.pid} holds {' and '.join(host.models)}"
    holder = "nobody" if host.slot is None else holders.get(host.slot, "nobody")
    if holder != host.pid:
        return f"process {host.pid} holds {host.models[0]}, and the lock of its slot is held by {holder}"
    return None
