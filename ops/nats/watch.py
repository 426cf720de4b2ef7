"""What a bucket holds, told to whoever keeps it in memory, and told again where it turns out that it was not true.

A stream can go back: a power cut loses what was not yet on the disk, a bucket is removed and provisioned anew, an older
copy of the store is put in its place. Whoever goes on after "the last sequence that I was told" is then blind to as
many writes as were lost, and answers from memory what the server does not have. So a watch that was interrupted, for
whatever reason, proves first that its stream is still the one that it followed (`judged`), and otherwise tells the
bucket anew (ADR 0030).
"""

import asyncio
import contextlib
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from enum import Enum, auto
from typing import Final, Protocol

import structlog
from msgspec import Struct
from nats.aio.msg import Msg

from contracts.topology import bucket_stream
from ops.telemetry.metrics import streams_went_back, watch_restarts
from ops.telemetry.seldom import Seldom
from ops.telemetry.unreadable import unreadables

# A consumer that says nothing for so long, though it is to say twice a second that it lives, is taken for gone.
SILENT_S: Final = 1.0
# After a try to follow the bucket again that failed.
RETRY_S: Final = 0.2

log = structlog.get_logger("nats")


class Entry(Struct, frozen=True):
    """A key's value at one revision and the server's time of it; *value* is None where a deletion marker stands."""

    key: str
    value: bytes | None
    revision: int
    time: datetime


class StreamState(Struct, frozen=True):
    """When the stream was made, as the server writes it, the last sequence that it gave, the first that it still has
    (one more than the last where it holds nothing), and how many subjects it holds."""

    created: str
    last_seq: int
    first_seq: int = 0
    subjects: int = 0


class Mark(Struct, frozen=True):
    """Something that the stream holds for sure: a message that came from there, with its time, or one that the server
    acked, with its content."""

    seq: int
    time: datetime | None = None
    content: bytes | None = None


class There(Struct, frozen=True):
    """The message that stands at a mark's sequence now."""

    time: datetime
    content: bytes


class Verdict(Enum):
    """What a watch finds of its stream when it was interrupted."""

    SAME = auto()
    WENT_BACK = auto()
    UNPROVEN = auto()


def judged(*, made_at: str | None, mark: Mark | None, state: StreamState, there: There | None) -> Verdict:
    """Whether the stream, which is in *state* and has *there* at the sequence of *mark*, is the one that was followed,
    made at *made_at*, and still holds all that was known of it. Pure.

    1. It was made at another time: it is another stream.
    2. It has not come as far as *mark*: it lost what came last.
    3. Another message stands there: it lost what came last, and others have written since.
    4. The message of *mark* is there: nothing before it can be lost.
    5. None is: it was replaced by a newer one of its key, or has expired, or was lost. That proves nothing.
    """
    if made_at is not None and made_at != state.created:  # 1
        return Verdict.WENT_BACK
    if mark is None:
        return Verdict.UNPROVEN
    if state.last_seq < mark.seq:  # 2
        return Verdict.WENT_BACK
    if there is None:  # 5
        return Verdict.UNPROVEN
    is_same = there.time == mark.time if mark.time is not None else there.content == mark.content
    return Verdict.SAME if is_same else Verdict.WENT_BACK  # 4, 3


class KnownRevision(Struct, frozen=True):
    """What is known of a key: of which revision it was told last, and since when that stands."""

    revision: int
    time: datetime


def contradicts(told: dict[str, KnownRevision], newest: dict[str, Entry]) -> bool:
    """Whether *newest*, the last entry of every key now, shows that what was *told* of one is not there any more. Pure.

    A key that is gone shows nothing: it may have expired.
    """
    for key, entry in newest.items():
        known = told.get(key)
        if known is not None and (
            entry.revision < known.revision or (entry.revision == known.revision and entry.time != known.time)
        ):
            return True
    return False


def was_emptied(*, standing: int | None, lately: Iterable[int], before: StreamState, now: StreamState) -> bool:
    """Whether something is gone without a word, as after a purge, from a stream that was in the state *before* at the
    last look and is in the state *now*. Pure.

    1. It has fewer subjects than *standing*, the number of keys that had a value by what was told before this look.
    2. Where nobody counts all keys (None): nothing is left of all that it held before,
    3. or one of the newest entries of the keys that were told *lately*, by their revisions, is older than all it holds.
    """
    if standing is not None:  # 1
        return now.subjects < standing
    if before.first_seq <= before.last_seq < now.first_seq:  # 2
        return True
    return any(revision < now.first_seq for revision in lately)  # 3


class FollowedStream(Protocol):
    """A consumer of a stream, as `NatsClient.follow` makes it. It ends once, and then tells nothing any more."""

    @property
    def pending(self) -> int:
        """How many messages there were to be told when it was made."""

    @property
    def heard_s(self) -> float:
        """When it said something last, in monotonic seconds."""

    async def close(self) -> None:
        """It tells nothing any more."""


class Server(Protocol):
    """What a watch needs of the connection."""

    @property
    def cuts(self) -> int:
        """How often the connection broke."""

    async def stream_state(self, stream: str) -> StreamState:
        """Raises when there is no such stream, or no answer."""

    async def message_at(self, stream: str, seq: int) -> There | None:
        """The message of *stream* at *seq*; None where none is any more. Raises when there is no answer."""

    async def follow(
        self,
        bucket: str,
        start: int | None,
        *,
        history: bool,
        on_message: Callable[[Msg], None],
        on_end: Callable[[], None],
    ) -> FollowedStream:
        """Brings every message from *start* on; without one, from the start, with or without *history*.

        *on_end* is called when it has fallen silent, or missed one. Raises when there is no answer.
        """


class Watch:
    """A bucket, followed for as long as its connection lives, whatever becomes of consumers, server and bucket.

    *on_change* is called with every entry of the start, then with every change. Where the bucket may have gone back, it
    is read once more from its start, and then told at once: keys that are gone as deleted ones, and entries that are
    not those that were told. Where it did go back and there is *on_again*, which forgets what is known of revisions,
    every entry is told. With *on_whole* as well, the reader finds out for itself what is gone, for a bucket that is too
    large to be told at once: *on_again* is called, then *on_change* with every entry as it comes, then *on_whole*.
    """

    def __init__(
        self,
        server: Server,
        bucket: str,
        on_change: Callable[[Entry], None],
        *,
        history: bool = False,
        on_again: Callable[[], None] | None = None,
        on_whole: Callable[[], None] | None = None,
    ) -> None:
        self._server, self.bucket, self._on_change, self._history = server, bucket, on_change, history
        self._on_again, self._on_whole = on_again, on_whole
        self._stream, self._prefix = bucket_stream(bucket), f"$KV.{bucket}."
        self._following: FollowedStream | None = None
        self._state = self._looked = StreamState("", 0)
        self._last: Mark | None = None
        self._noted: Mark | None = None
        self._cuts = server.cuts
        # after how many breaks something was noted that no mark stands for
        self._doubted: int | None = None
        self._told: dict[str, KnownRevision] = {}
        # of those, the keys that have a value; of a large bucket those that were told since the last look
        self._standing: dict[str, int] = {}
        # what is read once more; it is told when it is whole
        self._anew: list[Entry] | None = None
        self._went_back = False
        self._is_whole = False
        self._known_until_s = time.monotonic()
        self._synced = asyncio.Event()
        self._interrupted = asyncio.Event()
        self._connected = asyncio.Event()
        self._connected.set()
        self._keeping: asyncio.Task[None] | None = None
        self._seldom = Seldom()

    async def start(self) -> None:
        """Begins to follow the bucket. Raises what `Server` does."""
        self._state = self._looked = await self._server.stream_state(self._stream)
        watch_restarts.begin(self.bucket)
        streams_went_back.begin(self.bucket)
        await self._follow(None)
        self._keeping = asyncio.create_task(self._keep())

    async def wait(self) -> None:
        """Returns once what was there at the start has been told."""
        await self._synced.wait()

    def close(self) -> None:
        """Nothing is told any more."""
        if self._keeping is not None:
            self._keeping.cancel()

    def age_s(self) -> float:
        """The greatest age of what was delivered last, in seconds; 0 while every change arrives at once."""
        now_s = time.monotonic()
        if self._is_whole and self._following is not None:
            silent_s = now_s - self._following.heard_s
            return 0.0 if silent_s < SILENT_S else silent_s
        return now_s - self._known_until_s

    def note(self, mark: Mark, cuts: int) -> None:
        """The process knows by itself that the stream holds *mark*: it wrote it, or read it, having asked after *cuts*.

        What was asked after a break proves nothing of the time before it, and may itself be lost by the next one.
        """
        if cuts != self._cuts:
            self._doubted = cuts
            return
        if self._noted is None or mark.seq > self._noted.seq:
            self._noted = mark

    async def look(self) -> None:
        """Reads the bucket again if something is gone from it that nobody told, as after a purge. Call it now and then.
        Raises what `Server` does."""
        if not self._is_whole:
            return
        standing, lately = (len(self._standing), []) if self._on_whole is None else (None, [*self._standing.values()])
        state = await self._server.stream_state(self._stream)
        before, self._looked = self._looked, state
        if self._on_whole is not None:
            self._standing.clear()
        if was_emptied(standing=standing, lately=lately, before=before, now=state):
            log.warning("bucket_emptied", bucket=self.bucket, advice="somebody purged it; it is read again")
            self._doubted = -1  # no break has that number: whatever mark there is proves nothing
            self._went_back = True  # to its reader it is the same; that it was no loss of the server's is said above
            self._interrupt()

    # ── interruptions ────────────────────────────────────────────────────────────────────────────────────────────

    def on_lost(self) -> None:
        """The connection broke."""
        self._connected.clear()
        self._interrupt()

    def on_back(self) -> None:
        """The connection stands again."""
        self._connected.set()
        self._interrupt()

    def _interrupt(self) -> None:
        if self._is_whole and self._following is not None:
            self._known_until_s = self._following.heard_s
        self._is_whole = False
        self._interrupted.set()

    def _is_interrupted(self) -> bool:
        """Whether what comes now was received before the interruption, and is not all that there is."""
        return self._interrupted.is_set()

    async def _keep(self) -> None:
        while True:
            await self._interrupted.wait()
            await self._connected.wait()
            self._interrupted.clear()
            try:
                await self._resume()
            except Exception as error:  # whatever it is, nobody else would follow the bucket again
                if self._seldom.is_news("interrupted"):
                    log.warning("watch_interrupted", bucket=self.bucket, error=repr(error))
                self._interrupted.set()
                await asyncio.sleep(RETRY_S)
            else:
                watch_restarts.add(self.bucket)

    async def _resume(self) -> None:
        if self._following is not None:
            await self._following.close()
        cuts = self._server.cuts
        state = await self._server.stream_state(self._stream)
        mark = max((mark for mark in (self._last, self._noted) if mark is not None), key=_seq, default=None)
        there = None
        if mark is not None and mark.seq <= state.last_seq:
            there = await self._server.message_at(self._stream, mark.seq)
        verdict = judged(made_at=self._state.created, mark=mark, state=state, there=there)
        if verdict is Verdict.SAME and self._doubted not in (None, cuts):
            verdict = Verdict.UNPROVEN
        self._cuts, self._doubted = cuts, None
        if verdict is Verdict.SAME and self._last is not None and self._anew is None and self._synced.is_set():
            await self._follow(self._last.seq + 1)
            return
        if verdict is Verdict.WENT_BACK:
            self._say_it_went_back()
        self._state, self._last, self._noted = state, None, None
        self._looked = state
        self._anew = []
        if self._on_again is not None and self._on_whole is not None:
            self._on_again()
        await self._follow(None)

    def _say_it_went_back(self) -> None:
        if not self._went_back:  # or it is said already, and what is there is still being read
            self._went_back = True
            streams_went_back.add(self.bucket)
            advice = "nats-server lost what it stored last, or the bucket was made anew: see the runbook"
            log.error("stream_went_back", bucket=self.bucket, advice=advice)

    async def _follow(self, start: int | None) -> None:
        self._following = following = await self._server.follow(
            self.bucket, start, history=self._history, on_message=self._receive, on_end=self._interrupt
        )
        if following.pending == 0:
            self._all_is_told()

    # ── what is told ─────────────────────────────────────────────────────────────────────────────────────────────

    def _receive(self, message: Msg) -> None:
        metadata = message.metadata
        value = None if _is_marker(message.headers) else message.data
        key, revision = message.subject.removeprefix(self._prefix), metadata.sequence.stream
        entry = Entry(key, value, revision, metadata.timestamp)
        self._last = Mark(revision, time=entry.time)
        if self._anew is not None and self._on_whole is None:
            self._anew.append(entry)
        else:
            self._tell(entry)
        if metadata.num_pending == 0:
            self._all_is_told()

    def _tell(self, entry: Entry) -> None:
        if self._on_whole is None:
            self._told[entry.key] = KnownRevision(entry.revision, entry.time)
        if entry.value is None:
            self._standing.pop(entry.key, None)
        elif self._on_whole is None or self._is_whole:
            self._standing[entry.key] = entry.revision
        with self._reported(f"{self.bucket}.{entry.key}", entry.revision):
            self._on_change(entry)

    @contextlib.contextmanager
    def _reported(self, what: str, revision: int) -> Iterator[None]:
        """Whatever an entry makes its reader do, the others are told, and nobody waits for ever at the start."""
        try:
            yield
        except Exception as error:
            # (the text of the error may repeat what stands in the entry: only its place is told)
            place = traceback.extract_tb(error.__traceback__)[-1]
            reason = f"{type(error).__name__} in {place.name}, line {place.lineno}"
            unreadables.tell("entry", what, reason, revision=revision)

    def _all_is_told(self) -> None:
        if self._is_whole or self._is_interrupted():
            return
        if self._anew is not None:
            self._hand_on(self._anew)
            self._anew, self._went_back = None, False
        self._is_whole = True
        self._synced.set()

    def _hand_on(self, anew: list[Entry]) -> None:
        """All at once, so that nobody sees half of it."""
        revision = self._state.last_seq
        if self._on_whole is not None:
            with self._reported(self.bucket, revision):
                self._on_whole()
            return
        newest = {entry.key: entry for entry in anew}
        if contradicts(self._told, newest):
            self._say_it_went_back()
        before, self._told = self._told, {}
        self._standing = {key: entry.revision for key, entry in newest.items() if entry.value is not None}
        is_all_news = self._went_back and self._on_again is not None
        if is_all_news and self._on_again is not None:
            with self._reported(self.bucket, revision):
                self._on_again()
        now = datetime.now(UTC)
        for key in [key for key in before if key not in newest]:
            with self._reported(f"{self.bucket}.{key}", revision):
                self._on_change(Entry(key, None, revision, now))
        for entry in anew:
            if is_all_news or is_news(entry, before.get(entry.key), went_back=self._went_back):
                self._tell(entry)
            else:
                self._told[entry.key] = KnownRevision(entry.revision, entry.time)


def is_news(entry: Entry, told: KnownRevision | None, *, went_back: bool) -> bool:
    """Whether *entry* is to be told after what was *told* of its key. Pure.

    Where the bucket *went_back*, what was told may be gone: then a lower revision is news, too.
    """
    if told is None or entry.revision > told.revision:
        return True
    return went_back and (entry.revision, entry.time) != (told.revision, told.time)


def _seq(mark: Mark) -> int:
    return mark.seq


def _is_marker(headers: dict[str, str] | None) -> bool:
    return headers is not None and ("KV-Operation" in headers or "Nats-Marker-Reason" in headers)
