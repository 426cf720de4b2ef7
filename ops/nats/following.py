"""A consumer that delivers every message of a stream once and in order, until it misses one or falls silent."""

import asyncio
import contextlib
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final, Protocol

import nats.errors
import structlog
from msgspec import Struct
from nats.aio.subscription import Subscription
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy, Header
from nats.js.client import JetStreamContext

# The server sends a heartbeat this often when it has nothing else to send. After SILENT_LOOKS looks in a row at which
# nothing had come, the consumer counts as gone. It counts looks, not seconds, because this process may have been
# suspended.
HEARTBEAT_S: Final = 0.5
LOOK_EVERY_S: Final = 0.2
SILENT_LOOKS: Final = 4
# After this time the server removes a consumer that has no subscriber.
FORGOTTEN_S: Final = 30.0
# How the header block of a heartbeat or of a flow-control request begins.
_CONTROL: Final = b"NATS/1.0 100"
# How many tokens the reply subject of a consumer's message has, without and with domain and account.
_SHORT, _LONG = 9, 11

log = structlog.get_logger("nats")


def following_config(subject: str, start: int | None, *, history: bool) -> ConsumerConfig:
    """The settings of a consumer of *subject*. It begins at the sequence *start*; without one it begins with all that
    the stream holds, if *history*, and otherwise with the last message of each subject. Pure."""
    config = ConsumerConfig(
        filter_subject=subject,
        deliver_policy=DeliverPolicy.ALL if history else DeliverPolicy.LAST_PER_SUBJECT,
        ack_policy=AckPolicy.NONE,
        max_deliver=1,
        ack_wait=22 * 3600,
        flow_control=True,
        idle_heartbeat=HEARTBEAT_S,
        inactive_threshold=FORGOTTEN_S,
        num_replicas=1,
        mem_storage=True,
    )
    if start is not None:
        config.deliver_policy, config.opt_start_seq = DeliverPolicy.BY_START_SEQUENCE, start
    return config


class Followed(Struct, frozen=True, gc=False):
    """A message of a followed stream, stored at *seq* and *time* by the server's clock. *pending* more are there
    already. *is_marker*: it says that the key is deleted or has expired."""

    subject: str
    data: bytes
    seq: int
    time: datetime
    pending: int
    is_marker: bool


OnRaw = Callable[[bytes, bytes, bytes, bytes], None]
"""Takes subject, reply subject, payload and header block of a message, as they came."""


class FollowingClient(Protocol):
    """What a following needs of the client."""

    def new_inbox(self) -> str: ...

    async def subscribe(self, subject: str) -> Subscription: ...

    def jetstream(self, *, timeout: float) -> JetStreamContext: ...

    def hand_raw(self, subscription: Subscription, on_raw: OnRaw | None) -> None:
        """Passes whatever comes on *subscription* to *on_raw*, as soon as the socket is read; None ends that."""

    def publish_empty(self, subject: str) -> None:
        """Publishes an empty message. Raises nats.errors.Error without a connection."""


class Following:
    """An ephemeral consumer. It calls *on_message* with every message once and in order until it ends, then *on_end*.
    To get more messages, make another one (`NatsClient.follow`)."""

    def __init__(
        self, client: FollowingClient, on_message: Callable[[Followed], None], on_end: Callable[[], None]
    ) -> None:
        self._client, self._on_message, self._on_end = client, on_message, on_end
        self._subscription: Subscription | None = None
        self._unread: list[tuple[bytes, bytes, bytes, bytes]] = []
        self._brought = 0
        self._has_ended = False
        self._silent_looks = 0
        self._looking: asyncio.TimerHandle | None = None
        self.heard_s = time.monotonic()
        self.pending = 0

    async def begin(self, stream: str, config: ConsumerConfig, *, timeout_s: float) -> None:
        """Makes the consumer. Raises what `JetStreamContext.add_consumer` does."""
        config.deliver_subject = self._client.new_inbox()
        self._subscription = await self._client.subscribe(config.deliver_subject)
        self._client.hand_raw(self._subscription, self._receive)
        try:
            made = await self._client.jetstream(timeout=timeout_s).add_consumer(stream, config)
        except BaseException:
            await self.close()
            raise
        # what the server delivered before it made this answer is on its way as well
        self.pending = (made.num_pending or 0) + (made.delivered.consumer_seq if made.delivered is not None else 0)
        if not self._has_ended:
            self._look()

    async def close(self) -> None:
        """Ends the consumer: it delivers nothing more, and does not call *on_end*."""
        self._has_ended = True
        if self._looking is not None:
            self._looking.cancel()
        if self._subscription is not None:
            subscription, self._subscription = self._subscription, None
            self._client.hand_raw(subscription, None)
            with contextlib.suppress(nats.errors.Error, OSError):
                await subscription.unsubscribe()

    def _end(self) -> None:
        if not self._has_ended:
            self._has_ended = True
            self._on_end()

    def _look(self) -> None:
        self._silent_looks += 1
        if self._silent_looks > SILENT_LOOKS:
            self._end()
        else:
            self._looking = asyncio.get_running_loop().call_later(LOOK_EVERY_S, self._look)

    def _receive(self, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> None:
        # Not handed on at once. Most often this process wrote the message itself, and the server's ack came just before
        # it. The task that waits for the ack runs first; the message is then no news and costs nothing.
        self._unread.append((subject, reply, data, headers))
        if len(self._unread) == 1:
            asyncio.get_running_loop().call_soon(self._hand_on)

    def _hand_on(self) -> None:
        unread, self._unread = self._unread, []
        self.heard_s, self._silent_looks = time.monotonic(), 0
        for message in unread:
            if self._has_ended:
                return
            try:
                self._take(*message)
            except Exception as error:  # a reader's, or JetStream did not send the message; the others still come
                log.error("message_not_taken", error=type(error).__name__)

    def _take(self, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> None:
        if not data and headers.startswith(_CONTROL):
            self._control(reply, headers)
            return
        sequence, message = parsed(subject, reply, data, headers)
        if sequence != self._brought + 1:
            self._end()
            return
        self._brought = sequence
        self._on_message(message)

    def _control(self, flow_reply: bytes, headers: bytes) -> None:
        # what came before was handed on already: the server may send more
        reply = flow_reply.decode() or value_of(headers, Header.CONSUMER_STALLED.value)
        if reply:
            with contextlib.suppress(nats.errors.Error, OSError):
                self._client.publish_empty(reply)
        elif value_of(headers, Header.LAST_CONSUMER.value) not in (None, str(self._brought)):
            self._end()  # a message was lost on its way


def parsed(subject: bytes, reply: bytes, data: bytes, headers: bytes) -> tuple[int, Followed]:
    """The number of a message among those of its consumer, from 1, and the message. Pure.

    JetStream writes the number into the reply subject: `$JS.ACK.` and seven fields, or nine and more where it names
    domain and account too. The time is rounded as nats-py rounds it (`parse_time`). Raises ValueError for any other
    message.
    """
    tokens = reply.split(b".")
    if tokens[:2] != [b"$JS", b"ACK"] or (len(tokens) != _SHORT and len(tokens) < _LONG):
        raise ValueError("not a message of a consumer")
    at = 5 if len(tokens) == _SHORT else 7
    seq, sequence, at_ns, pending = map(int, tokens[at : at + 4])
    moment = datetime.fromtimestamp(at_ns / 1_000_000_000.0, UTC)
    is_marker = b"\r\nKV-Operation:" in headers or b"\r\nNats-Marker-Reason:" in headers
    return sequence, Followed(subject.decode(), data, seq, moment, pending, is_marker)


def value_of(headers: bytes, name: str) -> str | None:
    """The value of the first line *name* of a block of *headers*; None without one. Pure."""
    for line in headers.split(b"\r\n")[1:]:
        found, _, value = line.partition(b":")
        if found.decode("latin-1") == name:
            return value.strip().decode("latin-1")
    return None
