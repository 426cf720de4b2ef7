"""Server-sent events, as the HTML standard has them ("Interpreting an event stream")."""

import re
from collections.abc import Iterator

from msgspec import Struct

_LINE_ENDS = re.compile(rb"\r\n|\n|\r(?!$)")


class ServerEvent(Struct, frozen=True):
    """An event: *name* is `message` if the stream gives none; *last_id* is the id to reconnect with."""

    name: str
    data: str
    last_id: str


class EventReader:
    """Reads a stream piece by piece. *last_id* is the newest id of a complete event."""

    def __init__(self, last_id: str = "") -> None:
        self.last_id = last_id
        self._name, self._id = "", last_id
        self._data: list[str] = []
        self._unread = b""

    def read(self, piece: bytes) -> Iterator[ServerEvent]:
        """The events that *piece* completes. An event at the end of the stream without its empty line does not
        count."""
        *lines, self._unread = _LINE_ENDS.split(self._unread + piece)
        for line in lines:
            if line:
                self._field(line.decode(errors="replace"))
            elif (event := self._complete()) is not None:
                yield event

    def _field(self, line: str) -> None:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "event":
            self._name = value
        elif name == "data":
            self._data.append(value)
        elif name == "id" and "\0" not in value:
            self._id = value

    def _complete(self) -> ServerEvent | None:
        self.last_id = self._id
        name, data = self._name, self._data
        self._name, self._data = "", []
        return ServerEvent(name or "message", "\n".join(data), self.last_id) if data else None
