"""Ends a pipeline host that hangs: its worker's loop cannot replace it while the loop itself waits for that host."""

import asyncio
from collections.abc import Callable

import structlog

from lane_worker.forking.host_child import PING_S
from lane_worker.forking.outcome import HostLost
from lane_worker.residence.residence import Residence

log = structlog.get_logger("lane")


class HostWatch:
    """Watches the host of *residence* while it has a model; calls *on_hang* with the seconds of silence
    before it kills it."""

    def __init__(
        self, residence: Residence, *, limit_s: float, look_every_s: float, on_hang: Callable[[float], None]
    ) -> None:
        self._residence = residence
        self._limit_s = limit_s
        self._look_every_s = look_every_s
        self._on_hang = on_hang

    async def run(self) -> None:
        """Kills each host that has not answered for *limit_s*, until cancelled."""
        while True:
            silent_s = self._silent_s()
            if silent_s < self._limit_s:
                await asyncio.sleep(min(self._limit_s - silent_s, self._look_every_s))
                continue
            # This process itself may have been stopped: then it has not yet read the host's answers.
            await asyncio.sleep(2 * PING_S)
            silent_s = self._silent_s()
            if silent_s >= self._limit_s:
                log.error("host_hangs", silent_s=round(silent_s, 1))
                self._on_hang(silent_s)
                try:
                    await self._residence.host.kill()
                except HostLost as error:
                    log.error("host_not_killed", error=str(error))

    def _silent_s(self) -> float:
        return self._residence.host.health_age_s if self._residence.resident is not None else 0.0
