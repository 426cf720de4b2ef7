"""Webhooks as their callers see them: endpoints, deliveries, and what a receiver is sent.

Every key is always present; null means "not yet" or "does not apply". The secret of an endpoint is shown only when it
is made. The secret that signs for the addresses of requests can be read again.
"""

from datetime import datetime

import msgspec
from msgspec import Struct

from contracts.api.tasks import Progress, VideoView
from contracts.tasks import TaskError, TaskStatus
from contracts.webhooks import DeliveryStatus, DeliveryTry


class WebhookTaskLinks(Struct, frozen=True, kw_only=True):
    """Paths of the gateway, which a receiver calls with a key."""

    self_: str = msgspec.field(name="self")
    video: str | None


class WebhookTask(Struct, frozen=True, kw_only=True):
    """A task as a receiver is sent it: its state, but neither its prompt nor its video."""

    id: str
    status: TaskStatus
    model: str
    labels: dict[str, str]
    attempt: int
    created_at: datetime
    claimed_at: datetime | None
    finished_at: datetime | None
    progress: Progress | None
    error: TaskError | None
    video: VideoView | None
    links: WebhookTaskLinks


class WebhookMessage(Struct, frozen=True, kw_only=True):
    """The body that a receiver is sent. *timestamp* is when the event happened; *data* of `webhook.test` names the
    endpoint."""

    type: str
    timestamp: datetime
    data: WebhookTask | dict[str, str]


class EndpointView(Struct, frozen=True, kw_only=True):
    """A registered endpoint. *secrets* is how many secrets sign now: two or more during a rotation. Nothing is
    delivered to it once it is disabled, for the reason in *disabled_why*."""

    id: str
    url: str
    events: tuple[str, ...]
    caller: str
    made_at: datetime
    secrets: int
    disabled_at: datetime | None
    disabled_why: str | None


class EndpointsPage(Struct, frozen=True, kw_only=True):
    """The endpoints of a caller, oldest first."""

    endpoints: tuple[EndpointView, ...]


class EndpointSecret(Struct, frozen=True, kw_only=True):
    """An endpoint, and the newest of its secrets. The secret is shown only this once."""

    endpoint: EndpointView
    secret: str


class RequestsSecret(Struct, frozen=True, kw_only=True):
    """The newest secret that signs what goes to the addresses that a caller's requests name."""

    secret: str


class DeliveryView(Struct, frozen=True, kw_only=True):
    """One event on its way to a receiver. *endpoint* is null if the request named the address. *next_at* is when the
    next attempt is due, null once the delivery has ended; *last* is the result of the newest attempt."""

    id: str
    endpoint: str | None
    url: str
    caller: str
    task_id: str
    event: str
    status: DeliveryStatus
    attempts: int
    made_at: datetime
    next_at: datetime | None
    ended_at: datetime | None
    last: DeliveryTry | None


class DeliveriesPage(Struct, frozen=True, kw_only=True):
    """Deliveries, newest first. *more*: there are others beyond the limit that was asked for."""

    deliveries: tuple[DeliveryView, ...]
    more: bool


class WebhookTestView(Struct, frozen=True, kw_only=True):
    """What came of a test message: *delivered* is whether the receiver answered with a 2xx."""

    delivered: bool
    status: int | None
    error: str
    took_s: float
