"""Work, fetched from durable consumers."""

import asyncio
import contextlib
import json
import time
from typing import Final

import nats.errors
import structlog
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from nats.js.client import JetStreamContext

from contracts.nesting import loads
from contracts.topology import ConsumerSpec, consumer_on
from ops.nats.client import REPLY_TIMEOUT_S, NatsClient
from ops.nats.errors import NotAllowed, TransportUnavailable, translated
from ops.telemetry.metrics import consumers_made_anew

# A fetch in flight when the server restarts hangs until its own time-out (design §10.6).
FETCH_TIMEOUT_S: Final = 2.0
# The pause before the next try to make a consumer anew.
MISSING_PAUSE_S: Final = 1.0
# A cluster elects a leader within seconds. A consumer that lacks one for less than this time is no reason to send tasks
# elsewhere, where a worker might have to load another pipeline for them.
LEADERLESS_S: Final = 15.0
_ALREADY_THERE: Final = 10148

log = structlog.get_logger("nats")


class ConsumerRefused(TransportUnavailable):
    """The server refused to make the consumer, because its stream is gone or this user may not make it."""


class Pull:
    """A durable pull consumer."""

    def __init__(
        self,
        client: NatsClient,
        subscription: JetStreamContext.PullSubscription,
        stream: str,
        consumer: str,
    ) -> None:
        self._client, self._subscription = client, subscription
        self._stream, self._consumer = stream, consumer
        self._name = f"{stream}/{consumer}"
        self._was_logged = False
        self._undecided_since_s: float | None = None
        self.trouble: str | None = None
        """Why no message can come from this consumer; None while all is well."""

    async def fetch(self, batch: int = 1, *, timeout_s: float = FETCH_TIMEOUT_S) -> list[Msg]:
        """*batch* messages, or those that came within *timeout_s*; an empty list when none did or the server is away.

        It makes a consumer that is gone anew, as provisioning does: no other process would notice (ADR 0031).
        """
        messages = await self._fetch(batch, timeout_s)
        if self._client.lost_its_consumer(self._subscription):
            await self._make_anew()
        else:
            self._is_well()
        return messages

    def _is_well(self) -> None:
        self.trouble = self._undecided_since_s = None

    async def _make_anew(self) -> None:
        try:
            if await make_consumer(self._client, self._stream, self._consumer):
                log.warning("consumer_made_anew", consumer=self._name)
                consumers_made_anew.add(self._stream, self._consumer)
            self._is_well()
        except (ConsumerRefused, NotAllowed) as error:
            self._report(str(error), f"{self._name} is missing; run `warmlane provision`")
            await asyncio.sleep(MISSING_PAUSE_S)
        except TransportUnavailable as error:  # nothing is known of the consumer
            now_s = time.monotonic()
            self._undecided_since_s = self._undecided_since_s or now_s
            if now_s - self._undecided_since_s >= LEADERLESS_S:
                self._report(
                    str(error), f"nats-server has had no leader for {self._name} for {LEADERLESS_S:.0f} s; see its log"
                )
            await asyncio.sleep(MISSING_PAUSE_S)

    def _report(self, error: str, trouble: str) -> None:
        if self.trouble is None:  # logged once, however long it lasts
            log.warning("consumer_missing", consumer=self._name, error=error)
        self.trouble = trouble

    async def _fetch(self, batch: int, timeout_s: float) -> list[Msg]:
        try:
            messages = await self._subscription.fetch(batch, timeout=timeout_s)
        except TimeoutError:
            messages = []
        except (nats.errors.Error, OSError) as error:
            # a lost connection was logged already; a cluster that elects a leader refuses for seconds, and one line for
            # that is enough
            if not isinstance(error, nats.errors.OutboundBufferLimitError) and not self._was_logged:
                log.warning("fetch_failed", consumer=self._name, error=repr(error))
                self._was_logged = True
            await asyncio.sleep(0.1)
            return []
        self._was_logged = False
        return messages

    async def close(self) -> None:
        """Ends the subscription. A message that was on its way is delivered to another process after ack_wait."""
        with contextlib.suppress(nats.errors.Error, OSError, TimeoutError):
            await self._subscription.unsubscribe()


async def make_consumer(client: NatsClient, stream: str, name: str) -> bool:
    """Makes the consumer *name* of *stream* where it is gone, and returns whether it was.

    Raises ConsumerRefused where the stream is gone, or this user may not make it, and TransportUnavailable where the
    server did not answer, or cannot decide now.
    """
    spec = consumer_on(stream, name)
    config = consumer_config(spec).evolve(name=name)
    asked = {"stream_name": stream, "config": config.as_dict(), "action": "create"}
    subject = f"$JS.API.CONSUMER.CREATE.{stream}.{name}.{spec.filter_subject}"
    with translated(f"{stream}/{name}"):
        reply = await client.request(subject, json.dumps(asked).encode(), timeout=REPLY_TIMEOUT_S)
    error = loads(reply.data).get("error")
    if error is None:
        return True
    if error.get("err_code") == _ALREADY_THERE:
        return False
    refusal = TransportUnavailable if error.get("code", 0) >= 500 else ConsumerRefused
    raise refusal(f"{stream}/{name}: {error.get('description')}")


def consumer_config(spec: ConsumerSpec) -> ConsumerConfig:
    """*spec* as the server takes it."""
    return ConsumerConfig(
        durable_name=spec.name,
        description=spec.description,
        filter_subject=spec.filter_subject,
        ack_policy=AckPolicy.EXPLICIT,
        ack_wait=spec.ack_wait_s,
        max_deliver=-1,
        max_ack_pending=spec.max_ack_pending,
        deliver_policy=DeliverPolicy.ALL,
    )


async def ack_sync(message: Msg) -> None:
    """Acks *message* and waits until the server has the ack. Raises TransportUnavailable.

    An ack proves nothing about the task (design §10.2); the record does.
    """
    with translated(message.subject):
        await message.ack_sync(timeout=REPLY_TIMEOUT_S)
