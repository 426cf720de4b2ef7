"""All that a gateway does with webhooks, made once and started with it."""

import asyncio
import secrets
import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from contracts.api.webhooks import WebhookMessage
from contracts.tasks import GenerationTask
from contracts.topology import WEBHOOKS_LEADER_KEY
from contracts.urls import NamedUrl
from contracts.webhooks import TEST_EVENT, WebhookDelivery, WebhookEndpoint, encode_entry
from gateway.boards.delivery_board import DeliveryBoard
from gateway.boards.endpoint_board import EndpointBoard
from gateway.boards.snapshots import Snapshot
from gateway.boards.task_board import TaskBoard
from gateway.rules.addresses import Network
from gateway.rules.webhook_retries import WebhookAnswer, outcome_of
from gateway.webhooks.delivering import WEBHOOKS_WORK, Delivering
from gateway.webhooks.making import Making
from gateway.webhooks.progress import ProgressNews
from gateway.webhooks.registry import Registry
from gateway.webhooks.sealing import Sealer, sealing_keys
from gateway.webhooks.sending import WebhookSender
from gateway.webhooks.signing import signed_headers
from gateway.webhooks.turns import CallerTurns
from ops.background import Background
from ops.ending import end
from ops.nats.bucket import Bucket
from ops.nats.buckets import WEBHOOK_DELIVERIES
from ops.nats.errors import WrongRevision
from ops.nats.leader import Leader
from ops.nats.link import NatsLink
from ops.telemetry import metrics

ID_BYTES: Final = 6
# How many addresses a caller may register or test at a time. While a name is looked up, it takes one of the threads
# that deliveries need too.
AT_ONCE_PER_CALLER: Final = 4


class WebhookOptions(Struct, frozen=True):
    """What an operator set: the networks that receivers may be in beside the public internet, and the *keys* that seal
    secrets. Without *keys* the key file in *folder* seals them, which is made at the start. The repr leaves the keys
    out."""

    folder: Path
    allowed: tuple[Network, ...] = ()
    keys: str | None = None

    def __repr__(self) -> str:
        return f"WebhookOptions({self.folder!r}, {self.allowed!r})"

    __str__ = __repr__


class NoSuchDelivery(Exception):
    """There is no delivery of that id."""


class Webhooks:
    """The webhooks of one gateway. `start` it once the tasks are known, `close` it before the connection."""

    def __init__(self, options: WebhookOptions, *, tasks: TaskBoard, background: Background) -> None:
        self._options = options
        self._tasks, self._background = tasks, background
        self.endpoints = EndpointBoard()
        self.deliveries = DeliveryBoard()
        self.sender = WebhookSender(options.allowed)
        self.registry: Registry
        self._delivering: Delivering
        self._making: Making
        self._progress: ProgressNews
        self._turns = CallerTurns(AT_ONCE_PER_CALLER)
        self._running: asyncio.Task[None] | None = None

    async def start(self, link: NatsLink) -> None:
        """Watches endpoints and deliveries, and campaigns for the leadership once there is anything to deliver.

        Raises BadSealingKey, TransportUnavailable.
        """
        sealer = Sealer(sealing_keys(self._options.folder, self._options.keys))
        await self.endpoints.start(link)
        await self.deliveries.start(link)
        self._bucket = Bucket(link, WEBHOOK_DELIVERIES)
        self.registry = Registry(link, self.endpoints, sealer)
        self._progress = ProgressNews(endpoints=self.endpoints, registry=self.registry, sender=self.sender)
        self._making = Making(link=link, tasks=self._tasks, endpoints=self.endpoints, deliveries=self.deliveries)
        name = f"gateway at {socket.gethostname()}"
        self._delivering = Delivering(
            link=link,
            deliveries=self.deliveries,
            registry=self.registry,
            making=self._making,
            sender=self.sender,
            leader=Leader(link, worker=name, owner=secrets.token_hex(8), key=WEBHOOKS_LEADER_KEY),
            background=self._background,
        )
        self._tasks.on_change = self._on_task
        self.endpoints.on_change = self._on_caller
        self.deliveries.on_change = self._on_delivery
        if (
            self.endpoints.has_any()
            or self.deliveries.count("pending")
            or any(row.webhook for row in self._tasks.index.rows())
        ):
            self._delivering.begin()
        self._running = asyncio.create_task(self._background.keep(WEBHOOKS_WORK, self._delivering.run))

    async def close(self) -> None:
        """Lets running attempts end for a moment, and gives the leadership back."""
        if self._running is not None:
            await self._delivering.leave()
            await end(self._running)
            await self._progress.close()
        await self.sender.close()

    def _on_task(self, snapshot: Snapshot) -> None:
        task: GenerationTask = snapshot.task
        if not self._making.concerns(task):
            return
        self._delivering.begin()
        if self._delivering.is_leading:
            self._making.on_task(task)
            self._progress.on_task(task)

    def _on_caller(self, caller: str) -> None:
        self._delivering.begin()
        if self._delivering.is_leading:
            self._making.on_caller(caller)
            self._delivering.on_endpoints(caller)

    def _on_delivery(self, delivery: WebhookDelivery) -> None:
        if delivery.status == "pending":
            self._delivering.begin()
        self._delivering.on_delivery(delivery)

    async def objection_to(self, caller: str, url: NamedUrl) -> str | None:
        """As `WebhookSender.objection_to`, for *caller*: AT_ONCE_PER_CALLER at a time."""
        async with self._turns.of(caller):
            return await self.sender.objection_to(url)

    async def test(self, endpoint: WebhookEndpoint) -> WebhookAnswer:
        """Sends a message to *endpoint* now, whatever else is on its way; an answer of 2xx enables it again.

        Raises CannotUnseal, NoSuchEndpoint, TransportUnavailable.
        """
        async with self._turns.of(endpoint.caller):
            now = datetime.now(UTC)
            message = WebhookMessage(type=TEST_EVENT, timestamp=now, data={"endpoint": endpoint.id})
            body = encode_entry(message).decode()
            name = f"test_{secrets.token_hex(ID_BYTES)}_{endpoint.id}"
            headers = signed_headers(name, body, self.registry.secrets_of(endpoint, now), now)
            answer = await self.sender.send(endpoint.url or "", headers, body)
        metrics.webhook_attempts.add(outcome_of(answer))
        if answer.is_success:
            await self.registry.enable(endpoint.id, now=now)
        return answer

    async def redeliver(self, delivery: str) -> WebhookDelivery:
        """Puts *delivery* in line again, whatever became of it, with its full number of attempts.

        Raises NoSuchDelivery, TransportUnavailable.
        """
        while True:
            entry = await self._bucket.get(delivery)
            if entry is None or entry.value is None:
                raise NoSuchDelivery(delivery)
            again = replace(entry.value, status="pending", attempts=0, next_at=datetime.now(UTC), ended_at=None)
            try:
                revision = await self._bucket.update(delivery, again, revision=entry.revision)
            except WrongRevision:
                continue
            self.deliveries.take_in(again, revision, datetime.now(UTC))
            return again
