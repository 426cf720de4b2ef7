"""Acceptance: a request becomes a task that ends exactly once, whatever is killed (design §4).

No record without a queued message; no answer without a record; a refusal leaves nothing behind. The order of the writes
is that of `Queueing`.
"""

from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final, Literal

import structlog
import uuid_utils
from msgspec import Struct

from contracts import lifecycle
from contracts.fields import SEED_SPAN
from contracts.generation.request import AcceptedRequest
from contracts.settings import Catalog
from contracts.tasks import GenerationTask, Priority, RoutingDecision, TaskStatus, keyed_task_id, seed_of
from gateway.boards.lane_board import LaneBoard, TaskRoute
from gateway.boards.snapshots import Snapshot
from gateway.boards.task_board import TaskBoard
from gateway.placing.displacement import DISPLACED_MAX, Displacement
from gateway.placing.estimate import Estimates
from gateway.placing.fallbacks import Fallbacks
from gateway.placing.hold import Holds, UntilGone, is_held
from gateway.placing.input_images import InputImages, has_image_of
from gateway.placing.leftovers import remove_leftovers
from gateway.placing.overload import Overload, is_overloaded
from gateway.placing.queueing import Queueing
from ops.artifacts import Artifacts, StorageFailed
from ops.nats.errors import StreamFull
from ops.nats.link import NatsLink
from ops.telemetry import metrics
from ops.telemetry.tracing import of_task, span

log = structlog.get_logger("admission")


Complete = Callable[[AcceptedRequest, str], Awaitable[AcceptedRequest]]
"""Fetches the image that a request of that caller names."""


async def complete_as_it_is(request: AcceptedRequest, _: str) -> AcceptedRequest:
    """For requests that carry their images."""
    return request


class KeyReused(Exception):
    """The Idempotency-Key belongs to another request."""


class _Refused(Exception):
    """*decision* sent a request to the degraded queue, whose *limit* keeps it out. Nothing of it was written."""

    def __init__(self, decision: RoutingDecision, limit: Literal["depth", "expected"]) -> None:
        super().__init__(decision.outcome)
        self.decision = decision
        self.limit: Final = limit


class Submitter(Struct, frozen=True):
    """Who sends a request, and what comes with it. *promised*: the client gets the id at once, and is not held.
    *require* raises where the caller may not have a new task. *in_batch*: the other requests of its batch may still
    make it fail. It displaces no waiting task, and it is promised only with its batch, even on a lane."""

    caller: str
    key: str | None
    priority: Priority
    traceparent: str | None
    promised: bool
    require: Callable[[], None]
    in_batch: bool = False


class Placed(Struct, frozen=True):
    """A task that is queued and recorded. Not *is_ours*: an equal request with the same key came first and made it."""

    snapshot: Snapshot
    is_ours: bool


class Admission:
    """Turns an accepted request into a task."""

    def __init__(
        self,
        *,
        link: NatsLink,
        artifacts: Artifacts,
        tasks: TaskBoard,
        lanes: LaneBoard,
        fallbacks: Fallbacks,
        holds: Holds,
        estimates: Estimates,
        catalog: Catalog,
        require_room: Callable[[], None] = lambda: None,
        complete: Complete = complete_as_it_is,
    ) -> None:
        """*require_room* raises StorageFull where the server has no room for one more request. *complete* fetches the
        image of a request that only names it, and raises where it cannot be used."""
        self.require_room = require_room
        self.complete = complete
        self._link = link
        self._artifacts = artifacts
        self._tasks = tasks
        self._lanes = lanes
        self._fallbacks = fallbacks
        self._holds = holds
        self._catalog = catalog
        self._images = InputImages(link=link, artifacts=artifacts, tasks=tasks)
        self._queueing = Queueing(link=link, tasks=tasks)
        self._estimates = estimates
        self._refuses_expected = catalog.overload.refuse_expected
        self.overload = Overload(tasks=tasks, estimates=estimates)
        self._displacement = Displacement(link=link, artifacts=artifacts, tasks=tasks, is_on=catalog.overload.displace)

    async def accept(
        self,
        request: AcceptedRequest,
        *,
        caller: str,
        key: str | None,
        priority: Priority = Priority.STANDARD,
        traceparent: str | None,
        until_gone: UntilGone | None,
        hold_s: float | None = None,
        require: Callable[[], None] = lambda: None,
    ) -> Snapshot:
        """The task of *request*, whose id may be given to the caller; the same task again for the same *caller* and
        *key*.

        On a lane this returns at once. On the degraded queue it returns when a worker has claimed the task.
        *until_gone* returns when the caller hangs up meanwhile. Without *until_gone* this returns at once there too.
        After *hold_s* it returns the task as it is then, promised. *require* is called before a new task is made, and
        raises where there may be none. Raises StorageFull (nothing was written), KeyReused, Overloaded, CallerGone,
        StorageFailed (it will not run), TransportUnavailable (it may or may not run: the same key finds out), and what
        `complete` raises (nothing was written).
        """
        sender = Submitter(caller, key, priority, traceparent, promised=until_gone is None, require=require)
        while True:
            snapshot = await self._submit(request, sender)
            if until_gone is None:
                snapshot = await self._holds.promise(snapshot)
            elif is_held(snapshot.task):
                snapshot = await self._holds.hold(
                    snapshot, is_shared=key is not None, until_gone=until_gone, hold_s=hold_s
                )
            if not snapshot.task.promised:
                self.require_kept(snapshot.task)
            if not snapshot.task.withdrawn:
                return snapshot
            # the other callers of this key had hung up just before this one came

    async def _submit(self, request: AcceptedRequest, sender: Submitter) -> Snapshot:
        task_id, known = await self.identify(request, sender)
        if known is not None:
            return known
        sender.require()
        self.require_room()
        request = await self.complete(request, sender.caller)
        return (await self.place(request, sender, task_id)).snapshot

    async def place(self, request: AcceptedRequest, sender: Submitter, task_id: str) -> Placed:
        """Queues and records *request*, which is complete, as *task_id*. Raises as `accept` does."""
        try:
            task, found = await self._queue(request, sender, task_id)
        except _Refused as refused:
            await self._fallbacks.sent(request.model, refused.decision, served=0)
            raise self.overload.refused(refused.limit, request.model, sender.priority) from refused
        is_ours = _task_of(found).created_at == task.created_at  # and not that of an equal request, which came first
        if is_ours:
            if task.route == "degraded" and task.decision is not None:
                await self._fallbacks.sent(task.model, task.decision, served=1)
            metrics.requests_accepted.add(task.model, task.route)
        with span("record", of_task(_task_of(found))):
            snapshot = await self._record(found, request, is_ours=is_ours)
        if snapshot.task.was_refused:
            # it ended before this gateway could record it; nobody else removes an image that was stored after that
            await remove_leftovers(snapshot.task, link=self._link, artifacts=self._artifacts)
        self.require_kept(snapshot.task)
        if is_ours:
            report_replaced(task)
        return Placed(snapshot, is_ours)

    def require_kept(self, task: GenerationTask) -> None:
        """Raises the reason for which *task* was refused, Overloaded or StorageFailed. It raises nothing for a task
        that was withdrawn or taken back: the next request with its key makes another."""
        if is_overloaded(task):
            raise self.overload.late(task)
        if task.was_refused and not task.withdrawn and task.error is not None:
            raise StorageFailed(task.error.message)

    async def identify(self, request: AcceptedRequest, sender: Submitter) -> tuple[str, Snapshot | None]:
        """The id of the task, and the task itself where the same key has already made it."""
        if sender.key is None:
            return str(uuid_utils.uuid7()), None
        n = 0
        while True:
            task_id = keyed_task_id(sender.caller, sender.key, n)
            # from the server, even where memory has one: the server may have lost it (ADR 0030)
            known = await self._tasks.read(task_id)
            if known is None and task_id in self._tasks.forgotten:
                n += 1  # the task was forgotten: its marker is there, and it is not made again
                continue
            if known is None:
                return task_id, None
            if not known.task.was_refused:
                return task_id, await self._again(known, request)
            # a refused key may try again, under another id: to the server the first id would still be a duplicate
            n += 1

    async def _queue(
        self, request: AcceptedRequest, sender: Submitter, task_id: str
    ) -> tuple[GenerationTask, GenerationTask | Snapshot]:
        """Queues the task where routing sends it. Returns the task, and what is queued there under its id: an equal
        request may have queued that before. Raises _Refused, TransportUnavailable."""
        now, lanes_passed = datetime.now(UTC), False
        displaced: list[GenerationTask] = []
        while True:
            with span("route") as current:
                route, decision = self._lanes.route(request.model, now, lanes_passed=lanes_passed)
                decided = {"task.id": task_id, "model": request.model, "warmlane.decision": decision.outcome}
                current.set_attributes(decided)
            task = self._task(request, sender, task_id, route, decision, displaced)
            # not for a request with a key, which may be queued already: the server finds the duplicate before the limit
            is_unknown = sender.key is None and route == "degraded"
            if is_unknown and self._refuses_expected and self._estimates.is_hopeless(task, decision.at):
                raise _Refused(decision, "expected")
            if not (is_unknown and self.overload.is_known_full(request.model)):
                try:
                    return task, await self._queueing.publish(task)
                except StreamFull:
                    if route == "lane":
                        lanes_passed = True
                        continue
                    self.overload.note_refused()
            may_displace = not sender.in_batch and len(displaced) < DISPLACED_MAX
            if not may_displace or (made_room := await self._displacement.make_room(task)) is None:
                raise _Refused(decision, "depth")
            displaced.append(made_room)

    def _task(
        self,
        request: AcceptedRequest,
        sender: Submitter,
        task_id: str,
        route: TaskRoute,
        decision: RoutingDecision,
        displaced: Sequence[GenerationTask],
    ) -> GenerationTask:
        now = decision.at
        task = GenerationTask(
            id=task_id,
            model=request.model,
            caller=sender.caller,
            priority=sender.priority,
            parameters=request.parameters(seed_of(task_id, SEED_SPAN)),
            request_sha256=request.fingerprint,
            status=TaskStatus.PENDING,
            route=route,
            epoch=0,
            decision=decision,
            displaced=displaced[-1].id if displaced else None,
            created_at=now,
            queued_at=now,
            deadline_at=now + timedelta(seconds=self._catalog.windows.wait_s(route)),
            promised=sender.promised or (route == "lane" and not sender.in_batch),
            replaced=request.replaced,
            webhook=request.webhook,
            labels=request.labels,
            keep_s=request.keep_s,
            traceparent=sender.traceparent,
        )
        detail = f"to {route}.{request.model}{', the queue of its lane is full' if decision.lanes_passed else ''}"
        if displaced:
            detail += f", in the place of a task of the class {displaced[-1].priority}"
        return lifecycle.with_event(task, "accepted", now, detail)

    async def _record(self, found: GenerationTask | Snapshot, request: AcceptedRequest, *, is_ours: bool) -> Snapshot:
        if isinstance(found, Snapshot):
            return await self._again(found, request)
        if found.request_sha256 != request.fingerprint:
            raise KeyReused
        # an equal request may have queued it with another image, to which its address led a moment before
        if found.image_path is not None and request.image_content is not None and has_image_of(found, request):
            try:
                await self._artifacts.put(found.image_path, request.image_content)
            except StorageFailed as error:
                return await self._images.refuse(found, error, is_ours=is_ours)
        return _same_request(await self._queueing.record(found), request)

    async def _again(self, known: Snapshot, request: AcceptedRequest) -> Snapshot:
        """*known*, which an equal request has made, and whose image may still be missing. Raises KeyReused."""
        task = _same_request(known, request).task
        if await self._images.is_missing(task):
            await self._images.complete(task, await self.complete(request, task.caller))
        return known


def _task_of(found: GenerationTask | Snapshot) -> GenerationTask:
    return found.task if isinstance(found, Snapshot) else found


def report_replaced(task: GenerationTask) -> None:
    """Counts and logs the parameters that were replaced in *task*: only numbers, and whose request it was."""
    for each in task.replaced:
        metrics.parameters_reported.add(task.model, each.field)
    if task.replaced:
        fields = {each.field: {"got": each.got, "used": each.used} for each in task.replaced}
        log.info("parameters_reported", task_id=task.id, caller=task.caller, model=task.model, fields=fields)


def _same_request(known: Snapshot, request: AcceptedRequest) -> Snapshot:
    if known.task.request_sha256 != request.fingerprint:
        raise KeyReused
    return known
