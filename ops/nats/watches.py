"""The watches of one connection, and what each of them needs from the server."""

import asyncio
import contextlib
from collections.abc import Callable

import nats.js.errors

from contracts.topology import bucket_stream
from ops.nats.client import REPLY_TIMEOUT_S, NatsClient
from ops.nats.clock import parse_time
from ops.nats.connection import Connection
from ops.nats.entry import Entry
from ops.nats.errors import NO_MESSAGE, TransportUnavailable, translated
from ops.nats.following import Followed, Following
from ops.nats.stream_proof import Mark, StreamState, There
from ops.nats.streams import ServerStreams
from ops.nats.watch import Watch


class WatchedServer:
    """The server, as a watch asks it (`ops.nats.watch.Server`)."""

    def __init__(self, client: NatsClient, connection: Connection, streams: ServerStreams) -> None:
        self._client, self._connection, self._streams = client, connection, streams

    @property
    def cuts(self) -> int:
        """How often the connection broke."""
        return self._connection.cuts

    async def stream_state(self, stream: str) -> StreamState:
        """As `ServerStreams.state`."""
        return await self._streams.state(stream)

    async def message_at(self, stream: str, seq: int) -> There | None:
        """What stands at *seq* of *stream*; None when it is gone. Raises TransportUnavailable."""
        with translated(stream):
            try:
                stored = await self._client.at(stream, seq, timeout_s=REPLY_TIMEOUT_S)
            except nats.js.errors.NotFoundError as error:
                if error.err_code == NO_MESSAGE:
                    return None
                raise
        return None if stored is None else There(parse_time(stored.time), stored.data)

    async def follow(
        self,
        bucket: str,
        start: int | None,
        *,
        history: bool,
        on_message: Callable[[Followed], None],
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


class Watches:
    """All watches of one connection. It notifies them of breaks, and of what the process reads and writes itself."""

    def __init__(self, server: WatchedServer, connection: Connection) -> None:
        self._server = server
        self._watches: list[Watch] = []
        connection.on_break(self._on_break)
        connection.on_reconnect(self._on_reconnect)

    async def start(
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
        the entries of the start have been reported. When a bucket loses what was reported, the watch reports it anew. A
        reader that compares revisions gives *on_again*. A reader of a bucket too large to be reported at once gives
        *on_whole* as well (`Watch`). Raises NotFoundError where there is no such bucket, and TransportUnavailable.
        """
        watch = Watch(self._server, bucket, on_change, history=history, on_again=on_again, on_whole=on_whole)
        self._watches.append(watch)
        try:
            with translated(bucket):
                await watch.start()
        except BaseException:
            self._watches.remove(watch)
            raise
        return watch

    async def written(self, bucket: str, *, after: int, upto: int) -> dict[str, int]:
        """The keys of *bucket* that were written after the sequence *after*, up to *upto*, each with its newest
        revision in that range. Raises NotFoundError, TransportUnavailable."""
        found: dict[str, int] = {}
        prefix, is_over, is_whole = f"$KV.{bucket}.", asyncio.Event(), False

        def note(message: Followed) -> None:
            nonlocal is_whole
            if message.seq <= upto:
                found[message.subject.removeprefix(prefix)] = message.seq
            if message.seq >= upto or message.pending == 0:
                is_whole = True
                is_over.set()

        following = await self._server.follow(bucket, after + 1, history=True, on_message=note, on_end=is_over.set)
        try:
            if following.pending:
                await is_over.wait()
        finally:
            await following.close()
        if following.pending and not is_whole:  # it ended by itself
            raise TransportUnavailable(f"{bucket}: the server fell silent")
        return found

    async def look(self) -> None:
        """Every watch finds out whether its bucket was emptied (`Watch.look`). Raises TransportUnavailable."""
        for watch in list(self._watches):
            with contextlib.suppress(nats.js.errors.NotFoundError):  # the bucket is gone: the watch finds out by itself
                await watch.look()

    def note(self, bucket: str, mark: Mark, cuts: int) -> None:
        """The process knows without a watch that *bucket* holds *mark* (`KnownStream.note`)."""
        for watch in self._watches:
            if watch.bucket == bucket:
                watch.known.note(mark, cuts)

    def close(self) -> None:
        """Ends all watches: they report nothing more."""
        for watch in self._watches:
            watch.close()

    def _on_break(self) -> None:
        for watch in self._watches:
            watch.on_lost()

    def _on_reconnect(self) -> None:
        for watch in self._watches:
            watch.on_back()
