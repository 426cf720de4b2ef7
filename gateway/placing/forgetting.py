"""Forgets a task, on request or when the time that its request set is over: its record, and then all that followed from
it (ADR 0049).

One write decides. Before it everything is there; after it the task is unknown everywhere. The server keeps a marker
that says that the task was forgotten, by which the janitor of any gateway removes whatever is left.
"""

import asyncio
from collections.abc import Callable, Collection
from datetime import datetime
from typing import Final

import structlog

from contracts.tasks import GenerationTask
from contracts.topology import work_stream, work_subject
from gateway.boards.delivery_board import DeliveryBoard
from gateway.boards.task_board import TaskBoard
from ops.artifacts import Artifacts, StorageFailed
from ops.nats.bucket import Bucket
from ops.nats.buckets import WEBHOOK_DELIVERIES
from ops.nats.errors import TransportUnavailable, WrongRevision
from ops.nats.link import NatsLink

# One at a time, a busy gateway would forget fewer tasks than it accepts.
FORGOTTEN_AT_ONCE: Final = 32

log = structlog.get_logger("forgetting")


class NotEnded(Exception):
    """The task may still end well: it is not forgotten."""


async def forget(
    task_id: str,
    *,
    link: NatsLink,
    tasks: TaskBoard,
    artifacts: Artifacts,
    deliveries: DeliveryBoard,
    require: Callable[[int], None],
) -> bool:
    """Removes a task that has ended, for good. Returns False where it has no record.

    1. Its queue messages: one may be left that no worker runs any more.
    2. Its record with its history, in one write, at the revision that was read. *require* is called with that revision,
       and raises where it must not be removed. From here on the task is unknown.
    3. Its video, thumbnail and image, and the deliveries of its webhooks. The janitor removes what cannot be removed
       now (`Services.clean`).

    Raises NotEnded, and TransportUnavailable before 3: then the task may or may not be forgotten, and the same call
    finds out.
    """
    while True:
        known = await tasks.read(task_id)
        if known is None:
            return False
        if not known.task.status.is_terminal:
            raise NotEnded(known.task.status)
        require(known.revision)
        for route in ("lane", "degraded"):  # 1
            stream = work_stream(route, known.task.model)
            await link.messages.purge(stream, work_subject(route, known.task.model, task_id))
        try:
            await tasks.purge(task_id, revision=known.revision)  # 2
        except WrongRevision:
            continue
        break
    await _remove_objects(known.task, artifacts)  # 3
    await remove_deliveries({task_id}, link=link, deliveries=deliveries)
    log.info("task_forgotten", task_id=task_id, caller=known.task.caller)
    return True


async def forget_due(
    now: datetime, *, link: NatsLink, tasks: TaskBoard, artifacts: Artifacts, deliveries: DeliveryBoard
) -> int:
    """Forgets every task that its request asked to keep until *now* at most. Returns how many this call removed.

    Every gateway calls this. Where several come to the same task, one removes it, and the others find it gone. The
    record on the server decides, and not the one in memory. Raises TransportUnavailable: what is left is due the next
    time.
    """
    forgotten, due = 0, tasks.expiries.due(now)

    async def one(task_id: str) -> bool:
        def require(_: int) -> None:  # the board has by now taken in the record that was read
            if not tasks.expiries.is_due(task_id, now):
                raise _KeptLonger

        try:
            return await forget(
                task_id, link=link, tasks=tasks, artifacts=artifacts, deliveries=deliveries, require=require
            )
        except (NotEnded, _KeptLonger):
            return False

    for first in range(0, len(due), FORGOTTEN_AT_ONCE):
        # of a long list, other gateways have removed a part meanwhile
        still = [each for each in due[first : first + FORGOTTEN_AT_ONCE] if tasks.expiries.is_due(each, now)]
        forgotten += sum(await asyncio.gather(*map(one, still)))
    return forgotten


class _KeptLonger(Exception):
    """The record on the server keeps the task for longer than the one that was in memory."""


async def _remove_objects(task: GenerationTask, artifacts: Artifacts) -> None:
    made = task.video
    thumbnail = None if made is None or made.thumbnail is None else made.thumbnail.path
    for path in (task.image_path, None if made is None else made.path, thumbnail):
        if path is not None:
            try:
                await artifacts.delete(path)
            except StorageFailed as error:
                log.warning("object_left_to_the_janitor", task_id=task.id, error=str(error))


async def remove_deliveries(forgotten: Collection[str], *, link: NatsLink, deliveries: DeliveryBoard) -> int:
    """Removes the deliveries of the tasks *forgotten*, including those that are still to be sent. Returns how many.

    Never raises: the janitor removes what is left.
    """
    bucket, found = Bucket(link, WEBHOOK_DELIVERIES), deliveries.of_tasks(forgotten)
    for delivery in found:
        try:
            await bucket.purge(delivery)
        except TransportUnavailable as error:
            log.warning("delivery_left_to_the_janitor", delivery=delivery, error=str(error))
    return len(found)
