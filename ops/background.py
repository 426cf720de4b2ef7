"""The background work of a process. A piece that fails is restarted, and reported as in trouble meanwhile."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

RETRY_FIRST_S: Final = 0.5
RETRY_MAX_S: Final = 30.0
# A piece that has run for this long since its restart counts as healthy.
WELL_AFTER_S: Final = 5.0

log = structlog.get_logger("background")


class Background:
    """The pieces of one process, by name. A piece that does not run in `keep` could end without a log line."""

    def __init__(self) -> None:
        self._troubles: dict[str, str] = {}
        self.names: list[str] = []

    async def keep(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        """Runs *work* until it returns. When it raises, that is logged and reported, and *work* runs again later."""
        self.names.append(name)
        loop, wait_s = asyncio.get_running_loop(), RETRY_FIRST_S
        try:
            while True:
                begun_s = loop.time()
                well = loop.call_later(WELL_AFTER_S, self.works, name)
                try:
                    await work()
                    return
                except Exception as error:
                    if loop.time() - begun_s > RETRY_MAX_S:
                        wait_s = RETRY_FIRST_S
                    # the error's class alone: its text may repeat what was read
                    self._troubles[name] = f"{name} ended with {type(error).__name__}; again in {wait_s:g} s"
                    log.exception("background_failed", name=name, again_in_s=wait_s)
                finally:
                    well.cancel()
                await asyncio.sleep(wait_s)
                wait_s = min(RETRY_MAX_S, wait_s * 2)
        finally:
            self.names.remove(name)

    def works(self, name: str) -> None:
        """*name* has just done its work: whatever its trouble was, it is over."""
        self._troubles.pop(name, None)

    def trouble(self, name: str, text: str) -> None:
        """*name* goes on, but cannot do its work, because of *text*."""
        self._troubles[name] = text

    @property
    def troubles(self) -> dict[str, str]:
        """What is wrong now, by name, in words for an operator."""
        return dict(self._troubles)
