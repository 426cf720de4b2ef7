"""Whether the connection of one process is up, since when, and what to call when it breaks or comes back."""

import contextlib
import time
from collections.abc import Callable
from datetime import UTC, datetime

import structlog

from ops.nats.client import NatsClient

log = structlog.get_logger("nats")


class Connection:
    """A client that is connected, or was connected before: nats-py reconnects by itself."""

    def __init__(self, client: NatsClient) -> None:
        self._client = client
        self._since_s: float | None = time.monotonic()
        self._cut_at: datetime | None = None
        self._closing = False
        self.cuts = 0
        """How often the connection broke."""
        self._on_break: list[Callable[[], None]] = []
        self._on_reconnect: list[Callable[[], None]] = []

    @property
    def is_connected(self) -> bool:
        return self._client.is_connected

    def unbroken_s(self) -> float:
        """How long the connection has been up without a break, in seconds; 0 while it is broken."""
        since_s = self._since_s
        return 0.0 if since_s is None or not self._client.is_connected else time.monotonic() - since_s

    @property
    def cut_at(self) -> datetime | None:
        """When the connection broke last; None if it never did."""
        return self._cut_at

    @property
    def server_version(self) -> str:
        """The version of the connected server, such as `2.12.1`."""
        version = self._client.connected_server_version
        return f"{version.major}.{version.minor}.{version.patch}"

    def on_break(self, callback: Callable[[], None]) -> None:
        """Calls *callback* whenever the connection breaks."""
        self._on_break.append(callback)

    def on_reconnect(self, callback: Callable[[], None]) -> None:
        """Calls *callback* after every reconnect. Callbacks run in the order in which they were given."""
        self._on_reconnect.append(callback)

    def on_lost(self) -> None:
        """nats-py reports that the connection broke. While this process closes it, the report is ignored."""
        if self._closing:
            return
        self._since_s = None
        self.cuts += 1
        self._cut_at = datetime.now(UTC)
        log.warning("nats_disconnected")
        for callback in self._on_break:
            callback()

    def on_back(self) -> None:
        """nats-py reports that the connection is up again."""
        self._since_s = time.monotonic()
        log.info("nats_reconnected")
        for callback in self._on_reconnect:
            callback()

    async def close(self) -> None:
        """Closes the connection; what was not sent is dropped."""
        self._closing = True
        with contextlib.suppress(Exception):
            await self._client.close()
