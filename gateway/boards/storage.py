"""How much nats-server may still store, and whether that is enough to take a new request (ADR 0031)."""

import asyncio
import shutil
import time
from pathlib import Path
from typing import Final

import structlog
from msgspec import Struct

from ops.nats.errors import TransportUnavailable
from ops.nats.link import NatsLink

LOOK_EVERY_S: Final = 5.0
# As in nats.conf.
DEFAULT_LIMIT_BYTES: Final = 20 * 1024**3
# How long the last reading counts. After that nothing is known, and the server itself decides.
KNOWN_FOR_S: Final = 30.0
# What the tasks of full queues need to end: some 3,000 tasks of 12 kB, and as much again to spare.
RESERVED_BYTES: Final = 64 * 1024 * 1024
RETRY_AFTER_S: Final = 30.0

log = structlog.get_logger("storage")


class Storage(Struct, frozen=True, kw_only=True):
    """What nats-server has stored, what it may store, and what is free on its disk where this gateway can see that."""

    used_bytes: int
    limit_bytes: int
    free_bytes: int | None = None

    @property
    def room_bytes(self) -> int:
        """What may still be stored."""
        by_limit = max(0, self.limit_bytes - self.used_bytes)
        return by_limit if self.free_bytes is None else min(by_limit, self.free_bytes)

    @property
    def takes_requests(self) -> bool:
        """Whether one more request fits beside what the tasks in hand need to end. A small store keeps a tenth."""
        return self.room_bytes >= min(RESERVED_BYTES, self.limit_bytes // 10)


class StorageFull(Exception):
    """A new request is refused so that the tasks in hand can end; nothing was written."""


class StorageWatch:
    """Asks the server every few seconds."""

    def __init__(self, *, limit_bytes: int, store: Path) -> None:
        """*limit_bytes* is the server's `max_file_store`, which it does not report. *store* is its folder, if on this
        machine."""
        self._limit_bytes = limit_bytes
        self._store = store
        self._known: tuple[Storage, float] | None = None
        self._is_reported_full = False

    @property
    def known(self) -> Storage | None:
        if self._known is None or time.monotonic() - self._known[1] > KNOWN_FOR_S:
            return None
        return self._known[0]

    def require_room(self) -> None:
        """Raises StorageFull."""
        storage = self.known
        if storage is not None and not storage.takes_requests:
            raise StorageFull

    @property
    def trouble(self) -> str | None:
        storage = self.known
        if storage is None or storage.takes_requests:
            return None
        room_mib = storage.room_bytes / 2**20
        return f"the queue's storage is nearly full: {room_mib:.0f} MiB of room; new requests are refused"

    async def run(self, link: NatsLink) -> None:
        """Until cancelled."""
        while True:
            await self.look(link)
            await asyncio.sleep(LOOK_EVERY_S)

    async def look(self, link: NatsLink) -> None:
        try:
            usage = await link.streams.usage()
        except TransportUnavailable:
            return
        limits = [self._limit_bytes, *([usage.limit_bytes] if usage.limit_bytes else [])]
        storage = Storage(used_bytes=usage.used_bytes, limit_bytes=min(limits), free_bytes=self._free_bytes())
        self._known = (storage, time.monotonic())
        if storage.takes_requests == self._is_reported_full:
            self._is_reported_full = not storage.takes_requests
            log.warning("storage_full" if self._is_reported_full else "storage_has_room", room_bytes=storage.room_bytes)

    def _free_bytes(self) -> int | None:
        try:
            return shutil.disk_usage(self._store).free
        except OSError:  # the server is on another machine
            return None
