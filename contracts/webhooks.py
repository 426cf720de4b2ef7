"""Webhooks: which events a caller asked for, where they go, and what is stored of them (ADR 0044). Pure.

An *endpoint* is an address that a caller registered, with the secrets that sign what goes there. A request may also
name an address of its own. A *delivery* is one event of one task on its way to one of these addresses.
"""

import hashlib
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta, Struct

from contracts.nesting import Decoder
from contracts.wire import Counted, Moment, Token, Unreadable, decode

ENDPOINTS_PER_CALLER_MAX: Final = 20
# Standard Webhooks asks for less than 20 kB.
PAYLOAD_MAX_BYTES: Final = 20_000
# How long a secret from before a rotation still signs, unless its caller sets another time.
OVERLAP_S: Final = 86_400.0
OVERLAP_MAX_S: Final = 7 * 86_400.0
TEST_EVENT: Final = "webhook.test"
_ENDPOINT_PREFIX: Final = "ep_"
# The id prefix of the entry whose secrets sign what goes to the addresses that a caller's requests name.
_REQUESTS_PREFIX: Final = "rq_"


class WebhookEvent(StrEnum):
    """The events of a task that a receiver can be notified of. The list only grows."""

    CLAIMED = "task.claimed"
    PROGRESS = "task.progress"
    DONE = "task.done"
    FAILED = "task.failed"


# Delivered at least once; progress is delivered at most once.
KEPT_EVENTS: Final = (WebhookEvent.CLAIMED, WebhookEvent.DONE, WebhookEvent.FAILED)
DEFAULT_EVENTS: Final = KEPT_EVENTS

EventName = Annotated[str, Meta(pattern=r"\A[a-zA-Z0-9_.]{1,64}\Z")]
"""The name of an event, also one that only a newer version knows."""


class TaskWebhook(Struct, frozen=True, kw_only=True, gc=False):
    """The address that a request named, and the events that it asked for."""

    url: str
    events: tuple[EventName, ...]


class SealedSecret(Struct, frozen=True, kw_only=True):
    """A signing secret, encrypted. It signs until *until*; None means as long as its endpoint exists."""

    sealed: str
    made_at: Moment
    until: Moment | None = None


class WebhookEndpoint(Struct, frozen=True, kw_only=True):
    """An address of *caller*, in KV `webhooks` under its id. If *url* is None, the entry holds the secrets for the
    addresses that the caller's requests name.

    It takes events from *since* on. Once *disabled_at* is set, nothing is delivered to it, because of *disabled_why*.
    """

    id: Token
    caller: str
    url: str | None
    events: tuple[EventName, ...]
    secrets: tuple[SealedSecret, ...]
    made_at: Moment
    since: Moment
    disabled_at: Moment | None = None
    disabled_why: str = ""

    def signing(self, now: datetime) -> tuple[SealedSecret, ...]:
        """The secrets that sign now, the newest first."""
        return tuple(each for each in reversed(self.secrets) if each.until is None or now < each.until)

    def takes(self, event: str, at: datetime) -> bool:
        """Whether *event*, which happened *at*, goes to this endpoint."""
        return self.url is not None and self.disabled_at is None and event in self.events and self.since <= at


class DeliveryTry(Struct, frozen=True, kw_only=True):
    """What came of one attempt: the *status* of the answer, or why there was none."""

    at: Moment
    status: int | None
    error: str
    took_s: float


DeliveryStatus = Literal["pending", "delivered", "dead"]


class WebhookDelivery(Struct, frozen=True, kw_only=True):
    """One event of one task on its way to one endpoint, in KV `deliveries` under its id, which is also its
    `webhook-id`.

    *attempts* counts the attempts since it was made, or since a caller last asked for it again. While it is pending,
    the next attempt is at *next_at*. *payload* is the body, the same at every attempt.
    """

    id: Token
    caller: str
    endpoint: Token
    url: str
    task_id: Token
    event: EventName
    payload: str
    made_at: Moment
    status: DeliveryStatus = "pending"
    attempts: Counted = 0
    next_at: Moment | None = None
    ended_at: Moment | None = None
    last: DeliveryTry | None = None


def requests_id(caller: str) -> str:
    """The id of the entry whose secrets sign what goes to the addresses that *caller*'s requests name."""
    return _REQUESTS_PREFIX + hashlib.sha256(caller.encode()).hexdigest()[:16]


def endpoint_id(random_hex: str) -> str:
    """The id of a registered endpoint."""
    return _ENDPOINT_PREFIX + random_hex


def delivery_id(task_id: str, event: str, endpoint: str) -> str:
    """The id of the one delivery of *event* of *task_id* to *endpoint*, which makes its creation idempotent."""
    return f"{task_id}_{event.rpartition('.')[2]}_{endpoint}"


_ENDPOINTS: Final = Decoder(WebhookEndpoint)
_DELIVERIES: Final = Decoder(WebhookDelivery)


def decode_endpoint(name: str, data: bytes) -> WebhookEndpoint:
    """The endpoint in *data*, stored under *name*. Raises Unreadable."""
    endpoint = decode(data, _ENDPOINTS)
    if endpoint.id != name:
        raise Unreadable("it carries the id of another endpoint")
    return endpoint


def decode_delivery(name: str, data: bytes) -> WebhookDelivery:
    """The delivery in *data*, stored under *name*. Raises Unreadable."""
    delivery = decode(data, _DELIVERIES)
    if delivery.id != name:
        raise Unreadable("it carries the id of another delivery")
    return delivery


encode_entry: Final = msgspec.json.Encoder().encode
"""An endpoint or a delivery as JSON, the form in which it is stored."""
