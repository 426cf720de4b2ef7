"""The entries of KV buckets: reads, compare-and-set, deletes, and hints that somebody writes one.

`Bucket` gives them a type.
"""

from collections.abc import Awaitable, Callable

import nats.js.errors
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js.api import Header

from contracts.topology import bucket_stream, bucket_subject
from ops.nats.client import REPLY_TIMEOUT_S, NatsClient
from ops.nats.clock import parse_time
from ops.nats.connection import Connection
from ops.nats.entry import Entry
from ops.nats.errors import NO_MESSAGE, translated
from ops.nats.messages import Messages
from ops.nats.stream_proof import Mark
from ops.nats.watches import Watches


class Entries:
    """The entries of every bucket, by bucket and key.

    It notes each entry that it reads or writes with the watches of the bucket: the entry proves how far the bucket has
    come.
    """

    def __init__(self, client: NatsClient, connection: Connection, messages: Messages, watches: Watches) -> None:
        self._client, self._connection, self._messages, self._watches = client, connection, messages, watches

    async def get(self, bucket: str, key: str) -> Entry | None:
        """The entry at *key*, from the bucket's leader; None when there is none. Raises TransportUnavailable."""
        cuts = self._connection.cuts
        with translated(bucket):
            try:
                stored = await self._client.last_on(
                    bucket_stream(bucket), bucket_subject(bucket, key), timeout_s=REPLY_TIMEOUT_S
                )
            except nats.js.errors.NotFoundError as error:
                if error.err_code == NO_MESSAGE:
                    return None
                raise
        if stored is None:
            return None
        is_marker = b"\r\nKV-Operation:" in stored.hdrs or b"\r\nNats-Marker-Reason:" in stored.hdrs
        entry = Entry(key, None if is_marker else stored.data, stored.seq, parse_time(stored.time))
        self._watches.note(bucket, Mark(entry.revision, time=entry.time), cuts)
        return entry

    async def create(self, bucket: str, key: str, value: bytes) -> int:
        """Stores the first revision of *key* and returns it. Raises WrongRevision when there is one already."""
        return await self.update(bucket, key, value, revision=0)

    async def update(self, bucket: str, key: str, value: bytes, *, revision: int, ttl_s: float | None = None) -> int:
        """Compare-and-set: stores *value* if *key* is still at *revision*, and returns the new revision.

        With *ttl_s* (whole seconds) the entry expires unless it is stored again; a marker then stands in its place.
        Raises WrongRevision when *key* is at another revision, TransportUnavailable when the outcome is unknown.
        """
        expected = {Header.EXPECTED_LAST_SUBJECT_SEQUENCE.value: str(revision)}
        if ttl_s is not None:
            expected["Nats-TTL"] = f"{ttl_s:g}s"
        return await self._write(bucket, key, value, expected)

    async def put(self, bucket: str, key: str, value: bytes, *, message_id: str | None = None) -> int:
        """Stores *value*, whatever was there, and returns the new revision. Raises TransportUnavailable.

        Of writes with the same *message_id* within two minutes the server stores the first.
        """
        return await self._write(bucket, key, value, {}, message_id)

    async def delete(self, bucket: str, key: str, *, revision: int) -> int:
        """Puts a deletion marker at *key*, as `nats kv del` does, if it is still at *revision*. Returns the marker's
        revision.

        Raises WrongRevision, TransportUnavailable.
        """
        headers = {"KV-Operation": "DEL", Header.EXPECTED_LAST_SUBJECT_SEQUENCE.value: str(revision)}
        return await self._write(bucket, key, b"", headers)

    async def purge(self, bucket: str, key: str, *, revision: int | None = None) -> None:
        """Removes *key* with its history, in one write: only a marker stays, as `nats kv purge` leaves it.

        With *revision* it does so only if the key is still at that one. Raises WrongRevision, TransportUnavailable.
        """
        headers = {"KV-Operation": "PURGE", Header.ROLLUP.value: "sub"}
        if revision is not None:
            headers[Header.EXPECTED_LAST_SUBJECT_SEQUENCE.value] = str(revision)
        await self._write(bucket, key, b"", headers)

    async def _write(
        self, bucket: str, key: str, value: bytes, headers: dict[str, str], message_id: str | None = None
    ) -> int:
        cuts = self._connection.cuts
        subject = bucket_subject(bucket, key)
        ack = await self._messages.publish(subject, value, message_id=message_id, headers=headers)
        self._watches.note(bucket, Mark(ack.seq, content=value), cuts)
        return ack.seq

    async def hints(self, bucket: str, key: str, on_hint: Callable[[], Awaitable[None]]) -> Subscription:
        """Calls *on_hint* when somebody writes, or tries to write, *key*: read the key before you act. A hint may be
        lost."""

        async def receive(_: Msg) -> None:
            await on_hint()

        return await self._client.subscribe(bucket_subject(bucket, key), cb=receive)
