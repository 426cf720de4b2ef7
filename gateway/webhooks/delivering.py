"""Sends the deliveries of webhooks, in the one gateway that leads; another takes over when that one is gone."""

import asyncio
import random
import time
from datetime import UTC, datetime, timedelta
from typing import Final

import structlog
from msgspec.structs import replace

from contracts.webhooks import DeliveryTry, WebhookDelivery, WebhookEndpoint
from gateway.boards.delivery_board import DeliveryBoard
from gateway.rules.webhook_retries import Again, Dead, Delivered, WebhookAnswer, outcome_of, verdict
from gateway.webhooks.lineup import Lineup, receiver_of
from gateway.webhooks.making import Making
from gateway.webhooks.registry import NoSuchEndpoint, Registry
from gateway.webhooks.sealing import CannotUnseal
from gateway.webhooks.sending import WebhookSender
from gateway.webhooks.signing import signed_headers
from ops.background import Background
from ops.ending import end
from ops.nats.bucket import Bucket, Versioned
from ops.nats.buckets import WEBHOOK_DELIVERIES
from ops.nats.errors import TransportUnavailable, WrongRevision
from ops.nats.leader import Leader
from ops.nats.link import NatsLink
from ops.telemetry import metrics
from ops.waiting import set_within

WEBHOOKS_WORK: Final = "webhooks"
# Bounded, so that a clock that was set is noticed.
SLEEP_MAX_S: Final = 5.0
# After an attempt that could not be made, as when nats-server did not answer.
RETRY_S: Final = 1.0
UNSEALED_RETRY_S: Final = 60.0
# A gateway that stops lets running attempts end for this long: the next leader makes an attempt again that is cut off.
LAST_ATTEMPTS_S: Final = 3.0

log = structlog.get_logger("webhooks")


class Delivering:
    """The sending of deliveries, by the gateway that leads. *begin* it once there may be something to deliver."""

    def __init__(
        self,
        *,
        link: NatsLink,
        deliveries: DeliveryBoard,
        registry: Registry,
        making: Making,
        sender: WebhookSender,
        leader: Leader,
        background: Background,
    ) -> None:
        self._bucket = Bucket(link, WEBHOOK_DELIVERIES)
        self._deliveries, self._registry, self._making = deliveries, registry, making
        self._sender, self._leader, self._background = sender, leader, background
        self._lineup = Lineup()
        self._attempts: set[asyncio.Task[None]] = set()
        self._sooner = asyncio.Event()
        self._is_leaving = False
        self._is_wanted = asyncio.Event()

    @property
    def is_leading(self) -> bool:
        """Whether this gateway delivers."""
        return self._leader.is_leader(time.monotonic())

    def begin(self) -> None:
        """There is something to deliver, or will be: from now on this gateway campaigns for the leadership."""
        self._is_wanted.set()

    async def run(self) -> None:
        """Campaigns for the leadership, and delivers while it has it, until cancelled."""
        await self._is_wanted.wait()
        await self._leader.start()
        while True:
            await self._leader.campaign()
            try:
                await self._lead()
            finally:
                await self._leader.resign()

    async def leave(self) -> None:
        """Begins no further attempt, and lets running ones end, for LAST_ATTEMPTS_S at most."""
        self._is_leaving = True
        if self._attempts:
            await asyncio.wait(self._attempts, timeout=LAST_ATTEMPTS_S)

    def on_delivery(self, delivery: WebhookDelivery) -> None:
        """A delivery was made, or has changed."""
        if delivery.status != "pending" or delivery.next_at is None:
            self._lineup.drop(delivery.id)
            return
        _put(self._lineup, delivery, delivery.next_at)
        self._sooner.set()

    def on_endpoints(self, caller: str | None = None) -> None:
        """The endpoints of *caller*, or of any caller, have changed. Deliveries to an endpoint that was removed are
        given up now, and not when they would have been sent."""
        now = datetime.now(UTC)
        for delivery in self._deliveries.pending():
            if caller in (None, delivery.caller) and not self._registry.knows_receiver_of(delivery):
                _put(self._lineup, delivery, now)
                self._sooner.set()

    async def _lead(self) -> None:
        self._lineup = Lineup()
        for delivery in self._deliveries.pending():
            self.on_delivery(delivery)
        self.on_endpoints()
        parts = [
            asyncio.create_task(self._leader.hold()),
            asyncio.create_task(self._making.run()),
            asyncio.create_task(self._send_all()),
        ]
        try:
            done, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
            for part in done:
                part.result()  # raises what ended it
        finally:
            await end(*parts, *self._attempts)

    async def _send_all(self) -> None:
        while True:
            self._sooner.clear()
            now = datetime.now(UTC)
            may_begin = self.is_leading and not self._is_leaving
            delivery = self._lineup.take(now) if may_begin else None
            if delivery is None:
                # a gateway that stops, or is about to lose the leadership, takes nothing, though much may be due
                least_s = 0.0 if may_begin else RETRY_S
                await set_within(max(least_s, self._wait_s(now)), self._sooner)
                continue
            attempt = asyncio.create_task(self._attempt(delivery))
            self._attempts.add(attempt)
            attempt.add_done_callback(self._attempts.discard)

    def _wait_s(self, now: datetime) -> float:
        at = self._lineup.next_at()
        return SLEEP_MAX_S if at is None else max(0.0, min(SLEEP_MAX_S, (at - now).total_seconds()))

    async def _attempt(self, delivery: str) -> None:
        lineup = self._lineup
        again_s: float | None = None
        try:
            await self._deliver(delivery)
        except TransportUnavailable as error:
            log.info("delivery_delayed", delivery=delivery, error=str(error))
            again_s = RETRY_S
        except CannotUnseal as error:
            self._background.trouble(WEBHOOKS_WORK, f"{error}: see docs/operate/webhooks.md")
            again_s = UNSEALED_RETRY_S
        except Exception:
            log.exception("delivery_failed", delivery=delivery)
            again_s = UNSEALED_RETRY_S
        finally:
            lineup.over(delivery)
            self._sooner.set()
        known = self._deliveries.get(delivery)
        if again_s is not None and known is not None and known.status == "pending":
            _put(lineup, known, datetime.now(UTC) + timedelta(seconds=again_s))

    async def _deliver(self, name: str) -> None:
        # read from nats-server: the copy in memory may be behind, and the delivery may have been sent since
        entry = await self._bucket.get(name)
        now = datetime.now(UTC)
        if entry is None or entry.value is None or entry.value.status != "pending":
            return
        delivery = entry.value
        endpoint = await self._registry.receiver_of(delivery, now=now)
        if endpoint is not None and delivery.next_at is not None and delivery.next_at > now:
            self._deliveries.take_in(delivery, entry.revision, entry.time)
            _put(self._lineup, delivery, delivery.next_at)
            return
        if endpoint is None or endpoint.disabled_at is not None:
            why = (
                "the endpoint was removed" if endpoint is None else f"the endpoint is disabled: {endpoint.disabled_why}"
            )
            await self._settle(entry, delivery, WebhookAnswer(None, why), Dead())
            return
        secrets = self._registry.secrets_of(endpoint, now)
        headers = signed_headers(delivery.id, delivery.payload, secrets, now)
        answer = await self._sender.send(delivery.url, headers, delivery.payload)
        attempts = delivery.attempts + 1
        # chance spreads load here, and guards nothing
        follows = verdict(answer, attempts=attempts, now=datetime.now(UTC), chance=random.random())  # noqa: S311
        if isinstance(follows, Dead) and follows.disables and endpoint.url is not None:
            await self._disable(endpoint)
        await self._settle(entry, replace(delivery, attempts=attempts), answer, follows)

    async def _disable(self, endpoint: WebhookEndpoint) -> None:
        try:
            await self._registry.disable(endpoint.id, "it answered 410 Gone", now=datetime.now(UTC))
        except NoSuchEndpoint:
            return  # it was removed meanwhile
        log.warning("webhook_disabled", endpoint=endpoint.id, caller=endpoint.caller, reason="410 Gone")

    async def _settle(
        self,
        entry: Versioned[WebhookDelivery],
        delivery: WebhookDelivery,
        answer: WebhookAnswer,
        follows: Delivered | Again | Dead,
    ) -> None:
        """Stores the result of an attempt, however long that takes: until it is stored, the attempt would be made
        again."""
        settled = settle(delivery, answer, follows, datetime.now(UTC))
        while True:
            try:
                revision = await self._bucket.update(settled.id, settled, revision=entry.revision)
                break
            except WrongRevision:
                return  # a caller asked for it again meanwhile, or this gateway had lost the leadership
            except TransportUnavailable:
                if not self.is_leading:
                    raise
                await asyncio.sleep(RETRY_S)
        self._deliveries.take_in(settled, revision, datetime.now(UTC))
        count(answer, follows, settled.event)
        self._background.works(WEBHOOKS_WORK)
        report = log.warning if settled.status == "dead" else log.info
        report(
            f"delivery_{settled.status}",
            delivery=settled.id,
            attempt=settled.attempts,
            status=answer.status,
            error=answer.error,
            took_s=round(answer.took_s, 3),
        )


def settle(
    delivery: WebhookDelivery, answer: WebhookAnswer, follows: Delivered | Again | Dead, now: datetime
) -> WebhookDelivery:
    """*delivery* after an attempt with *answer*, and what *follows* from that. Pure."""
    last = DeliveryTry(at=now, status=answer.status, error=answer.error, took_s=round(answer.took_s, 3))
    match follows:
        case Again(at):
            return replace(delivery, status="pending", next_at=at, last=last)
        case Delivered():
            return replace(delivery, status="delivered", next_at=None, ended_at=now, last=last)
        case Dead():
            return replace(delivery, status="dead", next_at=None, ended_at=now, last=last)


def count(answer: WebhookAnswer, follows: Delivered | Again | Dead, event: str) -> None:
    """Counts an attempt, and the end of its delivery."""
    metrics.webhook_attempts.add(outcome_of(answer))
    if isinstance(follows, Delivered):
        metrics.webhook_deliveries.add(event, "delivered")
    elif isinstance(follows, Dead):
        metrics.webhook_deliveries.add(event, "dead")


def _put(lineup: Lineup, delivery: WebhookDelivery, at: datetime) -> None:
    lineup.put(delivery.id, caller=delivery.caller, receiver=receiver_of(delivery), at=at)
