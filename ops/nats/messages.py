"""Messages that a stream stores: publish, read, remove, consume."""

import asyncio
import contextlib
import time
from typing import Final

import nats.js.errors
from nats.js.api import Header, RawStreamMsg
from nats.js.client import JetStreamContext

from contracts.topology import stream_of
from ops.nats.client import REPLY_TIMEOUT_S, Ack, NatsClient
from ops.nats.connection import Connection
from ops.nats.errors import OF_NATS, UNDECIDED, not_stored, translated
from ops.nats.pull import Pull
from ops.nats.write_health import Writes
from ops.telemetry.metrics import consumers_made_anew

UNDECIDED_WAIT_S: Final = 0.01
# JetStream's own limit, of the server or of the account.
_NO_RESOURCES: Final = 10023


class Messages:
    """The messages of all streams, as *client* stores, reads and fetches them."""

    def __init__(self, client: NatsClient, js: JetStreamContext, connection: Connection) -> None:
        self._client, self._js, self._connection = client, js, connection
        self.writes = Writes()
        """What became of the writes of this process, by stream."""
        connection.on_reconnect(self.writes.forget)

    async def publish(
        self, subject: str, payload: bytes, *, message_id: str | None = None, headers: dict[str, str] | None = None
    ) -> Ack:
        """Stores a message and returns the server's ack. Raises StreamFull, WrongRevision, TransportUnavailable.

        Only a work queue raises StreamFull. Any other refusal to store raises TransportUnavailable: the writer of a
        record can only try again.
        """
        all_headers = dict(headers or {})
        if message_id is not None:
            all_headers[Header.MSG_ID.value] = message_id
        until_s = time.monotonic() + REPLY_TIMEOUT_S
        while True:
            try:
                ack = await self._client.store(subject, payload, all_headers, timeout_s=REPLY_TIMEOUT_S)
            except OF_NATS as error:  # not by `translated`: most writes raise nothing, and would pay for it
                if not (_is_undecided(error) and time.monotonic() <= until_s):
                    if isinstance(error, TimeoutError | nats.js.errors.ServiceUnavailableError):
                        self._note_failure(subject, error)
                    raise not_stored(subject, error) from error
            else:
                if self.writes:
                    self.writes.stored(stream_of(subject))
                return ack
            await asyncio.sleep(UNDECIDED_WAIT_S)

    def _note_failure(self, subject: str, error: Exception) -> None:
        # while the whole server is away or just coming back, a missing answer says nothing about the stream
        if isinstance(error, nats.js.errors.APIError):
            if error.err_code == _NO_RESOURCES:
                self.writes.failed(stream_of(subject), "limit", time.monotonic())
        elif self._connection.unbroken_s() >= REPLY_TIMEOUT_S:
            self.writes.failed(stream_of(subject), "silent", time.monotonic())

    async def get(self, stream: str, sequence: int) -> RawStreamMsg | None:
        """The message at *sequence*, or None when it is gone. Raises TransportUnavailable."""
        with translated(stream):
            try:
                return await self._js.get_msg(stream, seq=sequence)
            except nats.js.errors.NotFoundError:
                return None

    async def remove(self, stream: str, sequence: int) -> None:
        """Removes a queued message; one that is gone already is no error. Raises TransportUnavailable."""
        with translated(stream), contextlib.suppress(nats.js.errors.NotFoundError, nats.js.errors.BadRequestError):
            await self._js.delete_msg(stream, sequence)

    async def purge(self, stream: str, subject: str) -> None:
        """Removes all messages of *stream* on *subject*. Raises TransportUnavailable."""
        with translated(stream), contextlib.suppress(nats.js.errors.NotFoundError):
            await self._js.purge_stream(stream, subject=subject)

    async def pull(self, stream: str, consumer: str) -> Pull:
        """A handle on a durable pull consumer that provisioning has made. Raises TransportUnavailable."""
        with translated(stream):
            pull = Pull(self._client, await self._js.pull_subscribe_bind(consumer, stream), stream, consumer)
        consumers_made_anew.begin(stream, consumer)
        return pull


def _is_undecided(error: Exception) -> bool:
    return isinstance(error, nats.js.errors.BadRequestError) and error.err_code == UNDECIDED
