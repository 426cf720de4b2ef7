"""A few turns at once for each caller, so that a caller whose name look-ups hang delays no other caller."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator


class CallerTurns:
    """A call that finds no free turn waits for one of its own caller's."""

    def __init__(self, at_once: int) -> None:
        self._at_once = at_once
        self._of: dict[str, asyncio.Semaphore] = {}
        self._held: Counter[str] = Counter()

    @property
    def callers(self) -> int:
        """How many callers have a turn, or wait for one."""
        return len(self._of)

    @contextlib.asynccontextmanager
    async def of(self, caller: str) -> AsyncIterator[None]:
        """One turn of *caller*."""
        turns = self._of.setdefault(caller, asyncio.Semaphore(self._at_once))
        self._held[caller] += 1
        try:
            async with turns:
                yield
        finally:
            self._held[caller] -= 1
            if not self._held[caller]:  # callers come and go
                del self._held[caller], self._of[caller]
