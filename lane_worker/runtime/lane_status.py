"""What a lane reports of itself in its heartbeat: one place decides what it may report when (design §6)."""

import asyncio
import time
from typing import Final

from contracts.lanes import LaneState
from lane_worker.runtime.heartbeat import Heartbeat
from ops.lanes.plan import crash_loops, failed_again

ANNOUNCED_S: Final = 2.0


class LaneStatus:
    """The status of a lane. One that leaves is `draining`, whatever else it does meanwhile."""

    def __init__(self, heartbeat: Heartbeat) -> None:
        self.drains = False
        self._heartbeat = heartbeat
        self._failures: tuple[float, ...] = ()  # when loads failed, since the last success

    def show(self, state: LaneState, detail: str = "") -> None:
        """The lane is in *state* now."""
        if not self.drains:
            self._heartbeat.set(state, detail)

    def show_start(self, state: LaneState, detail: str) -> None:
        """As `show`, on the way to a warm pipeline. A lane that crash-loops is reported as such until it is warm."""
        if not crash_loops(self._failures):
            self.show(state, detail)

    def failed(self, error: str, *, again_in_s: float) -> None:
        """The lane could not become warm, because of *error*."""
        self._failures = failed_again(self._failures, now_s=time.monotonic())
        if crash_loops(self._failures):
            again = f"the last: {error}; tried again after {again_in_s:g} s"
            self.show(LaneState.CRASH_LOOPING, f"it could not load {len(self._failures)} times in a row; {again}")
        else:
            self.show(LaneState.UNHEALTHY, error)

    def hangs(self, silent_s: float) -> None:
        """The lane's host did not answer for *silent_s* seconds."""
        self.show(LaneState.UNHEALTHY, f"the pipeline host did not answer for {silent_s:.0f} s")

    def succeeded(self) -> None:
        """The lane became warm: the failures before count no more."""
        self._failures = ()

    async def announce(self, state: LaneState, detail: str) -> bool:
        """Shows *state* and waits until the server has it. Returns whether the lane may act on it; where the server
        does not answer, the lane is WARM again."""
        self.show(state, detail)
        try:
            async with asyncio.timeout(ANNOUNCED_S):
                await self._heartbeat.published()
        except TimeoutError:
            self.show(LaneState.WARM)
            return False
        return not self.drains

    def drain(self, *, for_quota: bool) -> None:
        """The lane leaves, and reports that at once. *for_quota*: it leaves because the quota denies it."""
        if for_quota:
            self._heartbeat.set(LaneState.DRAINING, "the quota does not allow it any more", leaving_for="quota")
        else:
            self._heartbeat.set(LaneState.DRAINING)
        self.drains = True
