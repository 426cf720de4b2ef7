"""claim → run → settle, one task at a time (design §4). Knows neither models nor hosts: `Runner` does the running."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import structlog
from nats.aio.msg import Msg

from contracts import lifecycle
from contracts.lanes import InHand
from contracts.settings import Windows
from contracts.tasks import (
    FailureCode,
    GenerationTask,
    UnreadableRecord,
    UnreadableTask,
    VideoFile,
    decode_task,
    encode_task,
    may_be_newer,
)
from contracts.topology import TASKS, WORK_CONSUMER
from lane_worker.runtime.claim import Drop, Expire, Mine, Reread, Take, claim_decision, is_overdue
from lane_worker.runtime.held import HeldTask, OwnershipLost, lease_end
from lane_worker.runtime.lease import LeaseKeeper
from lane_worker.runtime.outcome import GaveUp, Result, Runner, Stopped, Succeeded, Unsuccessful
from lane_worker.runtime.scratch import Scratch
from ops.artifacts import Artifacts, StorageFailed
from ops.nats.bucket import Versioned
from ops.nats.buckets import RECORDS
from ops.nats.entry import Entry
from ops.nats.errors import TransportUnavailable, WrongRevision
from ops.nats.link import NatsLink
from ops.nats.pull import Pull, ack_sync
from ops.telemetry import metrics
from ops.telemetry.tracing import (
    CONSUMER,
    OUTCOME,
    SUPERSEDED,
    TRACEPARENT,
    attempt_below,
    current_span,
    failed,
    message_name,
    of_attempt,
    of_message,
    of_task,
    record,
    span,
    working_on,
)
from ops.telemetry.unreadable import unreadables
from ops.waiting import unless

REREAD_WAIT_S: Final = 0.05
# The longest pause between two tries to claim while the server is away, or takes no record.
UNANSWERED_MAX_S: Final = 1.0
# Between two looks for an input image that has not come yet; from the first to the last of them doubled.
IMAGE_LOOK_FIRST_S: Final = 0.05
IMAGE_LOOK_LAST_S: Final = 0.5
# What a newer version may have written is left for one of its workers: so long it rests each time, and so long in all.
LEFT_S: Final = 2.0
LEFT_MAX_S: Final = 60.0
# A record is moved before its message is sent. What stays ahead of it for 5 s was sent by nobody of ours.
AHEAD_MAX_LOOKS: Final = 100

# The gateway makes the record of a message about a millisecond after it. A worker that has just got it comes first, and
# does not look for a record before it makes one.
FRESH_S: Final = 0.05

log = structlog.get_logger("loop")


class WorkLoop:
    """Serves one stream. `serve_one` takes at most one task; call it only while the worker can run one."""

    def __init__(
        self,
        *,
        link: NatsLink,
        artifacts: Artifacts,
        stream: str,
        owner: str,
        worker: str,
        windows: Windows,
        runner: Runner,
        scratch: Scratch,
        on_busy: Callable[[bool], None],
    ) -> None:
        self._link = link
        self._artifacts = artifacts
        self._stream = stream
        self._owner = owner
        self._worker = worker
        self._windows = windows
        self._runner = runner
        self._scratch = scratch
        self._on_busy = on_busy
        self._pull: Pull | None = None
        self._keeper: LeaseKeeper | None = None
        self._stop = asyncio.Event()  # that of the `serve_one` under way
        self._held: HeldTask | None = None
        self._runs = False
        self.in_hand: InHand | None = None
        """The task that runs now."""
        link.connection.on_reconnect(self._reconnected)

    def _reconnected(self) -> None:
        if self._keeper is not None:
            self._keeper.renew_now()

    @property
    def trouble(self) -> str | None:
        """Why no task can come: the queue's consumer is gone, and cannot be made anew. None while all is well."""
        return None if self._pull is None else self._pull.trouble

    def waits_for_server_s(self, now_s: float) -> float:
        """For how long nothing keeps the task in hand from its end but a server that does not answer; 0 where it does,
        or where the task runs. By the monotonic clock."""
        since_s = None if self._held is None or self._runs else self._held.unanswered_since_s
        return 0.0 if since_s is None else now_s - since_s

    async def serve_one(self, stop: asyncio.Event) -> bool:
        """Waits up to 2 s for a task, and runs it to its end; whether one came. Returns at once when *stop* is set
        while waiting, and soon where the server then does not take the claim."""
        self._stop = stop
        if self._pull is None:
            self._pull = await self._link.messages.pull(self._stream, WORK_CONSUMER)
        # a message that arrives for a cancelled fetch is delivered again after ack_wait
        fetched = await unless(stop.wait(), self._pull.fetch())
        messages = [] if fetched is None else fetched.value
        for message in messages:
            await self._serve(message)
        return bool(messages)

    async def close(self) -> None:
        """Takes no more messages."""
        if self._pull is not None:
            await self._pull.close()

    async def _serve(self, message: Msg) -> None:
        delivered_at = datetime.now(UTC)
        try:
            queued = _queued(message)
            sender = (message.headers or {}).get(TRACEPARENT) or queued.traceparent
            held = await self._claim(queued, message, attempt_below(sender))
        except UnreadableTask as error:
            unreadables.tell("task", message.subject, error, revision=message.metadata.sequence.stream)
            with contextlib.suppress(Exception):
                await (message.nak(delay=LEFT_S) if _is_left(message, error) else message.term())
            return
        except _NotClaimed:
            with contextlib.suppress(Exception):
                await message.nak()  # for another worker; or it is delivered again after ack_wait
            return
        # The record decides from here on, so the run need not wait for the ack (ADR 0006).
        acked = asyncio.create_task(self._ack(message))
        if held is not None:
            self.in_hand = InHand(task_id=held.task.id, owner=self._owner)
            self._on_busy(True)
            try:
                with self._task_span(held.task, message, delivered_at, sender=sender, after=queued.attempt_traceparent):
                    await self._execute(held)
            finally:
                self.in_hand = None
                self._on_busy(False)
        await acked

    @contextlib.contextmanager
    def _task_span(
        self, task: GenerationTask, message: Msg, delivered_at: datetime, *, sender: str | None, after: str | None
    ) -> Iterator[None]:
        """Everything that this worker does for *task*, below *sender*, which sent *message*; *after* is the attempt
        before this one."""
        sender = sender or task.traceparent
        attributes = of_message(task, "process", self._stream) | of_attempt(task)
        # beside what follows and not below it: they are sent while it runs
        claimed_at = datetime.now(UTC)
        queue_wait = record("queue.wait", task.queued_at, claimed_at, of_task(task), traceparent=sender)
        record("claim", delivered_at, claimed_at, of_task(task), traceparent=queue_wait)
        itself = task.attempt_traceparent
        with (
            working_on(task),
            span(
                message_name("process", self._stream),
                attributes,
                traceparent=sender,
                kind=CONSUMER,
                itself=itself,
                after=after,
            ),
        ):
            yield

    async def _ack(self, message: Msg) -> None:
        try:
            await ack_sync(message)
        except TransportUnavailable as error:
            log.info("ack_unanswered", subject=message.subject, error=str(error))  # delivered again, and dropped then

    async def _claim(self, queued: GenerationTask, message: Msg, attempt: str | None = None) -> HeldTask | None:
        """The task, held by this worker, or None when it is not to be run. *attempt* is the `traceparent` of what is
        done for it from then on.

        Raises UnreadableTask for a message that no record catches up with, and _NotClaimed where the server does not
        answer and this worker is to leave: a claim of ours that was stored all the same ends with its lease.
        """
        looks_ahead, has_timer, is_fresh = 0, False, _is_fresh(message, queued)
        unanswered = 0
        while True:
            pause_s = REREAD_WAIT_S
            try:
                needed: list[Awaitable[Entry | None]] = []
                if not is_fresh:
                    needed.append(self._link.entries.get(TASKS, queued.id))
                if not has_timer:
                    # the timer before the claim: from then on, somebody looks when this worker falls silent
                    needed.append(self._set_lease_timer(queued, message))
                entry = (await asyncio.gather(*needed))[0]
                has_timer, is_fresh = True, False
                return await self._try_claim(queued, entry, attempt)
            except WrongRevision:
                continue  # somebody moved the record between our look and our write: look again, under the same timer
            except _Ahead:
                looks_ahead += 1
                if looks_ahead == AHEAD_MAX_LOOKS:
                    raise UnreadableTask("its epoch stays ahead of the record's - at `$.epoch`") from None
            except TransportUnavailable as error:
                # whether the claim was stored is unknown; the next look shows it (`Mine`)
                if not unanswered:  # once for an outage
                    log.warning("claim_interrupted", task_id=queued.id, error=str(error))
                if self._stop.is_set():
                    log.warning("claim_given_up", task_id=queued.id, error=str(error))
                    raise _NotClaimed from None
                pause_s = min(UNANSWERED_MAX_S, REREAD_WAIT_S * 2 ** min(unanswered, 10))
                unanswered += 1
            has_timer = False  # time passes now
            await asyncio.sleep(pause_s)

    async def _set_lease_timer(self, queued: GenerationTask, message: Msg) -> None:
        await self._link.timers.set("lease", queued.id, lease_end(self._windows.lease_s), message.data)

    async def _try_claim(
        self, queued: GenerationTask, entry: Entry | None, attempt: str | None = None
    ) -> HeldTask | None:
        revision = entry.revision if entry is not None else 0
        record = None if entry is None else Versioned(RECORDS, entry).value
        if entry is not None and entry.value is not None and record is None:
            if may_be_newer(queued.id, entry.value):
                raise UnreadableRecord("the record of its task cannot be read")
            return None
        decision = claim_decision(queued, record, revision=revision, owner=self._owner, now=datetime.now(UTC))
        match decision:
            case Drop():
                return None
            case Reread():
                raise _Ahead
            case Mine(task, revision):
                if entry is not None and is_overdue(task, entry.time):  # the claim itself was stored too late
                    await self._expire(task, revision)
                    return None
                return HeldTask(self._link, task, revision)
            case Expire(task, revision):
                await self._expire(task, revision)
                return None
            case Take(task, revision):
                claimed = lifecycle.claim(
                    task,
                    owner=self._owner,
                    worker=self._worker,
                    lease_s=self._windows.lease_s,
                    now=datetime.now(UTC),
                    attempt_traceparent=attempt,
                )
                revision = await self._link.entries.update(TASKS, task.id, encode_task(claimed), revision=revision)
                metrics.task_claimed(claimed)
                if is_overdue(task, datetime.now(UTC)):
                    await self._expire(claimed, revision)
                    return None
                return HeldTask(self._link, claimed, revision)

    async def _expire(self, task: GenerationTask, revision: int) -> None:
        expired = lifecycle.fail(
            task,
            code=FailureCode.QUEUE_OVERLOADED,
            message=f"no worker took it within {self._windows.wait_limit_s:g} s; submit it again later",
            now=datetime.now(UTC),
        )
        with span(
            "expire", of_task(task, worker=self._worker), traceparent=task.traceparent, unless=(WrongRevision,)
        ) as current:
            await self._link.entries.update(TASKS, task.id, encode_task(expired), revision=revision)
            failed(current, FailureCode.QUEUE_OVERLOADED.value)
        metrics.task_ended(expired)
        if task.image_path is not None:  # a refused request leaves nothing behind
            await self._delete(task.image_path)

    async def _delete(self, path: str) -> None:
        try:
            await self._artifacts.delete(path)
        except StorageFailed as error:
            log.warning("orphan_left", path=path, error=str(error))  # the janitor finds it

    async def _execute(self, held: HeldTask) -> None:
        task_id = held.task.id
        image: Path | None = None
        keeper = LeaseKeeper(self._link, held, windows=self._windows, on_lost=lambda: self._runner.stop(task_id))
        try:
            async with keeper:
                self._keeper, self._held = keeper, held
                self._make_room(task_id)
                if held.task.image_path is not None:
                    image = await self._fetch_image(held.task.image_path, held)
                self._runs = True
                result = await self._runner.run(held.task, image, keeper.report)
                self._runs = False
                # still inside: the lease must stand until the record is settled
                await self._settle(held, result)
        except OwnershipLost as lost:
            outcome = outcome_of(held.task, lost.record)
            current_span().set_attribute(OUTCOME, outcome)
            if outcome == FailureCode.CANCELLED.value:
                failed(current_span(), outcome)
            log.info("ownership_lost", task_id=task_id, epoch=held.task.epoch)
            await self._discard_video(held, lost.record)
        finally:
            self._keeper = self._held = None
            self._runs = False
            if image is not None:
                image.unlink(missing_ok=True)

    def _make_room(self, task_id: str) -> None:
        """The scratch folder is there: whoever tidies up a machine may have removed it since the last task."""
        try:
            self._scratch.ensure()
        except OSError as error:  # then the image cannot be kept, or the video not be written, and that ends the task
            log.error("no_scratch_folder", task_id=task_id, error=str(error))

    async def _fetch_image(self, stored: str, held: HeldTask) -> Path | None:
        """The input image in a file of this worker; None when it does not come within `wait_limit_s`.

        The gateway stores it after it has published the task, however long its store takes: it is awaited under the
        lease. Raises OwnershipLost when the task ends meanwhile: it was cancelled, or the image could not be stored.
        None also where there is no room for it here.
        """
        until_s = time.monotonic() + self._windows.wait_limit_s
        look_s, told = IMAGE_LOOK_FIRST_S, False
        while True:
            content = None
            try:
                content = await self._artifacts.get(stored)
            except StorageFailed as error:
                if not told:  # once for an outage
                    log.warning("image_unreadable", task_id=held.task.id, error=str(error))
                told = True
            await held.check()  # it may have been cancelled meanwhile
            if content is not None:
                break
            if time.monotonic() >= until_s:
                return None
            await asyncio.sleep(look_s)
            look_s = min(2 * look_s, IMAGE_LOOK_LAST_S)
        self._make_room(held.task.id)  # it may have been awaited for long
        path = self._scratch.folder / f"{held.task.id}.{held.task.epoch}.image"
        try:
            await asyncio.to_thread(path.write_bytes, content)
        except OSError as error:
            log.error("image_not_kept", task_id=held.task.id, error=str(error))
            return None
        return path

    async def _settle(self, held: HeldTask, result: Result) -> None:
        match result:
            case Succeeded():
                await self._publish_video(held, result)
            case Unsuccessful(code, message, memory, swap):
                with span("settle", of_task(held.task), unless=(OwnershipLost,)):
                    ended = await held.update(
                        lambda task: lifecycle.fail(
                            task, code=code, message=message, memory=memory, swap=swap, now=datetime.now(UTC)
                        )
                    )
                metrics.task_ended(ended)
                failed(current_span(), code.value)
                log.warning("task_failed", task_id=held.task.id, code=code.value, attempt=held.task.attempt)
            case Stopped():
                await held.check()
                # stopped, yet still ours: the notice was wrong or early, so let another attempt run it
                await self._give_up(held, "stopped without a reason")
            case GaveUp(reason, on_purpose):
                await self._give_up(held, reason, on_purpose=on_purpose)

    async def _publish_video(self, held: HeldTask, result: Succeeded) -> None:
        path, written = held.task.video_path, result.video
        try:
            with span("store", of_task(held.task, path=path, bytes=written.bytes)):
                await self._artifacts.put(path, result.path)
        except StorageFailed as error:
            log.error("video_not_stored", task_id=held.task.id, error=str(error))
            if not result.path.exists():  # no fault of the store's: the next attempt makes it again
                await self._give_up(held, "the video was removed before it was stored")
                return
            message = "the video could not be stored; submit it again"
            await self._settle(held, Unsuccessful(FailureCode.STORAGE_FAILED, message, result.memory, result.swap))
            return
        finally:
            result.path.unlink(missing_ok=True)
        video = VideoFile(
            path=path,
            bytes=written.bytes,
            sha256=written.sha256,
            width=written.width,
            height=written.height,
            frames=written.frames,
            fps=written.fps,
        )

        def finish(task: GenerationTask) -> GenerationTask:
            task = lifecycle.with_event(task, "inference_started", result.started_at)
            finished_at = result.started_at + timedelta(seconds=result.inference_s)
            task = lifecycle.with_event(task, "inference_finished", finished_at, f"{result.inference_s:.3f} s")
            return lifecycle.finish(task, video=video, memory=result.memory, swap=result.swap, now=datetime.now(UTC))

        with span("settle", of_task(held.task), unless=(OwnershipLost,)):
            ended = await held.update(finish)
        metrics.task_ended(ended)
        metrics.inference_duration.record(result.inference_s, ended.model)
        log.info(
            "task_done",
            task_id=held.task.id,
            attempt=held.task.attempt,
            bytes=video.bytes,
            inference_s=round(result.inference_s, 4),
            encode_s=round(result.encode_s, 4),
        )

    async def _give_up(self, held: HeldTask, reason: str, *, on_purpose: bool = False) -> None:
        if self._keeper is not None:
            await self._keeper.stop()  # or it would renew what is given back
        task = await held.update(
            lambda task: lifecycle.release_lease(task, reason=reason, now=datetime.now(UTC), on_purpose=on_purpose)
        )
        failed(current_span(), "gave_up", reason)
        tell = log.info if on_purpose else log.warning
        tell("lease_released", task_id=task.id, attempt=task.attempt, reason=reason, on_purpose=on_purpose)
        with contextlib.suppress(TransportUnavailable):  # the old timer comes too, only later
            await held.store_lease_timer(datetime.now(UTC))

    async def _discard_video(self, held: HeldTask, record: GenerationTask | None) -> None:
        """Removes what this claim stored, unless the record publishes it."""
        path = held.task.video_path
        if record is not None:
            elsewhere = record.status.is_terminal or record.epoch != held.task.epoch
            if not elsewhere or (record.video is not None and record.video.path == path):
                return
        await self._delete(path)


def outcome_of(ours: GenerationTask, record: GenerationTask | None) -> str:
    """What became of an attempt at *ours* that is not this worker's any more: the record says what was done.

    `superseded`: whoever took it for lost has sent its span, so that this one is not sent as well.
    """
    if record is not None and record.epoch == ours.epoch and record.error is not None:
        return "cancelled" if record.error.code is FailureCode.CANCELLED else SUPERSEDED
    return SUPERSEDED if record is not None and record.epoch > ours.epoch else "taken_back"


def _is_fresh(message: Msg, queued: GenerationTask) -> bool:
    """Whether no record is to be expected yet. A guess, also where the clocks differ: a claim finds out."""
    age_s = (datetime.now(UTC) - message.metadata.timestamp).total_seconds()
    return queued.epoch == 0 and age_s < FRESH_S


def _queued(message: Msg) -> GenerationTask:
    """The task that *message* carries. Raises UnreadableTask, also where it came on another task's subject."""
    task = decode_task(message.data)
    # whichever queue it came on: what is run there, and as what, is of the subject
    if message.subject.partition(".")[2] != f"{task.model}.{task.id}":
        raise UnreadableTask("it is not the task of its subject")
    return task


def _is_left(message: Msg, error: UnreadableTask) -> bool:
    """Whether a worker of a newer version may serve what this one cannot read.

    Only for LEFT_MAX_S: its place in the queue is needed (design §10.10), and the gateway moves the task by then.
    """
    age_s = (datetime.now(UTC) - message.metadata.timestamp).total_seconds()
    task_id = message.subject.rpartition(".")[2]
    return age_s < LEFT_MAX_S and (isinstance(error, UnreadableRecord) or may_be_newer(task_id, message.data))


class _NotClaimed(Exception):
    """The server does not answer, and this worker leaves: the message is another's."""


class _Ahead(Exception):
    """The message is ahead of the record that was read."""
