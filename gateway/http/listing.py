"""`GET /tasks`: a page of tasks, newest first, and its filters. HTTP only."""

import base64
import binascii
from collections.abc import Iterable
from datetime import datetime
from typing import Annotated, Final

import msgspec
from litestar import Response, get
from litestar.di import NamedDependency
from litestar.params import FromQuery, QueryParameter

from contracts.api.tasks import TaskPage
from contracts.generation.labels import LABELS_MAX, BadLabel, Label, parse_label
from contracts.settings import Catalog
from contracts.tasks import GenerationTask, TaskStatus
from contracts.wire import Moment
from gateway.boards.key_board import Caller
from gateway.http.access import needs
from gateway.http.lookup import TASK_ID, CallerRequest, age_of, reachable, shown
from gateway.http.openapi.operations import TasksOperation, problem_responses
from gateway.http.problems import ProblemError
from gateway.services import Services

PAGE_MAX: Final = 100


@get(
    "/tasks",
    summary="List tasks, newest first",
    tags=["tasks"],
    operation_class=TasksOperation,
    responses=problem_responses("invalid_query", "transport_unavailable"),
    **needs("read"),
)
async def list_tasks(
    request: CallerRequest,
    services: NamedDependency[Services],
    caller: NamedDependency[Caller],
    status: FromQuery[list[str] | None] = None,
    model: FromQuery[list[str] | None] = None,
    label: FromQuery[list[str] | None] = None,
    created_after: FromQuery[str | None] = None,
    created_before: FromQuery[str | None] = None,
    limit: Annotated[int, QueryParameter(name="limit", ge=1, le=PAGE_MAX)] = 20,
    cursor: FromQuery[str | None] = None,
) -> Response[TaskPage]:
    """The tasks of the key's caller (every task for `admin`), newest first. `next_cursor` leads to the next page; it is
    null on the last one.

    `status` and `model` take several values, repeated or separated by commas, and list the tasks of any of them.
    `label` can be repeated, and lists the tasks that have all of the labels. `created_after` lists tasks that were made
    at that moment or later, `created_before` tasks that were made before that moment: two adjoining spans list no task
    twice. A cursor belongs to the filters of its page: send the same filters with it.
    """
    statuses, models, labels = statuses_of(status), models_of(model, services.catalog), labels_in(label)
    since, until = moment_of("created_after", created_after), moment_of("created_before", created_before)
    found: list[GenerationTask] = []
    before = _decode_cursor(cursor)
    if until is not None:
        before = (until, "") if before is None else min(before, (until, ""))
    while True:
        wanted = limit + 1 - len(found)  # one more shows whether there is another page
        places = services.tasks.index.newest(
            statuses=statuses,
            models=models,
            labels=labels,
            since=since,
            caller=caller.sees_only,
            before=before,
            limit=wanted,
        )
        for place in places:
            snapshot = await reachable(services.tasks.get(place[1]))
            if snapshot is not None:  # its record may have expired since
                found.append(snapshot.task)
        if len(found) > limit:
            last = found[limit - 1]
            return _page(request, services, found[:limit], _encode_cursor(last.created_at, last.id))
        if len(places) < wanted:
            return _page(request, services, found, None)
        before = places[-1]


def statuses_of(values: list[str] | None) -> frozenset[TaskStatus] | None:
    """The filter `status`; None without one. Raises the problem `invalid_query`."""
    if values is None:
        return None
    known = {status.value: status for status in TaskStatus}
    found = frozenset(known.get(value) for value in _each(values))
    if None in found or not found:
        raise ProblemError("invalid_query", f"status: expected {_or(known)}")
    return frozenset(status for status in found if status is not None)


def models_of(values: list[str] | None, catalog: Catalog) -> frozenset[str] | None:
    """The filter `model`, with aliases resolved; None without one. Raises the problem `invalid_query`."""
    if values is None:
        return None
    entries = [catalog.resolve(value) for value in _each(values)]
    if None in entries or not entries:
        known = _or(sorted(catalog.models))
        raise ProblemError("invalid_query", f"model: no model has this name; expected {known}, or an alias")
    return frozenset(entry.name for entry in entries if entry is not None)


def labels_in(values: list[str] | None) -> frozenset[Label]:
    """The filter `label`; empty without one. Raises the problem `invalid_query`."""
    try:
        found = frozenset(parse_label(value) for value in values or ())
    except BadLabel as error:
        raise ProblemError("invalid_query", f"label: {error}") from error
    if len(found) > LABELS_MAX:
        raise ProblemError("invalid_query", f"label: a task has at most {LABELS_MAX} labels; send no more")
    return found


def moment_of(name: str, value: str | None) -> datetime | None:
    """The moment that the parameter *name* gives; None without one. Raises the problem `invalid_query`."""
    if value is None:
        return None
    try:
        return msgspec.convert(value, Moment)
    except msgspec.ValidationError:
        expected = "expected a moment with a time zone (RFC 3339), as in 2026-05-01T12:00:00Z; a + is written %2B"
        raise ProblemError("invalid_query", f"{name}: {expected}") from None


def _each(values: list[str]) -> list[str]:
    return [part.strip() for value in values for part in value.split(",")]


def _or(names: Iterable[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} or {last}" if first else last


def _page(
    request: CallerRequest, services: Services, tasks: list[GenerationTask], next_cursor: str | None
) -> Response[TaskPage]:
    page = TaskPage(tasks=tuple(shown(request, services, task) for task in tasks), next_cursor=next_cursor)
    return Response(page, headers=age_of(services))


def _encode_cursor(created_at: datetime, task_id: str) -> str:
    return base64.urlsafe_b64encode(f"{created_at.isoformat()} {task_id}".encode()).decode().rstrip("=")


def _decode_cursor(cursor: str | None) -> tuple[datetime, str] | None:
    if cursor is None:
        return None
    try:
        text = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode()
        moment, _, task_id = text.partition(" ")
        created_at = datetime.fromisoformat(moment)
        if created_at.tzinfo is None or not TASK_ID.fullmatch(task_id):
            raise ValueError
    except (binascii.Error, ValueError):
        raise ProblemError("invalid_query", "cursor: use next_cursor of the page before, unchanged") from None
    return created_at, task_id
