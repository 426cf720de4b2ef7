"""nats-py's client, except that what nats-server denies is known at once and not after a time-out (design §10.8), that
a stored message costs a third of the CPU time (docs/benchmarks/notes.md), and that nothing is sent later than its
sender waits for it (design §10.5, ADR 0030)."""

import asyncio
import contextlib
import re
import socket
import struct
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

import msgspec
import nats.aio.client
import nats.errors
import nats.js.errors
from msgspec import Struct
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy, Header
from nats.js.client import JetStreamContext

from contracts.nesting import Decoder

# nats-py hands the server's words on in small letters.
_VIOLATION: Final = re.compile(r"permissions violation for (publish|subscription) to \"([^\"]*)\"", re.IGNORECASE)
_UNAUTHORISED: Final = re.compile(r"authorization violation|authentication (?:timeout|expired|revoked)", re.IGNORECASE)


class Denied(nats.errors.Error):
    """nats-server does not let this user ask on the subject; nothing was stored."""


class PermissionDenial(Struct, frozen=True):
    """What the server denied. *subject* is in small letters, as nats-py tells it."""

    operation: Literal["publish", "subscription"]
    subject: str

    @property
    def kind(self) -> str:
        """The same for all denials that one line of permissions would end: tasks and acks have a subject each."""
        tokens = self.subject.split(".")
        return f"{self.operation} {'.'.join(tokens[: 5 if tokens[0] == '$js' else 2])}"


def denial_in(error: Exception) -> PermissionDenial | None:
    """What *error*, as nats-py reports it, says that the server denied; None for every other error. Pure."""
    found = _VIOLATION.search(str(error))
    if found is None:
        return None
    return PermissionDenial("publish" if found[1].lower() == "publish" else "subscription", found[2].lower())


def is_unauthorised(error: Exception) -> bool:
    """Whether *error* says that the server does not know this user, or not with this password. Pure."""
    return isinstance(error, nats.errors.AuthorizationError) or _UNAUTHORISED.search(str(error)) is not None


class Ack(Struct, frozen=True):
    """JetStream's word that a message is stored, at *seq* of its stream. *duplicate*: it was there already."""

    seq: int
    duplicate: bool = False


class StoredMessage(Struct, frozen=True):
    """A message of a stream. *hdrs* are its header lines, *time* is the server's, as RFC 3339."""

    seq: int
    time: str
    data: bytes = b""
    hdrs: bytes = b""


class _JetStreamAnswer(Struct, frozen=True):
    """What JetStream answers: to a message an ack, to a question for one that message; or an error."""

    seq: int = 0
    duplicate: bool = False
    message: StoredMessage | None = None
    error: dict[str, Any] | None = None


class _Asked(Struct, eq=False):
    """A message whose answer, and the answer's header lines, are waited for."""

    subject: str
    answer: asyncio.Future[tuple[bytes, bytes]]

    def fail(self, error: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)


# nats-server's answer where no stream takes the subject.
_NO_RESPONDERS: Final = b"NATS/1.0 503"
# The same to a fetch, and what a fetch that waits is told: its consumer, or the whole stream, was deleted.
_CONSUMER_GONE: Final = (_NO_RESPONDERS, b"NATS/1.0 409 Consumer Deleted", b"NATS/1.0 404 Consumer Not Found")
_WHITE: Final = re.compile(r"\s")
# What the socket does not take at once stays here, where it can be dropped, but for so much.
WRITTEN_AT_ONCE_BYTES: Final = 65_536
# Closing discards what the kernel has not sent.
_DISCARDING: Final = struct.pack("ii", 1, 0)
_decode_answer: Final = Decoder(_JetStreamAnswer).decode


# What is asked is answered within this time, or taken for not answered.
REPLY_TIMEOUT_S: Final = 2.0
# How often a consumer that has nothing to tell says that it lives, and after how many looks, in each of which nothing
# was heard of it, it is taken for gone. Looks are counted, and not seconds: this process may have been stopped.
HEARTBEAT_S: Final = 0.5
LOOK_EVERY_S: Final = 0.2
SILENT_LOOKS: Final = 4
# A consumer that nobody listens to is removed by the server.
FORGOTTEN_S: Final = 30.0
_STATUS_CONTROL: Final = "100"


class Following:
    """A consumer that the server forgets with the connection: it brings every message once, in their order, until it
    has ended (`NatsClient.follow`). *on_end* tells of that; whoever wants more makes another."""

    def __init__(self, client: "NatsClient", on_message: Callable[[Msg], None], on_end: Callable[[], None]) -> None:
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
        """It tells nothing any more."""
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
        # what came before was handed on already, so that the server may send more
        reply = flow_reply or headers.get(Header.CONSUMER_STALLED.value)
        if reply:
            with contextlib.suppress(nats.errors.Error, OSError):
                await self._client.publish(reply)
        elif headers.get(Header.LAST_CONSUMER.value, str(self._brought)) != str(self._brought):
            self._end()  # one was lost on its way


class NatsClient(nats.aio.client.Client):
    """Tell it of denials (`deny`), which nats-py reports only to the error callback."""

    def __init__(self) -> None:
        super().__init__()
        # Answers come to one subscription, on subjects that end in the number of what was asked.
        self._asked: dict[bytes, _Asked] = {}
        self._count = 0
        self._answers_sid = 0
        self._answers_to = ""
        self._gone: set[int] = set()

    @property
    def speaks_tls(self) -> bool:
        """Whether the server that was reached last wants TLS, which is then spoken."""
        return bool(self._server_info.get("tls_required"))

    def lost_its_consumer(self, subscription: JetStreamContext.PullSubscription) -> bool:
        """Whether the server has said since the last call that its consumer is gone, which nats-py keeps to itself."""
        sid = subscription._sub._id
        was_lost = sid in self._gone
        self._gone.discard(sid)
        return was_lost

    def deny(self, denial: PermissionDenial) -> None:
        """Ends the requests that wait on the denied subject."""
        for asked in self._asked.values():
            if asked.subject.lower() == denial.subject:
                asked.fail(Denied(f"the server denies this user to publish to {asked.subject}"))

    async def connect(self, *given: Any, **options: Any) -> None:
        """As nats-py's."""
        await super().connect(*given, **options)
        self._answers_to = self.new_inbox()
        self._answers_sid = (await self.subscribe(f"{self._answers_to}.*"))._id

    async def store(self, subject: str, payload: bytes, headers: Mapping[str, str], *, timeout_s: float) -> Ack:
        """Publishes *payload* to the stream of *subject*, and returns once it is stored, as `JetStreamContext.publish`.

        Raises NoStreamResponseError, APIError, and what `request` does.
        """
        try:
            data, _ = await self._ask(subject, payload, headers, timeout_s)
        except nats.errors.NoRespondersError:
            raise nats.js.errors.NoStreamResponseError from None
        told = _decoded(data)
        return Ack(told.seq, told.duplicate)

    async def last_on(self, stream: str, subject: str, *, timeout_s: float) -> StoredMessage | None:
        """The newest message on *subject*, as the stream's leader has it; as `JetStreamContext.get_last_msg`.

        Raises NotFoundError without the message or the stream, APIError, and what `request` does.
        """
        question = msgspec.json.encode({"last_by_subj": subject})
        data, _ = await self._ask(f"$JS.API.STREAM.MSG.GET.{stream}", question, {}, timeout_s)
        return _decoded(data).message

    async def at(self, stream: str, seq: int, *, timeout_s: float) -> StoredMessage | None:
        """The message of *stream* at *seq*. Raises NotFoundError without it, APIError, and what `request` does."""
        question = msgspec.json.encode({"seq": seq})
        data, _ = await self._ask(f"$JS.API.STREAM.MSG.GET.{stream}", question, {}, timeout_s)
        return _decoded(data).message

    async def follow(
        self,
        stream: str,
        subject: str,
        start: int | None,
        *,
        history: bool,
        on_message: Callable[[Msg], None],
        on_end: Callable[[], None],
        timeout_s: float,
    ) -> Following:
        """Brings the messages of *stream* on *subject*, each once and in their order, from the sequence *start* on.

        Without *start* it begins with all that the stream holds, if *history*, and otherwise with the last of each
        subject. *on_end* is called once, when one was missed, or nothing was heard for a while: a deleted consumer says
        nothing. nats-py's ordered consumer goes on by itself, at a sequence that may mean another message by then, and
        not at all once its own supervision has failed (ADR 0030). Raises what `JetStreamContext.add_consumer` does.
        """
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
        following = Following(self, on_message, on_end)
        await following.begin(stream, config, timeout_s=timeout_s)
        return following

    async def request(
        self,
        subject: str,
        payload: bytes = b"",
        timeout: float = 0.5,
        old_style: bool = False,
        headers: dict[str, Any] | None = None,
    ) -> Msg:
        """As nats-py's. Raises Denied as soon as the server denies it."""
        data, lines = await self._ask(subject, payload, headers or {}, timeout)
        return Msg(self, subject, data=data, headers=await self._process_headers(lines))

    async def _ask(
        self, subject: str, payload: bytes, headers: Mapping[str, str], timeout_s: float
    ) -> tuple[bytes, bytes]:
        """The answer to *payload*, and its header lines.

        As nats-py does it, but without a random inbox, a task, a queue and two futures for each message.
        Raises Denied, NoRespondersError, TimeoutError when there is no answer within *timeout_s*,
        OutboundBufferLimitError while there is no connection, and other errors of nats-py.
        """
        loop = asyncio.get_running_loop()
        self._count += 1
        number = b"%x" % self._count
        command = self._send(subject, f"{self._answers_to}.{self._count:x}", payload, headers)
        self._asked[number] = asked = _Asked(subject, loop.create_future())
        expiry = loop.call_later(timeout_s, _expire, asked)
        try:
            return await asked.answer
        except BaseException:
            self._drop(command)
            raise
        finally:
            expiry.cancel()
            del self._asked[number]

    def _drop(self, command: bytes) -> None:
        """Nobody waits for *command* any more: it is not sent, if it was not yet."""
        with contextlib.suppress(ValueError):
            self._pending.remove(command)
            self._pending_data_size -= len(command)

    def _send(self, subject: str, reply: str, payload: bytes, headers: Mapping[str, str]) -> bytes:
        if not subject or _WHITE.search(subject):
            raise nats.errors.BadSubjectError
        if self.is_closed:
            raise nats.errors.ConnectionClosedError
        if not self.is_connected or self._flush_queue is None:
            raise nats.errors.OutboundBufferLimitError  # it is never buffered (design §10.5)
        if len(payload) > self._max_payload:
            raise nats.errors.MaxPayloadError
        if headers:
            lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
            if lines.count("\n") != len(headers) or lines.count("\r") != len(headers):
                raise nats.errors.BadHeaderError("a header with a line end")
            head = f"NATS/1.0\r\n{lines}\r\n".encode()
            control = f"HPUB {subject} {reply} {len(head)} {len(head) + len(payload)}\r\n".encode()
            command = b"".join((control, head, payload, b"\r\n"))
        else:
            command = b"".join((f"PUB {subject} {reply} {len(payload)}\r\n".encode(), payload, b"\r\n"))
        self._pending.append(command)
        self._pending_data_size += len(command)
        if self._flush_queue.empty():
            self._flush_queue.put_nowait(asyncio.get_running_loop().create_future())
        return command

    async def _send_command(self, cmd: bytes, priority: bool = False) -> None:
        # away, nothing is kept for later: nats-py makes the subscriptions anew by itself
        if not self.is_reconnecting:
            await super()._send_command(cmd, priority)

    async def _flusher(self) -> None:
        """As nats-py's, but in pieces: a server that stalls leaves the rest in `_pending`, and not in a buffer of which
        nothing can be taken back."""
        assert self._flush_queue is not None
        assert self._transport is not None
        while self.is_connected and not self.is_connecting:
            flushed: asyncio.Future[None] = await self._flush_queue.get()
            try:
                while self._pending:
                    self._transport.writelines(self._piece())
                    await self._transport.drain()  # type: ignore[no-untyped-call]
            except OSError as error:
                await self._error_cb(error)
                await self._process_op_err(error)
                break
            except (RuntimeError, AttributeError):  # the loop, or the connection, is at its end
                break
            finally:
                if not flushed.done():
                    flushed.set_result(None)

    def _piece(self) -> list[bytes]:
        count, size = 0, 0
        while count < len(self._pending) and size < WRITTEN_AT_ONCE_BYTES:
            size += len(self._pending[count])
            count += 1
        piece, self._pending = self._pending[:count], self._pending[count:]
        self._pending_data_size -= size
        return piece

    async def _attempt_reconnect(self) -> None:
        self._pending.clear()
        self._pending_data_size = 0
        self._abort()
        await super()._attempt_reconnect()

    def _abort(self) -> None:
        """Takes back what can be taken back of what was written: nats-py would wait until it is sent."""
        # whatever it raises about a connection that is over, the next one must be made
        with contextlib.suppress(Exception):
            writer: Any = getattr(self._transport, "_io_writer", None)
            transport = writer.transport
            link = transport.get_extra_info("socket")  # None where uvloop has closed it
            if link is not None:
                link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _DISCARDING)
            transport.abort()

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> None:
        if sid != self._answers_sid:
            if headers and headers.startswith(_CONSUMER_GONE):
                self._gone.add(sid)
            await super()._process_msg(sid, subject, reply, data, headers)
            return
        asked = self._asked.get(subject[len(self._answers_to) + 1 :])
        if asked is None or asked.answer.done():
            pass  # too late
        elif headers and headers.startswith(_NO_RESPONDERS):
            asked.fail(nats.errors.NoRespondersError())
        else:
            asked.answer.set_result((data, headers))


def _decoded(data: bytes) -> _JetStreamAnswer:
    told = _decode_answer(data)
    if told.error is not None:
        raise nats.js.errors.APIError.from_error(told.error)
    return told


def _expire(asked: _Asked) -> None:
    asked.fail(nats.errors.TimeoutError())
