"""History in, violations out: the six invariants of design §4, one function each. Pure.

Times are the server's wherever the server has one. An empty list is a proof for the run that was observed, and only
for what the history holds: with a gap in it, `check` says so instead.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from functools import cached_property
from itertools import pairwise
from typing import Final

from msgspec import Struct

from contracts.keys import ANONYMOUS
from contracts.lifecycle import TRANSITIONS
from contracts.tasks import FailureCode, GenerationTask, TaskStatus, keyed_task_id
from contracts.topology import DEGRADED, work_stream
from ops.artifacts import task_id_of
from tests.drills.overload import is_proven
from tests.faults.history import Artifact, Call, Fault, History, HostProcess, Revision

# A queue's subjects are counted just after the time that the server puts on the answer.
SAMPLE: Final = timedelta(seconds=0.2)
# A gateway tries for 5 s to finish what it had begun; a worker's claim is shorter.
UNDER_WAY: Final = timedelta(seconds=7)
# This long after the server's return no gateway reports any more what the server has lost.
NOTICED: Final = timedelta(seconds=5)
LOST: Final = "lost: "
LIE: Final = "a gateway says "
# Clocks of processes against the server's, on one machine.
SKEW: Final = timedelta(seconds=0.25)
KEYED_TRIES: Final = 16
SERVER_FAULTS: Final = ("kill-nats", "stop-nats", "restart-nats", "nats-disk-full", "consumer-deleted")
GATEWAY_FAULTS: Final = ("kill-gateway", "stop-gateway", "restart-gateway")
STORE_FAULTS: Final = ("store-full", "store-unwritable")
# What no fault here can cause: such an end means that something else is broken.
UNEXPECTED: Final = frozenset(
    {
        FailureCode.OUT_OF_MEMORY,
        FailureCode.INFERENCE_FAILED,
        FailureCode.INFERENCE_TIMEOUT,
        FailureCode.INVALID_INPUT,
    }
)


class Violation(Struct, frozen=True, order=True):
    """Invariant *rule* of design §4 does not hold for *subject* (a task, a stream, a slot).

    0: the history has gaps, or a gateway's watch missed a record.
    """

    rule: int
    subject: str
    text: str

    @property
    def of_all(self) -> bool:
        """Whether this is promised of every task, even of one of which the server lost something."""
        return self.text.startswith((LOST, LIE))


class Story:
    """A history, sorted for the questions that the rules ask."""

    def __init__(self, history: History) -> None:
        self.history = history
        self.limits = history.limits

    @cached_property
    def lives(self) -> Mapping[str, Sequence[Revision]]:
        """The revisions of each task, in the order in which the server stored them."""
        lives = defaultdict(list)
        for revision in sorted(self.history.revisions, key=lambda revision: revision.sequence):
            lives[revision.task.id].append(revision)
        return lives

    @cached_property
    def videos(self) -> Mapping[str, Sequence[Artifact]]:
        """The videos of the store, by the task that their names bear."""
        videos = defaultdict(list)
        for artifact in self.history.artifacts:
            if artifact.path.startswith("videos/"):
                videos[task_id_of(artifact.path)].append(artifact)
        return videos

    @cached_property
    def torn(self) -> frozenset[str]:
        """The tasks of which the server lost something, or may have: a revision of each was stored in the time that is
        lost, or so soon after it that the move of which it is a part had begun before.

        What was seen of them is not promised: they may run twice, lack a message or a video, or be gone. They end.
        """
        every = (*self.history.revisions, *self.history.lost)
        return frozenset(
            revision.task.id
            for fault in self.history.faults
            if fault.lost_since is not None
            for revision in every
            if fault.lost_since <= revision.at <= fault.until + UNDER_WAY
        )

    def may_be_lost(self, at: datetime) -> bool:
        """Whether an answer at *at* may be about something that was lost since, or came before the gateway had
        noticed."""
        return any(
            fault.lost_since <= at <= fault.until + NOTICED
            for fault in self.history.faults
            if fault.lost_since is not None
        )

    def last(self, task_id: str) -> GenerationTask | None:
        life = self.lives.get(task_id)
        return life[-1].task if life else None

    def faults(self, kinds: Sequence[str], since: datetime, until: datetime) -> list[Fault]:
        """Those of *kinds* that lasted into the time from *since* to *until*."""
        return [
            fault for fault in self.history.faults if fault.kind in kinds and fault.at <= until and fault.until >= since
        ]


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
    cancelled by a client, worker_lost after a claim, displaced before one, storage_failed while the store was broken,
    with the memory that was left noted. And until its first claim, a task is in its queue: its message goes only after
    its record has moved.
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

    Read at the end, before a janitor has been there. A video that no record names is a worker's that lost the task:
    it takes it back itself, unless it was killed or the store was broken; then, and only then, the janitor has to.
    A key stands for one task: of the ids that are made of it, at most one was not refused.
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

    Every step from one revision to the next is one of the table, made at the epoch where the record stood: by its
    owner, by whoever ends it, or to the next epoch, when its lease was over.
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
        return None  # that is invariant 1's
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
    """Where one move leads at the same epoch."""
    return {to for (source, _), to in TRANSITIONS.items() if source is status} - {TaskStatus.PENDING}


# ── 4 ────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def bounded_queue(story: Story) -> Iterator[Violation]:
    """4. DEGRADED never holds more than 25 messages; none is claimed, or still pending, 30 s after it was queued.

    (While a server and a gateway live; else at the first look after their return.) The limit is the run's own. A
    claim that was stored later is never run. What waits on a lane has moved on by then as well (FR-021 c), though a
    lane may be the one that takes it.
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
        return  # it never ended: that is invariant 1's
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

    A process that maps a model's weights has the lock of one slot, by the kernel's word, and maps one model. Two
    samples in a row must agree, since a look at several processes is not a look at one moment. Every receipt of a
    task that ran is a proof.
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


# ── 6 ────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def refused_is_refused(story: Story) -> Iterator[Violation]:
    """6. A request that was refused leaves nothing behind and never runs (a 503 that says `outcome: unknown` excepted).

    Refused at the door (a full queue, a wrong field): no record at all. Refused after a wait: its record failed and
    was never claimed. Refused for its image: the same. A refused image is gone, unless the store or a gateway was
    broken meanwhile. And no record is there that nobody asked for.
    """
    calls = defaultdict(list)
    for call in story.history.calls:
        if call.kind == "submit":
            calls[call.request].append(call)
    records = defaultdict(list)
    for task_id, life in story.lives.items():
        records[request_of(life[0].task)].append(task_id)
    for request, ids in records.items():
        asked = calls.get(request)
        if asked is None:
            yield from (Violation(6, task_id, "a record of what no client has asked for") for task_id in ids)
        elif all(is_refusal(call) or not call.sent for call in asked):
            recorded = any(call.limit in ("wait", "displaced") or call.code == "storage_unavailable" for call in asked)
            for task_id in ids:
                if not recorded:
                    yield Violation(6, task_id, "it was refused at the door, and left a record")
                yield from _never_ran(story, task_id)
    for call in story.history.calls:
        if call.kind == "submit" and is_refusal(call) and call.task_id:
            yield from _never_ran(story, call.task_id)
    yield from _images(story)


def request_of(task: GenerationTask) -> int:
    """The number of the request that *task* was made of; clients write it into the prompt. -1 if there is none."""
    word = task.parameters.prompt.rsplit(" ", 1)[-1]
    return int(word) if word.isdigit() else -1


def is_refusal(call: Call) -> bool:
    """Whether the answer promises that nothing will run."""
    if call.status is None:
        return False
    return 400 <= call.status < 500 or call.code in ("queue_overloaded", "storage_unavailable")


def _never_ran(story: Story, task_id: str) -> Iterator[Violation]:
    life = story.lives.get(task_id)
    if life is None:
        return
    if any(item.task.attempt or item.task.status is TaskStatus.PROCESSING for item in life):
        yield Violation(6, task_id, "it was refused, and a worker claimed it")


def _images(story: Story) -> Iterator[Violation]:
    for artifact in story.history.artifacts:
        if not artifact.path.startswith("images/"):
            continue
        task_id = task_id_of(artifact.path)
        life = story.lives.get(task_id)
        if life is not None and not life[-1].task.was_refused:
            continue
        broken = story.history.faults
        since = life[0].at if life else min((fault.at for fault in broken), default=None)
        if since is None or not story.faults((*STORE_FAULTS, *GATEWAY_FAULTS, *SERVER_FAULTS), since, _end_of(story)):
            yield Violation(6, task_id, f"it was refused, and left {artifact.path}")


def _end_of(story: Story) -> datetime:
    return max(revision.at for revision in story.history.revisions)
