"""Keeping a lease: renew it, report progress, and learn early when the task is not ours any more."""

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

import structlog
from nats.aio.subscription import Subscription

from contracts import lifecycle
from contracts.progress import StepsDone
from contracts.settings import Windows
from contracts.topology import TASKS
from lane_worker.runtime.held import HeldTask, OwnershipLost
from ops.ending import end
from ops.nats.errors import TransportUnavailable
from ops.nats.link import NatsLink
from ops.waiting import set_within

# A step of a real model takes seconds. Each write pushes an older revision out of the record's history, which is worth
# more than a smoother progress bar.
PROGRESS_INTERVAL_S: Final = 1.0

log = structlog.get_logger("lease")


class LeaseKeeper:
    """Renews the lease of *held* while its context is open; calls *on_lost* once when the task was taken away."""

    def __init__(self, link: NatsLink, held: HeldTask, *, windows: Windows, on_lost: Callable[[], None]) -> None:
        self._link = link
        self._held = held
        self._windows = windows
        self._on_lost = on_lost
        self._wake = asyncio.Event()
        self._look = False
        self._progress = held.task.progress or StepsDone(step=0, steps=held.task.parameters.steps)
        self._keeper: asyncio.Task[None] | None = None
        self._hints: Subscription | None = None

    async def __aenter__(self) -> "LeaseKeeper":
        # no await here: the caller starts the inference inside, and that comes before any of the keeping
        self._keeper = asyncio.create_task(self._keep())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()
        if self._hints is not None:
            try:
                await self._hints.unsubscribe()
            except Exception as error:
                log.debug("unsubscribe_failed", error=repr(error))

    async def stop(self) -> None:
        """Renews no more. A renewal that is under way may still be stored; the next writer overrides it."""
        await end(self._keeper)

    def report(self, progress: StepsDone) -> None:
        """Takes *progress* of the inference; the record follows within a second or so."""
        self._progress = progress
        self._wake.set()

    def renew_now(self) -> None:
        """Renew at once, as after a reconnect."""
        self._look = True
        self._wake.set()

    async def _hint(self) -> None:
        # our own writes show here too: the look decides whether the record is still ours
        self._look = True
        self._wake.set()

    async def _keep(self) -> None:
        try:
            await self._renew_until_lost()
        except Exception:
            # the lease runs out, and the sweeper gives the task to another attempt
            log.exception("lease_keeper_failed", task_id=self._held.task.id)

    async def _renew_until_lost(self) -> None:
        try:
            self._hints = await self._link.entries.hints(TASKS, self._held.task.id, self._hint)
        except Exception as error:
            # hints only make a cancel quicker; the renewal finds out as well
            log.warning("no_hints", task_id=self._held.task.id, error=repr(error))
        renewed_s = written_s = time.monotonic()
        written, is_away = self._progress, False
        while True:
            wait_s = max(0.0, renewed_s + self._windows.lease_renew_s - time.monotonic())
            await set_within(wait_s, self._wake)
            self._wake.clear()
            try:
                if self._look:
                    self._look = False
                    await self._held.check()
                now_s = time.monotonic()
                must_renew = now_s - renewed_s >= self._windows.lease_renew_s
                has_news = self._progress != written and now_s - written_s >= PROGRESS_INTERVAL_S
                if must_renew or has_news:
                    written = self._progress
                    await self._write(written)
                    renewed_s = written_s = now_s
                is_away = False
            except TransportUnavailable as error:
                if not is_away:  # once for an outage
                    log.warning("lease_not_renewed", task_id=self._held.task.id, error=str(error))
                is_away = True
                await asyncio.sleep(0.2)
            except OwnershipLost:
                self._on_lost()
                return
            except lifecycle.IllegalTransition:
                return  # it was settled while this write waited for its turn

    async def _write(self, progress: StepsDone) -> None:
        await self._held.update(
            lambda task: lifecycle.renew(task, progress=progress, lease_s=self._windows.lease_s, now=datetime.now(UTC))
        )
