"""What a browser's `EventSource` makes of a stream, by the HTML standard.

Source: https://html.spec.whatwg.org/multipage/server-sent-events.html, "Interpreting an event stream".
"""

import re

from msgspec import Struct


class Message(Struct, frozen=True):
    """An event as a page's handler receives it: `onmessage` where *name* is `message`."""

    name: str
    data: str
    last_id: str


class EventSource:
    """Reads a stream piece by piece. *retry_ms*, *last_id*: what the stream has set so far."""

    def __init__(self) -> None:
        self.retry_ms: int | None = None
        self.last_id = ""
        self._name, self._data, self._id = "", "", ""
        self._unread = b""

    def read(self, piece: bytes) -> list[Message]:
        """The events that *piece* completes. A last block without its empty line is no event."""
        *lines, self._unread = re.split(rb"\r\n|\n|\r(?!$)", self._unread + piece)
        return [message for line in lines if (message := self._line(line.decode())) is not None]

    def _line(self, line: str) -> Message | None:
        if not line:
            return self._dispatched()
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "event":
            self._name = value
        elif field == "data":
            self._data += value + "\n"
        elif field == "id" and "\0" not in value:
            self._id = value
        elif field == "retry" and value.isascii() and value.isdigit():
            self.retry_ms = int(value)
        return None  # a comment has an empty name; other fields are ignored

    def _dispatched(self) -> Message | None:
        self.last_id = self._id
        name, data, self._name, self._data = self._name, self._data, "", ""
        return Message(name or "message", data.removesuffix("\n"), self.last_id) if data else None
