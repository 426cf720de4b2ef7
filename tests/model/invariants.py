"""The invariants of design §4, checked on every write to the simulated server and on every answer to a client.

`Ledger` sees what happens; it raises `Violation` at the step that breaks one. Invariant 5 is about hosts and cards,
which the model has none of.
"""

from collections import Counter, defaultdict
from collections.abc import Set
from typing import Final

from contracts.lifecycle import TRANSITIONS
from contracts.tasks import HANDED_BACK_MAX, FailureCode, GenerationTask, Priority, TaskStatus, decode_task
from contracts.topology import DEGRADED, TASKS, bucket_stream, lane_stream, work_stream
from gateway.boards.task_board import TaskBoard
from gateway.placing.displacement import DISPLACED_MAX
from tests.model.jetstream import JetStream, Stored, moment
from tests.model.model_loop import Host
from tests.model.patches import TORN

_PREFIX: Final = f"$KV.{TASKS}."
_MOVES: Final = {(before, after) for (before, _), after in TRANSITIONS.items()} | {
    (TaskStatus.PENDING, TaskStatus.PENDING),  # promised
    (TaskStatus.PROCESSING, TaskStatus.PROCESSING),  # renewed, or released
}
# The server redelivers the message of a dead worker after 5 s, and a message that was published late a second later.
REDELIVERED_S: Final = 7.0
# By then the place of a refused task is free.
FREE_S: Final = 1.0
# By then a gateway has looked at a task after its deadline: the gateways' spread, two looks, and clocks that differ.
LOOKED_S: Final = 2.0


class Violation(AssertionError):
    """An invariant does not hold."""


class Ledger:
    """What happened to every task."""

    def __init__(
        self, server: JetStream, *, degraded_max: int, attempts: int, wait_limit_s: float, grace_s: float
    ) -> None:
        self._server = server
        self._degraded_max, self._attempts, self._wait_limit_s = degraded_max, attempts, wait_limit_s
        self._grace_s = grace_s
        # how much later a gateway looks where a watch has missed a write
        self.slack_s = 0.0
        self.records: dict[str, GenerationTask] = {}
        # what ran: (task, epoch) -> owners
        self.runs: dict[tuple[str, int], list[str]] = defaultdict(list)
        self.answered: dict[str, str] = {}
        self.refused: dict[str, str] = {}
        # the events of a task that its receiver got
        self.delivered: dict[str, set[str]] = defaultdict(set)
        self.torn = TORN
        self.torn.clear()
        self.keyed: dict[str, set[str]] = defaultdict(set)
        # the classes of the requests with a key: the gateways decide among themselves which request becomes its task
        self.classes: dict[str, set[Priority]] = defaultdict(set)
        # when the server stored the claim of (task, epoch)
        self._claimed_s: dict[tuple[str, int], float] = {}
        self._displaced: Counter[str] = Counter()
        self._degraded = server.stream(DEGRADED)

    # ── while it happens ─────────────────────────────────────────────────────────────────────────────────────────

    def on_went_back(self, torn: set[str]) -> None:
        """The server lost some or all of what it had stored of the tasks *torn*.

        Nothing that was seen of them since the copy is guaranteed any more: they may be forgotten, run twice at one
        epoch, or end again. A task that the server still has must end, like any other. No gateway may report what the
        server does not have (`check_memory`).
        """
        stored = self._server.stream(bucket_stream(TASKS)).last_of_each()
        self.torn |= torn
        self.records = {entry.subject.removeprefix(_PREFIX): decode_task(entry.data) for entry in stored}
        for task_id in self.torn:
            self.answered.pop(task_id, None)
            self.refused.pop(task_id, None)
        for ids in self.keyed.values():
            ids -= self.torn

    def check_memory(self, who: str, board: TaskBoard) -> None:
        """At the end, gateway *who* has in memory exactly what the server has."""
        stored = self._server.stream(bucket_stream(TASKS)).last_of_each()
        there = {entry.subject.removeprefix(_PREFIX): entry.seq for entry in stored}
        known = {row.id: row.revision for row in board.index._rows.values()}
        if known != there:
            wrong = sorted(known.items() ^ there.items())
            raise Violation(f"8: {who} and the server know different things of {wrong}")

    def on_record(self, stored: Stored, host: Host | None, owner: str | None, stream: str | None) -> None:
        """*host* wrote a record; *owner* and *stream* are set where *host* is a worker."""
        task = decode_task(stored.data)
        task_id = stored.subject.removeprefix(_PREFIX)
        before = self.records.get(task_id)
        self.records[task_id] = task
        if owner is not None and task.status is TaskStatus.PROCESSING:
            self._claimed_s.setdefault((task_id, task.epoch), stored.stored_s)
        if task_id in self.torn:
            return
        who = host.name if host is not None else "nobody"
        if task_id in self.refused and (before is None or not before.was_refused or task != before):
            raise Violation(f"6: {task_id} was refused ({self.refused[task_id]}), and is recorded by {who}")
        if before is not None:
            if before.status.is_terminal:
                raise Violation(f"1: {task_id} had ended as {_end(before)}, and {who} moved it to {_end(task)}")
            if (before.status, task.status) not in _MOVES:
                raise Violation(f"1: {task_id} went from {before.status} to {task.status}, by {who}")
            if task.epoch < before.epoch:
                raise Violation(f"3: {task_id} fell back from epoch {before.epoch} to {task.epoch}, by {who}")
            self._check_owner(before, task, owner, who)
        is_claim = task.status is TaskStatus.PROCESSING and (before is None or before.status is TaskStatus.PENDING)
        if owner is not None and is_claim:
            self._claimed_s[task_id, task.epoch] = stored.stored_s
            # at epoch 0, two gateways with different views of the lanes may both have queued a keyed request
            places = {work_stream(task.route, task.model)}
            places |= {DEGRADED, lane_stream(task.model)} if task.epoch == 0 else set()
            if stream not in places:
                raise Violation(f"3: {who} claimed {task_id}, which is queued on {places}")
        if task.lost_attempts > self._attempts:
            raise Violation(f"1: {task_id} is in attempt {task.lost_attempts}, of {self._attempts}")
        was_back = before.handed_back if before is not None else 0
        if task.handed_back != was_back and not (owner is not None and was_back < task.handed_back <= HANDED_BACK_MAX):
            raise Violation(f"1: {task_id} was handed back {was_back} times, and {task.handed_back} by {who}")
        if task.displaced_by is not None and (before is None or before.displaced_by is None):
            if before is None or before.status is not TaskStatus.PENDING or owner is not None:
                was = "nobody's" if before is None else before.status
                raise Violation(f"10: {task_id}, which was {was}, was displaced by {task.displaced_by}, by {who}")
            self._displaced[task.displaced_by] += 1
            if self._displaced[task.displaced_by] > DISPLACED_MAX:
                raise Violation(f"10: {task.displaced_by} displaced {self._displaced[task.displaced_by]} tasks")
        if task.withdrawn and task_id in self.answered:
            raise Violation(f"1: {task_id} was withdrawn by {who}, but a client had been given it")

    def _check_owner(self, before: GenerationTask, task: GenerationTask, owner: str | None, who: str) -> None:
        held = before.status is TaskStatus.PROCESSING
        if held and task.status is TaskStatus.PROCESSING and (task.owner, task.epoch) != (before.owner, before.epoch):
            raise Violation(f"3: {task.id} was {before.owner}'s at epoch {before.epoch}, and {who} took it")
        if owner is None:
            return
        if held and before.owner != owner:
            raise Violation(f"3: {who} changed {task.id}, which is {before.owner}'s")
        if not held and task.status is TaskStatus.PROCESSING and task.epoch != before.epoch:
            raise Violation(f"3: {who} claimed {task.id} at epoch {task.epoch}, which is at {before.epoch}")

    def check_lease(self, stored: Stored, host: Host | None, unbroken_s: float) -> None:
        """*host*, a gateway that has been connected again for *unbroken_s*, writes a record. If it takes a task from an
        owner whose lease is over, the owner must have had the time to renew the lease (row 6)."""
        task, before = decode_task(stored.data), self.records.get(stored.subject.removeprefix(_PREFIX))
        if before is None or before.status is not TaskStatus.PROCESSING or task.id in self.torn:
            return
        is_lost = task.error is not None and task.error.code is FailureCode.WORKER_LOST
        if (task.epoch > before.epoch or is_lost) and 0 <= unbroken_s < self._grace_s and host is not None:
            raise Violation(
                f"9: {host.name} was cut off until {unbroken_s:.1f} s ago, and took {task.id} from its owner"
            )

    def on_queued(self, _: Stored) -> None:
        if len(self._degraded.messages) > self._degraded_max:
            raise Violation(f"4: {len(self._degraded.messages)} messages in {DEGRADED}")

    def on_run(self, task: GenerationTask, owner: str) -> None:
        """*owner* begins to run *task*."""
        if task.id in self.torn:
            return
        runs = self.runs[task.id, task.epoch]
        runs.append(owner)
        if len(runs) > 1:
            raise Violation(f"3: {task.id} runs at epoch {task.epoch} in {runs}")
        if task.id in self.refused:
            raise Violation(f"6: {task.id} was refused ({self.refused[task.id]}), and runs")
        record = self.records.get(task.id)
        if record is None or task.attempt < 1:
            raise Violation(f"3: {task.id} runs, and nobody claimed it")
        waited_s = (moment(self._claimed_s[task.id, task.epoch]) - task.queued_at).total_seconds()
        if task.route == "degraded" and waited_s > self._wait_limit_s:
            raise Violation(f"4: {task.id} runs, and was claimed {waited_s:.3f} s after it was queued")

    def on_answered(self, task: GenerationTask, how: str) -> None:
        """A client got the id of *task*."""
        if task.id in self.torn:
            return
        self.answered[task.id] = how
        if task.id not in self.records:
            raise Violation(f"1: a client was given {task.id}, which has no record")
        if task.id in self.refused:
            raise Violation(f"6: {task.id} was refused ({self.refused[task.id]}), and then answered {how}")

    def on_delivered(self, task_id: str, event: str) -> None:
        """The receiver of *task_id*'s webhook got *event*."""
        self.delivered[task_id].add(event)
        record = self.records.get(task_id)
        if task_id not in self.torn and (record is None or event not in _events_of(record)):
            raise Violation(f"11: a receiver was told {event} of {task_id}, which is {record and _end(record)}")

    def check_delivered(self) -> None:
        """At the end, the receiver has got all events of every task whose id a client has."""
        for task_id in self.answered:
            missing = _events_of(self.records[task_id]) - self.delivered[task_id]
            if missing:
                raise Violation(f"11: nobody was told {missing} of {task_id}, {_end(self.records[task_id])}")

    def on_refused(self, task_id: str, why: str, *, is_shared: bool) -> None:
        """A client got the answer that *task_id* will not run. *is_shared*: equal requests use the same id."""
        if task_id in self.torn or (why == "depth" and is_shared):
            return  # an equal request may have queued it
        self.refused[task_id] = why
        if any(run_id == task_id for run_id, _ in self.runs):
            raise Violation(f"6: {task_id} is refused ({why}), and has run")
        record = self.records.get(task_id)
        if why == "depth" and record is not None:
            raise Violation(f"6: {task_id} is refused (depth), and is recorded as {_end(record)}")
        if why == "wait" and (record is None or not record.was_refused):
            raise Violation(f"6: {task_id} is refused (wait), and its record is {record and _end(record)}")
        if why == "displaced" and (record is None or not record.was_refused or record.displaced_by is None):
            raise Violation(f"6: {task_id} is refused (displaced), and its record is {record and _end(record)}")
        if why == "depth" and (left := self._left_of(task_id)):
            raise Violation(f"6: {task_id} is refused (depth), and left {left}")

    def _left_of(self, task_id: str, *streams: str) -> list[str]:
        return [
            stored.subject
            for name in streams or self._server.streams
            for stored in self._server.streams[name].messages.values()
            if stored.subject.rsplit(".", 1)[-1] == task_id
        ]

    def check_sound(self, now_s: float, sound_from_s: float, idle: Set[str]) -> None:
        """Checks what holds when servers, sweepers and workers live and nothing has gone wrong since *sound_from_s*.

        No task waits longer than the limit on the degraded queue. Before its deadline, no task waits longer than a
        redelivery while a worker of its stream is *idle*. No task is long past its deadline. A refused task that has
        ended takes no place.
        """
        now, sound_from = moment(now_s), moment(sound_from_s)
        for task in self.records.values():
            stream = work_stream(task.route, task.model)
            if task.id in self.torn:
                continue
            if task.status is TaskStatus.PENDING:
                waited_s = (now - max(task.queued_at, sound_from)).total_seconds()
                overdue_s = (now - max(task.deadline_at, sound_from)).total_seconds() - self.slack_s
                limit_s = self._wait_limit_s + self.slack_s
                if task.route == "degraded" and (now - task.queued_at).total_seconds() > limit_s:
                    raise Violation(f"4: {task.id} still waits for {DEGRADED}, since {task.queued_at}")
                if overdue_s > LOOKED_S:
                    raise Violation(f"1: {task.id} waits for {stream}, overdue since {task.deadline_at}")
                # from its deadline on no worker may start it
                if waited_s - self.slack_s > REDELIVERED_S and stream in idle and now < task.deadline_at:
                    raise Violation(f"7: {task.id} waits for {waited_s:.1f} s, and a worker of {stream} is idle")
            elif task.status is TaskStatus.PROCESSING and task.lease_expires_at is not None:
                over_s = (now - max(task.lease_expires_at, sound_from)).total_seconds() - self.slack_s
                if over_s > self._grace_s + LOOKED_S:
                    raise Violation(f"1: {task.id} is {task.owner}'s, whose lease was over at {task.lease_expires_at}")
            elif task.was_refused and task.finished_at is not None and task.finished_at > sound_from:
                ended_s = (now - task.finished_at).total_seconds()
                if ended_s > FREE_S and (left := self._left_of(task.id, stream)):
                    raise Violation(f"6: {task.id} ended {ended_s:.1f} s ago, and left {left} in {stream}")

    # ── when all is over ─────────────────────────────────────────────────────────────────────────────────────────

    def is_over(self) -> bool:
        """Whether nothing is left to be done."""
        streams = (stream for name, stream in self._server.streams.items() if not name.startswith("KV_"))
        return all(task.status.is_terminal for task in self.records.values()) and not any(
            stream.messages for stream in streams
        )

    def at_end(self, files: dict[str, bytes]) -> None:
        """Everything was repaired, and time went on."""
        for name, stream in self._server.streams.items():
            if not name.startswith("KV_") and stream.messages:
                subjects = [stored.subject for stored in stream.messages.values()]
                raise Violation(f"1: {name} still holds {subjects}")
        stored = self._server.stream(bucket_stream(TASKS)).last_of_each()
        tasks = {task.id: task for task in (decode_task(entry.data) for entry in stored)}
        contested = {task_id for key, ids in self.keyed.items() if len(self.classes[key]) > 1 for task_id in ids}
        for task in tasks.values():
            by = None if task.displaced_by is None else tasks.get(task.displaced_by)
            is_lower = by is not None and by.priority.rank >= task.priority.rank
            if by is not None and is_lower and not (self.torn | contested) & {task.id, by.id}:
                raise Violation(f"10: {by.id} ({by.priority}) displaced {task.id} ({task.priority})")
            if not task.status.is_terminal:
                raise Violation(f"1: {task.id} is {task.status} for ever")
            if task.status is TaskStatus.DONE:
                content = files.get(task.video.path) if task.video is not None else None
                if task.video is None or content is None or content.decode() != task.video.sha256:
                    raise Violation(f"2: the video of {task.id} is {content!r}, its record says {task.video}")
            owners = [owner for (run_id, _), runs in self.runs.items() if run_id == task.id for owner in runs]
            if task.was_refused and owners and task.id not in self.torn:
                raise Violation(f"6: {task.id} ended as {_end(task)}, and had run in {owners}")
            if task.withdrawn and task.id in self.answered:
                raise Violation(f"1: {task.id} was withdrawn, and a client had been given it")
        for task_id in self.answered:
            if task_id not in self.records:
                raise Violation(f"1: {task_id} was given to a client, and has no record")
        published = {task.video.path for task in self.records.values() if task.video is not None}
        videos = {path for path in files if path.startswith("videos/")}
        if len(published) != len({task.id for task in self.records.values() if task.video is not None}):
            raise Violation(f"2: two tasks publish one video: {published}")
        if not published <= videos:
            raise Violation(f"2: {published - videos} are published, and gone")
        for key, ids in self.keyed.items():
            accepted = [task_id for task_id in ids if task_id in self.records and not self.records[task_id].was_refused]
            if len(accepted) > 1:
                raise Violation(f"1: the key {key} was accepted as {accepted}")


def _events_of(task: GenerationTask) -> set[str]:
    """The events of *task* that a receiver gets, by the task's record."""
    ends = {TaskStatus.DONE: "task.done", TaskStatus.FAILED: "task.failed"}
    events = {"task.claimed"} if task.claimed_at is not None else set()
    return events | ({ends[task.status]} if task.status in ends else set())


def _end(task: GenerationTask) -> str:
    error = task.error.code if task.error is not None else ""
    return f"{task.status}{'/' if error else ''}{error} at epoch {task.epoch}, attempt {task.attempt}"


def is_overloaded(task: GenerationTask) -> bool:
    return task.error is not None and task.error.code is FailureCode.QUEUE_OVERLOADED
