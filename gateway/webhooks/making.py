"""Makes deliveries from the task records: one for each event and endpoint, however often it looks at a record (ADR
0044).

The making stores no position of its own. Each delivery has its own key, which can be created once. So a gateway that
takes over looks at every record anew, and makes what is missing.
"""

import asyncio
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from typing import Final

import structlog

from contracts.tasks import GenerationTask, TaskStatus
from contracts.webhooks import WebhookEvent, delivery_id, requests_id
from gateway.boards.delivery_board import DeliveryBoard
from gateway.boards.endpoint_board import EndpointBoard
from gateway.boards.task_board import TaskBoard
from gateway.boards.task_index import TaskRow
from gateway.rules.webhook_events import ENDS, deliveries
from ops.nats.bucket import Bucket
from ops.nats.buckets import WEBHOOK_DELIVERIES
from ops.nats.errors import TransportUnavailable, WrongRevision
from ops.nats.link import NatsLink
from ops.telemetry.seldom import Seldom
from ops.waiting import set_within

# Between two looks at every record, for what a watch did not bring.
LOOK_EVERY_S: Final = 30.0
RETRY_S: Final = 0.5
AT_ONCE: Final = 2_000

log = structlog.get_logger("webhooks")


class Making:
    """The making of deliveries, by the gateway that leads."""

    def __init__(
        self, *, link: NatsLink, tasks: TaskBoard, endpoints: EndpointBoard, deliveries: DeliveryBoard
    ) -> None:
        self._bucket = Bucket(link, WEBHOOK_DELIVERIES)
        self._tasks, self._endpoints, self._deliveries = tasks, endpoints, deliveries
        self._to_look_at: dict[str, None] = {}
        # by task, the revision at which nothing was missing: that revision is not read again
        self._made: dict[str, int] = {}
        self._looked_s = 0.0
        self._gone = 0
        self._sooner = asyncio.Event()
        self._seldom = Seldom()

    def concerns(self, task: GenerationTask) -> bool:
        """Whether any receiver is to be notified of *task*."""
        return task.webhook is not None or bool(self._endpoints.of(task.caller))

    def on_task(self, task: GenerationTask) -> None:
        """The record of *task* has changed."""
        if self.concerns(task) and (task.attempt or task.status.is_terminal):
            self._to_look_at[task.id] = None
            self._sooner.set()

    def on_caller(self, caller: str) -> None:
        """The endpoints of *caller* have changed: tasks that ended just before this was known are looked at again."""
        for row in self._tasks.index.rows():
            if row.caller == caller:
                self._made.pop(row.id, None)
                if self._may_lack(row):
                    self._to_look_at[row.id] = None
        self._sooner.set()

    async def run(self) -> None:
        """Makes missing deliveries, and new ones as they come, until cancelled."""
        self._looked_s = 0.0
        self._made.clear()
        while True:
            self._sooner.clear()
            if time.monotonic() - self._looked_s >= LOOK_EVERY_S or not self._looked_s:
                await self._look_at_all()
                self._looked_s = time.monotonic()
            while self._to_look_at:
                task_id = next(iter(self._to_look_at))
                del self._to_look_at[task_id]
                try:
                    await self._make(task_id)
                except TransportUnavailable as error:
                    self._to_look_at[task_id] = None
                    self._seldom.log(log.info, "deliveries_delayed", error=str(error))
                    await asyncio.sleep(RETRY_S)
            await set_within(LOOK_EVERY_S, self._sooner)

    async def _look_at_all(self) -> None:
        if self._gone != self._deliveries.gone:  # made once, and lost by the server since
            self._gone = self._deliveries.gone
            self._made.clear()
        for task_id in [each for each in self._made if self._tasks.index.get(each) is None]:
            del self._made[task_id]
        for number, row in enumerate(self._tasks.index.rows(), 1):
            if self._made.get(row.id) != row.revision and self._may_lack(row):
                self._to_look_at[row.id] = None
            if number % AT_ONCE == 0:
                await asyncio.sleep(0)

    def _may_lack(self, row: TaskRow) -> bool:
        """Whether a delivery of the task may be missing, as far as its row shows: its record is read only then."""
        if row.status is TaskStatus.PENDING:
            return False
        if row.status is TaskStatus.PROCESSING:
            return row.webhook or bool(self._endpoints.of(row.caller))
        event = ENDS[row.status]
        return any(delivery_id(row.id, event, target) not in self._deliveries for target in self._targets(row, event))

    def _targets(self, row: TaskRow, event: WebhookEvent) -> Iterator[str]:
        # may be too many: a record may be read in vain, but is never skipped
        endpoints = self._endpoints.of(row.caller)
        for endpoint in endpoints:
            if endpoint.disabled_at is None and endpoint.since <= row.written_at:
                yield endpoint.id
        if row.webhook and not endpoints:
            yield requests_id(row.caller)
        elif row.webhook:
            yield ""  # its address may be that of one of those endpoints: its record says so

    async def _make(self, task_id: str) -> None:
        snapshot = await self._tasks.get(task_id)
        if snapshot is None:
            return
        task = snapshot.task
        told = partial(self._deliveries.tells, task.id)
        for delivery in deliveries(task, self._endpoints.of(task.caller), datetime.now(UTC), told=told):
            if delivery.id in self._deliveries:
                continue
            try:
                revision = await self._bucket.create(delivery.id, delivery)
            except WrongRevision:
                continue  # it is there, and the watch will bring it
            self._deliveries.take_in(delivery, revision, delivery.made_at)
            log.info("delivery_made", delivery=delivery.id)
        self._made[task_id] = snapshot.revision
