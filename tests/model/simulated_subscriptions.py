"""What a simulated client hears from the simulated server: messages, watches, pulls."""

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from ops.nats.following import Followed
from ops.nats.pull import FETCH_TIMEOUT_S
from tests.model.jetstream import Consumer, Stored, Stream, moment
from tests.model.network import context_of

if TYPE_CHECKING:
    from tests.model.simulated_client import SimulatedClient


class Delivered:
    """A message as nats-py hands it over."""

    def __init__(self, client: "SimulatedClient", stored: Stored, consumer: Consumer | None, pending: int) -> None:
        self._client, self._stored, self._consumer = client, stored, consumer
        self.subject, self.data, self.headers = stored.subject, stored.data, stored.headers or None
        self._pending = pending

    @property
    def metadata(self) -> Any:
        return SimpleNamespace(
            sequence=SimpleNamespace(stream=self._stored.seq),
            timestamp=moment(self._stored.stored_s),
            num_pending=self._pending,
            num_delivered=1 if self._consumer is None else self._consumer.delivered(self._stored.seq),
        )

    async def ack(self) -> None:
        self._client.require_connection()
        self._client.network.send(f"ack {self.subject}", self._ack, lane=f"ack {self.subject}")

    async def term(self) -> None:
        await self.ack()

    async def in_progress(self) -> None:
        self._client.require_connection()
        self._client.network.send(f"keep {self.subject}", self._keep, lane=f"ack {self.subject}")

    async def nak(self) -> None:
        self._client.require_connection()
        self._client.network.send(f"nak {self.subject}", self._nak, lane=f"ack {self.subject}")

    async def ack_sync(self, timeout: float = 1.0) -> None:
        await self._client.call(f"ack {self.subject}", self._ack, lane=f"ack {self.subject}")

    def _ack(self) -> None:
        assert self._consumer is not None
        self._consumer.ack(self._stored.seq)

    def _keep(self) -> None:
        assert self._consumer is not None
        self._consumer.keep(self._stored.seq, self._client.network.now_s)

    def _nak(self) -> None:
        assert self._consumer is not None
        self._consumer.nak(self._stored.seq, self._client.network.now_s)


class Subscription:
    """A subscription, with the part of nats-py's that the product uses."""

    def __init__(self, close: Callable[[], None]) -> None:
        self._close = close

    async def unsubscribe(self, limit: int = 0) -> None:
        self._close()


class SimulatedFollowing:
    """What `NatsClient.follow` makes. Its messages arrive in order, at some time. The process notices its end at some
    time.

    The process notices a silence at once, and not after the missed heartbeats: how long those take is no part of the
    protocol.
    """

    def __init__(self, client: "SimulatedClient", stream: Stream, on_message: Any, on_end: Callable[[], None]) -> None:
        self._client, self._stream, self._on_message, self._on_end = client, stream, on_message, on_end
        self.is_open = True
        self.pending = 0
        stream.on_stored.append(self.bring)

    def begin(self, present: list[Stored]) -> None:
        self.pending = len(present)
        for position, stored in enumerate(present):
            self.bring(stored, len(present) - position - 1)

    def bring(self, stored: Stored, pending: int = 0) -> None:
        lane = f"watch {self._stream.name}"
        is_marker = not {"KV-Operation", "Nats-Marker-Reason"}.isdisjoint(stored.headers or {})
        at = moment(stored.stored_s)
        message = Followed(stored.subject, stored.data, stored.seq, at, pending, is_marker)

        async def receive(_: Any) -> None:
            if self.is_open:
                self._on_message(message)

        self._client.deliver(lane, receive, message, lane)

    def follows(self, stream: str) -> bool:
        return self._stream.name == stream

    @property
    def heard_s(self) -> float:
        return self._client.network.now_s

    async def close(self) -> None:
        self.end()

    def end(self) -> None:
        """It delivers nothing any more, not even what is on its way."""
        if self.is_open:
            self.is_open = False
            self._client.followings.remove(self)
            self.detach()

    def detach(self) -> None:
        """The server sends it nothing more. It still hands on what the process has already received."""
        if self.bring in self._stream.on_stored:
            self._stream.on_stored.remove(self.bring)

    def is_deleted(self) -> None:
        """The server has deleted its consumer: it ends at once, and notifies the watch."""
        if self.is_open:
            self.end()
            with self._client.network.loop.running():
                self._client.network.loop.call_soon(self._on_end, context=context_of(self._client.host))


class PullSubscription:
    """A bound pull consumer. A fetch of the usual length waits until messages come, as the product's loop of fetches
    does."""

    def __init__(self, client: "SimulatedClient", consumer: Consumer, name: str) -> None:
        self._client, self._consumer, self._name = client, consumer, name

    async def fetch(self, batch: int = 1, timeout: float | None = 5, heartbeat: float | None = None) -> list[Delivered]:
        network = self._client.network

        def take() -> list[Delivered]:
            found = self._consumer.fetch(batch, network.now_s)
            pending = self._consumer.pending
            return [Delivered(self._client, stored, self._consumer, pending) for stored in found]

        def can_happen() -> bool:
            return self._client.is_connected and self._asks() and self._consumer.has_messages(network.now_s)

        is_short = timeout is not None and timeout < FETCH_TIMEOUT_S
        async with asyncio.timeout(timeout if is_short else None):
            messages: list[Delivered] = await network.call(
                f"fetch {self._name}", take, lane=f"fetch {self._name} {id(self)}", can_happen=can_happen
            )
        return messages

    def _asks(self) -> bool:
        # the last fetch of a stopped process expires after a while
        host = self._client.host
        return host is None or not host.stopped or self._client.network.now_s <= host.stopped_s + FETCH_TIMEOUT_S

    async def unsubscribe(self, limit: int = 0) -> None:
        pass
