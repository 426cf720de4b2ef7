"""Fetch → claim → attempt, one task at a time (design §4). Knows neither models nor hosts: its `Runner` does."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Final

import structlog
from nats.aio.msg import Msg

from contracts.lanes import InHand
from contracts.settings import Windows
from contracts.tasks import GenerationTask, OrderDecision, UnreadableTask
from lane_worker.runtime.attempt import Attempt
from lane_worker.runtime.claiming import Claims, NotClaimed
from lane_worker.runtime.held import HeldTask
from lane_worker.runtime.outcome import Runner
from lane_worker.runtime.queued import is_left, queued_task
from lane_worker.runtime.scratch import Scratch
from lane_worker.runtime.source import Source
from ops.artifacts import Artifacts
from ops.nats.errors import TransportUnavailable
from ops.nats.link import NatsLink
from ops.nats.pull import ack_sync
from ops.telemetry.tracing import (
    CONSUMER,
    TRACEPARENT,
    attempt_below,
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

# How long after its nak a message that a newer version may have written goes to another worker.
LEFT_S: Final = 2.0

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
        source: Source,
    ) -> None:
        """*source* is where the messages of *stream* come from."""
        self._link = link
        self._artifacts = artifacts
        self._stream = stream
        self._owner = owner
        self._windows = windows
        self._runner = runner
        self._scratch = scratch
        self._on_busy = on_busy
        self._claims = Claims(link, artifacts, owner=owner, worker=worker, windows=windows)
        self._source = source
        self._attempt: Attempt | None = None
        self.in_hand: InHand | None = None
        """The task that runs now."""
        link.connection.on_reconnect(self._reconnected)

    def _reconnected(self) -> None:
        if self._attempt is not None:
            self._attempt.renew_now()

    @property
    def trouble(self) -> str | None:
        """Why no task can come: the queue's consumer is gone, and cannot be made anew, or has no leader. None while all
        is well."""
        return self._source.trouble

    def waits_for_server_s(self, now_s: float) -> float:
        """As `Attempt.waits_for_server_s`, of the task in hand; 0 without one."""
        return 0.0 if self._attempt is None else self._attempt.waits_for_server_s(now_s)

    async def serve_one(self, stop: asyncio.Event) -> bool:
        """Waits up to 2 s for a task, and runs it to its end. Returns whether one came: at once when *stop* is set
        while it waits, and soon where the server then does not take the claim."""
        came = await unless(stop.wait(), self._source.next())
        following = None if came is None else came.value
        if following is None:
            return False
        await self._serve(following.message, stop, following.order)
        return True

    async def close(self) -> None:
        """Takes no more messages."""
        await self._source.close()

    async def _serve(self, message: Msg, stop: asyncio.Event, order: OrderDecision | None = None) -> None:
        delivered_at = datetime.now(UTC)
        try:
            queued = queued_task(message)
            sender = (message.headers or {}).get(TRACEPARENT) or queued.traceparent
            held = await self._claims.claim(queued, message, stop, attempt_below(sender), order)
        except UnreadableTask as error:
            unreadables.report("task", message.subject, error, revision=message.metadata.sequence.stream)
            with contextlib.suppress(Exception):
                await (message.nak(delay=LEFT_S) if is_left(message, error) else message.term())
            return
        except NotClaimed:
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
        """The span of everything that this worker does for *task*, below the span *sender*, which sent *message*.
        *after* is the attempt before this one."""
        sender = sender or task.traceparent
        attributes = of_message(task, "process", self._stream) | of_attempt(task)
        # siblings of the span that follows, not its children: they are sent while it runs
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

    async def _execute(self, held: HeldTask) -> None:
        self._attempt = Attempt(
            held,
            link=self._link,
            artifacts=self._artifacts,
            windows=self._windows,
            runner=self._runner,
            scratch=self._scratch,
        )
        try:
            await self._attempt.run()
        finally:
            self._attempt = None
