"""A consumer that brings every message of a stream once and in order, until it misses one or falls silent."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from typing import Final

import nats.aio.client
import nats.errors
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy, Header

# The server sends a heartbeat this often when it has nothing else to send. After SILENT_LOOKS looks in a row at which
# nothing had come, the consumer is taken for gone. Looks are counted, and not seconds: this process may have been
# stopped.
HEARTBEAT_S: Final = 0.5
LOOK_EVERY_S: Final = 0.2
SILENT_LOOKS: Final = 4
# After this time the server removes a consumer that nobody listens to.
FORGOTTEN_S: Final = 30.0
_STATUS_CONTROL: Final = "100"


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


class Following:
    """A consumer that the server forgets with the connection. It calls *on_message* with every message once and in
    order, until it has ended; then it calls *on_end*, and whoever wants more makes another (`NatsClient.follow`)."""

    def __init__(
        self, client: nats.aio.client.Client, on_message: Callable[[Msg], None], on_end: Callable[[], None]
    ) -> None:
        self._client, self._on_message, self._on_end = client, on_message, on_end
        self._subscription: Subscription | None = None
        self._brought = 0
        self._has_ended = False
        self._silent_looks = 0
        self._looking: asyncio.TimerHandle | None = None
        self.heard_s = time.monotonic()
        self.pending = 0

    async def begin(self, stream: str, config: ConsumerConfig, *, timeout_s: float) -> None:
        """Makes the consumer. Raises what `JetStreamContext.add_consumer` does."""
        config.deliver_subject = self._client.new_inbox()
        self._subscription = await self._client.subscribe(config.deliver_subject, cb=self._receive)
        try:
            made = await self._client.jetstream(timeout=timeout_s).add_consumer(stream, config)
        except BaseException:
            await self.close()
            raise
        # what was delivered before the answer was made is on its way as well
        self.pending = (made.num_pending or 0) + (made.delivered.consumer_seq if made.delivered is not None else 0)
        if not self._has_ended:
            self._look()

    async def close(self) -> None:
        """It brings nothing any more, and does not call *on_end*."""
        self._has_ended = True
        if self._looking is not None:
            self._looking.cancel()
        if self._subscription is not None:
            subscription, self._subscription = self._subscription, None
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

    async def _receive(self, message: Msg) -> None:
        if self._has_ended:
            return
        self.heard_s, self._silent_looks = time.monotonic(), 0
        headers = message.headers or {}
        if headers.get(Header.STATUS.value) == _STATUS_CONTROL and not message.data:
            await self._control(message.reply, headers)
            return
        sequence = message.metadata.sequence.consumer
        if sequence != self._brought + 1:
            self._end()
            return
        self._brought = sequence
        self._on_message(message)

    async def _control(self, flow_reply: str, headers: Mapping[str, str]) -> None:
        # what came before was handed on already: the server may send more
        reply = flow_reply or headers.get(Header.CONSUMER_STALLED.value)
        if reply:
            with contextlib.suppress(nats.errors.Error, OSError):
                await self._client.publish(reply)
        elif headers.get(Header.LAST_CONSUMER.value, str(self._brought)) != str(self._brought):
            self._end()  # one was lost on its way
