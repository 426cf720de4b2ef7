"""Head and body of an answer in one write: each write is a system call and, most often, a packet."""

import asyncio
from typing import Any, Final

# Longer writes are not copied just to save a system call.
HELD_MAX_BYTES: Final = 16 * 1024


class OneWrite:
    """A *transport* that joins a short write with the one that follows it before anything else runs in *loop*.

    Every other operation comes after what was written, as with the transport itself.
    """

    __slots__ = ("_held", "_loop", "_transport")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._held = b""

    def write(self, data: bytes) -> None:
        held, self._held = self._held, b""
        if held:
            self._transport.write(held + data)
        elif len(data) > HELD_MAX_BYTES:
            self._transport.write(data)
        else:
            self._held = data
            self._loop.call_soon(self._flush)

    def get_write_buffer_size(self) -> int:
        return self._transport.get_write_buffer_size() + len(self._held)

    def _flush(self) -> None:
        held, self._held = self._held, b""
        if held and not self._transport.is_closing():
            self._transport.write(held)

    def write_eof(self) -> None:
        self._flush()
        self._transport.write_eof()

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def abort(self) -> None:
        self._held = b""
        self._transport.abort()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._transport.get_extra_info(name, default)

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def can_write_eof(self) -> bool:
        return self._transport.can_write_eof()

    def pause_reading(self) -> None:
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        self._transport.resume_reading()

    def set_protocol(self, protocol: Any) -> None:
        self._flush()
        self._transport.set_protocol(protocol)
