"""Finds a task for its caller, waits for it, and shows it."""

import math
import re
from collections.abc import Awaitable
from contextlib import suppress
from datetime import UTC, datetime
from functools import cached_property
from typing import Final, TypeVar

from litestar import Request
from litestar.datastructures import Headers, State

from contracts.api.tasks import TaskView
from contracts.tasks import GenerationTask, TaskStatus
from gateway.boards.key_board import Caller
from gateway.boards.snapshots import Snapshot
from gateway.http.access import Turn, unauthorized
from gateway.http.problems import ProblemError
from gateway.http.views import root_of, view
from gateway.services import Services
from ops.nats.errors import TransportUnavailable, WrongRevision
from ops.waiting import unless

TASK_ID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")

T = TypeVar("T")


class CallerRequest(Request[Caller, Turn, State]):
    """A request that was let in."""

    @cached_property
    def headers(self) -> Headers:
        """Made once: Litestar makes them from the scope on each access, and a route looks up eight."""
        return Headers.from_scope(self.scope)


async def find(services: Services, caller: Caller, task_id: str) -> Snapshot:
    """The task. If it is overdue and nats-server can be reached, this does what is due first.

    Raises ProblemError: task_not_found, also for a task that *caller* may not see, which this leaves as it is; and
    transport_unavailable where memory does not have it and the server cannot be reached.
    """
    if not TASK_ID.fullmatch(task_id):
        raise no_such_task()
    snapshot = await reachable(services.tasks.get(task_id))
    if snapshot is None or not caller.sees(snapshot.task):
        raise no_such_task()
    return await _look_if_overdue(services, snapshot)


async def find_ended(services: Services, caller: Caller, task_id: str) -> Snapshot:
    """The task, read from the server unless it has ended in memory: another gateway may already have answered that it
    is done. While the server is away, memory counts. Raises ProblemError as `find`."""
    snapshot = await find(services, caller, task_id)
    if snapshot.task.status.is_terminal:
        return snapshot
    with suppress(TransportUnavailable):
        return await services.tasks.read(task_id) or snapshot
    return snapshot


async def _look_if_overdue(services: Services, snapshot: Snapshot) -> Snapshot:
    """A gateway that reads an overdue pending record does what is due before it answers (design §4).

    While the server is away, the task stays as it is: the first look after the server's return ends it.
    """
    task = snapshot.task
    if task.status is not TaskStatus.PENDING or datetime.now(UTC) < task.deadline_at:
        return snapshot
    try:
        try:
            looked = await services.sweeper.look(task.id)
        except WrongRevision:
            looked = await services.tasks.read(task.id)
    except TransportUnavailable as error:
        if services.tasks.news_age_s():  # the answer says so in `Age`
            return snapshot
        raise _unreachable() from error
    if looked is None:
        raise no_such_task()
    return looked


async def reachable(call: Awaitable[T]) -> T:
    """What *call* returns; TransportUnavailable becomes the problem `transport_unavailable`."""
    try:
        return await call
    except TransportUnavailable as error:
        raise _unreachable() from error


def _unreachable() -> ProblemError:
    detail = "the record could not be read or written now; try again"
    return ProblemError("transport_unavailable", detail, retry_after_s=1.0)


async def awaited(
    request: CallerRequest, services: Services, snapshot: Snapshot, *, seen_revision: int | None, wait_s: float
) -> Snapshot:
    """The task when it has ended, or is at another revision than *seen_revision*, or as it is after *wait_s*. Returns
    at once when the client hangs up, to free its place.

    Raises TooManyStreams if too many requests wait already, and ProblemError: task_not_found where the record is gone,
    and unauthorized where the key was revoked meanwhile.
    """
    if snapshot.task.status.is_terminal:
        return snapshot
    with services.waits.take(request.user.name).held():
        waiting = services.tasks.readers.wait(snapshot, seen_revision=seen_revision, timeout_s=wait_s)
        came = await unless(until_gone(request), waiting)
    waited = snapshot if came is None else came.value
    if not services.keys.still_counts(request.user):
        raise unauthorized(request)
    if waited is None:
        raise no_such_task()
    return await _look_if_overdue(services, waited)


async def until_gone(request: CallerRequest) -> None:
    """Returns when the client has hung up. The body of its request, if any, must have been read before."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def shown(request: CallerRequest, services: Services, task: GenerationTask) -> TaskView:
    """*task* as its caller may see it, with its place in the queue now."""
    now = datetime.now(UTC)
    return view(task, services.estimates.place(task, now), now, root=root_of(request))


def etag_of(snapshot: Snapshot, task: TaskView) -> str:
    """The strong tag of a task's JSON: its revision, with the place of a waiting task or the time left of a running
    one."""
    place, progress = task.queue, task.progress
    if place is None:
        left = "" if progress is None or progress.eta_s is None else f"-{progress.eta_s:g}"
        return f'"{snapshot.revision}{left}"'
    wait = "" if place.expected_wait_s is None else f"-{place.expected_wait_s:g}"
    return f'"{snapshot.revision}-{place.position}{wait}"'


def age_of(services: Services) -> dict[str, str]:
    """The header `Age` (RFC 9111): the greatest age of an answer from memory, while the gateway gets nothing newer."""
    age_s = services.tasks.news_age_s()
    return {"age": str(math.ceil(age_s))} if age_s else {}


def no_such_task() -> ProblemError:
    """The problem of a task that does not exist, or that this caller may not see."""
    return ProblemError("task_not_found", "no task has this id, or it is older than what is kept")
