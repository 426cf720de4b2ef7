"""nats-py's client, except that it sends nothing after the sender has stopped waiting (design §10.5, ADR 0030)."""

import asyncio
import contextlib
import socket
import struct
from typing import Any, Final

import nats.aio.client
import nats.errors

# The most that is handed to the socket at once. The rest stays in `_pending`, where it can still be dropped.
WRITTEN_AT_ONCE_BYTES: Final = 65_536
# A server that is alive takes what is left to send within this time.
CLOSE_S: Final = 2.0
# Closing discards what the kernel has not sent.
_DISCARDING: Final = struct.pack("ii", 1, 0)


class UnbufferedClient(nats.aio.client.Client):
    """Sends at once, or not at all."""

    def require_connection(self) -> None:
        """Raises ConnectionClosedError once closed, and OutboundBufferLimitError while there is no connection."""
        if self.is_closed:
            raise nats.errors.ConnectionClosedError
        if not self.is_connected or self._flush_queue is None:
            raise nats.errors.OutboundBufferLimitError  # nothing is ever buffered (design §10.5)

    def enqueue(self, command: bytes) -> None:
        """Queues *command* to be sent."""
        assert self._flush_queue is not None
        self._pending.append(command)
        self._pending_data_size += len(command)
        if self._flush_queue.empty():
            self._flush_queue.put_nowait(asyncio.get_running_loop().create_future())

    def drop(self, command: bytes) -> None:
        """Drops *command*, unless it was sent already: nobody waits for it any more."""
        with contextlib.suppress(ValueError):
            self._pending.remove(command)
            self._pending_data_size -= len(command)

    async def _send_command(self, cmd: bytes, priority: bool = False) -> None:
        # without a connection nothing is kept for later: nats-py makes the subscriptions anew by itself
        if not self.is_reconnecting:
            await super()._send_command(cmd, priority)

    async def _flusher(self) -> None:
        """As nats-py's, but in pieces. When the server stalls, the rest stays in `_pending`, not in a buffer from which
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

    async def close(self) -> None:
        """As nats-py's; drops what the server, perhaps stalled, does not take within CLOSE_S."""
        aborting = asyncio.get_running_loop().call_later(CLOSE_S, self._abort)
        try:
            await super().close()
        finally:
            aborting.cancel()

    def _abort(self) -> None:
        """Discards, as far as it can, what was written and is not yet sent: nats-py would wait until it is sent."""
        # whatever a dead connection raises here, the next one must be made
        with contextlib.suppress(Exception):
            writer: Any = getattr(self._transport, "_io_writer", None)
            transport = writer.transport
            link = transport.get_extra_info("socket")  # None where uvloop has closed it
            if link is not None:
                link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _DISCARDING)
            transport.abort()
