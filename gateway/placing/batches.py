"""Acceptance of a batch: all of its requests become tasks, or none does (ADR 0053).

Each task is made like one that came alone (`Admission`). Whatever speaks against a request, and is known beforehand,
refuses the whole batch before anything is written. If others are faster and take a place after that, the batch takes
back the tasks that it has placed.
"""

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Final

import structlog
from msgspec import Struct

from contracts import lifecycle
from contracts.generation.batch import wrong_at
from contracts.generation.errors import InvalidRequest
from contracts.generation.request import AcceptedRequest
from contracts.tasks import GenerationTask, Priority
from contracts.topology import DEGRADED, work_stream
from gateway.boards.lane_board import LaneBoard
from gateway.boards.snapshots import Snapshot
from gateway.boards.task_board import TaskBoard
from gateway.placing.admission import Admission, Placed, Submitter
from gateway.placing.cancelling import end_task
from gateway.placing.overload import Overload
from gateway.placing.retries import until_answered
from gateway.rules.room import has_room
from ops.artifacts import Artifacts
from ops.nats.errors import TransportUnavailable
from ops.nats.link import NatsLink

# Between the key of a batch and the number of a request in it: no key of a client has a blank.
_AT: Final = " "

log = structlog.get_logger("admission")


class BatchItem(Struct, frozen=True):
    """A request of a batch, and its class."""

    request: AcceptedRequest
    priority: Priority


class Batches:
    """Turns the accepted requests of a batch into tasks."""

    def __init__(
        self,
        admission: Admission,
        *,
        link: NatsLink,
        artifacts: Artifacts,
        tasks: TaskBoard,
        lanes: LaneBoard,
        overload: Overload,
    ) -> None:
        self._admission = admission
        self._link, self._artifacts, self._tasks = link, artifacts, tasks
        self._lanes, self._overload = lanes, overload

    async def accept(
        self,
        items: Sequence[BatchItem],
        *,
        caller: str,
        key: str | None,
        traceparent: str | None,
        require: Callable[[int], None],
    ) -> list[Snapshot]:
        """The tasks of *items*, in their order, whose ids may be given to the caller; the same tasks again for the same
        *caller* and *key*. *require* is called with the number of new tasks, and raises where there may not be so many.

        Raises what `Admission.accept` raises for one request. Then none of the batch was accepted, except after
        TransportUnavailable with a *key*: some may be accepted then, and the same batch with the same key finds out.
        """
        senders = [_sender(item, place, caller, key, traceparent) for place, item in enumerate(items)]
        identified = [await self._admission.identify(item.request, to) for item, to in zip(items, senders, strict=True)]
        new = [place for place, (_, known) in enumerate(identified) if known is None]
        requests = {}
        if new:
            require(len(new))
            self._admission.require_room()
            for place in new:
                requests[place] = await self._complete(place, items[place], caller)
            await self._require_places([items[place] for place in new])
        snapshots = {place: known for place, (_, known) in enumerate(identified) if known is not None}
        ours = dict[int, Snapshot]()
        try:
            for place in new:
                made = await self._admission.place(requests[place], senders[place], identified[place][0])
                snapshots[place] = made.snapshot
                if made.is_ours:
                    ours[place] = made.snapshot
            # an equal batch may take back what it made, until that is promised
            for place in sorted(snapshots.keys() - ours.keys()):
                kept = await self._keep(place, items[place], senders[place], snapshots[place])
                snapshots[place] = kept.snapshot
                if kept.is_ours:
                    ours[place] = kept.snapshot
            return [await self._promise(snapshots[place]) for place in range(len(items))]
        except Exception as error:
            if key is None or not isinstance(error, TransportUnavailable):
                await self._take_back(ours.values(), leaves_promised=key is not None)
            raise

    async def _complete(self, place: int, item: BatchItem, caller: str) -> AcceptedRequest:
        try:
            return await self._admission.complete(item.request, caller)
        except InvalidRequest as wrong:
            raise wrong_at(place, wrong) from wrong

    async def _keep(self, place: int, item: BatchItem, sender: Submitter, known: Snapshot) -> Placed:
        """*known*, which an equal batch has made, and now cannot take back; made anew where it already has."""
        while True:
            kept = await self._promise(known)
            if not kept.task.promised:
                self._admission.require_kept(kept.task)
            if not kept.task.withdrawn:
                return Placed(kept, is_ours=False)
            task_id, again = await self._admission.identify(item.request, sender)
            if again is None:
                request = await self._complete(place, item, sender.caller)
                made = await self._admission.place(request, sender, task_id)
                if made.is_ours:
                    return made
                again = made.snapshot
            known = again

    async def _promise(self, snapshot: Snapshot) -> Snapshot:
        """Promises the task, so that a client may be given its id, unless it has ended. Raises TransportUnavailable."""
        moved = await self._tasks.move(snapshot.task.id, _promised, known=snapshot)
        if moved is None:
            raise TransportUnavailable("the record is gone")
        return Snapshot(moved.task, moved.revision)

    async def _require_places(self, items: Sequence[BatchItem]) -> None:
        """Raises Overloaded where the queues have no places for all *items* now, TransportUnavailable."""
        now = datetime.now(UTC)
        routes = {item.request.model: self._lanes.route(item.request.model, now)[0] for item in items}
        streams = [work_stream(routes[item.request.model], item.request.model) for item in items]
        depths = {stream: await self._link.streams.depth(stream) for stream in {*streams, DEGRADED}}
        if not has_room(streams, {stream: depth.max_msgs - depth.messages for stream, depth in depths.items()}):
            last = items[-1]
            raise self._overload.refused("depth", last.request.model, last.priority)

    async def _take_back(self, ours: Iterable[Snapshot], *, leaves_promised: bool) -> None:
        """Ends the tasks that this batch made, whose ids no client was given. With *leaves_promised* it leaves those
        with which an equal batch was answered."""
        change = partial(_taken_back, leaves_promised=leaves_promised)
        for snapshot in ours:
            task_id = snapshot.task.id
            end = partial(end_task, task_id, change, link=self._link, tasks=self._tasks, artifacts=self._artifacts)
            try:
                ended = await until_answered(end)
            except TransportUnavailable as error:
                log.warning("not_taken_back", task_id=task_id, error=str(error))
            else:
                if ended is not None and ended.task.withdrawn:
                    log.info("taken_back", task_id=task_id)


def _promised(task: GenerationTask, _: int) -> GenerationTask | None:
    return None if task.promised or task.status.is_terminal else lifecycle.promise(task)


def _taken_back(task: GenerationTask, _: int, *, leaves_promised: bool) -> GenerationTask | None:
    if task.status.is_terminal or (task.promised and leaves_promised):
        return None
    return lifecycle.take_back(task, now=datetime.now(UTC))


def _sender(item: BatchItem, place: int, caller: str, key: str | None, traceparent: str | None) -> Submitter:
    return Submitter(
        caller=caller,
        key=None if key is None else f"{key}{_AT}{place}",
        priority=item.priority,
        traceparent=traceparent,
        promised=False,
        require=lambda: None,
        in_batch=True,
    )
