"""`warmlane up` restarts its own nats-server when the server refuses writes and a restart helps (ADR 0031)."""

import asyncio
import shutil
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from msgspec import Struct

from ops.nats.link import NatsLink
from ops.nats.refusals import learn_refusals
from ops.nats.write_health import Refusals

LOOK_EVERY_S: Final = 1.0
# A stream must have refused writes for this long before a restart: one of them may be stored after all.
STEADY_S: Final = 3.0
# With less free space than this, nats-server would refuse again at once.
NEEDED_BYTES: Final = 32 * 1024 * 1024
PAUSE_FIRST_S: Final = 30.0
PAUSE_MAX_S: Final = 600.0


class Restarts(Struct, frozen=True):
    """The latest restarts: how many in a row, and when the last one was."""

    count: int = 0
    last_s: float = float("-inf")


def needs_room(silent_for_s: float, free_bytes: int) -> bool:
    """Whether a stream is silent, and a restart would not help yet."""
    return silent_for_s >= STEADY_S and free_bytes < NEEDED_BYTES


def may_restart(silent_for_s: float, free_bytes: int, restarts: Restarts, now_s: float) -> bool:
    """Whether nats-server is to be restarted now. Pure.

    1. Some stream has been silent for `STEADY_S`.
    2. There is room on its disk.
    3. The last restart was long enough ago: `PAUSE_FIRST_S`, twice as long each time, `PAUSE_MAX_S` at most.
    """
    pause_s = min(PAUSE_MAX_S, PAUSE_FIRST_S * 2 ** max(0, restarts.count - 1))
    return (
        silent_for_s >= STEADY_S  # 1
        and free_bytes >= NEEDED_BYTES  # 2
        and now_s - restarts.last_s >= pause_s  # 3
    )


class StoreKeeper:
    """Learns which streams refuse writes, and calls *restart* for the server whose store is *store*. It calls *say*
    with what it does."""

    def __init__(
        self, link: NatsLink, store: Path, restart: Callable[[], Awaitable[None]], say: Callable[[str], None]
    ) -> None:
        self._link, self._store = link, store
        self._restart, self._say = restart, say
        self._refusals = Refusals()
        self._restarts = Restarts()
        self._said_room = False

    async def run(self) -> None:
        """Looks every LOOK_EVERY_S, until cancelled."""
        await learn_refusals(self._link, self._refusals)
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            await self._look(time.monotonic())

    async def _look(self, now_s: float) -> None:
        silent_for_s = self._refusals.silent_for_s(now_s)
        free_bytes = shutil.disk_usage(self._store).free
        if needs_room(silent_for_s, free_bytes) and not self._said_room:
            self._said_room = True
            self._say(
                f"nats-server cannot write: {free_bytes / 2**20:.0f} MiB are free at {self._store}, and "
                f"{NEEDED_BYTES / 2**20:.0f} are needed; make room, and `warmlane up` restarts it"
            )
        if now_s - self._restarts.last_s > PAUSE_MAX_S:
            self._restarts = Restarts(0, self._restarts.last_s)
        if may_restart(silent_for_s, free_bytes, self._restarts, now_s):
            streams = ", ".join(sorted(self._refusals.now(now_s)))
            self._say(f"nats-server has refused writes ({streams}) ever since its disk was full: restarting it")
            self._restarts = Restarts(self._restarts.count + 1, now_s)
            self._said_room = False
            await self._restart()
