"""A task of its caller: found, waited for, and as it is shown."""

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
        """Found once: Litestar looks for them in the scope each time, and a route asks for eight."""
        return Headers.from_scope(self.scope)


async def find(services: Services, caller: Caller, task_id: str) -> Snapshot:
    """The task. Where it is overdue, and the server can be reached, what is due is done first.

    Raises ProblemError: task_not_found, also for a task that *caller* may not see, for which nothing is done then; and
    transport_unavailable where nothing is known of it.
    """
    if not TASK_ID.fullmatch(task_id):
        raise no_such_task()
    snapshot = await reachable(services.tasks.get(task_id))
    if snapshot is None or not caller.sees(snapshot.task):
        raise no_such_task()
    return await _look_if_overdue(services, snapshot)


async def find_ended(services: Services, caller: Caller, task_id: str) -> Snapshot:
    """The task, asked of the server where memory has it as not ended: another gateway may have said already that it is
    done. While the server is away, memory counts. Raises ProblemError as `find`."""
    snapshot = await find(services, caller, task_id)
    if snapshot.task.status.is_terminal:
        return snapshot
    with suppress(TransportUnavailable):
        return await services.tasks.read(task_id) or snapshot
    return snapshot


async def _look_if_overdue(services: Services, snapshot: Snapshot) -> Snapshot:
    """Whoever reads an overdue pending record does what is due before answering (design §4).

    While the server is away it stays as it is: the first look after the return ends it.
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
        if services.tasks.news_age_s():  # which the answer says
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
    """The task when it has ended, or is not at *seen_revision*, or as it is after *wait_s*; at once where the client
    has hung up, so that nobody who is gone is waited for.

    Raises TooManyStreams where as many requests wait as may, and ProblemError: task_not_found where its record is gone,
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
    """Returns when the client has hung up. Its body was read, or it has none."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def shown(request: CallerRequest, services: Services, task: GenerationTask) -> TaskView:
    """*task* as its caller may see it, with its place in the queue now."""
    now = datetime.now(UTC)
    return view(task, services.estimates.place(task, now), now, root=root_of(request))


def etag_of(snapshot: Snapshot, task: TaskView) -> str:
    """The strong tag of a task's JSON: its revision, with the place of one that waits, or the time left of one that
    runs."""
    place, progress = task.queue, task.progress
    if place is None:
        left = "" if progress is None or progress.eta_s is None else f"-{progress.eta_s:g}"
        return f'"{snapshot.revision}{left}"'
    wait = "" if place.expected_wait_s is None else f"-{place.expected_wait_s:g}"
    return f'"{snapshot.revision}-{place.position}{wait}"'


def age_of(services: Services) -> dict[str, str]:
    """The header that gives the greatest age of an answer from memory, while nothing newer can be had (RFC 9111)."""
    age_s = services.tasks.news_age_s()
    return {"age": str(math.ceil(age_s))} if age_s else {}


def no_such_task() -> ProblemError:
    """To be raised where a task is not there, or not for this caller."""
    return ProblemError("task_not_found", "no task has this id, or it is older than what is kept")
