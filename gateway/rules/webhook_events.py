"""Which events of a task go to which receivers, and what a receiver reads. Pure: no clock, no I/O, no logging."""

from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import Final

import msgspec
from msgspec import Struct

from contracts.api.tasks import Progress, VideoView
from contracts.api.webhooks import WebhookMessage, WebhookTask, WebhookTaskLinks
from contracts.tasks import GenerationTask, TaskError, TaskStatus
from contracts.webhooks import (
    PAYLOAD_MAX_BYTES,
    WebhookDelivery,
    WebhookEndpoint,
    WebhookEvent,
    delivery_id,
    requests_id,
)

REASON_MAX_CHARS: Final = 500
ENDS: Final = {TaskStatus.DONE: WebhookEvent.DONE, TaskStatus.FAILED: WebhookEvent.FAILED}


class Happened(Struct, frozen=True):
    """An event of a task, and when its record says that it happened."""

    event: WebhookEvent
    at: datetime


class Target(Struct, frozen=True):
    """Where an event goes: a registered endpoint, or the address that the request named, with the *endpoint* that its
    caller has for such addresses. *by_request*: it goes there only because the request named the address."""

    endpoint: str
    url: str
    by_request: bool = False


Told = Callable[[WebhookEvent, str], bool]
"""Whether an address was notified of an event of the task already, or will be."""


def happened(task: GenerationTask) -> Iterator[Happened]:
    """The events of *task* so far that are delivered at least once, in their order; progress is not among them.

    1. None of a request that was refused or taken back before its caller was given the id: no client knows it. A task
       that was cancelled while its caller was held is answered with its id, and its events count as any other's.
    2. `task.claimed` once a worker has begun it; of several attempts the newest one that the record names.
    3. `task.done` or `task.failed` once it has ended.
    """
    if task.was_refused and not task.promised:  # 1
        return
    if task.claimed_at is not None:  # 2
        yield Happened(WebhookEvent.CLAIMED, task.claimed_at)
    if task.status.is_terminal and task.finished_at is not None:  # 3
        yield Happened(ENDS[task.status], task.finished_at)


def targets(
    task: GenerationTask, endpoints: Iterable[WebhookEndpoint], event: WebhookEvent, at: datetime
) -> Iterator[Target]:
    """Where *event* of *task*, which happened *at*, goes. *endpoints* are those of its caller.

    1. Every endpoint that takes the event.
    2. The address of the request, if it asked for the event. An address that is registered as well is notified once, by
       1 or here, and the delivery is signed with that endpoint's secrets.
    """
    asked = task.webhook if task.webhook is not None and event in task.webhook.events else None
    is_registered = False
    for endpoint in endpoints:
        if endpoint.url is None:
            continue
        is_same = asked is not None and endpoint.url == asked.url and endpoint.disabled_at is None
        takes = endpoint.takes(event, at)
        if takes or (is_same and not is_registered):
            is_registered = is_registered or is_same
            yield Target(endpoint.id, endpoint.url, by_request=not takes)  # 1
    if asked is not None and not is_registered:
        yield Target(requests_id(task.caller), asked.url, by_request=True)  # 2


def deliveries(
    task: GenerationTask,
    endpoints: Iterable[WebhookEndpoint],
    now: datetime,
    *,
    told: Told = lambda _, __: False,
) -> Iterator[WebhookDelivery]:
    """Every delivery that the record of *task* calls for now; the same ones at every call.

    The address of the request is not notified again if *told* says that it was, under any endpoint: it may have
    been registered or removed since.
    """
    known = tuple(endpoints)
    for each in happened(task):
        for target in targets(task, known, each.event, each.at):
            if target.by_request and told(each.event, target.url):
                continue
            yield WebhookDelivery(
                id=delivery_id(task.id, each.event, target.endpoint),
                caller=task.caller,
                endpoint=target.endpoint,
                url=target.url,
                task_id=task.id,
                event=each.event.value,
                payload=payload(task, each.event, each.at),
                made_at=now,
                next_at=now,
            )


def payload(task: GenerationTask, event: WebhookEvent, at: datetime) -> str:
    """The body that a receiver is sent: JSON of less than 20 kB, without prompt or video."""
    error = task.error
    data = WebhookTask(
        id=task.id,
        status=task.status,
        model=task.model,
        labels=task.labels,
        attempt=task.attempt,
        created_at=task.created_at,
        claimed_at=task.claimed_at,
        finished_at=task.finished_at,
        progress=Progress.of(task, at),
        error=None if error is None else TaskError(code=error.code, message=error.message[:REASON_MAX_CHARS]),
        video=None if task.video is None else VideoView.of(task.video),
        links=WebhookTaskLinks(
            self_=f"/tasks/{task.id}",
            video=f"/tasks/{task.id}/video" if task.status is TaskStatus.DONE else None,
        ),
    )
    text = msgspec.json.encode(WebhookMessage(type=event.value, timestamp=at, data=data)).decode()
    if len(text.encode()) >= PAYLOAD_MAX_BYTES:
        raise ValueError("the body of a webhook has grown beyond its bound")
    return text
