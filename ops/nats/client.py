"""nats-py's client, with two differences. It reports a denial by nats-server at once, not after a time-out (design
§10.8), and it stores a message with a third of the CPU time (ADR 0020)."""

import asyncio
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec
import nats.errors
import nats.js.errors
from msgspec import Struct
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js.client import JetStreamContext

from contracts.nesting import Decoder
from ops.nats.denials import Denied, PermissionDenial
from ops.nats.following import Followed, Following, OnRaw, following_config
from ops.nats.unbuffered import UnbufferedClient


class Ack(Struct, frozen=True):
    """JetStream's answer that a message is stored, at *seq* of its stream. *duplicate*: the stream had it."""

    seq: int
    duplicate: bool = False


class StoredMessage(Struct, frozen=True):
    """A message of a stream. *hdrs* are its header lines, *time* is the server's, as RFC 3339."""

    seq: int
    time: str
    data: bytes = b""
    hdrs: bytes = b""


class _JetStreamAnswer(Struct, frozen=True):
    """JetStream's answer: the ack of a message, a message that was asked for, or an error."""

    seq: int = 0
    duplicate: bool = False
    message: StoredMessage | None = None
    error: dict[str, Any] | None = None


class _Asked(Struct, eq=False):
    """A request in flight. *answer* becomes the reply's payload and header lines."""

    subject: str
    answer: asyncio.Future[tuple[bytes, bytes]]

    def fail(self, error: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)


# nats-server's answer where no stream takes the subject.
_NO_RESPONDERS: Final = b"NATS/1.0 503"
# A fetch gets the first of these when its consumer or the whole stream is gone, and the others when either is deleted
# while the fetch waits.
_CONSUMER_GONE: Final = (_NO_RESPONDERS, b"NATS/1.0 409 Consumer Deleted", b"NATS/1.0 404 Consumer Not Found")
_WHITE: Final = re.compile(r"\s")
_decode_answer: Final = Decoder(_JetStreamAnswer).decode


# After this time a request counts as unanswered.
REPLY_TIMEOUT_S: Final = 2.0


class NatsClient(UnbufferedClient):
    """All replies come to one subscription. nats-py reports denials to the error callback only, which calls `deny`."""

    def __init__(self) -> None:
        super().__init__()
        # Replies come to one subscription, on subjects that end in the number of the request.
        self._asked: dict[bytes, _Asked] = {}
        self._count = 0
        self._answers_sid = 0
        self._answers_to = ""
        self._gone: set[int] = set()
        self._raw: dict[int, OnRaw] = {}

    @property
    def speaks_tls(self) -> bool:
        """Whether the server that was reached last requires TLS; the client then speaks it."""
        return bool(self._server_info.get("tls_required"))

    def lost_its_consumer(self, subscription: JetStreamContext.PullSubscription) -> bool:
        """Whether the server has reported, since the last call, that the consumer of *subscription* is gone. nats-py
        does not pass that on."""
        sid = subscription._sub._id
        was_lost = sid in self._gone
        self._gone.discard(sid)
        return was_lost

    def deny(self, denial: PermissionDenial) -> None:
        """Fails the requests that wait on the denied subject."""
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
        answer = _decoded(data)
        return Ack(answer.seq, answer.duplicate)

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
        on_message: Callable[[Followed], None],
        on_end: Callable[[], None],
        timeout_s: float,
    ) -> Following:
        """Delivers the messages of *stream* on *subject* to *on_message*, each once and in order, from the sequence
        *start* on.

        Without *start* it begins with all that the stream holds, if *history*, and otherwise with the last message of
        each subject. It calls *on_end* once: when it missed a message, or when nothing came for a while, since a
        deleted consumer is silent. This is not nats-py's ordered consumer. That one resumes by itself at a sequence
        that may by then be another message's, and stops for good once its own supervision has failed (ADR 0030).
        Raises what `JetStreamContext.add_consumer` does.
        """
        following = Following(self, on_message, on_end)
        await following.begin(stream, following_config(subject, start, history=history), timeout_s=timeout_s)
        return following

    def hand_raw(self, subscription: Subscription, on_raw: OnRaw | None) -> None:
        """Passes whatever comes on *subscription* to *on_raw*, as soon as the socket is read; None ends that.

        nats-py would make a message of it, put the message into a queue, wake a task, and look at every character of
        the header names. For a gateway's own writes that is a sixth of the CPU time of an acceptance.
        """
        if on_raw is None:
            self._raw.pop(subscription._id, None)
        else:
            self._raw[subscription._id] = on_raw

    def publish_empty(self, subject: str) -> None:
        """Publishes an empty message. Raises ConnectionClosedError, OutboundBufferLimitError."""
        self.require_connection()
        self.enqueue(f"PUB {subject} 0\r\n\r\n".encode())

    async def request(
        self,
        subject: str,
        payload: bytes = b"",
        timeout: float = 0.5,
        old_style: bool = False,
        headers: dict[str, Any] | None = None,
    ) -> Msg:
        """As nats-py's. Raises Denied as soon as the server denies the request."""
        data, lines = await self._ask(subject, payload, headers or {}, timeout)
        return Msg(self, subject, data=data, headers=await self._process_headers(lines))

    async def _ask(
        self, subject: str, payload: bytes, headers: Mapping[str, str], timeout_s: float
    ) -> tuple[bytes, bytes]:
        """The answer to *payload*, and its header lines.

        It does what nats-py does, but without a random inbox, a task, a queue and two futures for each message.
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
            self.drop(command)
            raise
        finally:
            expiry.cancel()
            del self._asked[number]

    def _send(self, subject: str, reply: str, payload: bytes, headers: Mapping[str, str]) -> bytes:
        if not subject or _WHITE.search(subject):
            raise nats.errors.BadSubjectError
        self.require_connection()
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
        self.enqueue(command)
        return command

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> None:
        if sid != self._answers_sid:
            on_raw = self._raw.get(sid)
            if on_raw is not None:
                on_raw(subject, reply, data, headers or b"")
                return
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
    answer = _decode_answer(data)
    if answer.error is not None:
        raise nats.js.errors.APIError.from_error(answer.error)
    return answer


def _expire(asked: _Asked) -> None:
    asked.fail(nats.errors.TimeoutError())
