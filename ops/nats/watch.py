"""Reports a bucket to a reader that keeps it in memory, and reports it anew when it has changed unseen.

A stream can go back: a power cut loses what was not yet on the disk, or an operator provisions a removed bucket anew,
or restores an older copy of the store. A watch that resumed after the last sequence that it saw would then miss as many
writes as were lost, and its reader would answer from memory what the server does not have. So a watch that was
interrupted, for whatever reason, first proves that its stream is still the one that it followed
(`ops.nats.stream_proof`). Otherwise it reports the bucket anew (`ops.nats.reader`, ADR 0030).
"""

import asyncio
import time
from collections.abc import Callable
from typing import Final, Protocol

import structlog

from contracts.topology import bucket_stream
from ops.nats.entry import Entry
from ops.nats.following import Followed
from ops.nats.reader import Reader
from ops.nats.stream_proof import KnownStream, Mark, StreamSource, StreamState, Verdict, was_emptied
from ops.telemetry.metrics import streams_went_back, watch_restarts
from ops.telemetry.seldom import Seldom

# The server sends each consumer a heartbeat twice a second. A consumer that is silent for this long counts as gone.
SILENT_S: Final = 1.0
# The pause after a failed try to follow the bucket again.
RETRY_S: Final = 0.2

log = structlog.get_logger("nats")


class FollowedStream(Protocol):
    """A consumer of a stream, as `NatsClient.follow` makes it. It ends once, and delivers nothing after that."""

    @property
    def pending(self) -> int:
        """How many messages it had to deliver when it was made."""

    @property
    def heard_s(self) -> float:
        """When something came from it last, in monotonic seconds."""

    async def close(self) -> None:
        """Ends it: it delivers nothing more."""


class Server(StreamSource, Protocol):
    """What a watch needs of the connection."""

    async def follow(
        self,
        bucket: str,
        start: int | None,
        *,
        history: bool,
        on_message: Callable[[Followed], None],
        on_end: Callable[[], None],
    ) -> FollowedStream:
        """Delivers every message from the sequence *start* on; without one, from the stream's start, with or without
        *history*.

        It calls *on_end* when it has fallen silent or missed a message. Raises when there is no answer.
        """


class Watch:
    """Follows a bucket for as long as the connection lives, whatever becomes of consumers, server and bucket.

    It calls *on_change* with every entry of the start, then with every change. Where the bucket may have gone back, the
    watch reads it once more from its start, and then reports the differences at once: missing keys as deleted, and
    entries that differ from those reported before. If the bucket did go back and there is *on_again*, the watch calls
    *on_again*, which forgets the known revisions, and reports every entry.

    *on_whole* is for a bucket that is too large to be reported at once; its reader finds out for itself what is gone.
    The watch calls *on_again*, then *on_change* with every entry as it comes, then *on_whole*.
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
        self._server, self.bucket, self._history = server, bucket, history
        self._stream, self._prefix = bucket_stream(bucket), f"$KV.{bucket}."
        self._reader = Reader(bucket, on_change, on_again, on_whole)
        self.known = KnownStream(server, self._stream)
        """What proves that the stream is the same. `Entries` notes there what it reads and writes."""
        self._following: FollowedStream | None = None
        self._state = self._looked = StreamState("", 0)
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
        self.known.made_at(self._state.created)
        watch_restarts.begin(self.bucket)
        streams_went_back.begin(self.bucket)
        await self._follow(None)
        self._keeping = asyncio.create_task(self._keep())

    async def wait(self) -> None:
        """Returns once the watch has reported what was there at the start."""
        await self._synced.wait()

    def close(self) -> None:
        """Ends the watch: it reports nothing more."""
        if self._keeping is not None:
            self._keeping.cancel()

    def age_s(self) -> float:
        """How old the reader's copy may be, in seconds; 0 while every change arrives at once."""
        now_s = time.monotonic()
        if self._is_whole and self._following is not None:
            silent_s = now_s - self._following.heard_s
            return 0.0 if silent_s < SILENT_S else silent_s
        return now_s - self._known_until_s

    async def look(self) -> None:
        """Reads the bucket again if something is gone from it without a message, as after a purge. It has to be called
        now and then. Raises what `Server` does."""
        if not self._is_whole:
            return
        standing, lately = self._reader.standing()
        state = await self._server.stream_state(self._stream)
        before, self._looked = self._looked, state
        self._reader.looked()
        if was_emptied(standing=standing, lately=lately, before=before, now=state):
            log.warning("bucket_emptied", bucket=self.bucket, advice="somebody purged it; it is read again")
            self.known.doubt()
            self._reader.has_lost = True  # the reader treats both alike; the log line says that the server lost nothing
            self._interrupt()

    # ── interruptions ────────────────────────────────────────────────────────────────────────────────────────────

    def on_lost(self) -> None:
        """The connection broke."""
        self._connected.clear()
        self._interrupt()

    def on_back(self) -> None:
        """The connection is up again."""
        self._connected.set()
        self._interrupt()

    def _interrupt(self) -> None:
        if self._is_whole and self._following is not None:
            self._known_until_s = self._following.heard_s
        self._is_whole = False
        self._interrupted.set()

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
        verdict, state = await self.known.judge()
        last = self.known.last
        if verdict is Verdict.SAME and last is not None and not self._reader.is_behind and self._synced.is_set():
            await self._follow(last.seq + 1)
            await self._require_unchanged(state)
            return
        if verdict is Verdict.WENT_BACK:
            self._reader.went_back()
        self.known.forget()
        self.known.made_at(state.created)
        self._state = self._looked = state
        self._reader.begin_again()
        await self._follow(None)

    async def _require_unchanged(self, state: StreamState) -> None:
        """Resumes once more if the bucket was made anew between the proof and the consumer: no message would show
        that."""
        if (await self._server.stream_state(self._stream)).created != state.created:
            self._interrupt()

    async def _follow(self, start: int | None) -> None:
        self._following = following = await self._server.follow(
            self.bucket, start, history=self._history, on_message=self._receive, on_end=self._interrupt
        )
        if following.pending == 0:
            self._all_is_there()

    def _receive(self, message: Followed) -> None:
        value = None if message.is_marker else message.data
        entry = Entry(message.subject.removeprefix(self._prefix), value, message.seq, message.time)
        self.known.last = Mark(entry.revision, time=entry.time)
        self._reader.receive(entry, is_whole=self._is_whole)
        if message.pending == 0:
            self._all_is_there()

    def _all_is_there(self) -> None:
        # what comes after an interruption was on its way before it, and is not the whole bucket
        if self._is_whole or self._interrupted.is_set():
            return
        self._reader.all_is_there(self._state.last_seq)
        self._is_whole = True
        self._synced.set()
