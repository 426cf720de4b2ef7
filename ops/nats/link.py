"""The one way to the server: connect, publish, compare-and-set, watch and pull, with the traps of design §10 closed.

Every call ends within its time-out. A refusal and an unknown outcome are different errors: `StreamFull` and
`WrongRevision` mean that nothing was stored, `TransportUnavailable` means that nobody knows.
"""

import asyncio
import contextlib
import json
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Final, Self

import nats
import nats.errors
import nats.js.errors
import structlog
from msgspec import Struct
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js.api import Header, RawStreamMsg
from nats.js.client import JetStreamContext
from nats.js.manager import JetStreamManager

from contracts.nesting import loads
from contracts.topology import (
    DEADLINES,
    TimerKind,
    bucket_stream,
    bucket_subject,
    stream_of,
    timer_due_subject,
    timer_set_subject,
)
from ops.nats.access import NatsAccess
from ops.nats.client import REPLY_TIMEOUT_S, Ack, Following, NatsClient
from ops.nats.clock import parse_time, rfc3339
from ops.nats.connecting import Connector
from ops.nats.errors import (
    UNDECIDED,
    NotAllowed,
    StreamFull,
    TransportUnavailable,
    UnusableServer,
    WrongRevision,
    stored,
    translated,
)
from ops.nats.pull import Pull
from ops.nats.watch import Entry, Mark, StreamState, There, Watch
from ops.nats.write_health import Writes
from ops.telemetry.metrics import consumers_made_anew

# What a watch is and reports, and how calls end, for those who have a link.
__all__ = [
    "Entry",
    "NotAllowed",
    "StreamFull",
    "TransportUnavailable",
    "UnusableServer",
    "Watch",
    "WrongRevision",
]

MAX_SKEW_S: Final = 0.25
UNDECIDED_WAIT_S: Final = 0.01
# JetStream's own limit, of the server or of the account.
_NO_RESOURCES: Final = 10023
_NO_MESSAGE: Final = 10037

log = structlog.get_logger("nats")


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

    def __init__(self, client: NatsClient) -> None:
        self._client = client
        self._js: JetStreamContext = client.jetstream(timeout=REPLY_TIMEOUT_S)
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
        connector = Connector(server if isinstance(server, NatsAccess) else NatsAccess.at(server), name=name)
        link = cls(await connector.connect(wait_s=wait_s))
        connector.tell(link)
        return link

    def on_lost(self) -> None:
        """The connection broke. Once it is being closed, that is no news."""
        if self._closing:
            return
        self._connected_since_s = None
        self.cuts += 1
        self._cut_at = datetime.now(UTC)
        log.warning("nats_disconnected")
        for watch in self._watches:
            watch.on_lost()

    def on_back(self) -> None:
        """The connection stands again."""
        self._connected_since_s = time.monotonic()
        log.info("nats_reconnected")
        for watch in self._watches:
            watch.on_back()
        for callback in self._on_reconnect:
            callback()

    async def close(self) -> None:
        """Closes the connection; what was not sent is dropped."""
        self._closing = True
        for watch in self._watches:
            watch.close()
        with contextlib.suppress(Exception):
            await self._client.close()

    @property
    def is_connected(self) -> bool:
        return self._client.is_connected

    def unbroken_s(self) -> float:
        """For how long the connection has stood without a break, in seconds; 0 while it is broken."""
        since_s = self._connected_since_s
        return 0.0 if since_s is None or not self._client.is_connected else time.monotonic() - since_s

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
            with stored(subject):
                try:
                    ack = await self._client.store(subject, payload, all_headers, timeout_s=REPLY_TIMEOUT_S)
                    if self.writes:
                        self.writes.stored(stream_of(subject))
                    return ack
                except nats.js.errors.BadRequestError as error:
                    if error.err_code != UNDECIDED or time.monotonic() > until_s:
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

    async def has_stream(self, stream: str) -> bool:
        """Whether the server has *stream*. Raises TransportUnavailable."""
        try:
            await self.stream_state(stream)
        except nats.js.errors.NotFoundError:
            return False
        return True

    async def subjects_of(self, stream: str, pattern: str) -> list[str]:
        """The subjects of *stream* that match *pattern* and hold a message. Raises TransportUnavailable."""
        try:
            with translated(stream):
                return list((await self._js.stream_info(stream, subjects_filter=pattern)).state.subjects or ())
        except nats.js.errors.APIError as error:
            raise TransportUnavailable(f"{stream}: {error.description}") from error

    async def remove_stream(self, stream: str) -> None:
        """Removes *stream* with all that it holds. Raises NotFoundError, TransportUnavailable."""
        with translated(stream):
            await self._js.delete_stream(stream)

    @property
    def streams(self) -> JetStreamManager:
        """Makes, shows and changes streams and consumers: for provisioning, which is all about their settings."""
        return self._js

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
            reply = await self._client.request("$JS.API.INFO", timeout=REPLY_TIMEOUT_S)
        told = loads(reply.data)
        if "storage" not in told:
            raise TransportUnavailable(f"storage: {told.get('error', {}).get('description', 'not told')}")
        return Usage(told["storage"], max(0, told.get("limits", {}).get("max_storage", 0)))

    async def stored_message(self, stream: str, sequence: int) -> RawStreamMsg | None:
        """The message at *sequence*, or None when it is gone. Raises TransportUnavailable."""
        with translated(stream):
            try:
                return await self._js.get_msg(stream, seq=sequence)
            except nats.js.errors.NotFoundError:
                return None

    async def remove_message(self, stream: str, sequence: int) -> None:
        """Removes a queued message; one that is gone already is fine. Raises TransportUnavailable."""
        with translated(stream), contextlib.suppress(nats.js.errors.NotFoundError, nats.js.errors.BadRequestError):
            await self._js.delete_msg(stream, sequence)

    async def remove_subject(self, stream: str, subject: str) -> None:
        """Removes all messages of *stream* on *subject*. Raises TransportUnavailable."""
        with translated(stream), contextlib.suppress(nats.js.errors.NotFoundError):
            await self._js.purge_stream(stream, subject=subject)

    async def depth(self, stream: str) -> Depth:
        """How full *stream* is. Raises TransportUnavailable."""
        with translated(stream):
            reply = await self._client.request(f"$JS.API.STREAM.INFO.{stream}", timeout=REPLY_TIMEOUT_S)
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

    async def pull(self, stream: str, consumer: str) -> Pull:
        """A handle on a durable pull consumer that provisioning has made."""
        with translated(stream):
            pull = Pull(self._client, await self._js.pull_subscribe_bind(consumer, stream), stream, consumer)
        consumers_made_anew.begin(stream, consumer)
        return pull

    async def set_timer(self, kind: TimerKind, task_id: str, at: datetime, payload: bytes) -> None:
        """Stores a server-side timer; one of the same kind and task is replaced. Raises TransportUnavailable."""
        await self.publish(
            timer_set_subject(kind, task_id),
            payload,
            headers={
                "Nats-Schedule": f"@at {rfc3339(at)}",
                "Nats-Schedule-Target": timer_due_subject(kind, task_id),
            },
        )

    # ── buckets ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def get(self, bucket: str, key: str) -> Entry | None:
        """The entry at *key*, from the bucket's leader; None when there is none. Raises TransportUnavailable."""
        cuts = self.cuts
        with translated(bucket):
            try:
                stored = await self._client.last_on(
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
            reply = await self._client.request(f"$JS.API.STREAM.INFO.{stream}", timeout=REPLY_TIMEOUT_S)
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
            reply = await self._client.request(f"$JS.API.STREAM.INFO.{DEADLINES}", question, timeout=REPLY_TIMEOUT_S)
        told = loads(reply.data)
        if "error" in told:
            raise TransportUnavailable(f"{DEADLINES}: {told['error'].get('description', 'not told')}")
        return bool(told["state"].get("subjects"))

    async def message_at(self, stream: str, seq: int) -> There | None:
        """What stands at *seq* of *stream*; None when it is gone. Raises TransportUnavailable."""
        with translated(stream):
            try:
                stored = await self._client.at(stream, seq, timeout_s=REPLY_TIMEOUT_S)
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
        """`NatsClient.follow`, of *bucket*. Raises NotFoundError, TransportUnavailable."""
        with translated(bucket):
            return await self._client.follow(
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

        return await self._client.subscribe(bucket_subject(bucket, key), cb=receive)

    # ── questions among processes ────────────────────────────────────────────────────────────────────────────────

    async def tell(self, subject: str, payload: bytes = b"") -> None:
        """Says *payload* on *subject* to whoever listens now. Nobody learns whether it arrived."""
        with contextlib.suppress(nats.errors.Error, OSError):
            await self._client.publish(subject, payload)

    async def hear(self, subjects: str, on_word: Callable[[str, bytes], None]) -> None:
        """Calls *on_word* with subject and payload of whatever is told on *subjects* from now on."""

        async def receive(message: Msg) -> None:
            on_word(message.subject, message.data)

        with translated(subjects):
            await self._client.subscribe(subjects, cb=receive)

    async def answer(self, subjects: str, knows: Callable[[str], bool]) -> None:
        """From now on, says yes to a question on *subjects* when *knows* does; otherwise it says nothing."""

        async def receive(question: Msg) -> None:
            if knows(question.subject):
                await question.respond(b"yes")

        with translated(subjects):
            await self._client.subscribe(subjects, cb=receive)

    async def ask(self, subject: str, *, timeout_s: float) -> bool:
        """Whether some process says yes within *timeout_s*. Raises TransportUnavailable when nobody could be asked."""
        with translated(subject):
            try:
                await self._client.request(subject, timeout=timeout_s)
            except (TimeoutError, nats.errors.NoRespondersError):
                return False
        return True

    async def request(self, subject: str, payload: bytes, *, timeout_s: float, about: str) -> Msg:
        """The answer to *payload* on *subject*. *about* is what an error names.

        Raises TransportUnavailable when none came within *timeout_s*.
        """
        with translated(about):
            return await self._client.request(subject, payload, timeout=timeout_s)

    async def inbox(self, *, about: str) -> tuple[str, Subscription]:
        """A subject of this connection's own, and what arrives there; *about* is what an error names.

        Raises TransportUnavailable.
        """
        with translated(about):
            subject = self._client.new_inbox()
            return subject, await self._client.subscribe(subject)

    @property
    def server_version(self) -> str:
        """Of the server that is connected, as `2.12.1`."""
        version = self._client.connected_server_version
        return f"{version.major}.{version.minor}.{version.patch}"

    # ── the server's clock ───────────────────────────────────────────────────────────────────────────────────────

    async def clock_skew_s(self) -> float:
        """The server's clock less this one's, in seconds, as well as a few round trips can tell."""
        best: tuple[float, float] | None = None
        for _ in range(5):
            sent = datetime.now(UTC)
            with translated("clock"):
                reply = await self._client.request("$JS.API.STREAM.INFO.DEADLINES", timeout=REPLY_TIMEOUT_S)
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
