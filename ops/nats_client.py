"""nats-py's client, except that what nats-server denies is known at once and not after a time-out (design §10.8), and
that a stored message costs a third of the CPU time (docs/benchmarks/notes.md)."""

import asyncio
import re
from collections.abc import Mapping
from typing import Any, Final, Literal

import msgspec
import nats.aio.client
import nats.errors
import nats.js.errors
from msgspec import Struct
from nats.aio.msg import Msg

# nats-py hands the server's words on in small letters.
_VIOLATION: Final = re.compile(r"permissions violation for (publish|subscription) to \"([^\"]*)\"", re.IGNORECASE)
_UNAUTHORISED: Final = re.compile(r"authorization violation|authentication (?:timeout|expired|revoked)", re.IGNORECASE)


class Denied(nats.errors.Error):
    """nats-server does not let this user ask on the subject; nothing was stored."""


class Denial(Struct, frozen=True):
    """What the server denied. *subject* is in small letters, as nats-py tells it."""

    operation: Literal["publish", "subscription"]
    subject: str

    @property
    def kind(self) -> str:
        """The same for all denials that one line of permissions would end: tasks and acks have a subject each."""
        tokens = self.subject.split(".")
        return f"{self.operation} {'.'.join(tokens[: 5 if tokens[0] == '$js' else 2])}"


def denial_in(error: Exception) -> Denial | None:
    """What *error*, as nats-py reports it, says that the server denied; None for every other error. Pure."""
    found = _VIOLATION.search(str(error))
    if found is None:
        return None
    return Denial("publish" if found[1].lower() == "publish" else "subscription", found[2].lower())


def is_unauthorised(error: Exception) -> bool:
    """Whether *error* says that the server does not know this user, or not with this password. Pure."""
    return isinstance(error, nats.errors.AuthorizationError) or _UNAUTHORISED.search(str(error)) is not None


class Ack(Struct, frozen=True):
    """JetStream's word that a message is stored, at *seq* of its stream. *duplicate*: it was there already."""

    seq: int
    duplicate: bool = False


class _Answer(Struct, frozen=True):
    """What JetStream answers to a message: an ack, or an error."""

    seq: int = 0
    duplicate: bool = False
    error: dict[str, Any] | None = None


class _Asked(Struct, eq=False):
    """A message whose answer is waited for."""

    subject: str
    answer: asyncio.Future[bytes]
    expiry: asyncio.TimerHandle

    def fail(self, error: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)


# nats-server's answer where no stream takes the subject.
_NO_RESPONDERS: Final = b"NATS/1.0 503"
_WHITE: Final = re.compile(r"\s")
_decode_answer: Final = msgspec.json.Decoder(_Answer).decode


class Client(nats.aio.client.Client):
    """Tell it of denials (`deny`), which nats-py reports only to the error callback."""

    def __init__(self) -> None:
        super().__init__()
        self._asking: dict[str, set[asyncio.Timeout]] = {}
        # Of `store`: answers come to one subscription, whose subjects end in the number of the message.
        self._asked: dict[bytes, _Asked] = {}
        self._count = 0
        self._answers_sid = 0
        self._answers_to = ""

    @property
    def speaks_tls(self) -> bool:
        """Whether the server that was reached last wants TLS, which is then spoken."""
        return bool(self._server_info.get("tls_required"))

    def deny(self, denial: Denial) -> None:
        """Ends the requests that wait on the denied subject."""
        now_s = asyncio.get_running_loop().time()
        for waiting in self._asking.get(denial.subject, ()):
            if not waiting.expired():
                waiting.reschedule(now_s)
        for asked in self._asked.values():
            if asked.subject.lower() == denial.subject:
                asked.fail(_denied(asked.subject))

    async def connect(self, *given: Any, **options: Any) -> None:
        """As nats-py's."""
        await super().connect(*given, **options)
        self._answers_to = self.new_inbox()
        self._answers_sid = (await self.subscribe(f"{self._answers_to}.*"))._id

    async def store(self, subject: str, payload: bytes, headers: Mapping[str, str], *, timeout_s: float) -> Ack:
        """Publishes *payload* to the stream of *subject*, and returns once it is stored.

        As nats-py's `JetStreamContext.publish`, without what that does for each message and Warmlane does not need: its
        random inbox, task, queue and flush of each message. A name or value of *headers* has no line end.

        Raises Denied, TimeoutError when there is no answer within *timeout_s*, NoStreamResponseError, APIError,
        OutboundBufferLimitError while there is no connection, other errors of nats-py.
        """
        loop = asyncio.get_running_loop()
        self._count += 1
        token = b"%x" % self._count
        self._send(subject, f"{self._answers_to}.{self._count:x}", payload, headers)
        answer: asyncio.Future[bytes] = loop.create_future()
        asked = _Asked(subject, answer, loop.call_later(timeout_s, _expire, answer))
        self._asked[token] = asked
        try:
            told = _decode_answer(await answer)
        finally:
            asked.expiry.cancel()
            del self._asked[token]
        if told.error is not None:
            raise nats.js.errors.APIError.from_error(told.error)
        return Ack(told.seq, told.duplicate)

    def _send(self, subject: str, reply: str, payload: bytes, headers: Mapping[str, str]) -> None:
        if not subject or _WHITE.search(subject):
            raise nats.errors.BadSubjectError
        if self.is_closed:
            raise nats.errors.ConnectionClosedError
        if not self.is_connected or self._flush_queue is None:
            raise nats.errors.OutboundBufferLimitError  # it is never buffered (design §10.5)
        if len(payload) > self._max_payload:
            raise nats.errors.MaxPayloadError
        lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
        if lines.count("\n") != len(headers) or lines.count("\r") != len(headers):
            raise nats.errors.BadHeaderError("a header with a line end")
        head = f"NATS/1.0\r\n{lines}\r\n".encode()
        control = f"HPUB {subject} {reply} {len(head)} {len(head) + len(payload)}\r\n".encode()
        command = b"".join((control, head, payload, b"\r\n"))
        self._pending.append(command)
        self._pending_data_size += len(command)
        if self._flush_queue.empty():
            self._flush_queue.put_nowait(asyncio.get_running_loop().create_future())

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> None:
        if sid != self._answers_sid:
            await super()._process_msg(sid, subject, reply, data, headers)
            return
        asked = self._asked.get(subject[len(self._answers_to) + 1 :])
        if asked is None or asked.answer.done():
            pass  # too late
        elif headers and headers.startswith(_NO_RESPONDERS):
            asked.fail(nats.js.errors.NoStreamResponseError())
        else:
            asked.answer.set_result(data)

    async def request(
        self,
        subject: str,
        payload: bytes = b"",
        timeout: float = 0.5,
        old_style: bool = False,
        headers: dict[str, Any] | None = None,
    ) -> Msg:
        """As nats-py's. Raises Denied as soon as the server denies it."""
        waiting = asyncio.timeout(None)
        same = self._asking.setdefault(subject.lower(), set())
        try:
            async with waiting:
                same.add(waiting)
                return await super().request(subject, payload, timeout, old_style, headers)
        except TimeoutError:
            if waiting.expired():
                raise _denied(subject) from None
            raise
        finally:
            same.discard(waiting)
            if not same:
                self._asking.pop(subject.lower(), None)


def _expire(answer: asyncio.Future[bytes]) -> None:
    if not answer.done():
        answer.set_exception(nats.errors.TimeoutError())


def _denied(subject: str) -> Denied:
    return Denied(f"the server denies this user to publish to {subject}")
