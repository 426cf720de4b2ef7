"""The client that makes the calls of a simulated process.

`SimulatedClient` stands where nats-py's client stands, so that the product's own `NatsLink` runs on top of it. Every
call goes through the network of `tests.model.network`, which decides when it takes effect and whether it is answered.
"""

import contextlib
import json
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import nats.errors
from nats.js.api import ConsumerConfig, RawStreamMsg, StreamConfig

from ops.nats.client import Ack, StoredMessage
from tests.model.jetstream import NO_MESSAGE, Refused, Stored, matcher, moment
from tests.model.model_loop import HOST
from tests.model.network import Effect, context_of, current
from tests.model.simulated_subscriptions import PullSubscription, SimulatedFollowing, Subscription


class SimulatedClient:
    """nats-py's `Client`, and its JetStream context, for the simulated server."""

    def __init__(self) -> None:
        self.network = current()
        self.host = HOST.get()
        self.is_connected = False
        self.connected_server_version = SimpleNamespace(major=2, minor=15)
        self.subscriptions: list[tuple[Callable[[str], bool], Callable[[Any], Awaitable[None]]]] = []
        self.followings: list[SimulatedFollowing] = []
        self._on_lost: Callable[[], Awaitable[None]]
        self._on_back: Callable[[], Awaitable[None]]

    async def connect(self, _: Any, **options: Any) -> None:
        self._on_lost, self._on_back = options["disconnected_cb"], options["reconnected_cb"]
        self.is_connected = True
        self.network.clients.append(self)

    async def close(self) -> None:
        self.leave()

    def leave(self) -> None:
        """The connection closes for good."""
        self.is_connected = False
        if self in self.network.clients:
            self.network.clients.remove(self)
        for following in list(self.followings):
            following.end()

    def cut(self) -> None:
        """The connection breaks: nobody learns what becomes of the calls that are under way."""
        if not self.is_connected:
            return
        self.is_connected = False
        for operation in list(self.network.under_way):
            if operation.host is self.host and not operation.lane.startswith("store "):
                self.network.give_up(operation)
        for following in self.followings:
            following.detach()
        self._start(self._on_lost())

    def mend(self) -> None:
        """The connection is back."""
        if not self.is_connected:
            self.is_connected = True
            self._start(self._on_back())

    def _start(self, coroutine: Any) -> None:
        with self.network.loop.running():
            self.network.loop.create_task(coroutine, context=context_of(self.host))
            self.network.loop.run_ready()

    def require_connection(self) -> None:
        """What `pending_size=0` means: nothing is kept for later."""
        if not self.is_connected:
            raise nats.errors.OutboundBufferLimitError

    async def call(self, what: str, effect: Effect, *, lane: str) -> Any:
        self.require_connection()
        return await self.network.call(what, effect, lane=lane)

    def deliver(
        self,
        what: str,
        callback: Callable[[Any], Awaitable[None]],
        message: Any,
        lane: str | None,
        still: Callable[[], bool] = lambda: True,
    ) -> None:
        """Brings *message* to *callback*; in order within *lane*, and otherwise perhaps never."""

        def receive() -> None:
            if still():
                self.network.loop.create_task(callback(message), context=context_of(self.host))

        self.network.push(what, self.host, receive, lane=lane or f"hint {id(message)}", loses_quietly=lane is None)

    # ── core ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def jetstream(self, **_: Any) -> "SimulatedClient":
        return self

    async def request(self, subject: str, payload: bytes = b"", timeout: float = 0.5, **_: Any) -> Any:
        name = subject.rpartition("STREAM.INFO.")[2]
        if name != subject:
            return await self.call(f"info {name}", lambda: self._info(name), lane="info")
        # a request to other processes: a responder answers at once, or the request times out
        return await self.call(f"ask {subject}", lambda: self._ask(subject), lane=f"ask {subject}")

    def _info(self, name: str) -> Any:
        stream = self.network.server.stream(name)
        first = next(iter(stream.messages.values()), None)
        state = {
            "messages": len(stream.messages),
            "first_ts": moment(first.stored_s).isoformat().replace("+00:00", "Z") if first else "",
            "last_seq": stream.last_seq,
        }
        config = {"max_msgs": stream.config.max_msgs or -1, "max_age": int((stream.config.max_age or 0) * 1e9)}
        now = moment(self.network.now_s).isoformat().replace("+00:00", "Z")
        info = {"state": state, "config": config, "ts": now, "created": stream.created}
        return SimpleNamespace(data=json.dumps(info).encode())

    def _ask(self, subject: str) -> Any:
        said: list[bytes] = []

        async def respond(answer: bytes) -> None:
            said.append(answer)

        question = SimpleNamespace(subject=subject, data=b"", respond=respond)
        for client in self.network.clients:
            if client.host is not None and (client.host.stopped or not client.host.alive or not client.is_connected):
                continue
            for matches, callback in client.subscriptions:
                if matches(subject):
                    with contextlib.suppress(StopIteration):
                        callback(question).__await__().send(None)  # it waits for nothing
        if not said:
            raise nats.errors.NoRespondersError
        return SimpleNamespace(data=said[0])

    async def publish(self, subject: str) -> None:
        self.require_connection()
        self.network.send(f"publish {subject}", lambda: self.network.core_publish(subject), lane=f"publish {subject}")

    async def subscribe(self, subject: str, **options: Any) -> Any:
        self.require_connection()
        entry = (matcher([subject]), options["cb"])
        self.subscriptions.append(entry)
        return Subscription(lambda: self.subscriptions.remove(entry))

    # ── JetStream ────────────────────────────────────────────────────────────────────────────────────────────────

    async def store(self, subject: str, payload: bytes, headers: dict[str, str], *, timeout_s: float) -> Ack:
        def keep() -> Ack:
            self.network.core_publish(subject, payload)
            _, seq, is_known = self.network.server.publish(subject, payload, headers, self.network.now_s)
            return Ack(seq, is_known)

        ack: Ack = await self.call(f"publish {subject}", keep, lane=f"publish {subject}")
        return ack

    async def get_msg(self, stream: str, seq: int) -> RawStreamMsg:
        def read() -> RawStreamMsg:
            return _raw(self.network.server.stream(stream).messages.get(seq))

        message: RawStreamMsg = await self.call(f"read {stream} {seq}", read, lane=f"read {stream} {seq}")
        return message

    async def at(self, stream: str, seq: int, *, timeout_s: float) -> StoredMessage:
        return _stored(await self.get_msg(stream, seq))

    async def get_last_msg(self, stream: str, subject: str) -> RawStreamMsg:
        def read() -> RawStreamMsg:
            return _raw(self.network.server.stream(stream).last_on(subject))

        message: RawStreamMsg = await self.call(f"read {subject}", read, lane=f"read {subject}")
        return message

    async def last_on(self, stream: str, subject: str, *, timeout_s: float) -> StoredMessage:
        return _stored(await self.get_last_msg(stream, subject))

    async def delete_msg(self, stream: str, seq: int) -> bool:
        def delete() -> bool:
            if seq not in self.network.server.stream(stream).messages:
                raise Refused(400, 10043, "message not found")
            self.network.server.stream(stream).remove(seq)
            return True

        return bool(await self.call(f"delete {stream} {seq}", delete, lane=f"delete {stream}"))

    async def purge_stream(self, stream: str, subject: str | None = None) -> bool:
        def purge() -> bool:
            self.network.server.stream(stream).purge(subject)
            return True

        return bool(await self.call(f"purge {stream} {subject}", purge, lane=f"delete {stream}"))

    def lost_its_consumer(self, _: PullSubscription) -> bool:
        return False

    async def pull_subscribe_bind(self, consumer: str, stream: str) -> PullSubscription:
        self.require_connection()
        return PullSubscription(self, self.network.server.consumer(stream, consumer), f"{stream}/{consumer}")

    async def follow(
        self,
        stream: str,
        subject: str,
        start: int | None,
        *,
        history: bool,
        on_message: Callable[[Any], None],
        on_end: Callable[[], None],
        timeout_s: float,
    ) -> SimulatedFollowing:
        made: list[SimulatedFollowing] = []
        is_awaited = [True]

        def begin() -> SimulatedFollowing:
            followed = self.network.server.stream(stream)
            if start is not None:
                present = [stored for stored in followed.messages.values() if stored.seq >= start]
            else:
                present = list(followed.messages.values()) if history else followed.last_of_each()
            following = SimulatedFollowing(self, followed, on_message, on_end)
            self.followings.append(following)
            made.append(following)
            if is_awaited[0]:
                following.begin(present)
            else:
                following.end()  # its caller has given up and closed the subscription
            return following

        try:
            await self.call(f"follow {stream}", begin, lane=f"follow {stream}")
        except BaseException:
            is_awaited[0] = False
            for following in made:
                following.end()
            raise
        return made[0]

    # ── provisioning ─────────────────────────────────────────────────────────────────────────────────────────────

    async def stream_info(self, name: str, **_: Any) -> Any:
        config = await self.call(f"info {name}", lambda: self.network.server.stream(name).config, lane="info")
        return SimpleNamespace(config=config)

    async def consumer_info(self, stream: str, name: str, **_: Any) -> Any:
        found = await self.call(f"info {name}", lambda: self.network.server.consumer(stream, name).config, lane="info")
        return SimpleNamespace(config=found)

    async def add_stream(self, config: StreamConfig) -> None:
        await self.call(f"add {config.name}", lambda: self.network.server.add_stream(config), lane="add")

    async def add_consumer(self, stream: str, config: ConsumerConfig) -> None:
        await self.call(f"add {stream}", lambda: self.network.server.add_consumer(stream, config), lane="add")


def _stored(message: RawStreamMsg) -> StoredMessage:
    lines = "".join(f"{name}: {value}\r\n" for name, value in (message.headers or {}).items())
    at = message.time or moment(0)
    return StoredMessage(
        seq=message.seq or 0,
        time=at.isoformat().replace("+00:00", "Z"),
        data=message.data or b"",
        hdrs=f"NATS/1.0\r\n{lines}\r\n".encode() if lines else b"",
    )


def _raw(stored: Stored | None) -> RawStreamMsg:
    if stored is None:
        raise Refused(404, NO_MESSAGE, "no message found")
    return RawStreamMsg(
        subject=stored.subject,
        seq=stored.seq,
        data=stored.data,
        headers=stored.headers or None,
        time=moment(stored.stored_s),
    )
