"""`GET /tasks/events`: a caller's tasks on one event stream. HTTP only."""

import asyncio
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Annotated, Any, Final

import msgspec
from litestar import Response, get, head
from litestar.di import NamedDependency
from litestar.params import FromQuery, QueryParameter
from msgspec import Struct

from contracts.api.feed import FeedOpened, FeedReset, TaskNamed, TaskPlace, TaskPlaces
from contracts.tasks import TaskStatus
from gateway.boards.feeds import Feed, News, Wanted
from gateway.boards.key_board import Caller
from gateway.boards.open_streams import TooManyStreams
from gateway.boards.snapshots import Snapshot
from gateway.http.access import needs
from gateway.http.event_streams import (
    KEEP_ALIVE_S,
    RETRY_AFTER_S,
    STILL_THERE,
    EventStream,
    beginning,
    with_id,
    without_id,
)
from gateway.http.listing import labels_in, models_of, statuses_of
from gateway.http.lookup import CallerRequest, shown
from gateway.http.openapi.operations import FeedOperation, problem_responses
from gateway.http.preferences import FEED_WAIT_MAX_S
from gateway.http.problems import ProblemError
from gateway.http.views import root_of
from gateway.services import Services
from ops.nats.errors import TransportUnavailable

# Changes within this time are sent together.
BATCH_S: Final = 0.25
_REVISION: Final = re.compile(r"[0-9]{1,18}")

_Services = NamedDependency[Services]
_Wait = Annotated[
    float | None,
    QueryParameter(name="wait", ge=0, le=FEED_WAIT_MAX_S, description="End the stream after this many seconds."),
]


@get(
    "/tasks/events",
    summary="Follow many tasks",
    tags=["tasks"],
    media_type="text/event-stream",
    operation_class=FeedOperation,
    responses=problem_responses("invalid_query", "too_many_streams"),
    **needs("read"),
)
async def follow_tasks(
    request: CallerRequest,
    services: _Services,
    caller: NamedDependency[Caller],
    status: FromQuery[list[str] | None] = None,
    model: FromQuery[list[str] | None] = None,
    label: FromQuery[list[str] | None] = None,
    wait: _Wait = None,
) -> Response[Any]:
    """Server-sent events of every task of the key's caller (of all tasks for `admin`), or of those that `status`,
    `model` and `label` name, as in `GET /tasks`. One stream is enough for a page.

    The stream begins with `open`, and then sends every change: read `open` first, then list the tasks. `task` carries
    the newest JSON of a task: states in between may be left out, but never the last one. `left` names a task that is no
    longer in any of the requested `status`, `gone` a task whose record was removed. `places` says where waiting tasks
    now stand in their queues, once a second at most.

    The last event of each batch has an id, or a comment after it has. A client that reconnects, to any gateway, with
    the newest id in `Last-Event-ID` is first sent everything that changed since. If that is too much, or too long ago,
    it gets `reset`, and has to list again. After 15 s without an event a comment is sent.
    """
    wanted = _wanted(services, caller, status, model, label)
    since = _since(request)
    try:
        place = services.streams.take(caller.name)
    except TooManyStreams as error:
        detail = f"{error}; close streams that you no longer read"
        raise ProblemError("too_many_streams", detail, retry_after_s=RETRY_AFTER_S) from error
    return EventStream(_events(request, services, wanted, since, wait), place=place)


@head("/tasks/events", include_in_schema=False, **needs("read"))
async def head_follow_tasks(
    request: CallerRequest,
    services: _Services,
    caller: NamedDependency[Caller],
    status: FromQuery[list[str] | None] = None,
    model: FromQuery[list[str] | None] = None,
    label: FromQuery[list[str] | None] = None,
    wait: _Wait = None,
) -> Response[None]:
    """The headers of the stream, which is not opened."""
    _wanted(services, caller, status, model, label)
    _since(request)
    return EventStream(())  # type: ignore[return-value]  # what Litestar wants declared


def _wanted(
    services: Services,
    caller: Caller,
    status: list[str] | None,
    model: list[str] | None,
    label: list[str] | None,
) -> Wanted:
    return Wanted(caller.sees_only, models_of(model, services.catalog), statuses_of(status), labels_in(label))


def _since(request: CallerRequest) -> int | None:
    """The revision in `Last-Event-ID`; None without one. Raises the problem `invalid_query`."""
    sent = request.headers.get("last-event-id")
    if not sent:  # a browser sends none before the first event; some send an empty one
        return None
    if not _REVISION.fullmatch(sent):
        raise ProblemError("invalid_query", "Last-Event-ID: send the id of an event of this stream, or leave it out")
    return int(sent)


async def _events(
    request: CallerRequest, services: Services, wanted: Wanted, since: int | None, wait_s: float | None
) -> AsyncIterator[bytes]:
    clock = asyncio.get_running_loop().time
    until_s = None if wait_s is None else clock() + wait_s
    feeds = services.tasks.feeds
    with feeds.following(wanted, since=since, row_of=services.tasks.index.get) as feed:
        events = _Events(request, services, wanted)
        yield events.opened(feed, since)
        silent_since_s = clock()
        while until_s is None or clock() < until_s:
            idle_s = max(0.0, silent_since_s + KEEP_ALIVE_S - clock())
            if until_s is not None:
                idle_s = min(idle_s, until_s - clock())
            news = await feed.news(idle_s=idle_s)
            if news is None or not services.keys.still_counts(request.user):
                return  # the gateway stops, or the key was revoked: nothing more is sent
            try:
                text = await events.text(news)
            except TransportUnavailable:
                return  # the client reconnects with the id that it has, and misses nothing
            if not text and (news.caught_up or clock() - silent_since_s >= KEEP_ALIVE_S):
                text = STILL_THERE if news.upto is None else with_id(STILL_THERE, news.upto)
            if text:
                yield text
                silent_since_s = clock()
            if news.changes or news.moved:
                await asyncio.sleep(BATCH_S)


class _Events:
    """Makes the events of one stream. It remembers which places were sent."""

    def __init__(self, request: CallerRequest, services: Services, wanted: Wanted) -> None:
        self._request, self._services, self._wanted = request, services, wanted
        self._sent_places: dict[str, int] = {}

    def opened(self, feed: Feed, since: int | None) -> bytes:
        """The first event. It has an id only if no earlier change is still to be sent."""
        is_resumed = since is not None and not feed.is_reset
        text = without_id("open", _json(FeedOpened(resumed=is_resumed)))
        upto = self._services.tasks.feeds.upto
        return beginning() + (text if since is not None or upto is None else with_id(text, upto))

    async def text(self, news: News) -> bytes:
        """The events of *news*, the last one with an id; empty where there is nothing to send.

        Raises TransportUnavailable.
        """
        blocks = [] if news.reset is None else [without_id("reset", _json(FeedReset(reason=news.reset)))]
        for task_id, what in news.changes:
            snapshot = await self._services.tasks.get(task_id) if what == "task" else None
            if snapshot is not None:
                blocks.append(self._task(snapshot))
            else:
                self._sent_places.pop(task_id, None)
                blocks.append(without_id("left" if what == "left" else "gone", _json(TaskNamed(id=task_id))))
        places = self._places() if news.moved else ()
        if places:
            blocks.append(without_id("places", _json(TaskPlaces(places=places))))
        if blocks and news.upto is not None:
            blocks[-1] = with_id(blocks[-1], news.upto)
        return b"".join(blocks)

    def _task(self, snapshot: Snapshot) -> bytes:
        task = snapshot.task
        if task.status is TaskStatus.PENDING:
            view = shown(self._request, self._services, task)
            if view.queue is not None:
                self._sent_places[task.id] = view.queue.position
            return without_id("task", _json(view))
        self._sent_places.pop(task.id, None)
        # the text is the same on every stream; for a running task only within one second, as its time left counts down
        second = None if task.status.is_terminal else int(datetime.now(UTC).timestamp())
        name = task.id, snapshot.revision, root_of(self._request), second
        return self._services.texts.of(
            name, lambda: without_id("task", _json(shown(self._request, self._services, task)))
        )

    def _places(self) -> tuple[TaskPlace, ...]:
        moved = []
        for standing in self._services.places.first(datetime.now(UTC)):
            task, place = standing.task, standing.place
            is_followed = self._wanted.caller in (None, task.caller) and self._wanted.has(task.status)
            if not is_followed or (self._wanted.models is not None and task.model not in self._wanted.models):
                continue
            if not self._wanted.labels.issubset(task.labels.items()):
                continue
            if self._sent_places.get(task.id) != place.position:
                self._sent_places[task.id] = place.position
                moved.append(TaskPlace(id=task.id, position=place.position, expected_wait_s=place.expected_wait_s))
        return tuple(moved)


def _json(content: Struct) -> bytes:
    return msgspec.json.encode(content)
